#!/usr/bin/env python3
"""A web page: drop an image, see what is detected, download boxes and masks: ``app.py --help``."""

import argparse
import functools
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils.logger import setup_logger
from pycocotools import mask as rle

import gnws_d2.projects.digits  # noqa: F401  registers the datasets
from gnws.arguments import parse
from gnws_d2 import Predictor
from gnws_d2.errors import GnwsError, one_line_errors
from gnws_d2.projects.acceleration import add_acceleration_config
from gnws_d2.projects.detection.coco_detections import write_png
from gnws_d2.projects.detection.defaults import first_threshold
from gnws_d2.projects.detection.inputs import read_frames
from gnws_d2.projects.detection.results import Results

LOWEST = 0.05  # of the scores that can be chosen
Found = tuple[np.ndarray, list[list[Any]], list[str]]


def named_models(words: list[str]) -> dict[str, str]:
    """The checkpoints by the names of the page.

    Raises:
        GnwsError: two have the same name.
    """
    models: dict[str, str] = {}
    for word in words:
        name, equals, file = word.partition("=")
        if not equals or "://" in name:
            name, file = "/".join(Path(word.partition("://")[2] or word).parts[-2:]), word
        if name in models:
            raise GnwsError(f"two models are called {name!r}. Call one NAME={file}.")
        models[name] = file
    return models


@functools.cache
def load(file: str, device: str | None) -> Predictor:
    """A model, on ``device`` in place of the config's."""
    opts = ["MODEL.DEVICE", device] if device else []
    return Predictor(weights=file, opts=opts, add_configs=[add_acceleration_config])


def detect(predictor: Predictor, file: str | Path, threshold: float, folder: Path) -> Found:
    """Detect on an image.

    Args:
        file: the image.
        threshold: the lowest score.
        folder: gets what ``gnws predict`` writes, and masks.png if there are any.

    Returns:
        The image with what was found drawn, RGB; a row of class, score and box (x, y, width,
        height in pixels) for each detection; and the files that were written.

    Raises:
        GnwsError: the image cannot be read.
    """
    predictor.set_score_threshold(threshold)
    results = Results(predictor, folder)
    frame = next(read_frames(Path(file), predictor))
    drawn = results.add(replace(frame, file=Path(frame.file.name), number=None))  # no folder
    results.write()
    found = results.detections.content()
    names = {category["id"]: category["name"] for category in found["categories"]}
    rows, masks = [], []
    for one in found["annotations"]:
        name = names.get(one["category_id"], str(one["category_id"]))
        rows.append([name, round(one["score"], 3), *(round(side, 1) for side in one["bbox"])])
        if "segmentation" in one:
            masks.append(rle.decode(one["segmentation"]).astype(bool))
    if masks:
        write_png(objects_image(np.stack(masks)), folder / "masks.png")
    return drawn, rows, sorted(str(file) for file in folder.rglob("*") if file.is_file())


def objects_image(masks: np.ndarray) -> np.ndarray:
    """(H, W) uint8, or uint16 from 256 objects on: the number of the object at each pixel, counted
    from 1 in the order of detections.json, the first on top; 0 for none.

    Args:
        masks: (objects, H, W) bool.
    """
    numbers = np.where(masks.any(0), masks.argmax(0) + 1, 0)
    return numbers.astype(np.uint8 if len(masks) < 256 else np.uint16)


def page(models: Mapping[str, str], device: str | None, folder: Path) -> Any:
    """The page, a ``gradio.Blocks``; what is found is written below ``folder``.

    Args:
        models: the checkpoints by their names.
        device: in place of the config's.
    """
    import gradio as gr

    def run(file: str | None, name: str, threshold: float) -> tuple[Any, Any, Any, str]:
        if file is None:
            return None, None, None, ""
        try:
            target = Path(tempfile.mkdtemp(dir=folder))
            drawn, rows, files = detect(load(models[name], device), file, threshold, target)
        except GnwsError as error:
            raise gr.Error(str(error)) from error
        return drawn, rows, files, f"**{len(rows)}** detections with a score from {threshold:g}"

    def threshold_of(name: str) -> float:
        return first_threshold(load(models[name], device))

    first = next(iter(models))
    with gr.Blocks(title="gnws_d2", analytics_enabled=False) as blocks:
        gr.Markdown("# Detect on an image")
        with gr.Row():
            with gr.Column(scale=1):
                file = gr.Image(
                    label="image",
                    type="filepath",
                    image_mode=None,  # the file as it is: read_image knows 16 bits
                    sources=["upload", "clipboard"],
                )
                name = gr.Dropdown(list(models), value=first, label="model")
                start = max(LOWEST, threshold_of(first))
                threshold = gr.Slider(LOWEST, 1, value=start, step=0.01, label="lowest score")
            with gr.Column(scale=2):
                buttons = ["download", "fullscreen"]
                drawn = gr.Image(
                    label="detections", format="png", interactive=False, buttons=buttons
                )
                said = gr.Markdown()
        header = ["class", "score", "x", "y", "width", "height"]
        table = gr.Dataframe(headers=header, label="boxes, in pixels", interactive=False)
        files = gr.Files(
            label="detections.json is in COCO's form; masks.png numbers the objects",
            interactive=False,
        )
        outputs = [drawn, table, files, said]
        chosen = name.change(threshold_of, name, threshold)
        for event in (file.change, chosen.then, threshold.release):
            event(run, [file, name, threshold], outputs, show_progress_on=drawn)
    return blocks


@one_line_errors(OSError)
def main(args: argparse.Namespace) -> None:
    setup_logger(name="gnws_d2")
    models = named_models(args.models)
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        sys.exit(f'error: Gradio does not import ({error}). Install it: pip install "gradio>=6"')
    with tempfile.TemporaryDirectory() as folder:
        app = page(models, args.device, Path(folder))
        app.launch(server_name=args.host, server_port=args.port, allowed_paths=[folder])


if __name__ == "__main__":
    main(parse("app"))
