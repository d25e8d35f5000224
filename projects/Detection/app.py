#!/usr/bin/env python3
"""A web page: drop an image, see what is detected, download boxes and masks: ``app.py --help``."""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils.logger import setup_logger

import gnws_d2.projects.digits  # noqa: F401  registers the datasets
from gnws.arguments import parse
from gnws_d2 import Predictor
from gnws_d2.data import read_image
from gnws_d2.errors import GnwsError, one_line_errors
from gnws_d2.projects.acceleration import add_acceleration_config
from gnws_d2.projects.detection.coco_detections import CocoDetections, labels_image, write_png
from gnws_d2.projects.detection.drawing import draw, to_cpu
from gnws_d2.projects.detection.inputs import Frame

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


def detector(models: Mapping[str, str], device: str | None) -> Callable[..., Found]:
    """What the page calls: ``detect(file, name, threshold, folder)``.

    Args:
        models: the checkpoints by their names.
        device: in place of the config's.
    """
    opts = ["MODEL.DEVICE", device] if device else []

    @functools.cache
    def load(name: str) -> Predictor:
        return Predictor(weights=models[name], opts=opts, add_configs=[add_acceleration_config])

    def detect(file: str | Path, name: str, threshold: float, folder: Path) -> Found:
        """Detect on an image.

        Args:
            file: the image.
            name: of the model.
            threshold: the lowest score.
            folder: gets detections.json, and masks.png or labels.png as far as the model has them.

        Returns:
            The image with what was found drawn, RGB; a row of class, score and box (x, y, width,
            height in pixels) for each detection; and the files that were written.

        Raises:
            GnwsError: the image or the model cannot be read.
        """
        predictor = load(name)
        predictor.set_score_threshold(threshold)
        frame = Frame(Path(file), read_image(file, "BGR"))
        found = to_cpu(predictor(frame.as_input(predictor)))
        coco = CocoDetections(predictor.classes, predictor.category_ids)
        image_id = coco.add_image(Frame(Path(Path(file).name), frame.bgr))
        files, rows = [folder / "detections.json"], []
        if "instances" in found:
            instances = found["instances"]
            coco.add(image_id, instances)
            rows = [
                [_name(predictor, int(index)), round(float(score), 3), *_box(box)]
                for index, score, box in zip(
                    *(instances.pred_classes, instances.scores, instances.pred_boxes), strict=True
                )
            ]
            if instances.has("pred_masks"):
                files.append(folder / "masks.png")
                write_png(objects_image(instances.pred_masks.numpy()), files[-1])
        if "sem_seg" in found:
            files.append(folder / "labels.png")
            write_png(labels_image(found["sem_seg"]), files[-1])
        coco.write(files[0])
        return draw(frame.bgr, found, predictor.metadata), rows, [str(file) for file in files]

    return detect


def objects_image(masks: np.ndarray) -> np.ndarray:
    """(H, W) uint8, or uint16 from 256 objects on: the number of the object at each pixel, counted
    from 1 in the order of detections.json, the first on top; 0 for none.

    Args:
        masks: (objects, H, W) bool.
    """
    numbers = np.zeros(masks.shape[1:], np.uint8 if len(masks) < 256 else np.uint16)
    for index in reversed(range(len(masks))):
        numbers[masks[index]] = index + 1
    return numbers


def _name(predictor: Predictor, index: int) -> str:
    return predictor.classes[index] if index < len(predictor.classes) else str(index)


def _box(box: Any) -> list[float]:
    x0, y0, x1, y1 = box.tolist()
    return [round(value, 1) for value in (x0, y0, x1 - x0, y1 - y0)]


def page(models: Mapping[str, str], device: str | None, folder: Path) -> Any:
    """The page, a ``gradio.Blocks``; what is found is written below ``folder``."""
    import gradio as gr

    detect = detector(models, device)

    def run(file: str | None, name: str, threshold: float) -> tuple[Any, Any, Any, str]:
        if file is None:
            return None, None, None, ""
        try:
            target = Path(tempfile.mkdtemp(dir=folder))
            drawn, rows, files = detect(file, name, threshold, target)
        except GnwsError as error:
            raise gr.Error(str(error)) from error
        return drawn, rows, files, f"**{len(rows)}** detections with a score from {threshold:g}"

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
                name = gr.Dropdown(list(models), value=next(iter(models)), label="model")
                threshold = gr.Slider(LOWEST, 1, value=0.5, step=0.05, label="lowest score")
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
        for event in (file.change, name.change, threshold.release):
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
