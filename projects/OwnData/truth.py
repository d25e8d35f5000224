"""Register the used part of a COCO file with Detectron2, to train on and to evaluate against.

A file that is used as it is becomes the dataset's ``json_file``. Otherwise ``json_file`` is a file
in the cache folder that holds only the images, annotations and categories that are used, so that
Detectron2's own ``COCOEvaluator`` evaluates against exactly those.
"""

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from gnws_d2.engine.evaluation import object_area
from gnws_d2.errors import DatasetError
from gnws_d2.files import atomic_write, cache_dir, cache_path

from .check import usable_mask
from .coco_file import CocoFile, class_ids, is_object, kept, read_coco
from .image_files import ImageFiles
from .keypoints import flip_pairs, keypoint_names, limbs
from .source import SPLIT_FIX, Source, split_names


def register_source(
    name: str,
    part: str,
    coco: CocoFile,
    sound: CocoFile,
    images: ImageFiles,
    classes: Mapping[str, int],
) -> CocoFile:
    """Register a COCO file under ``name``. A registered one is replaced.

    Args:
        part: the part of the split that is used.
        coco, sound, images: the file's content, the part that can be used, see
            :func:`~.check.check_coco`, and where its images are.
        classes: the classes in the predictor's order, and the ids that results have for those that
            the file lacks.

    Returns:
        The part of the file that is used.

    Raises:
        DatasetError: no image is left, or two categories with annotations share a name.
    """
    spare = {c: number for c, number in classes.items() if number not in coco.class_names}
    # Detectron2's evaluation requires a category for every class.
    ids = class_ids(classes, coco.category_ids, spare, taken=coco.class_names)
    used = used_part(coco, sound, images, part, ids)
    if not used.images:
        raise DatasetError(f"{name}: no image is left. {SPLIT_FIX if part else 'Repair the file'}.")
    file = _json_file(used, coco)
    kept(Source(Path(file)), lambda: used)
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(name, None)
    DatasetCatalog.register(name, functools.partial(load_dicts, name))
    MetadataCatalog.get(name).set(
        thing_classes=list(classes),
        thing_dataset_id_to_contiguous_id={n: index for index, n in enumerate(ids.values())},
        json_file=file,
        image_root=str(images.folder),
        evaluator_type="coco",
        is_source=True,
    )
    if category := next(filter(keypoint_names, used.categories), None):
        names, lines = keypoint_names(category), limbs(category)
        points = {"keypoint_names": names, "keypoint_flip_map": flip_pairs(names)}
        MetadataCatalog.get(name).set(**points, keypoint_connection_rules=lines)
    return used


def load_dicts(name: str) -> list[dict[str, Any]]:
    """Load a registered source in Detectron2's format. Annotations keep their ids."""
    data = MetadataCatalog.get(name)
    classes = tuple(data.thing_dataset_id_to_contiguous_id.items())
    key = data.json_file, data.image_root, classes
    return [*kept(key, lambda: _load(*key))]


def _load(file: str, image_root: str, classes: tuple[tuple[int, int], ...]) -> list[dict[str, Any]]:
    coco, to_class = read_coco(file), dict(classes)
    records = {
        image["id"]: {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": int(image["height"]),
            "width": int(image["width"]),
            "image_id": image["id"],
            "annotations": [],
        }
        for image in sorted(coco.images, key=lambda image: image["id"])
    }
    for annotation in coco.annotations or ():
        records[annotation["image_id"]]["annotations"].append(_to_detectron2(annotation, to_class))
    return list(records.values())


