"""Write the report of an evaluation: plots, images and one HTML page."""

from __future__ import annotations

import datetime
import json
import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.collect_env import collect_env_info
from omegaconf import OmegaConf
from pycocotools.coco import COCO

from ..config import changed_keys
from ..data import read_image
from ..data.images import ImageError
from ..files import atomic_write
from . import curves
from .choose import choose, image_results
from .confusion import confusion_matrix, most_confused
from .folders import short_name
from .history import read_history
from .images import beside, caption, jpeg, truth_and_prediction, without
from .matching import Matches, ReportError, f1_score, match, ratio
from .page import Page, Pair, Picture, TaskSection, render

logger = logging.getLogger(__name__)

PAGE = "report.html"
_DEFAULT_THRESHOLD = 0.5  # where no detection is right, and so none is suggested
_IMAGE_BYTES = 120_000  # 18 images of this size, and the plots, stay below 5 MB in base64
_KINDS = {"worst": "Worst images", "best": "Best images", "random": "Random images"}


def write_report(
    output_dir: str | Path,
    cfg: Any,
    dataset_name: str,
    truth: COCO,
    results: Sequence[Mapping[str, Any]] | str | Path,
    folder: str | Path | None = None,
    *,
    weights: str = "",
    data_summary: Mapping[str, Mapping[str, Any]] | None = None,
    image_root: str | Path | None = None,
    images: int = 3,
    seed: int = 0,
) -> Path:
    """Write report.html, its plots as PNG and its images as JPEG.

    Args:
        output_dir: the training's folder; its metrics.json gives the course of the training, if
            it exists.
        cfg: the config, Detectron2's CfgNode or a LazyConfig.
        dataset_name: what was evaluated; its metadata says where the images are.
        truth: its images, annotations and categories.
        results: detections in COCO's form, or the file of them that Detectron2's evaluator writes,
            coco_instances_results.json. Masks are evaluated if detections and truth have them.
        folder: where the report goes, ``output_dir``/report by default.
        weights: the checkpoint that was evaluated, for the commands of the page.
        data_summary: more about the data for the page: tables of names and values, by title.
        image_root: the folder that the ``file_name`` of the images is relative to, if not the one
            in the dataset's metadata.
        images: how many of the worst, of the best and of random images are shown.
        seed: chooses the random images.

    Returns:
        The page.

    Raises:
        ReportError: ``results`` does not exist, or is not of this dataset.
    """
    output_dir = Path(output_dir)
    folder = Path(folder or output_dir / "report")
    folder.mkdir(parents=True, exist_ok=True)
    detections, date = _read_results(results)
    tasks = _tasks(truth, detections)
    all_matches = [match(truth, detections, task) for task in tasks]
    boxes = all_matches[0]
    threshold = boxes.suggested_threshold()

    root = image_root or MetadataCatalog.get(dataset_name).get("image_root") or ""
    pairs, missing = _pairs(
        truth, detections, boxes, _or_default(threshold), str(root), folder, images, seed
    )
    history = read_history(output_dir / "metrics.json")
    sections = [_section(truth, detections, matches, folder) for matches in all_matches]
    training = _save(
        folder,
        loss=curves.losses(history),
        ap_history=curves.ap_history(history),
        learning_rate=curves.learning_rate(history),
    )
    is_yaml = isinstance(cfg, CfgNode)
    page = Page(
        title=f"{Path(output_dir).resolve().name}: {short_name(dataset_name)}",
        subtitle=" · ".join(filter(None, [weights, date])),
        notes=_notes(truth, detections, threshold),
        tasks=sections,
        pairs=pairs if any(pairs.values()) else {},
        training=training,
        data={"Evaluated": _data(dataset_name, truth), **(data_summary or {})},
        commands=_commands(output_dir, weights, _or_default(threshold)),
        changed_config={k: str(v) for k, v in changed_keys(cfg).items()} if is_yaml else {},
        config=cfg.dump() if is_yaml else OmegaConf.to_yaml(cfg),
        environment=collect_env_info(),
        missing=missing,
    )
    file = folder / PAGE
    with atomic_write(file) as partial:
        partial.write_text(render(page), encoding="utf-8")
    return file


def _read_results(results: Any) -> tuple[list[dict[str, Any]], str]:
    """Detections with their ids, as pycocotools numbers them, and the time of the evaluation."""
    if not isinstance(results, str | Path):
        return [{**row, "id": i} for i, row in enumerate(results, 1)], ""
    file = Path(results)
    if not file.is_file():
        raise ReportError(
            f"{file} does not exist: there is nothing to report yet. Evaluate first, with "
            "train_net.py --eval-only."
        )
    date = datetime.datetime.fromtimestamp(file.stat().st_mtime)
    rows = _read_results(json.loads(file.read_text(encoding="utf-8")))[0]
    return rows, f"evaluated {date:%Y-%m-%d %H:%M}"


def _tasks(truth: COCO, detections: Sequence[Mapping[str, Any]]) -> list[str]:
    annotations = truth.dataset.get("annotations", [])
    has_masks = all(a.get("segmentation") for a in annotations) and any(
        "segmentation" in d for d in detections
    )
    return ["bbox", "segm"] if has_masks else ["bbox"]


def _or_default(threshold: float | None) -> float:
    return _DEFAULT_THRESHOLD if threshold is None else threshold


