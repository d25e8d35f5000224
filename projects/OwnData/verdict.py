"""The check of a COCO file, once for all processes and for as long as the data stays the same."""

import contextlib
import hashlib
import json
import marshal
import os
import time
from pathlib import Path
from typing import Any

from PIL import Image

from gnws_d2.checkpoint.resume import from_main_process
from gnws_d2.errors import FileError
from gnws_d2.files import atomic_write, cache_dir, cache_path

from . import check
from .coco_file import CocoFile
from .image_files import ImageFiles

WORTH = 1.0  # seconds of a check that are not spent twice
MEMBERS = ("images", "annotations")


def check_once(
    coco: CocoFile, images: ImageFiles, needs_masks: bool
) -> tuple[CocoFile, list[check.Problem]]:
    """:func:`~.check.check_coco`, in the main process. What it found after more than WORTH seconds
    is kept in the cache folder, and found there until an annotation, the size or time of an image
    file, or the check itself has changed."""
    found = from_main_process(lambda: _find(coco, images, needs_masks))
    for message in found["warnings"]:
        check.warn_once(message)
    sound = []
    for member, bad in zip(MEMBERS, map(set, found["bad"]), strict=True):
        listed = getattr(coco, member)
        sound.append(listed and [entry for i, entry in enumerate(listed) if i not in bad])
    return CocoFile(coco.file, *sound, coco.categories), [
        check.Problem(*problem) for problem in found["problems"]
    ]


def _find(coco: CocoFile, images: ImageFiles, needs_masks: bool) -> dict[str, Any]:
    """The warnings, the problems, and the places of what is bad in the lists of MEMBERS."""
    file = cache_path() / "checked" / f"{_state(coco, images, needs_masks)}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    began, said = time.monotonic(), list[str]()
    sound, problems = check.check_coco(coco, images, needs_masks=needs_masks, warn=said.append)
    bad = []
    for member in MEMBERS:
        kept = set(map(id, getattr(sound, member) or ()))
        bad.append([i for i, e in enumerate(getattr(coco, member) or ()) if id(e) not in kept])
    listed = [(p.reason, p.image, p.annotation) for p in problems]
    found = {"warnings": said, "problems": listed, "bad": bad}
    if time.monotonic() - began > WORTH:
        with contextlib.suppress(FileError, OSError):
            cache_dir(file.parent)
            with atomic_write(file) as partial:
                partial.write_text(json.dumps(found), encoding="utf-8")
    return found


def _state(coco: CocoFile, images: ImageFiles, needs_masks: bool) -> str:
    files = []
    for path in [Path(check.__file__), *map(images.path, coco.file_names)]:
        try:
            status = os.stat(path)
            files.append((str(path), status.st_size, status.st_mtime_ns))
        except (OSError, ValueError):
            files.append((str(path), -1, -1))
    read = (coco.images, coco.annotations, coco.categories, images.candidates)
    state = (needs_masks, Image.MAX_IMAGE_PIXELS, files, *read)
    # Version 2, as later ones depend on which objects are shared.
    return hashlib.blake2b(marshal.dumps(state, 2), digest_size=16).hexdigest()
