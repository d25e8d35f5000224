#!/usr/bin/env python3
"""What MMDetection's rules of assigning and sampling cost in training, against Detectron2's own.

    python projects/Benchmark/assignment.py --rounds 60
    python projects/Benchmark/assignment.py --rounds 60 --sizes 800 1066 800 1333

Both have the same weights, images and objects, and run in one process in turn (see measure.py). By
default there are two images of one size, with 7 objects each, as COCO has on average; two images of
different size have anchors on their padding. It prints milliseconds and their ratio, ours to
Detectron2's, with its 95% interval, for each part of a training step that differs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from measure import Step, paired_times, ratio
from tabulate import tabulate
from torch import nn

import gnws_d2

CONFIG = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_gn_ws_2x.yaml"
OBJECTS = 7
RULES = {
    "Detectron2": [
        "MODEL.PROPOSAL_GENERATOR.NAME",
        "RPN",
        "MODEL.ROI_HEADS.NAME",
        "StandardROIHeads",
    ],
    "MMDetection": [],
}


def make_batch(sizes: Sequence[tuple[int, int]], classes: int) -> list[dict]:
    """Random boxes of the sizes that objects of COCO have, their masks the boxes themselves."""
    rng = np.random.default_rng(0)
    batch = []
    for height, width in sizes:
        center = rng.uniform(0, [width, height], (OBJECTS, 2))
        side = np.exp(rng.normal(4.4, 0.9, (OBJECTS, 2)))
        boxes = Boxes(torch.from_numpy(np.hstack([center - side / 2, center + side / 2])).float())
        boxes.clip((height, width))
        corners = boxes.tensor.numpy()[:, [0, 1, 2, 1, 2, 3, 0, 3]].astype(np.float64)
        instances = Instances(
            (height, width),
            gt_boxes=boxes,
            gt_classes=torch.from_numpy(rng.integers(0, classes, OBJECTS)),
            gt_masks=PolygonMasks([[corner] for corner in corners]),
        )
        image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
        batch.append({"image": image, "instances": instances})
    return batch


@torch.no_grad()
def make_parts(model: nn.Module, batch: list[dict]) -> dict[str, Step]:
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
    parts = {
        "anchors": lambda: rpn.label_and_sample_anchors(anchors, targets),
        "losses of the RPN": lambda: rpn.losses(anchors, logits, labels, deltas, boxes),
        "proposals": lambda: heads.label_and_sample_proposals(proposals, targets),
    }
    return {**parts, "all three": lambda: [part() for part in parts.values()]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", default=CONFIG)
    add("--sizes", type=int, nargs="+", default=[800, 1216] * 2, help="of each image: height width")
    add("--rounds", type=int, default=40)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    sizes = list(zip(args.sizes[::2], args.sizes[1::2], strict=True))
    weights, parts = None, {}
    for name, opts in RULES.items():
        cfg = gnws_d2.load_config(args.config_file, [*opts, "MODEL.DEVICE", args.device])
        model = build_model(cfg).train()
        weights = weights or model.state_dict()
        model.load_state_dict(weights)
        parts[name] = make_parts(model, make_batch(sizes, cfg.MODEL.ROI_HEADS.NUM_CLASSES))
    rows = []
    with EventStorage():
        for part in parts["MMDetection"]:
            times = paired_times({name: parts[name][part] for name in RULES}, args.rounds)
            found = ratio(times["MMDetection"], times["Detectron2"])
            medians = [1000 * float(np.median(times[name])) for name in RULES]
            rows.append([part, *medians, found.median, f"{found.low:.3f} to {found.high:.3f}"])
    header = ["", *(f"{name} (ms)" for name in RULES), "ratio", "95% interval"]
    print(tabulate(rows, header, tablefmt="github", floatfmt=("", ".1f", ".1f", ".3f")))


if __name__ == "__main__":
    main()
