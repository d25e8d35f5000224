"""Where the results and the report of a dataset are, if a config evaluates several."""

from __future__ import annotations

import re

from detectron2.config import CfgNode

from ..config import DATASET_KEYS, dataset_names
from ..data.source import Source


def evaluated_datasets(cfg: CfgNode) -> list[str]:
    """The datasets that a training evaluates, each once."""
    return dataset_names(cfg, DATASET_KEYS[1:])


def dataset_folder(cfg: CfgNode, dataset_name: str) -> str:
    """The folder of a dataset's files in ``inference`` and ``report``: "" if the config evaluates
    only one dataset, else a name made of the dataset's."""
    names = evaluated_datasets(cfg)
    if len(names) < 2 or dataset_name not in names:
        return ""
    slugs: list[str] = []
    for name in names:
        source = Source.parse(name)
        words = (*source.file.with_suffix("").parts[-2:], source.part) if source else (name,)
        slug = re.sub(r"[^\w.-]+|_+", "_", "_".join(words)).strip("_.") or "dataset"
        slugs.append(slug if slug not in slugs else f"{slug}_{len(slugs) + 1}")
    return slugs[names.index(dataset_name)]


def short_name(dataset_name: str) -> str:
    """A registered dataset's name; of a source the names of its file and of its part."""
    source = Source.parse(dataset_name)
    if source is None:
        return dataset_name
    return "/".join((*source.file.parts[-2:-1], source.file.name)) + (
        f" ({source.part})" if source.part else ""
    )
