"""Textured grounds and the colours of ink that can be told from them."""

from __future__ import annotations

import numpy as np
from PIL import Image

# Rec. 601 weights: how bright red, green and blue look.
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
MIN_CONTRAST = 80  # least difference of luma between ink and the ground's mean, of 255
INK_CHOICES = 12


def tinted(rng: np.random.Generator, luma: float, strength: float) -> np.ndarray:
    """Draw a colour of the given luma (up to clipping). Returns (3,) float32 RGB, 0 to 255."""
    tint = rng.uniform(-strength, strength, 3)
    return np.clip(luma + tint - tint @ LUMA, 0, 255).astype(np.float32)


def smooth_field(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Draw smooth noise of about ``cells`` hills across. Returns (size, size), about -1 to 1."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def wave_field(rng: np.random.Generator, size: int, *, stripes: bool) -> np.ndarray:
    """Draw a ramp, or stripes, in a random direction. Returns (size, size), -1 to 1."""
    direction = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size] / size - 0.5
    along = x * np.cos(direction) + y * np.sin(direction)  # within +-0.71
    if not stripes:
        return along * np.sqrt(2)
    return np.sin(2 * np.pi * (along * rng.uniform(3, 14) + rng.uniform()))


def draw_ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a ground: a colour, varied by a ramp, stripes or smooth noise, and some grain.

    Returns:
        (size, size, 3) float32 RGB, 0 to 255.
    """
    kind = rng.choice(["ramp", "stripes", "noise"])
    if kind == "noise":
        pattern = smooth_field(rng, size, int(rng.integers(3, 16)))
    else:
        pattern = wave_field(rng, size, stripes=kind == "stripes")
    pattern = pattern + 0.4 * smooth_field(rng, size, int(rng.integers(10, 40)))
    base = tinted(rng, rng.uniform(120, 235), 60)
    swing = tinted(rng, rng.uniform(8, 26), 15)
    return np.clip(base + pattern[..., None] * swing, 0, 255).astype(np.float32)


def choose_ink(rng: np.random.Generator, ground_luma: float, below: list[np.ndarray]) -> np.ndarray:
    """Choose a colour of ink, darker than the ground and unlike the inks below.

    Args:
        rng: source of chance.
        ground_luma: mean luma of the ground, 0 to 255.
        below: inks of the digits that it partly covers, each (3,) RGB.

    Returns:
        (3,) float32 RGB, 0 to 255.
    """
    choices = []
    for _ in range(INK_CHOICES if below else 1):
        luma = rng.uniform(0, max(0, ground_luma - MIN_CONTRAST))
        choices.append(tinted(rng, luma, 110))
    return max(choices, key=lambda ink: min((np.linalg.norm(ink - u) for u in below), default=0))