def _to_detectron2(annotation: dict[str, Any], to_class: dict[int, int]) -> dict[str, Any]:
    made = {
        "id": annotation["id"],
        "bbox": annotation["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": to_class[annotation["category_id"]],
        "iscrowd": int(annotation["iscrowd"]),
    }
    if mask := annotation.get("segmentation"):
        if isinstance(mask, dict) and isinstance(mask["counts"], list):
            mask = mask_util.frPyObjects(mask, *mask["size"])
        made["segmentation"] = mask
    if points := annotation.get("keypoints"):
        # COCO stores the indices of pixels; Detectron2 expects the centers of those pixels.
        moved = np.asarray(points, np.float64).reshape(-1, 3) + [0.5, 0.5, 0]
        made["keypoints"] = moved.ravel().tolist()
    return made


def used_part(
    coco: CocoFile, sound: CocoFile, files: ImageFiles, part: str, ids: Mapping[str, int]
) -> CocoFile:
    """The images, annotations and categories that are used, with all members that pycocotools
    requires. ``ids`` are those of the file, by class."""
    images, numbers = sound.images, set(ids.values())
    categories = [category for category in coco.categories if category["id"] in numbers]
    categories += [{"id": n, "name": c} for c, n in ids.items() if n not in coco.class_names]
    kept = [
        annotation
        for annotation in sound.annotations or ()
        if annotation["category_id"] in numbers
        # Detectron2 leaves out an object that has polygons, none of which is usable.
        and (not annotation.get("segmentation") or usable_mask(annotation["segmentation"]))
    ]
    if part:
        # Split all images, so that repairing a skipped one does not move others.
        with_objects = {annotation["image_id"] for annotation in filter(is_object, kept)}
        names = {image["file_name"] for image in images if image["id"] in with_objects}
        chosen = split_names(coco.file_names, part, names)
        images = [image for image in images if image["file_name"] in chosen]
    renamed = files.renamed
    images = [{**i, "file_name": renamed.get(i["file_name"], i["file_name"])} for i in images]
    if coco.annotations is None:
        return CocoFile(coco.file, images, None, categories)
    shown = {image["id"]: image for image in images}
    kept = [annotation for annotation in kept if annotation["image_id"] in shown]
    # pycocotools takes 0 for "not matched", and stores ids as floats.
    keeps_ids = all(isinstance(a["id"], int) and 0 < a["id"] < 2**53 for a in kept)
    # Where some annotations have keypoints, the others get invisible ones: Detectron2 and
    # pycocotools require them of all.
    points = max((len(a.get("keypoints") or ()) for a in kept), default=0)
    annotations = [
        _complete(a, a["id"] if keeps_ids else number, points, shown[a["image_id"]])
        for number, a in enumerate(kept, 1)
    ]
    return CocoFile(coco.file, images, annotations, categories)


def _complete(
    annotation: dict[str, Any], number: int, points: int, image: dict[str, Any]
) -> dict[str, Any]:
    """``annotation`` of ``image`` with the id ``number`` and, unless ``points`` is 0, that many
    values of keypoints."""
    made = {**annotation, "id": number, "iscrowd": int(annotation.get("iscrowd", 0))}
    if mask := usable_mask(made.pop("segmentation", None)):
        made["segmentation"] = mask
    if not annotation.get("area"):
        made["area"] = object_area(made, image)
    if points:
        made["keypoints"] = annotation.get("keypoints") or [0] * points
        made["num_keypoints"] = sum(visibility > 0 for visibility in made["keypoints"][2::3])
    return annotation if made == annotation else made  # the memory of a copy


def _json_file(used: CocoFile, coco: CocoFile) -> str:
    """The path of a JSON file with exactly ``used``: that of ``coco``, or one in the cache."""
    if used == coco:
        with open(coco.file, "rb") as opened:  # pycocotools reads UTF-8 without a mark alone
            if json.detect_encoding(opened.read(4)) == "utf-8":
                return coco.file
    members = ("images", "annotations", "categories")
    content = {m: value for m in members if (value := getattr(used, m)) is not None}
    text = json.dumps(content).encode()
    file = cache_path() / "truth" / f"{hashlib.sha256(text).hexdigest()[:16]}.json"
    if not file.is_file() or file.read_bytes() != text:
        cache_dir(file.parent)
        with atomic_write(file) as partial:
            partial.write_bytes(text)
    return str(file)
