"""``gnws convert``: annotations of any known format as COCO JSON, YOLO, Pascal VOC or CVAT XML."""

import argparse
import io
import json
import logging
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import yaml
from detectron2.utils.logger import setup_logger
from PIL import Image

from gnws_d2.data import read_image
from gnws_d2.errors import DatasetError, FileError, one_line_errors
from gnws_d2.files import publish
from gnws_d2.projects.own_data import rle
from gnws_d2.projects.own_data.arguments import data_splits, resolve
from gnws_d2.projects.own_data.check import check_coco
from gnws_d2.projects.own_data.coco_file import CocoFile, kept_files, read_coco
from gnws_d2.projects.own_data.fit import refuse
from gnws_d2.projects.own_data.keypoints import flip_pairs, keypoint_names
from gnws_d2.projects.own_data.source import source_of
from gnws_d2.projects.own_data.tiles import cut, tile_windows
from gnws_d2.projects.own_data.truth import used_part

Parts = dict[str, CocoFile]  # by split; "" for a single source
Texts = Iterator[tuple[str, str | bytes]]  # path in the output, "" for itself, and content
logger = logging.getLogger("gnws_d2.convert")


def read_part(name: str, skip_bad: bool = False) -> tuple[CocoFile, Path]:
    """What a dataset uses, checked, by file name and category id, and the deepest folder of all
    images of its file, which names are relative to. Raises DatasetError where it is damaged."""
    if (source := source_of(name)) is None:
        raise DatasetError(f"{name} is registered by a program. Name its annotation file instead.")
    coco = read_coco(source.file, source.folder)
    files = source.images(coco.file_names)
    sound, problems = check_coco(coco, files)
    if not skip_bad:
        refuse(coco.file, problems)
    used = used_part(coco, sound, files, source.part, coco.category_ids)
    paths = [os.path.normpath(files.path(listed)) for listed in coco.file_names]
    root = Path(os.path.commonpath(map(os.path.dirname, paths)))
    for image in used.images:
        path = os.path.normpath(files.folder / image["file_name"])
        image["file_name"] = Path(path).relative_to(root).as_posix()
    used.images.sort(key=lambda image: image["file_name"])
    used.categories.sort(key=lambda category: category["id"])
    return used, root


def _objects(coco: CocoFile, lost: Counter[str], *members: str) -> Iterator[tuple[Any, ...]]:
    """Each image, its name without suffix, and its objects with their class. Crowds, scores and
    ``members`` are lost."""
    of_image: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    for o in coco.annotations or ():
        lost.update(member for member in ("score", "iscrowd", *members) if o.get(member))
        if not o["iscrowd"]:
            of_image[o["image_id"]].append({**o, "class": coco.class_names[o["category_id"]]})
    for image in coco.images:
        yield image, os.path.splitext(image["file_name"])[0], of_image[image["id"]]


def _coco(parts: Parts, lost: Counter[str]) -> Texts:
    for split, coco in parts.items():
        members = {m: getattr(coco, m) or [] for m in ("images", "annotations", "categories")}
        name = f"annotations/instances_{split}.json" if split else ""
        yield name, json.dumps({"info": {}, **members})


