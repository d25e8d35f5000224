"""COCO files in Detectron2's catalogs: registered, checked, and loaded.

The same for sources (:mod:`~gnws_d2.data.source`) and for what users registered themselves with
``register_coco_instances``: only what passed :mod:`~gnws_d2.data.coco_check` is trained on and
evaluated.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from ..errors import shorten
from ..files import atomic_write
from .coco_check import Verdict, check_coco
from .coco_file import CocoFile, coco_api, read_coco, state_of
from .errors import DatasetError
from .source import Source, is_source
from .split import split_names

logger = logging.getLogger(__name__)

SKIPPED_FILE = "skipped_annotations.json"
# COCO itself has two boxes without height or width, which both filters of training drop.
_PUBLISHED = {name for split in builtin._PREDEFINED_SPLITS_COCO.values() for name in split}


@dataclass(frozen=True)
class CheckOptions:
    """How a dataset is checked; see :func:`~gnws_d2.data.coco_check.check_coco`.

    Attributes:
        skip_bad: leave out what is bad, instead of an error.
    """

    skip_bad: bool = False
    needs_masks: bool = False


_options: defaultdict[str, CheckOptions] = defaultdict(CheckOptions)  # by dataset name
_verdicts: dict[tuple, Verdict] = {}  # by the state of a file, and how it was checked


def register_source(
    name: str,
    classes: Sequence[str] | None = None,
    spare_ids: Sequence[int] = (),
    options: CheckOptions = CheckOptions(),
) -> None:
    """Register the COCO file that ``name`` describes; again, if it is registered already.

    Args:
        classes: the names of the classes in the predictor's order. None: those of the file that
            have annotations, by id.
        spare_ids: the ids that results have for classes that the file lacks, if it does not use
            them otherwise.

    Raises:
        DatasetError: the file cannot be read, or two categories with annotations share a name.
    """
    source = Source.parse(name)
    if source is None:
        raise DatasetError(f"{name!r} names no COCO annotation file (*.json).")
    coco = read_coco(source.file)
    if classes is None:
        classes = list(coco.used_categories)
    metadata: dict[str, Any] = {
        "thing_classes": list(classes),
        "thing_dataset_id_to_contiguous_id": _id_map(coco, classes, spare_ids),
        "json_file": str(source.file),
        "image_root": str(source.image_folder([n for n in map(_name, coco.images) if n])),
        "evaluator_type": "coco",
        "is_source": True,
        **_keypoint_metadata(coco, classes),
    }
    unregister(name)
    _options[name] = options
    DatasetCatalog.register(name, functools.partial(load_dicts, name))
    MetadataCatalog.get(name).set(**metadata)


def unregister(name: str) -> None:
    """Forget a source."""
    for catalog in (DatasetCatalog, MetadataCatalog, _options):
        catalog.pop(name, None)


def is_coco(name: str) -> bool:
    """Whether a registered dataset is a COCO file, by its metadata."""
    metadata = MetadataCatalog.get(name)
    return metadata.get("evaluator_type") == "coco" and bool(metadata.get("json_file"))


def check_registered(name: str, skip_bad: bool) -> None:
    """Check a COCO dataset that was registered elsewhere. What is bad in it can only be skipped if
    this package loads it, which then replaces its function in the catalog.

    Raises:
        DatasetError: something is bad, and not to be skipped.
    """
    _options[name] = CheckOptions(skip_bad)
    if _check(name).problems:
        logger.warning("%s is loaded from its file by gnws_d2, without what is bad in it.", name)
        DatasetCatalog.pop(name)
        DatasetCatalog.register(name, functools.partial(load_dicts, name))


def _check(name: str, coco: CocoFile | None = None) -> Verdict:
    """What the check finds in the file of a registered COCO dataset, once for each state of it."""
    metadata, options = MetadataCatalog.get(name), _options[name]
    # The images of a large published dataset are looked at when they are read.
    folder = Path(metadata.image_root) if is_source(name) else None
    key = *state_of(metadata.json_file), folder, options.needs_masks
    if key not in _verdicts:
        _verdicts[key] = check_coco(
            coco or read_coco(metadata.json_file),
            folder,
            needs_masks=options.needs_masks,
            empty_boxes_too=name in _PUBLISHED,
        )
    problems = _verdicts[key].problems
    if problems and not options.skip_bad:
        more = f" There are {len(problems) - 1} more." if len(problems) > 1 else ""
        raise DatasetError(
            f"{metadata.json_file}: {shorten(problems[0].reason, quote=False)}.{more} Fix the file "
            "(check_data.py lists everything), or go on without these images and annotations: "
            "--skip-bad-annotations, DATALOADER.SKIP_BAD_ANNOTATIONS True."
        )
    return _verdicts[key]


def load_coco(name: str) -> CocoFile:
    """The images, annotations and categories of a registered COCO dataset that are used: its part,
    without what is bad if that is to be skipped, and for a source without classes that the
    predictor does not have.

    Raises:
        DatasetError: something is bad, or nothing is left.
    """
    metadata = MetadataCatalog.get(name)
    coco = read_coco(metadata.json_file)
    verdict = _check(name, coco)
    source = Source.parse(name) if is_source(name) else None
    images = [image for i, image in enumerate(coco.images) if i not in verdict.bad_images]
    annotations = coco.annotations and [
        _compressed(a) for i, a in enumerate(coco.annotations) if i not in verdict.bad_annotations
    ]
    if source and source.part:
        # Of all images: repairing those that are skipped moves no other.
        chosen = split_names([_name(image) for image in coco.images], source.part)
        images = [image for image in images if image["file_name"] in chosen]
    if not images:
        raise DatasetError(f"dataset {name}: no image is left. Add some, or repair the file.")
    if source and annotations:
        ids, known = {image["id"] for image in images}, metadata.thing_dataset_id_to_contiguous_id
        annotations = [a for a in annotations if a["image_id"] in ids and a["category_id"] in known]
    return CocoFile(coco.file, images, _with_keypoints(annotations), coco.categories)


def _compressed(annotation: dict[str, Any]) -> dict[str, Any]:
    """The same, but a mask that is a list of runs as compressed RLE: Detectron2 takes no other."""
    mask = annotation.get("segmentation")
    if isinstance(mask, dict) and isinstance(mask["counts"], list):
        return {**annotation, "segmentation": mask_util.frPyObjects(mask, *mask["size"])}
    return annotation


def _with_keypoints(annotations: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Where some annotations have keypoints, the others get invisible ones: Detectron2 and
    pycocotools require them of all."""
    count = max((len(a.get("keypoints") or ()) for a in annotations or ()), default=0)
    if not annotations or not count:
        return annotations
    return [a if a.get("keypoints") else {**a, "keypoints": [0] * count} for a in annotations]


