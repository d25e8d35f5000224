#!/usr/bin/env python3
"""What Weight Standardization costs at inference: paired times against the model with GN alone.

    python projects/Benchmark/inference.py
    python projects/Benchmark/inference.py --size 800 1344 --rounds 15

The backbone of a config with its feature pyramid, with random weights, is timed in evaluation mode:

- GN: the same model without standardization;
- GN again: another copy of it, the control: what differs from 1 here is noise;
- GN+WS: standardized weights kept between forwards, as this package does it;
- GN+WS, folded: plain convolutions;
- GN+WS at every forward: the formula each time, as MMDetection's ConvWS2d computes it.

All variants are run in one process in turn, in another order each round. Printed is the median over
the rounds of the time divided by that of GN in the same round, with a 95% interval of that median
(bootstrap). Before that, the outputs of the GN+WS variants are compared.
"""

from __future__ import annotations

import argparse
import copy
import platform
import time
from collections.abc import Callable

import numpy as np
import torch
from detectron2.modeling import build_backbone
from tabulate import tabulate
from torch import nn

import gnws_d2
from gnws_d2.layers import StandardizedConv, fold, standardize_weight


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", default="COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml"
    )
    parser.add_argument("--size", type=int, nargs=2, default=[512, 512], metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def variants(config_file: str, device: str) -> dict[str, nn.Module]:
    cfg = gnws_d2.load_config(config_file, ["MODEL.DEVICE", device])
    torch.manual_seed(0)
    plain = build_backbone(cfg).to(device).eval()
    standardized = copy.deepcopy(plain)
    gnws_d2.standardize(standardized, ["stem", "backbone", "fpn"])
    every_forward = copy.deepcopy(standardized)
    for conv in every_forward.modules():
        if isinstance(conv, StandardizedConv):
            conv.standardized_weight = lambda conv=conv: standardize_weight(conv.weight)
    return {
        "GN": plain,
        "GN again": copy.deepcopy(plain),
        "GN+WS": standardized,
        "GN+WS, folded": fold(standardized),
        "GN+WS at every forward": every_forward,
    }


def seconds(run: Callable[[], object], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interval(ratios: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The 95% bootstrap interval of the median."""
    samples = rng.choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(samples, axis=1), [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    args = parse_args()
    models = variants(args.config_file, args.device)
    with torch.inference_mode():
        measure(args, models)


def measure(args: argparse.Namespace, models: dict[str, nn.Module]) -> None:
    x = torch.randn(1, 3, *args.size, device=args.device)
    outputs = {name: model(x) for name, model in models.items()}
    for name in ("GN+WS, folded", "GN+WS at every forward"):
        for level, feature in outputs["GN+WS"].items():
            torch.testing.assert_close(outputs[name][level], feature, rtol=0, atol=0)

    rng = np.random.default_rng(0)
    names = list(models)
    times = {name: np.empty(args.rounds) for name in names}
    for i in range(args.rounds):
        for name in rng.permutation(names):
            times[name][i] = seconds(lambda name=name: models[name](x), args.device)
    rows = []
    for name in names:
        ratios = times[name] / times["GN"]
        low, high = interval(ratios, rng)
        milliseconds = f"{np.median(times[name]) * 1e3:.1f}"
        rows.append([name, milliseconds, f"{np.median(ratios):.3f}", f"{low:.3f} to {high:.3f}"])
    device = platform.processor() or platform.machine()
    if args.device != "cpu":
        device = torch.cuda.get_device_name()
    print(
        f"{args.config_file}, backbone and FPN, 1 x 3 x {args.size[0]} x {args.size[1]}, float32, "
        f"{args.rounds} rounds\n{device}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}\n"
    )
    print(tabulate(rows, ["variant", "ms", "time / GN", "95% interval"], tablefmt="github"))


if __name__ == "__main__":
    main()
