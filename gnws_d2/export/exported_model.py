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
        ExportError: see :func:`load_exported`.
    """

    def __init__(self, file: str | os.PathLike) -> None:
        super().__init__()
        loaded = load_exported(file)
        self.facts = loaded.facts
        self.test_score_thresh = 0.0
        self._run = loaded.run

    def forward(self, batch: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Detect on images (3, H, W), each with the ``height`` and ``width`` of its results."""
        return [self._detect(**image) for image in batch]

    def _detect(self, image: Any, height: int, width: int) -> dict[str, Any]:
        size = (image.shape[1], image.shape[2])
        found: dict[str, Any] = dict(zip(self.facts["outputs"], self._run(image), strict=True))
        if "sem_seg" in found:
            return {"sem_seg": sem_seg_postprocess(found["sem_seg"], size, height, width)}
        found["boxes"] = Boxes(found["boxes"])
        instances = Instances(size)
        for field, name in FIELDS.items():
            if name in found:
                instances.set(field, found[name])
        instances = instances[instances.scores > self.test_score_thresh]
        return {"instances": detector_postprocess(instances, height, width)}