def load_dicts(name: str) -> list[dict[str, Any]]:
    """A registered COCO dataset in Detectron2's format; annotations keep their id."""
    coco = load_coco(name)
    metadata = MetadataCatalog.get(name)
    to_class = metadata.get("thing_dataset_id_to_contiguous_id")
    if to_class is None:
        ids = sorted(coco.class_names)
        to_class = {number: i for i, number in enumerate(ids)}
        names = [coco.class_names[number] for number in ids]
        metadata.set(thing_classes=names, thing_dataset_id_to_contiguous_id=to_class)
    objects: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in coco.images}
    for annotation in coco.annotations or ():
        objects[annotation["image_id"]].append(_to_detectron2(annotation, to_class))
    return [
        {
            "file_name": os.path.join(metadata.image_root, image["file_name"]),
            "height": int(image["height"]),
            "width": int(image["width"]),
            "image_id": image["id"],
            "annotations": objects[image["id"]],
        }
        for image in sorted(coco.images, key=lambda image: image["id"])
    ]


def _to_detectron2(annotation: dict[str, Any], to_class: dict[int, int]) -> dict[str, Any]:
    made = {
        "id": annotation["id"],
        "bbox": annotation["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": to_class[annotation["category_id"]],
        "iscrowd": int(annotation.get("iscrowd", 0)),
    }
    if mask := annotation.get("segmentation"):
        made["segmentation"] = mask
    if points := annotation.get("keypoints"):
        # COCO's are indices of pixels, Detectron2's are points: the middles of those pixels.
        moved = np.asarray(points, np.float64).reshape(-1, 3) + [0.5, 0.5, 0]
        made["keypoints"] = moved.ravel().tolist()
    return made


def coco_truth(dataset_name: str) -> COCO:
    """What a registered COCO dataset is evaluated against, in memory and with its own ids: see
    :func:`load_coco`.

    Raises:
        DatasetError: something in the file is bad.
    """
    coco = load_coco(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    categories = coco.categories
    if is_source(dataset_name):
        by_id = {category["id"]: category for category in categories}
        names = metadata.thing_classes
        categories = [
            {**by_id.get(number, {}), "id": number, "name": names[index]}
            for number, index in sorted(metadata.thing_dataset_id_to_contiguous_id.items())
        ]
    truth: dict[str, Any] = {"info": {}, "images": coco.images, "categories": categories}
    if coco.annotations is not None:
        ids = [annotation["id"] for annotation in coco.annotations]
        # pycocotools takes 0 for "not matched", and stores ids as floats.
        if not all(isinstance(number, int) and 0 < number < 2**53 for number in ids):
            ids = list(range(1, len(ids) + 1))
        truth["annotations"] = list(map(_to_evaluate, coco.annotations, ids))
    return coco_api(truth)


def _to_evaluate(annotation: dict[str, Any], number: int) -> dict[str, Any]:
    """With the members that pycocotools takes for granted."""
    made = {**annotation, "id": number, "iscrowd": int(annotation.get("iscrowd", 0))}
    if not annotation.get("segmentation"):
        made.pop("segmentation", None)
    if "area" not in annotation:
        made["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    if points := annotation.get("keypoints"):
        made["num_keypoints"] = sum(visibility > 0 for visibility in points[2::3])
    return made


def _id_map(coco: CocoFile, classes: Sequence[str], spare_ids: Sequence[int]) -> dict[int, int]:
    """The file's id of each class -> its index. Every class needs one, or Detectron2's evaluation
    refuses the dataset."""
    known, taken = coco.category_ids, set(coco.class_names)
    ids = {}
    for index, name in enumerate(classes):
        number = known.get(name)
        if number is None:
            number = spare_ids[index] if index < len(spare_ids) else -1
            if number < 0 or number in taken:
                number = max(taken) + 1
            taken.add(number)
        ids[number] = index
    return ids


def _keypoint_metadata(coco: CocoFile, classes: Sequence[str]) -> dict[str, Any]:
    names: Any = next(
        (c["keypoints"] for c in coco.categories if c["name"] in classes and c.get("keypoints")), []
    )
    if not names or not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        return {}
    flips = [
        (name, name.replace("left", "right"))
        for name in names
        if "left" in name and name.replace("left", "right") in names
    ]
    return {
        "keypoint_names": names,
        "keypoint_flip_map": flips,
        "keypoint_connection_rules": [],
    }


def _name(image: dict[str, Any]) -> str:
    name = image.get("file_name")
    return name if isinstance(name, str) and "\0" not in name else ""


def write_skipped(names: Sequence[str], folder: str) -> None:
    """List what is skipped of datasets in ``folder``/skipped_annotations.json, if anything is."""
    skipped = {}
    for name in names:
        if _options[name].skip_bad and is_coco(name) and (problems := _check(name).problems):
            skipped[MetadataCatalog.get(name).json_file] = [vars(p) for p in problems]
    file = Path(folder) / SKIPPED_FILE
    text = json.dumps(skipped, indent=1)
    if not skipped or (file.exists() and file.read_text(encoding="utf-8") == text):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as partial:
        partial.write_text(text, encoding="utf-8")
    count = sum(map(len, skipped.values()))
    logger.warning("%d bad images and annotations are skipped; %s lists them.", count, file)