def _pairs(
    truth: COCO,
    detections: Sequence[Mapping[str, Any]],
    matches: Matches,
    threshold: float,
    root: str,
    folder: Path,
    number: int,
    seed: int,
) -> tuple[dict[str, list[Pair]], list[str]]:
    """The images to show, written to ``folder`` too, and the files that could not be read."""
    names = {c["id"]: c["name"] for c in truth.dataset["categories"]}
    unpredicted = {"segmentation", "keypoints"}.difference(*detections[:1])
    results = image_results(matches, sorted(truth.imgs), threshold)
    (folder / "images").mkdir(exist_ok=True)
    pairs: dict[str, list[Pair]] = {}
    missing = []
    for kind, chosen in choose(results, number, seed).items():
        pairs[_KINDS[kind]] = []
        for i, result in enumerate(chosen, 1):
            name = truth.imgs[result.image_id]["file_name"]
            try:
                rgb = read_image(os.path.join(root, name), format="RGB")
            except ImageError as error:
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
            (folder / "images" / f"{kind}_{i}.jpg").write_bytes(jpeg(beside(*halves), 1_000_000))
            shown = [jpeg(half, _IMAGE_BYTES) for half in halves]
            pairs[_KINDS[kind]].append(
                Pair(
                    title=name,
                    caption=caption(result),
                    truth=Picture(f"truth of {name}", shown[0]),
                    prediction=Picture(f"prediction for {name}", shown[1]),
                )
            )
    return pairs, missing


def _section(
    truth: COCO, detections: Sequence[dict[str, Any]], matches: Matches, folder: Path
) -> TaskSection:
    threshold = matches.suggested_threshold()
    matrix = confusion_matrix(truth, detections, matches.task, _or_default(threshold))
    plots = _save(
        folder,
        matches.task,
        precision_recall_50=curves.precision_recall(matches, 50),
        precision_recall_75=curves.precision_recall(matches, 75),
        f1=curves.scores_and_f1(matches, threshold),
        scores=curves.score_histogram(matches, threshold),
        confusion=curves.confusion(matrix, matches.classes, matches.task, _or_default(threshold)),
        ap_per_class=curves.ap_per_class(matches),
    )
    at = round(100 * _or_default(threshold))  # its index in THRESHOLDS
    right, wrong = (counts[:, at] for counts in matches.kept())
    precision, recall = ratio(right, right + wrong), ratio(right, matches.objects)
    f1 = f1_score(right, wrong, matches.objects)
    rows = [
        {
            "name": name,
            "objects": int(matches.objects[k]),
            **dict(zip(("AP", "AP50", "AP75"), matches.class_ap[k], strict=True)),
            **{"precision": 100 * precision[k], "recall": 100 * recall[k], "F1": 100 * f1[k]},
        }
        for k, name in enumerate(matches.classes)
    ]
    totals = right.sum(), wrong.sum(), matches.objects.sum()
    return TaskSection(
        name=curves.TASKS[matches.task],
        ap=matches.ap,
        threshold=threshold,
        at_threshold={}
        if threshold is None
        else {
            "precision": 100 * float(ratio(totals[0], totals[0] + totals[1])),
            "recall": 100 * float(ratio(totals[0], totals[2])),
            "F1": 100 * float(f1_score(*totals)),
        },
        classes=sorted(rows, key=lambda row: -np.nan_to_num(row["AP"], nan=-1)),
        confused=most_confused(matrix, matches.classes),
        plots=plots,
    )


def _save(folder: Path, prefix: str = "", **figures: Any) -> list[Picture]:
    pictures = []
    for name, figure in figures.items():
        if figure is None:
            continue
        content = curves.encode(figure)
        file = folder / f"{'_'.join(filter(None, [prefix, name]))}.png"
        file.write_bytes(content)
        inches = figure.get_size_inches()[0]
        width = round(100 * inches) if inches > 7 else 0
        pictures.append(Picture(figure.axes[0].get_title(loc="left"), content, width))
    return pictures


def _notes(truth: COCO, detections: Sequence[Any], threshold: float | None) -> list[str]:
    notes = []
    if not truth.dataset.get("annotations"):
        notes.append("The dataset has no annotations: nothing can be counted as right or missed.")
    elif not detections:
        notes.append("The model detects nothing in these images.")
    elif threshold is None:
        notes.append("No detection is right at an IoU of 0.5.")
    return notes


def _data(dataset_name: str, truth: COCO) -> dict[str, Any]:
    annotations = truth.dataset.get("annotations", [])
    images = list(truth.imgs.values())
    annotated = {a["image_id"] for a in annotations}
    sizes = sorted({(i["width"], i["height"]) for i in images}, key=lambda s: s[0] * s[1])
    summary: dict[str, Any] = {
        "dataset": dataset_name,
        "images": len(images),
        "images without objects": len(set(truth.imgs) - annotated),
        "objects": sum(not a.get("iscrowd") for a in annotations),
        "crowds": sum(bool(a.get("iscrowd")) for a in annotations),
        "classes": len(truth.cats),
    }
    if sizes:
        (w0, h0), (w1, h1) = sizes[0], sizes[-1]
        summary["image size"] = f"{w0} x {h0}" + (f" to {w1} x {h1}" if len(sizes) > 1 else "")
    return summary


def _commands(output_dir: Path, weights: str, threshold: float) -> list[tuple[str, str]]:
    weights = weights or str(output_dir / "model_final.pth")
    demo = [
        ("gnws", "predict", "--weights", weights, "--input", "FOLDER", "--output", "found"),
        ("--confidence-threshold", f"{threshold:.2f}"),
    ]
    program = f"""from gnws_d2 import Predictor
from gnws_d2.data import read_image

predictor = Predictor(weights={weights!r}, score_threshold={threshold:.2f})
found = predictor(read_image("image.jpg", "BGR"))["instances"]
for box, score, index in zip(found.pred_boxes, found.scores, found.pred_classes):
    print(predictor.classes[index], float(score), box.tolist())"""
    return [
        ("On the command line", " \\\n    ".join(map(shlex.join, demo))),
        ("In Python", program),
    ]
