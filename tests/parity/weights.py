"""Weights and an image that both frameworks can make identically, from names and seeds alone.

The draws keep an untrained network lively: filters have a random mean and scale, so that leaving
the standardization out, or a biased deviation, shows; the classifier is sharp enough for confident
detections. They made the expected outputs beside this file and must not change.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

# The spread of some layers' weights, in units of 1 / sqrt(fan-in).
_SHARPER = {"fc_cls.weight": 6.0, "fc_reg.weight": 2.0, "rpn_cls.weight": 3.0}
_PLAIN = ("rpn_reg.weight", "rpn_conv.weight", "conv_logits.weight")


def _draw(name: str, shape: list[int], seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    is_norm = ".gn" in name or ".downsample.1." in name
    if is_norm and name.endswith("weight"):
        return rng.uniform(0.5, 1.5, shape)
    if name.endswith("bias"):
        return rng.normal(0.0, 0.2 if is_norm else 0.05, shape)
    spread = int(np.prod(shape[1:])) ** -0.5
    value = rng.normal(0.0, spread, shape)
    for suffix, factor in _SHARPER.items():
        if name.endswith(suffix):
            return factor * value
    if len(shape) < 4 or name.endswith(_PLAIN):
        return value
    per_filter = (shape[0], 1, 1, 1)
    value = value * np.exp(rng.normal(0.0, 1.0, per_filter))
    return value + rng.normal(0.0, spread, per_filter)


def mmdet_state_dict(manifest: Path, seed: int) -> dict[str, torch.Tensor]:
    """The float32 tensors of a manifest {tensor name: shape}."""
    shapes = json.loads(manifest.read_text())
    return {
        name: torch.from_numpy(_draw(name, shape, seed).astype(np.float32))
        for name, shape in shapes.items()
    }


def input_image(height: int, width: int, seed: int) -> np.ndarray:
    """A smooth, textured (height, width, 3) uint8 BGR image."""
    rng = np.random.default_rng([seed, height, width])
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    image = np.zeros((height, width, 3))
    for channel in range(3):
        for _ in range(12):
            fy, fx = rng.uniform(0.0, 0.15, 2)
            amplitude = rng.uniform(5, 25)
            image[..., channel] += amplitude * np.sin(fy * y + fx * x + rng.uniform(0, 6.3))
        for _ in range(10):
            cy, cx = rng.uniform(0, height), rng.uniform(0, width)
            ry, rx = rng.uniform(10, height / 4), rng.uniform(10, width / 4)
            inside = np.abs(y - cy) / ry + np.abs(x - cx) / rx < 1
            image[..., channel] += rng.uniform(-80, 80) * inside
    return np.clip(np.rint(image + 128.0), 0, 255).astype(np.uint8)
