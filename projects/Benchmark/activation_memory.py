#!/usr/bin/env python3
"""The memory of a training step of the backbone, with and without recomputation.

    python projects/Benchmark/activation_memory.py
    python projects/Benchmark/activation_memory.py --size 800 1344

It prints what forward keeps allocated for backward, and the peak of forward and backward. Neither
includes the parameters and their gradients, which an earlier step has left. The model is R-50 with
its feature pyramid; all stages are trained. Every variant is compared with float64 first.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter

import torch
from accuracy import prepare
from detectron2.modeling import Backbone
from measure import allocated
from tabulate import tabulate
from variants import BASE, OURS, VARIANTS, Case, Variant
from workloads import BackboneWorkload

MIB = 2**20
CHECKPOINTED = ["MODEL.BACKBONE.ACTIVATION_CHECKPOINTING", "['res2', 'res3', 'res4', 'res5']"]
NAMES = ["FrozenBN", BASE, OURS, f"{OURS}, fused", f"{OURS}, fused, recomputed"]
NAMES += [f"{OURS}, convolutions recomputed"]


def step(backbone: Backbone, x: torch.Tensor, device: str) -> tuple[float, float]:
    """(MiB that forward keeps, MiB at the peak of the step)."""
    with allocated(device) as forward:
        features = backbone(x)
    del features
    with allocated(device) as whole:
        levels = list(backbone(x).values())
        # The mean square of a normalized level is 1, and its gradient only rounding.
        slopes = [torch.randn(level.shape).to(level) for level in levels]
        torch.autograd.backward(levels, slopes)
    return forward.now / MIB, whole.peak / MIB


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="faster_rcnn_R_50_FPN", help="or a config")
    parser.add_argument("--size", type=int, nargs=2, default=[512, 512], metavar=("H", "W"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    size, trained = (args.size[0], args.size[1]), ("MODEL.BACKBONE.FREEZE_AT", "0")
    case = Case("backbone", args.model, size, "train", device=args.device, opts=trained)
    chosen = [variant for variant in VARIANTS if variant.name in NAMES]
    chosen.append(Variant(f"{OURS}, checkpointed", CHECKPOINTED))
    x = BackboneWorkload(case).x
    found = []
    for name, (run, model, _) in prepare(case, chosen).items():
        run()  # leaves the gradients that the measured step adds to
        found.append((name, *step(model.backbone, x, args.device)))
    base = next(sizes for name, *sizes in found if name == BASE)
    rows = [[name, kept, kept / base[0], peak, peak / base[1]] for name, kept, peak in found]
    header = ["variant", "kept (MiB)", "/ GN", "peak (MiB)", "/ GN"]
    print(f"{args.model}, backbone and FPN, {size[0]} x {size[1]}, torch {torch.__version__}\n")
    print(tabulate(rows, header, tablefmt="github", floatfmt=("", ".0f", ".3f", ".0f", ".3f")))


if __name__ == "__main__":
    main()
