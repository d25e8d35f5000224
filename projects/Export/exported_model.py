"""An exported file in place of the Detectron2 model that it was made from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.structures import Boxes, Instances
from torch import nn

from .interface import FIELDS
from .runtime import load_exported


class ExportedModel(nn.Module):
    """Takes and returns what Detectron2's models do in evaluation, one image after the other.

    Args:
        file: see :func:`load_exported`.

    Attributes:
        facts: what the file stores by name.
        test_score_thresh: detections of a lower score are left out, as far as the file has them.

    Raises:
        GnwsError: see :func:`load_exported`.
    """

    def __init__(self, file: str | os.PathLike) -> None:
        super().__init__()
        loaded = load_exported(file)
        self.facts = loaded.facts
        self.test_score_thresh = 0.0
        self._run = loaded.run

    def forward(self, batch: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Detect on each ``image`` (3, H, W). Results are in pixels of the original image, whose
        ``height`` and ``width`` are by default those of the image."""
        return [self._detect(entry) for entry in batch]

    def _detect(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        size = (entry["image"].shape[1], entry["image"].shape[2])
        height, width = entry.get("height", size[0]), entry.get("width", size[1])
        outputs = self._run(entry["image"])
        found: dict[str, Any] = dict(zip(self.facts["outputs"], outputs, strict=True))
        if "sem_seg" in found:
            return {"sem_seg": sem_seg_postprocess(found["sem_seg"], size, height, width)}
        found["boxes"] = Boxes(found["boxes"])
        instances = Instances(size)
        for field, name in FIELDS.items():
            if name in found:
                instances.set(field, found[name])
        instances = instances[instances.scores > self.test_score_thresh]
        return {"instances": detector_postprocess(instances, height, width)}
