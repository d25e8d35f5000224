#!/usr/bin/env python3
"""What MMDetection's rules of assigning and sampling cost in training, against Detectron2's own.

    python projects/Benchmark/assignment.py
    python projects/Benchmark/assignment.py --sizes 800 1066 800 1333 --whole-step

Both have the same weights, images and objects, and are run in one process in turn (measure.py says
how). By default two images of one size, with 7 objects each, as COCO has on average; two images of
different size have anchors on their padding. Printed are milliseconds and their ratio, ours to
Detectron2's, with its 95% interval: of the parts that differ, and with --whole-step of a training
step, forward and backward.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from measure import paired_times, ratio
from tabulate import tabulate
from torch import nn

import gnws_d2

RULES = {
    "Detectron2": [
        *("MODEL.PROPOSAL_GENERATOR.NAME", "RPN", "MODEL.ROI_HEADS.NAME", "StandardROIHeads")
    ],
    "MMDetection": [],
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", default="COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_gn_ws_2x.yaml"
    )
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[800, 1216, 800, 1216],
        help="height and width of each image",
    )
    parser.add_argument("--objects", type=int, default=7, help="in each image")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--whole-step", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def make_batch(sizes: list[tuple[int, int]], objects: int, classes: int) -> list[dict]:
    """Random boxes of the sizes that objects of COCO have, their masks the boxes themselves."""
    rng = np.random.default_rng(0)
    batch = []
    for height, width in sizes:
        center = rng.uniform(0, [width, height], (objects, 2))
        side = np.exp(rng.normal(4.4, 0.9, (objects, 2)))
        boxes = Boxes(torch.from_numpy(np.hstack([center - side / 2, center + side / 2])).float())
        boxes.clip((height, width))
        corners = boxes.tensor.numpy()[:, [0, 1, 2, 1, 2, 3, 0, 3]].astype(np.float64)
        instances = Instances(
            (height, width),
            gt_boxes=boxes,
            gt_classes=torch.from_numpy(rng.integers(0, classes, objects)),
            gt_masks=PolygonMasks([[corner] for corner in corners]),
        )
        image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
        batch.append({"image": image, "instances": instances})
    return batch


def make_parts(model: nn.Module, batch: list[dict]) -> dict[str, Callable[[], object]]:
    """The parts of a step that differ, from feature maps of noise on."""
    rpn, heads = model.proposal_generator, model.roi_heads
    images = model.preprocess_image(batch)
    targets = [record["instances"].to(model.device) for record in batch]
    height, width = images.tensor.shape[-2:]
    channels = model.backbone.output_shape()[rpn.in_features[0]].channels
    grids = [(-(-height // s), -(-width // s)) for s in rpn.anchor_generator.strides]
    torch.manual_seed(0)
    features = [torch.randn(len(batch), channels, *grid).to(model.device) for grid in grids]
    anchors = rpn.anchor_generator(features)
    logits, deltas = rpn.rpn_head(features)
    logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
    deltas = [x.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in deltas]
    labels, boxes = rpn.label_and_sample_anchors(anchors, targets)
    proposals = rpn.predict_proposals(anchors, logits, deltas, images.image_sizes)
    return {
        "anchors": lambda: rpn.label_and_sample_anchors(anchors, targets),
        "losses of the RPN": lambda: rpn.losses(anchors, logits, labels, deltas, boxes),
        "proposals": lambda: heads.label_and_sample_proposals(proposals, targets),
    }


def make_all(steps: list[Callable[[], object]]) -> Callable[[], object]:
    return lambda: [step() for step in steps]


def make_step(model: nn.Module, batch: list[dict]) -> Callable[[], object]:
    def step() -> None:
        model.zero_grad()
        sum(model(batch).values()).backward()

    return step


def main() -> None:
    args = parse_args()
    sizes = list(zip(args.sizes[::2], args.sizes[1::2], strict=True))
    weights, parts = None, {}
    for name, opts in RULES.items():
        cfg = gnws_d2.load_config(args.config_file, [*opts, "MODEL.DEVICE", args.device])
        batch = make_batch(sizes, args.objects, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
        model = build_model(cfg).train()
        weights = weights or model.state_dict()
        model.load_state_dict(weights)
        with torch.no_grad():
            parts[name] = make_parts(model, batch)
        parts[name]["all three"] = make_all(list(parts[name].values()))
        if args.whole_step:
            parts[name]["training step"] = make_step(model, batch)
    rows = []
    with EventStorage():
        for part in parts["MMDetection"]:
            steps = {name: parts[name][part] for name in RULES}
            times = paired_times(steps, args.rounds)
            found = ratio(times["MMDetection"], times["Detectron2"])
            medians = [1000 * float(np.median(times[name])) for name in RULES]
            rows.append([part, *medians, found.median, f"{found.low:.3f} to {found.high:.3f}"])
    header = ["", *(f"{name} (ms)" for name in RULES), "ratio", "95% interval"]
    print(tabulate(rows, header, tablefmt="github", floatfmt=("", ".1f", ".1f", ".3f")))


if __name__ == "__main__":
    main()
