#!/usr/bin/env python3
"""What else a user could take: a small detector of LibreYOLO, trained as long as `gnws train`.

    pip install libreyolo==1.6.0    # MIT license; into an environment of its own
    gnws convert --data FOLDER --output OUT    # the split of `gnws train`; prints where IMAGES are
    python projects/Benchmark/other_detector.py --train OUT/annotations/instances_train.json=IMAGES
        --test OUT/annotations/instances_val.json=IMAGES --minutes 5 --seed 1

It starts from random weights. `--minutes` are minutes of processor time, in training: other work on
the machine does not count. One epoch is timed first, and the schedule is fitted to the time.
"""

import json
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

LIMIT = 1000


def to_coco(image_id: int, boxes: Any, scores: Any, labels: Any, ids: list[int]) -> list[dict]:
    """Detections of an image in COCO form: `boxes` are N x 4 corners in pixels (x0, y0, x1, y1),
    and `labels` index `ids`, the ids of the categories."""
    rows = []
    for (x0, y0, x1, y1), score, label in zip(boxes, scores, labels, strict=True):
        row = {"image_id": image_id, "category_id": ids[int(label)], "score": float(score)}
        rows.append(row | {"bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)]})
    return rows


def average_precision(truth: COCO, detections: list[dict]) -> tuple[float, float]:
    """Box AP and AP50 in percent, of up to `LIMIT` detections an image; 0 without any."""
    if not detections:
        return 0.0, 0.0
    evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
    evaluation.params.maxDets = [LIMIT]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = 100 * evaluation.eval["precision"][..., 0, 0]  # IoU thresholds x recalls x classes
    precision = precision[..., precision.max((0, 1)) >= 0]  # without classes that have no object
    return float(precision.mean()), float(precision[0].mean())


def train(data: Path, epochs: int, args: Namespace) -> tuple[Any, float]:
    """A model trained for so many epochs, and the seconds of processor time that it took."""
    import libreyolo

    start, (family, _, size) = time.process_time(), args.model.partition("-")
    model = getattr(libreyolo, family)(None, size=size, device="cpu")
    run = {"project": args.output, "name": f"{epochs}-epochs", "workers": 0, "eval_interval": 0}
    run |= {"imgsz": model.input_size, "batch": 8, "seed": args.seed, "pretrained": False}
    files = model.train(data=str(data), epochs=epochs, device="cpu", **run)
    seconds = time.process_time() - start
    return libreyolo.LibreYOLO(files["last_checkpoint"], device="cpu"), seconds


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--train", metavar="JSON=IMAGES", required=True)
    parser.add_argument("--test", metavar="JSON=IMAGES", action="append", required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--model", default="LibrePICODET-s", help="class and size of LibreYOLO")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="output/other")
    args = parser.parse_args()

    file, _, images = args.train.partition("=")
    categories = {row["id"]: row["name"] for row in COCO(file).dataset["categories"]}
    content = {"path": images, "train": images, "annotations": {"train": str(Path(file).resolve())}}
    content |= {"names": list(categories.values()), "nc": len(categories)}
    (data := Path(args.output, "data.yaml")).parent.mkdir(parents=True)
    data.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML

    epochs = max(1, round(60 * args.minutes / train(data, 1, args)[1]))
    model, seconds = train(data, epochs, args)
    print(f"{args.model}: {epochs} epochs, {seconds / 60:.1f} minutes of processor time")
    for file, _, images in (test.partition("=") for test in args.test):
        truth, found = COCO(file), []
        for image in truth.dataset["images"]:
            boxes = model(Path(images, image["file_name"]), conf=0.001, max_det=LIMIT).boxes
            found += to_coco(image["id"], boxes.xyxy, boxes.conf, boxes.cls, list(categories))
        print(f"{file}: AP %.1f, AP50 %.1f" % average_precision(truth, found))


if __name__ == "__main__":
    main()
