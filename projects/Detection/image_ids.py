"""The ids of images in detections.json, those of an annotation file where one is named."""

import itertools
import json
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gnws_d2.errors import DatasetError
from gnws_d2.projects.detection.inputs import Frame
from gnws_d2.projects.own_data import path_key

logger = logging.getLogger("gnws_d2.demo")

Id = int | str
Claim = tuple[tuple[int, bool, bool], Any]  # how well paths agree, and an id or a file


class ImageIds:
    """Ids of images. An image of ``files`` has that of the image in ``annotations`` whose path
    agrees with its own in the most folders, from the name on; others are numbered after these.
    They agree in any spelling, see :func:`~gnws_d2.projects.own_data.path_key`, best in the same.

    Args:
        annotations: a COCO file; None numbers all images from 1.
        files: the images to detect on.

    Raises:
        DatasetError: it is no COCO file, two images in it could be one file, or the other way
            round, or no file is in it.
    """

    def __init__(self, annotations: str | None = None, files: Sequence[Path] = ()) -> None:
        listed = _read(annotations) if annotations else {}
        self._next = int(max((id for id in listed if not isinstance(id, str)), default=0)) + 1
        keys = {id: path_key(name) for id, name in listed.items()}
        by_name, by_id = defaultdict(list), defaultdict(list)
        for id, key in keys.items():
            by_name[key[-1]].append(id)
        for file in files:
            path = os.path.abspath(file)
            own = path_key(Path(path))
            claims = [
                ((*_agreement(own, keys[id]), path.endswith(listed[id])), id)
                for id in by_name.get(own[-1], ())
            ]
            if claims:
                agreed, id = _best(claims, f"in {annotations}, {file}")
                by_id[id].append((agreed, file))
        best = {id: _best(by_id[id], f"in {annotations}, image {id!r}") for id in by_id}
        self._ids: dict[Path, Id] = {file: id for id, (_, file) in best.items()}
        missing = [file for file in files if file not in self._ids]
        moved = [file for (_, is_whole, _), file in best.values() if not is_whole]
        if annotations and files and not best:
            example = next(iter(listed.values()), "")
            raise DatasetError(
                f"none of the {len(files)} images is in {annotations}, which names such as "
                f"{example!r}. Name the file of these images."
            )
        for kind, found in (("are not", missing), ("have other folders", moved)):
            if annotations and found:
                logger.warning(
                    "%d images %s in %s, such as %s", len(found), kind, annotations, found[0]
                )

    def of(self, frame: Frame) -> Id:
        """The id of an image, or of the first frame of an animation; a new one of other frames."""
        if not frame.number and frame.file in self._ids:
            return self._ids[frame.file]
        self._next += 1
        return self._next - 1


def _read(annotations: str) -> dict[Id, str]:
    """The file_names of the images of a COCO file, by their ids."""
    try:
        images = json.loads(Path(annotations).read_bytes())["images"]
        listed = {image["id"]: image["file_name"] for image in images}
        if len(listed) < len(images) or not all(type(id) in (int, float, str) for id in listed):
            raise ValueError("images without an id of their own")
        if not all(map(path_key, listed.values())):
            raise ValueError("images without a file_name")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{annotations} is not a COCO annotation file ({error!r}).") from error
    return listed


def _agreement(own: tuple[str, ...], listed: tuple[str, ...]) -> tuple[int, bool]:
    """How many parts agree, from the name on, and whether these are all that are listed."""
    pairs = zip(own[::-1], listed[::-1], strict=False)
    count = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return count, count == len(listed)


def _best(claims: list[Claim], what: str) -> Claim:
    first, *others = sorted(claims, key=lambda claim: claim[0], reverse=True)
    if others and others[0][0] == first[0]:
        raise DatasetError(
            f"{what} could be {first[1]} or {others[0][1]}. Let their folders tell, or name fewer."
        )
    return first
