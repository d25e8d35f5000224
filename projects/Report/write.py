"""Write the report of an evaluation: plots, images and one HTML page."""

import base64
import json
import logging
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.collect_env import collect_env_info
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from pycocotools.coco import COCO
from pycocotools.cocoeval import Params

from gnws_d2.checkpoint import read_checkpoint
from gnws_d2.config import all_defaults, leaves
from gnws_d2.data import read_image
from gnws_d2.errors import DatasetError
from gnws_d2.files import atomic_write
from gnws_d2.projects.own_data import short_name

from . import curves, matching
from .images import beside, jpeg, truth_and_prediction, without
from .matching import Matches, f1_score, ratio

logger = logging.getLogger(__name__)

PAGE = "report.html"
SUMMARY = "report.json"
SEMANTIC = "sem_seg_evaluation.pth"  # of Detectron2's SemSegEvaluator


def write_report(
    folder: Path,
    cfg: CfgNode,
    dataset_name: str,
    truth: COCO,
    results: Sequence[Mapping[str, Any]],
    *,
    weights: str,
    date: str = "",
    data_summary: Mapping[str, Mapping[str, Any]] | None = None,
    images: int = 3,
    semantic: Path | None = None,
) -> Path:
    """Write report.html, which needs no other file, its plots as PNG and its images as JPEG, and
    report.json: AP by task, in percent, and the suggested score threshold, or null.

    Args:
        folder: where the report goes.
        cfg: the config. metrics.json in its OUTPUT_DIR gives the course of the training, if it
            exists.
        dataset_name: what was evaluated; its metadata says where the images are.
        truth: its images, annotations and categories.
        results: detections in COCO's form. Masks are evaluated if detections and truth have them.
        weights: the checkpoint that was evaluated, for the commands of the page.
        date: of the evaluation, for the page.
        data_summary: more about the data for the page: tables of names and values, by title.
        images: how many of the worst, of the best and of random images are shown.
        semantic: the file SEMANTIC of the evaluation, if there is one.

    Returns:
        The page.

    Raises:
        GnwsError: ``results`` are not of this dataset.
    """
    folder.mkdir(parents=True, exist_ok=True)
    detections = [{**row, "id": i} for i, row in enumerate(results, 1)]  # as pycocotools does
    sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS or Params("keypoints").kpt_oks_sigmas.tolist()
    tasks = _tasks(truth, detections, sigmas)
    all_matches = [matching.match(truth, detections, task, sigmas) for task in tasks]
    boxes = all_matches[0]
    pairs, missing = _pairs(truth, detections, boxes, dataset_name, folder, images)
    history = curves.read_history(Path(cfg.OUTPUT_DIR, "metrics.json"))
    known = all_defaults()
    page = _render(
        title=f"{Path(cfg.OUTPUT_DIR).resolve().name}: {short_name(dataset_name)}",
        subtitle=" · ".join(filter(None, [weights, date])),
        notes=_notes(truth, detections, boxes) if truth.cats else [],
        tasks=[_task(truth, detections, m, folder, sigmas) for m in all_matches if truth.cats],
        semantic=read_checkpoint(semantic) if semantic and semantic.is_file() else {},
        panoptic={
            name.rpartition("/")[2]: max(values.items())[1]
            for name, values in history.items()
            if "panoptic_seg/" in name
        },
        pairs=pairs,
        missing=missing,
        training=_save(folder, curves.over_iterations(history)),
        weights=weights,
        threshold=boxes.threshold,
        data={
            "Evaluated": _data(dataset_name, truth) if truth.cats else {},
            **(data_summary or {}),
        },
        changed_config={k: str(v) for k, v in leaves(cfg) if k not in known or known[k] != v},
        config=cfg.dump(),
        environment=collect_env_info(),
    )
    ap = {
        matches.task: {k: None if math.isnan(v) else v for k, v in matches.ap.items()}
        for matches in all_matches
    }
    summary = {"dataset": dataset_name, "score_threshold": boxes.suggested_threshold, "AP": ap}
    for name, text in ((SUMMARY, json.dumps(summary, indent=1)), (PAGE, page)):
        with atomic_write(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return folder / PAGE


def _tasks(
    truth: COCO, detections: Sequence[Mapping[str, Any]], sigmas: Sequence[float]
) -> list[str]:
    """What truth and detections have; keypoints if there is one of ``sigmas`` for each."""

    def both(member: str) -> bool:
        is_found = any(member in detection for detection in detections)
        return is_found and all(a.get(member) for a in truth.anns.values())

    posed = both("keypoints") and all(
        len(row.get("keypoints", ())) == 3 * len(sigmas)
        for row in (*truth.anns.values(), *detections)
    )
    return ["bbox", *["segm"] * both("segmentation"), *["keypoints"] * posed]


def _pairs(
    truth: COCO,
    detections: Sequence[Mapping[str, Any]],
    matches: Matches,
    dataset_name: str,
    folder: Path,
    number: int,
) -> tuple[dict[str, list[dict[str, str]]], list[str]]:
    """The images to show, written to ``folder`` too, and the files that could not be read."""
    root = MetadataCatalog.get(dataset_name).get("image_root") or ""
    names = {c["id"]: c["name"] for c in truth.dataset["categories"]}
    unpredicted = {"segmentation", "keypoints"}.difference(*detections[:1])
    threshold = matches.threshold
    results = matching.image_results(matches, sorted(truth.imgs), threshold)
    (folder / "images").mkdir(exist_ok=True)
    pairs: dict[str, list[dict[str, str]]] = {}
    missing = []
    for kind, chosen in matching.choose(results, number).items():
        for i, result in enumerate(chosen, 1):
            name = truth.imgs[result.image_id]["file_name"]
            try:
                rgb = read_image(os.path.join(root, name), format="RGB")
            except DatasetError as error:
                logger.warning("An image of the report is left out. %s", error)
                missing.append(str(error))
                continue
            halves = truth_and_prediction(
                rgb,
                without(truth.imgToAnns[result.image_id], unpredicted),
                [d for d in detections if d["image_id"] == result.image_id],
                names,
                matches,
                threshold,
            )
            (folder / "images" / f"{kind}_{i}.jpg").write_bytes(jpeg(beside(*halves)))
            left, right = (_data_uri(jpeg(half)) for half in halves)
            counts = f"{result.found} found, {result.missed} missed, {result.wrong} wrong"
            pairs.setdefault(f"{kind.capitalize()} images", []).append(
                {"title": name, "caption": counts, "truth": left, "prediction": right}
            )
    return pairs, missing


def _task(
    truth: COCO, detections: Sequence[Any], matches: Matches, folder: Path, sigmas: Sequence[float]
) -> dict[str, Any]:
    """The results of boxes, masks or keypoints, as the page shows them."""
    threshold = matches.threshold
    matrix = matching.confusion_matrix(truth, detections, matches.task, threshold, sigmas)
    plots = {
        "precision_recall": curves.precision_recall(matches),
        "f1": curves.scores_and_f1(matches),
        "confusion": curves.confusion(matrix, matches.classes, matches.task, threshold),
    }
    at = round(100 * threshold)  # its index in THRESHOLDS
    right, wrong = (counts[:, at] for counts in matches.kept)
    rows = [
        {
            "name": name,
            "objects": int(matches.objects[k]),
            **dict(zip(("AP", "AP50", "AP75"), matches.class_ap[k], strict=True)),
            **_percents(right[k], wrong[k], matches.objects[k]),
        }
        for k, name in enumerate(matches.classes)
    ]
    return {
        "name": curves.TASKS[matches.task],
        "measure": curves.MEASURES[matches.task],
        "ap": matches.ap,
        "threshold": matches.suggested_threshold,
        "at_threshold": _percents(right.sum(), wrong.sum(), matches.objects.sum()),
        "classes": sorted(rows, key=lambda row: -np.nan_to_num(row["AP"], nan=-1)),
        "confused": matching.most_confused(matrix, matches.classes),
        "plots": _save(folder, {f"{matches.task}_{name}": plot for name, plot in plots.items()}),
    }


def _percents(right: Any, wrong: Any, objects: Any) -> dict[str, float]:
    return {
        "precision": 100 * float(ratio(right, right + wrong)),
        "recall": 100 * float(ratio(right, objects)),
        "F1": 100 * float(f1_score(right, wrong, objects)),
    }


def _save(folder: Path, figures: Mapping[str, Figure]) -> list[dict[str, Any]]:
    """Write the plots, and return them as the page shows them; ``width`` is in pixels, and 0 if it
    may be of any size."""
    saved = []
    for name, figure in figures.items():
        content = curves.encode(figure)
        (folder / f"{name}.png").write_bytes(content)
        inches = figure.get_size_inches()[0]
        width = round(100 * inches) if inches > 7 else 0
        title = figure.axes[0].get_title(loc="left")
        saved.append({"name": title, "uri": _data_uri(content), "width": width})
    return saved


def _notes(truth: COCO, detections: Sequence[Any], matches: Matches) -> list[str]:
    if not truth.dataset.get("annotations"):
        return ["The dataset has no annotations: nothing can be counted as right or missed."]
    if not detections:
        return ["The model detects nothing in these images."]
    if matches.suggested_threshold is None:
        return ["No detection is right at an IoU of 0.5."]
    return []


def _data(dataset_name: str, truth: COCO) -> dict[str, Any]:
    annotations = truth.dataset.get("annotations", [])
    images = truth.imgs.values()
    annotated = {a["image_id"] for a in annotations}
    sizes = sorted({(i["width"], i["height"]) for i in images}, key=lambda s: s[0] * s[1])
    ends = [f"{width} x {height}" for width, height in (*sizes[:1], *sizes[1:][-1:])]
    return {
        "dataset": dataset_name,
        "images": len(images),
        "images without objects": len(set(truth.imgs) - annotated),
        "objects": sum(not a.get("iscrowd") for a in annotations),
        "crowds": sum(bool(a.get("iscrowd")) for a in annotations),
        "classes": len(truth.cats),
        "image size": " to ".join(ends),
    }


def _render(**parts: Any) -> str:
    """template.html filled with ``parts``, of which it needs each; every text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "repr": repr, "quote": shlex.quote}
    return environment.get_template("template.html").render(**parts)


def _data_uri(image: bytes) -> str:
    """The address that holds a PNG or JPEG itself."""
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _number(value: float | None, digits: int = 1) -> str:
    """``value`` with so many digits after the point; a dash if undefined."""
    return "\N{EN DASH}" if value is None or math.isnan(value) else f"{value:.{digits}f}"