def _yolo(parts: Parts, lost: Counter[str]) -> Texts:
    every = {split: [*_objects(coco, lost)] for split, coco in parts.items()}
    objects = [o for images in every.values() for *_, found in images for o in found]
    masks, points = ([o.get(member) for o in objects] for member in ("segmentation", "keypoints"))
    posed = bool(objects) and all(points) and len(set(map(len, points))) == 1
    ringed = not posed and all(isinstance(mask, list) and len(mask) == 1 for mask in masks)
    logger.info("YOLO gets %s.", "keypoints" if posed else "polygons" if ringed else "boxes")
    for mask in () if ringed else filter(None, masks):
        several = "masks of several polygons" if len(mask) > 1 else "polygons"
        lost["masks in RLE" if isinstance(mask, dict) else several] += 1
    lost["num_keypoints"] += 0 if posed else sum(bool(o.get("num_keypoints")) for o in objects)
    categories = [category for coco in parts.values() for category in coco.categories]
    classes = list(dict.fromkeys(category["name"] for category in categories))
    info: dict[str, Any] = {split or "train": f"images/{split}".rstrip("/") for split in parts}
    info["names"] = dict(enumerate(classes))
    if posed:
        names = next(filter(None, map(keypoint_names, categories)), None)
        names = names or [*map(str, range(len(points[0]) // 3))]
        other = {a: b for pair in flip_pairs(names) for a, b in (pair, pair[::-1])}
        info["kpt_shape"] = [len(names), 3]
        info["kpt_names"] = {number: [*names] for number in info["names"]}
        info["flip_idx"] = [names.index(other.get(name, name)) for name in names]
    yield "data.yaml", yaml.safe_dump(info, allow_unicode=True, sort_keys=False)
    for split, images in every.items():
        for image, stem, found in images:
            lines, size = "", (image["width"], image["height"])
            for o in found:
                x, y, w, h = o["bbox"]
                shape = o["segmentation"][0] if ringed else [x + w / 2, y + h / 2, w, h]
                exact = [v / size[i % 2] for i, v in enumerate(shape)]
                kept = [min(max(v, 0.0), 1.0) for v in exact]  # Ultralytics refuses others
                lost["parts outside of images"] += kept != exact
                pose = o["keypoints"] if posed else []
                kept += [v / (*size, 1)[i % 3] for i, v in enumerate(pose)]
                lines += " ".join(map(repr, [classes.index(o["class"]), *kept])) + "\n"
            # As Ultralytics looks for it: the last folder of the name "images" is "labels".
            parts_of_path = os.path.join("/images", split, stem).rsplit("/images/", 1)
            yield f"{'/labels/'.join(parts_of_path)[1:]}.txt", lines


def _voc(parts: Parts, lost: Counter[str]) -> Texts:
    for split, coco in parts.items():
        for image, stem, found in _objects(coco, lost, "segmentation", "num_keypoints"):
            text = f"<annotation><filename>{escape(image['file_name'])}</filename><size><width>"
            text += f"{image['width']}</width><height>{image['height']}</height></size>"
            for o in found:
                x, y, w, h = o["bbox"]
                sides = {"xmin": x, "ymin": y, "xmax": x + w, "ymax": y + h}.items()
                corners = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
                text += f"\n<object><name>{escape(o['class'])}</name><difficult>0</difficult>"
                text += f"<bndbox>{corners}</bndbox></object>"
            yield os.path.join(split, f"{stem}.xml"), f"{text}</annotation>\n"


def _cvat(parts: Parts, lost: Counter[str]) -> Texts:
    for split, coco in parts.items():
        labels = (f"<label><name>{escape(c['name'])}</name></label>" for c in coco.categories)
        text = f"<meta><task><labels>{''.join(labels)}</labels></task></meta>\n"
        for number, (image, _, found) in enumerate(_objects(coco, lost, "num_keypoints")):
            size = f'width="{image["width"]}" height="{image["height"]}"'
            shapes = chain.from_iterable(map(_cvat_shapes, found))
            inside = "".join(f'<{shape} occluded="0" z_order="0"/>\n' for shape in shapes)
            name = quoteattr(image["file_name"])
            text += f'<image id="{number}" name={name} {size}>\n{inside}</image>\n'
        text = f"<annotations><version>1.1</version>{text}</annotations>\n"
        yield f"{split}.xml" if split else "", text


def _cvat_shapes(o: dict[str, Any]) -> Iterator[str]:
    """The tag and attributes of each polygon of an object, of its mask, or of its box."""
    mask, label, (x, y, w, h) = o.get("segmentation"), f"label={quoteattr(o['class'])}", o["bbox"]
    runs = rle.runs(mask["counts"], *mask["size"]) if isinstance(mask, dict) else np.zeros(0, int)
    if isinstance(mask, list):
        group = f'{label} group_id="{o["id"]}"' if len(mask) > 1 else label
        for ring in mask:
            points = ";".join(f"{x},{y}" for x, y in zip(ring[::2], ring[1::2], strict=True))
            yield f'polygon {group} points="{points}"'
    elif len(runs) and (inside := rle.bounds(runs, mask["size"][0])):
        left, top, w, h = inside
        pixels = np.repeat(np.arange(len(runs)) % 2, runs).reshape(mask["size"][::-1]).T
        rows = [0, *pixels[top : top + h, left : left + w].ravel().tolist()]
        first, *more = (len([*run]) for _, run in groupby(rows))  # row by row, the first of zeros
        window = f'left="{left}" top="{top}" width="{w}" height="{h}"'
        yield f'mask {label} rle="{", ".join(map(str, (first - 1, *more)))}" {window}'
    else:
        yield f'box {label} xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}"'


def _tiles(parts: Parts, roots: dict[str, Path], side: int, overlap: float) -> Texts:
    for split, coco in parts.items():
        of_image: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
        for annotation in coco.annotations or ():
            of_image[annotation["image_id"]].append(annotation)
        tiles, made = [], []
        for image in coco.images:
            name, pixels = image["file_name"], read_image(roots[split] / image["file_name"], "RGBA")
            for window in tile_windows(*pixels.shape[1::-1], side, overlap):
                x, y, right, bottom = window
                tile = {"id": len(tiles) + 1, "file_name": f"{name}_{x}_{y}.png"}
                tiles.append({**tile, "width": right - x, "height": bottom - y})
                for seen in cut(of_image[image["id"]], image, window):
                    made.append({**seen, "id": len(made) + 1, "image_id": tile["id"]})
                shown, file = pixels[y:bottom, x:right], io.BytesIO()
                channels = 3 if (shown[..., 3] == 255).all() else 4
                Image.fromarray(shown[..., :channels]).save(file, "PNG")
                yield f"images/{split}/{tile['file_name']}", file.getvalue()
        counts = split, len(tiles), len(coco.images), len(made)
        logger.info("%s: %d tiles of %d images, %d annotations.", *counts)
        yield from _coco({split: replace(coco, images=tiles, annotations=made)}, Counter())


WRITERS = {"coco": _coco, "yolo": _yolo, "voc": _voc, "cvat": _cvat}


def write(texts: Texts, output: Path) -> None:
    """Write all files of ``output``, or none. Raises DatasetError where two have one name."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(".gnws.partial", ".", output.absolute().parent) as folder:
        for name, text in texts:
            (file := Path(folder, "made", name)).parent.mkdir(parents=True, exist_ok=True)
            if file.exists():
                raise DatasetError(f"Two images would have the annotations {name}. Rename one.")
            file.write_bytes(text.encode() if isinstance(text, str) else text)
        publish(Path(folder, "made"), output)


@one_line_errors(OSError)
@kept_files()
def main(args: argparse.Namespace) -> None:
    setup_logger(name="gnws_d2")
    suffix = {"coco": ".json", "cvat": ".xml"}.get(args.to, "") if args.source else ""
    if os.path.lexists(args.output) or not args.output.name.lower().endswith(suffix):
        found = "exists" if os.path.lexists(args.output) else f"does not end in {suffix}"
        raise FileError(f"--output {args.output} {found}. Name another.")
    if args.tile and (args.source or args.to != "coco"):
        raise FileError("--tile writes COCO JSON of --data FOLDER. Name the folder, without --to.")
    splits = {"": [resolve(args.source)]} if args.source else data_splits(args)
    parts, roots, lost = {}, {}, Counter()
    for split, names in splits.items():
        for name in names:
            if split in parts:
                raise DatasetError(f"{split} is {' and '.join(names)}. Convert one at a time.")
            parts[split], roots[split] = read_part(name, args.skip_bad_annotations)
    tiles = args.tile and _tiles(parts, roots, args.tile, args.overlap)
    write(tiles or WRITERS[args.to](parts, lost), args.output)
    for split, coco in () if args.tile else parts.items():
        counts = split or args.output, len(coco.images), len(coco.annotations or ()), roots[split]
        logger.info("%s: %d images, %d annotations. The images stay in %s.", *counts)
    if args.to == "yolo":
        folders = ", ".join(str(args.output / "images" / split) for split in parts)
        logger.info("Copy or link those of each part: YOLO looks for them in %s.", folders)
    named = {"num_keypoints": "keypoints", "iscrowd": "crowds", "score": "scores"}
    if found := ", ".join(f"{named.get(w, w)}: {n}" for w, n in lost.items() if n):
        logger.warning("%s has no place for these, which are lost: %s.", args.to, found)
