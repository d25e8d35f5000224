"""The published checkpoints, from ``checkpoints.csv`` beside this file.

Names, addresses and results are those of MMDetection's ``configs/gn+ws``.
"""

import csv
import difflib
import functools
from dataclasses import dataclass, fields
from pathlib import Path

from ..errors import CheckpointError

PREFIX = "gnws://"


@dataclass(frozen=True)
class Published:
    """One published checkpoint.

    Attributes:
        name: a detector's in MMDetection, or "imagenet/" and that of a backbone.
        config: the packaged config of the detector, or one that has the backbone.
        url: of the file, whose name ends in the first eight digits of its SHA-256.
        box_ap, mask_ap: on COCO val2017, percent; "" if not published.
    """

    name: str
    config: str
    box_ap: str
    mask_ap: str
    url: str

    @property
    def is_backbone(self) -> bool:
        return self.name.startswith("imagenet/")

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def sha256(self) -> str:
        """The first eight hexadecimal digits."""
        return Path(self.file_name).stem.rpartition("-")[2]

    @property
    def uri(self) -> str:
        """What to write in MODEL.WEIGHTS."""
        return PREFIX + self.name


@functools.cache
def published() -> tuple[Published, ...]:
    """All published checkpoints: twelve detectors, then six ImageNet backbones."""
    with Path(__file__).with_name("checkpoints.csv").open(newline="", encoding="utf-8") as table:
        rows = csv.DictReader(table)
        return tuple(Published(**{f.name: row[f.name] for f in fields(Published)}) for row in rows)


def find(name: str) -> Published:
    """The published checkpoint of that name, or of the detector with the config of that name.

    Raises:
        CheckpointError: there is none; the message suggests some.
    """
    wanted = name.removeprefix(PREFIX).removesuffix(".yaml")
    names = {entry.name: entry for entry in published()}
    names |= {e.config.removesuffix(".yaml"): e for e in published() if not e.is_backbone}
    if wanted in names:
        return names[wanted]
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    did_you_mean = f" Did you mean {' or '.join(near)}?" if near else ""
    raise CheckpointError(
        f"No published checkpoint is called {wanted!r}.{did_you_mean} `gnws zoo list` shows all."
    )
