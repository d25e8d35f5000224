#!/usr/bin/env python3
"""The reports of a training's or an evaluation's output folder: ``report.py --help``."""

import argparse
import datetime
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger
from pycocotools.coco import COCO

import gnws_d2
import gnws_d2.projects.digits  # registers the datasets
from gnws.arguments import parse
from gnws_d2.checkpoint.resume import named_checkpoint
from gnws_d2.config import DATASET_KEYS, dataset_names
from gnws_d2.engine import dataset_folder
from gnws_d2.engine.evaluation import RESULTS, complete_truth
from gnws_d2.errors import DatasetError, GnwsError, is_debugging, one_line_errors
from gnws_d2.projects.acceleration import add_acceleration_config
from gnws_d2.projects.own_data import data_summary, fit_to_data, is_source, readable, short_name
from gnws_d2.projects.report.matching import coco_api
from gnws_d2.projects.report.write import SEMANTIC, SUMMARY, write_report

logger = logging.getLogger("gnws_d2.report")


def report_run(cfg: CfgNode, weights: str = "", *, images: int = 3) -> list[Path]:
    """Write the report of each dataset whose results are in the folder of ``cfg``.

    Args:
        weights: the checkpoint that was evaluated; the folder's last one by default.
        images: see :func:`~gnws_d2.projects.report.write.write_report`.

    Returns:
        The pages.

    Raises:
        GnwsError: no dataset has results.
    """
    output, names = Path(cfg.OUTPUT_DIR), dataset_names(cfg, DATASET_KEYS[1:])
    folders = {name: output / "inference" / dataset_folder(cfg, name) for name in names}
    found = [(n, f / k) for k in (SEMANTIC, RESULTS) for n, f in folders.items()]
    files = {name: file for name, file in found if file.is_file()}
    if not files:
        raise GnwsError(
            f"{output / 'inference'} has no {RESULTS} or {SEMANTIC} of "
            f"{', '.join(names) or 'a dataset'}. Evaluate first: gnws eval --weights FILE."
        )
    last, kept = named_checkpoint(output)[0], cfg.TEST.get("BEST_METRIC", "auto")
    if last == "model_final.pth" and kept and (output / "model_best.pth").is_file():
        last = "model_best.pth"  # which a training evaluates at its end
    saved = str(output / last) if last else cfg.MODEL.WEIGHTS
    weights = weights or saved or str(output / "model_final.pth")
    data = {  # of the sources; loading a large published dataset would take too long
        short_name(name): readable(data_summary(name, cfg))
        for name in dataset_names(cfg)
        if is_source(name) and name in DatasetCatalog
    }
    pages = []
    for name, file in files.items():
        has_objects = file.name == RESULTS
        date = datetime.datetime.fromtimestamp(file.stat().st_mtime)
        page = write_report(
            output / "report" / dataset_folder(cfg, name),
            cfg,
            name,
            _truth(name, file) if has_objects else coco_api({"images": [], "categories": []}),
            json.loads(file.read_text(encoding="utf-8")) if has_objects else [],
            weights=weights,
            date=f"evaluated {date:%Y-%m-%d %H:%M}",
            data_summary=data,
            images=images,
            semantic=file.with_name(SEMANTIC),
        )
        logger.info("Report: %s", page)
        pages.append(page)
    return pages


def try_report(cfg: CfgNode, weights: str) -> list[Path]:
    """:func:`report_run` for the end of a training: an error is logged instead of raised.

    Returns:
        The pages; none if the training evaluates nothing or the report failed.
    """
    if not dataset_names(cfg, DATASET_KEYS[1:]):
        return []
    try:
        return report_run(cfg, weights)
    except Exception as error:
        if is_debugging():
            raise
        logger.warning(
            "No report was written: %s. Try again with `gnws report --output-dir %s`.",
            str(error).rstrip("."),
            cfg.OUTPUT_DIR,
            exc_info=not isinstance(error, GnwsError),
        )
        return []


def suggested_threshold(cfg: CfgNode, pages: Sequence[Path]) -> float | None:
    """The score threshold that ``pages`` suggest: that of the first dataset of DATASETS.TEST that
    has one. FINAL_TEST chooses nothing."""
    summaries = [json.loads(page.with_name(SUMMARY).read_text("utf-8")) for page in pages]
    found = {summary["dataset"]: summary["score_threshold"] for summary in summaries}
    thresholds = (found.get(name) for name in cfg.DATASETS.TEST)
    return next((threshold for threshold in thresholds if threshold is not None), None)


def _truth(dataset_name: str, results: Path) -> COCO:
    file = MetadataCatalog.get(dataset_name).get("json_file")
    if not file:  # Detectron2's evaluator has written one
        file = results.parent / f"{dataset_name}_coco_format.json"
    if not Path(file).is_file():  # for a dataset that has a file, one that does not exist
        raise DatasetError(
            f"{dataset_name if is_source(dataset_name) else file} does not exist. The report "
            f"compares {results} with it: put it back, or name it by DATASETS.TEST."
        )
    truth = coco_api(json.loads(Path(file).read_text(encoding="utf-8")))
    complete_truth(truth)
    return truth


@one_line_errors()
def main(args: argparse.Namespace) -> None:
    config = args.output_dir / "config.yaml"
    if not config.is_file():
        sys.exit(f"error: {config} does not exist. Name the OUTPUT_DIR of a training.")
    setup_logger(name="gnws_d2")
    opts = ["OUTPUT_DIR", str(args.output_dir), *args.opts]
    cfg = fit_to_data(gnws_d2.load_config(config, opts, [add_acceleration_config]))
    report_run(cfg, args.weights, images=args.images)


if __name__ == "__main__":
    main(parse("report"))
