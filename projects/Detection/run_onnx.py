#!/usr/bin/env python3
"""Run an exported detector on an image with NumPy, Pillow and ONNX Runtime alone.

    run_onnx.py exported/model.onnx image.png --output found.png

Prints the detections and, with --output, draws them. Copy from here into your own program.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps


def read(file: str) -> Image.Image:
    """The image as it is looked at: turned as its EXIF data say, 16-bit levels as 8-bit ones."""
    picture = ImageOps.exif_transpose(Image.open(file))
    if picture.mode.startswith("I;16"):
        levels = np.asarray(picture).astype(np.uint32)
        picture = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        sys.exit(f"{file} has 32-bit pixels, whose range is unknown. Convert it to 8 or 16 bits.")
    return picture.convert("RGB")


def prepare(picture: Image.Image, facts: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The network's input (3, H, W), and how much wider and higher it is than the image."""
    width, height = picture.size
    scale = facts["min_size"] / min(width, height)
    scale = min(scale, facts["max_size"] / max(width, height))
    size = int(width * scale + 0.5), int(height * scale + 0.5)
    scales = np.divide(size, picture.size)
    bilinear = Image.Resampling.BILINEAR
    if facts["resize"] == "cv2":  # between the nearest pixels, also where the image shrinks
        x, y = 1 / scales
        resized = picture.transform(size, Image.Transform.AFFINE, (x, 0, 0, 0, y, 0), bilinear)
    else:
        resized = picture.resize(size, bilinear)
    array = np.asarray(resized, np.float32)
    if facts["format"] == "BGR":
        array = array[:, :, ::-1]
    return np.ascontiguousarray(array.transpose(2, 0, 1)), scales


def paste(mask: np.ndarray, box: np.ndarray, width: int, height: int) -> np.ndarray:
    """The mask (28, 28) of a box, resampled to the image: true inside the object."""
    x0, y0, x1, y1 = box
    grid = mask.shape[0]
    # The centres of the image's pixels, in cells of the mask.
    x = (np.arange(width) + 0.5 - x0) / (x1 - x0) * grid - 0.5
    y = (np.arange(height) + 0.5 - y0) / (y1 - y0) * grid - 0.5
    padded = np.pad(mask, 1)  # zero outside the box
    x, y = np.clip(x, -1, grid) + 1, np.clip(y, -1, grid) + 1
    left, top = np.minimum(x.astype(int), grid), np.minimum(y.astype(int), grid)
    x, y = x - left, (y - top)[:, None]
    upper = padded[top][:, left] * (1 - x) + padded[top][:, left + 1] * x
    lower = padded[top + 1][:, left] * (1 - x) + padded[top + 1][:, left + 1] * x
    return upper * (1 - y) + lower * y >= 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("image")
    parser.add_argument("--output", help="where to draw what is found")
    parser.add_argument("--confidence-threshold", type=float, default=0.5)
    args = parser.parse_args()

    session = onnxruntime.InferenceSession(args.model, providers=["CPUExecutionProvider"])
    stored = session.get_modelmeta().custom_metadata_map
    facts = {name: json.loads(value) for name, value in stored.items()}
    picture = read(args.image)
    image, scales = prepare(picture, facts)
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"image": image}), strict=True))

    boxes = found["boxes"] / np.tile(scales, 2)
    painted = np.array(picture)
    for i in range(len(boxes)):
        if found["scores"][i] < args.confidence_threshold:
            continue
        name = facts["classes"][found["classes"][i]] if facts["classes"] else found["classes"][i]
        corners = ", ".join(f"{side:.1f}" for side in boxes[i])
        print(f"{name}: {found['scores'][i]:.3f} at {corners}")
        if "masks" in found:
            inside = paste(found["masks"][i, 0], boxes[i], *picture.size)
            painted[inside] = painted[inside] // 2 + np.array([0, 110, 60], np.uint8)
    if args.output:
        drawn = Image.fromarray(painted)
        for box in boxes[found["scores"] >= args.confidence_threshold]:
            ImageDraw.Draw(drawn).rectangle(box.tolist(), outline=(255, 80, 0))
        drawn.save(args.output)


if __name__ == "__main__":
    main()
