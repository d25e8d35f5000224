"""The reports of a training's or an evaluation's output folder."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools.coco import COCO

from ..errors import GnwsError, is_debugging
from .matching import ReportError
from .write import write_report

logger = logging.getLogger(__name__)

RESULTS = "coco_instances_results.json"  # of Detectron2's COCOEvaluator


def dataset_folder(cfg: CfgNode, dataset_name: str) -> str:
    """The folder of a dataset's files in ``inference`` and ``report``: "" if the config evaluates
    only one dataset, else a name made of the dataset's."""
    names = list(dict.fromkeys([*cfg.DATASETS.TEST, *cfg.DATASETS.get("FINAL_TEST", ())]))
    if len(names) < 2 or dataset_name not in names:
        return ""
    slugs: list[str] = []
    for name in names:
        file, _, split = name.partition("#")
        parts = Path(file.partition("=")[0]).with_suffix("").parts[-2:]
        slug = re.sub(r"[^\w.-]+", "_", "_".join((*parts, split))).strip("_.") or "dataset"
        slugs.append(slug if slug not in slugs else f"{slug}_{len(slugs) + 1}")
    return slugs[names.index(dataset_name)]


def report_run(
    cfg: CfgNode,
    weights: str = "",
    data_summary: Mapping[str, Any] | None = None,
    *,
    images: int = 3,
) -> list[Path]:
    """Write the report of each dataset whose results are in the folder of ``cfg``.

    Args:
        weights: the checkpoint that was evaluated; the folder's last one by default.
        data_summary, images: see :func:`write_report`.

    Returns:
        The pages.

    Raises:
        ReportError: no dataset has results.
    """
    output = Path(cfg.OUTPUT_DIR)
    pages = []
    for name in dict.fromkeys([*cfg.DATASETS.TEST, *cfg.DATASETS.get("FINAL_TEST", ())]):
        results = output / "inference" / dataset_folder(cfg, name) / RESULTS
        if not results.is_file():
            continue
        page = write_report(
            output,
            cfg,
            name,
            _truth(name),
            results,
            output / "report" / dataset_folder(cfg, name),
            weights=weights or _last_weights(output, cfg),
            data_summary=data_summary,
            images=images,
        )
        logger.info("Report: %s", page)
        pages.append(page)
    if not pages:
        raise ReportError(
            f"{output / 'inference'} has no {RESULTS} of {', '.join(cfg.DATASETS.TEST)}. Evaluate "
            "instances first: train_net.py --eval-only MODEL.WEIGHTS FILE."
        )
    return pages


def try_report(
    cfg: CfgNode, weights: str = "", data_summary: Mapping[str, Any] | None = None
) -> list[Path]:
    """:func:`report_run` for the end of a training, which a failed report must not turn into a
    failure: what goes wrong is logged, and the pages that were written are returned."""
    try:
        return report_run(cfg, weights, data_summary)
    except Exception as error:
        if is_debugging():
            raise
        logger.warning(
            "No report was written: %s. Try again with report.py --output-dir %s",
            str(error).rstrip("."),
            cfg.OUTPUT_DIR,
            exc_info=not isinstance(error, GnwsError),
        )
        return []


def _truth(dataset_name: str) -> COCO:
    DatasetCatalog.get(dataset_name)
    return COCO(MetadataCatalog.get(dataset_name).json_file)


def _last_weights(output: Path, cfg: CfgNode) -> str:
    last = output / "last_checkpoint"
    return str(output / last.read_text().strip()) if last.is_file() else cfg.MODEL.WEIGHTS
