"""Small COCO truths and detections for the tests of this folder."""

from typing import Any

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from gnws_d2.projects.report.matching import coco_api

SIDE = 40  # of the square objects, in pixels


def truth_annotation(id: int, image: int, category: int, x: float) -> dict[str, Any]:
    annotation = detection(image, category, x, 0)
    return {**annotation, "id": id, "iscrowd": 0, "area": SIDE * SIDE}


def detection(image: int, category: int, x: float, score: float) -> dict[str, Any]:
    box = [x, 10, SIDE, SIDE]
    return {"image_id": image, "category_id": category, "score": score, "bbox": box}


def coco(
    annotations: list[dict[str, Any]], images: int = 2, names: tuple[str, ...] = ("a", "b")
) -> COCO:
    dataset = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 256, "height": 128}
            for i in range(1, images + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, 1)],
    }
    return coco_api(dataset)


def jittered(truth: COCO, seed: int = 0) -> list[dict[str, Any]]:
    """The objects of Digits as a mediocre detector finds them: some missed, some of the wrong
    class, moved, with scores; and boxes where nothing is."""
    rng = np.random.default_rng(seed)
    categories = sorted(truth.cats)
    rows = []
    for number, image in sorted(truth.imgs.items()):
        height, width = image["height"], image["width"]
        for annotation in truth.imgToAnns[number]:
            if rng.random() < 0.15:
                continue
            move = rng.integers(-3, 4, 2)
            x, y, w, h = annotation["bbox"]
            category = annotation["category_id"]
            if rng.random() < 0.15:
                category = categories[(categories.index(category) + 1) % len(categories)]
            mask = np.roll(truth.annToMask(annotation), tuple(move[::-1]), (0, 1))
            box = [x + move[0], y + move[1], w * rng.uniform(0.8, 1.2), h]
            points = np.array(annotation["keypoints"]) + np.resize([*move, 0], 12)
            rows.append(_row(number, category, box, rng.beta(6, 2), mask, points))
        for _ in range(2):
            w, h = rng.uniform(0.1, 0.4, 2) * [width, height]
            x, y = rng.uniform(0, 1, 2) * [width - w, height - h]
            mask = np.zeros((height, width), np.uint8)
            mask[int(y) : int(y + h), int(x) : int(x + w)] = 1
            points = np.resize([x, y, 2], 12)
            rows.append(_row(number, int(rng.choice(categories)), [x, y, w, h], 0.3, mask, points))
    return rows


def _row(
    image: int, category: int, box: list[float], score: float, mask: np.ndarray, points: np.ndarray
) -> dict[str, Any]:
    rle = mask_utils.encode(np.asfortranarray(mask))
    return {
        **detection(image, category, 0, float(score)),
        "bbox": [float(value) for value in box],
        "keypoints": points.tolist(),
        "segmentation": {**rle, "counts": rle["counts"].decode()},
    }
