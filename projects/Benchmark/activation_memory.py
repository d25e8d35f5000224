#!/usr/bin/env python3
"""The memory that a training step takes: normalization and ReLU separate, fused, recomputed.

    python projects/Benchmark/activation_memory.py
    python projects/Benchmark/activation_memory.py --size 800 1344 --amp

A step of the backbone of a config with its feature pyramid, with random weights:

- FrozenBN: batch normalization with constants, without Weight Standardization;
- GN: Detectron2's own modules, without Weight Standardization;
- GN+WS: the same, standardized;
- GN+WS, fused: GroupNorm + ReLU as one operation (MODEL.GN.FUSE_RELU);
- GN+WS, recomputed: its results recomputed in backward (MODEL.GN.RECOMPUTE_ACTIVATIONS);
- GN+WS, convolutions recomputed: some of its inputs, too (MODEL.GN.RECOMPUTE_CONVOLUTIONS);
- GN+WS, checkpointed: res2 to res5 (MODEL.BACKBONE.ACTIVATION_CHECKPOINTING).

Printed is what the forward leaves allocated for backward (the activations, the standardized
weights) and the peak of forward and backward, both less what was allocated before: the parameters
and their gradients, which are there from an earlier step. On a GPU they are what its allocator
counts, on the CPU what torch's profiler does. Before that, gradients are compared with float64.
"""

from __future__ import annotations

import argparse
import copy

import torch
from detectron2.modeling import build_backbone
from measure import allocated
from tabulate import tabulate
from torch import nn

import gnws_d2
from gnws_d2.projects.acceleration import checkpoint_activations, fuse_norm_relu

MIB = 2**20


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", default="COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml"
    )
    parser.add_argument("--size", type=int, nargs=2, default=[512, 512], metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--freeze-at", type=int, default=0, help="stages that are not trained")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def backbone(args: argparse.Namespace, norm: str) -> nn.Module:
    opts = ["MODEL.DEVICE", args.device, "MODEL.BACKBONE.FREEZE_AT", str(args.freeze_at)]
    cfg = gnws_d2.load_config(args.config_file, opts)
    # Not by the overrides: a part without GN cannot be standardized, and the config says it is.
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = norm
    torch.manual_seed(0)
    return build_backbone(cfg).to(args.device).train()


def variants(args: argparse.Namespace) -> dict[str, nn.Module]:
    plain = backbone(args, "GN")
    standardized = gnws_d2.standardize(copy.deepcopy(plain), ["stem", "backbone", "fpn"])
    checkpointed = copy.deepcopy(standardized)
    checkpoint_activations(checkpointed, ["res2", "res3", "res4", "res5"])
    return {
        "FrozenBN": backbone(args, "FrozenBN"),
        "GN": plain,
        "GN+WS": standardized,
        "GN+WS, fused": fuse_norm_relu(copy.deepcopy(standardized)),
        "GN+WS, recomputed": fuse_norm_relu(copy.deepcopy(standardized), True),
        "GN+WS, convolutions recomputed": fuse_norm_relu(copy.deepcopy(standardized), True, True),
        "GN+WS, checkpointed": checkpointed,
    }


def step(model: nn.Module, x: torch.Tensor, args: argparse.Namespace) -> tuple[float, float]:
    """(MiB left by the forward, MiB at the peak of the step)."""
    with allocated(args.device) as forward:
        levels = run(model, x, args)
    del levels
    with allocated(args.device) as whole:
        backward(run(model, x, args))
    return forward.now / MIB, whole.peak / MIB


def run(model: nn.Module, x: torch.Tensor, args: argparse.Namespace) -> list[torch.Tensor]:
    with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.amp):
        return list(model(x).values())


def backward(levels: list[torch.Tensor]) -> None:
    # Random gradients: the mean square of a normalized level is 1, and its gradient only rounding.
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(t.shape, generator=generator).to(t) for t in levels]
    torch.autograd.backward(levels, grads)


def gradient(model: nn.Module, x: torch.Tensor, args: argparse.Namespace) -> torch.Tensor:
    backward(run(model, x, args))
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]).double()


def check(models: dict[str, nn.Module], x: torch.Tensor, args: argparse.Namespace) -> None:
    """Leaves each model with gradients, which every later step adds to, and compares those of
    this package with float64."""
    exact = argparse.Namespace(**{**vars(args), "amp": False})
    truth = gradient(copy.deepcopy(models["GN+WS"]).double(), x.double(), exact)
    errors = {
        name: ((gradient(model, x, args) - truth).norm() / truth.norm()).item()
        for name, model in models.items()
        if name.startswith("GN+WS")
    }
    for name in ("FrozenBN", "GN"):
        gradient(models[name], x, args)
    print("distance of the gradient from that in float64, relative:")
    print(tabulate([[name, f"{error:.1e}"] for name, error in errors.items()]), "\n")
    if max(errors.values()) > 2 * errors["GN+WS"]:
        raise SystemExit(
            "The gradient of one is more than twice as far from float64 as that of GN+WS, see the "
            "table above; nothing is measured. Run `make test` to find out why."
        )


def main() -> None:
    args = parse_args()
    models = variants(args)
    x = torch.randn(args.batch, 3, *args.size, device=args.device)
    check(models, x, args)
    figures = {name: step(model, x, args) for name, model in models.items()}
    base = figures["GN"]
    rows = [
        [name, f"{kept:.0f}", f"{kept / base[0]:.3f}", f"{peak:.0f}", f"{peak / base[1]:.3f}"]
        for name, (kept, peak) in figures.items()
    ]
    precision = "bfloat16 autocast" if args.amp else "float32"
    device = "CPU" if args.device == "cpu" else torch.cuda.get_device_name()
    print(
        f"{args.config_file}, backbone and FPN, {args.batch} x 3 x {args.size[0]} x "
        f"{args.size[1]}, {precision}, FREEZE_AT {args.freeze_at}, {device}, "
        f"torch {torch.__version__}\n"
    )
    header = ["variant", "kept (MiB)", "/ GN", "peak (MiB)", "/ GN"]
    print(tabulate(rows, header, tablefmt="github"))


if __name__ == "__main__":
    main()
