"""Images of digits: what lies where, and how it looks."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .scans import CLASSES, Scans

SIZE = 160  # width and height of an image, pixels
MAX_DIGITS = 4
HEIGHTS = (44, 96)  # pixels, before rotation
MAX_ANGLE = 10  # degrees, either way
MIN_VISIBLE = 0.9  # share of a digit's mask that later digits must leave uncovered
TRIES = 12  # positions tried before a digit is left out
EDGE = 1.5  # width of the soft edge of a stroke, pixels
# Rec. 601: how bright red, green and blue look.
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
MIN_CONTRAST = 80  # least difference of luma between ink and the ground's mean, of 255
INK_CHOICES = 12


@dataclass
class Digit:
    """One digit of an image."""

    label: int  # class, 0 to 9
    scan: int  # position of its scan in scikit-learn's load_digits
    ink: np.ndarray  # (3,) float32 RGB color
    area: int  # pixels of its mask before later digits covered some
    mask: np.ndarray  # (SIZE, SIZE) bool, the visible part


def compose(rng: np.random.Generator, scans: Scans) -> tuple[np.ndarray, list[Digit]]:
    """Compose an image of 1 to 4 digits. All that is random in it comes from ``rng``.

    Returns:
        The image, (SIZE, SIZE, 3) uint8 RGB, and its digits from the lowest to the topmost.
    """
    image = draw_ground(rng, SIZE)
    ground_luma = float(image.mean(axis=(0, 1)) @ LUMA)
    digits: list[Digit] = []
    for _ in range(rng.integers(1, MAX_DIGITS + 1)):
        label = int(rng.integers(len(CLASSES)))
        choice = rng.choice(np.flatnonzero(scans.labels == label))
        stroke = draw_stroke(rng, scans.ink[choice])
        place = find_place(rng, stroke >= 0.5, digits)
        if place is None:
            continue
        mask = np.zeros((SIZE, SIZE), bool)
        mask[place] = stroke >= 0.5
        touched = [digit for digit in digits if (digit.mask[place] & (stroke > 0)).any()]
        ink = choose_ink(rng, ground_luma, [digit.ink for digit in touched])
        for digit in touched:
            digit.mask &= ~mask
        image[place] += stroke[..., None] * (ink - image[place])
        digits.append(Digit(label, int(scans.ids[choice]), ink, int(mask.sum()), mask))
    image += rng.uniform(1, 5) * rng.standard_normal((SIZE, SIZE, 1), dtype=np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), digits


def draw_stroke(rng: np.random.Generator, scan: np.ndarray) -> np.ndarray:
    """Enlarge a scan, (8, 8) float32 ink from 0 to 1, to a smooth stroke of a random height, width,
    slant and thickness.

    Returns:
        (h, w) float32 coverage, 0 to 1, cropped to where it is not 0; from 0.5 on a pixel belongs
        to the mask.
    """
    height = np.exp(rng.uniform(*np.log(HEIGHTS)))  # of the inked rows when upright, pixels
    aspect = rng.uniform(0.7, 1.0)  # width of a scan's cell divided by its height
    angle = np.deg2rad(rng.uniform(-MAX_ANGLE, MAX_ANGLE))
    level = rng.uniform(0.36, 0.46)  # amount of ink at which the stroke begins
    rows = np.flatnonzero(scan.max(axis=1) >= level)
    columns = np.flatnonzero(scan.max(axis=0) >= level)
    cell_h = height / (rows[-1] - rows[0] + 1)
    cell_w = cell_h * aspect
    border = 2  # cells of paper added around the scan, for strokes that end at its edge
    cy = (rows[0] + rows[-1] + 1) / 2 + border
    cx = (columns[0] + columns[-1] + 1) / 2 + border
    # Wide enough for the ink at any angle, and for a cell around it into which strokes swell.
    side = int(np.hypot(height + 2 * cell_h, cell_w * (columns[-1] - columns[0] + 3))) + 1
    # Where in the scan a step across the canvas, one down it, and the canvas' corner lie: the
    # middle of the canvas is the middle of the ink.
    cos, sin = np.cos(angle), np.sin(angle)
    across, down = np.array([cos, sin]) / cell_w, np.array([-sin, cos]) / cell_h
    corner = cx - across.sum() * side / 2, cy - down.sum() * side / 2
    affine = (*across, corner[0], *down, corner[1])
    how = (Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
    ink = Image.fromarray(np.pad(scan, border)).transform((side, side), *how)
    # Ink rises from 0 to 1 over about a cell: this slope gives edges of EDGE pixels at any size.
    slope = np.sqrt(cell_w * cell_h) / EDGE
    coverage = np.clip((np.asarray(ink) - level) * slope + 0.5, 0, 1).astype(np.float32)
    inked = coverage > 0
    ys, xs = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
    return coverage[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]


def find_place(
    rng: np.random.Generator, covered: np.ndarray, below: list[Digit]
) -> tuple[slice, slice] | None:
    """Choose the rows and columns of the image for a digit with the mask ``covered``, (h, w) bool,
    so that it leaves enough of the digits ``below`` visible. None if no such place is found."""
    h, w = covered.shape
    for _ in range(TRIES):
        y, x = rng.integers(SIZE - h + 1), rng.integers(SIZE - w + 1)
        place = np.s_[y : y + h, x : x + w]
        left = [(d.mask.sum() - (d.mask[place] & covered).sum()) / d.area for d in below]
        if min(left, default=1) >= MIN_VISIBLE:
            return place
    return None


def choose_ink(rng: np.random.Generator, ground_luma: float, below: list[np.ndarray]) -> np.ndarray:
    """Choose a color, (3,) float32 RGB, darker than the ground's mean luma (0 to 255) and unlike
    the colors ``below`` of the digits that it partly covers."""
    darkest = max(0, ground_luma - MIN_CONTRAST)
    number = INK_CHOICES if below else 1
    choices = [tinted(rng, rng.uniform(0, darkest), 110) for _ in range(number)]
    return max(choices, key=lambda ink: min((np.linalg.norm(ink - u) for u in below), default=0))


def draw_ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a background: a color, varied by a ramp, stripes or smooth noise, and finer noise.
    Returns (size, size, 3) float32 RGB, 0 to 255."""
    kind = rng.choice(["ramp", "stripes", "noise"])
    if kind == "noise":
        pattern = smooth_field(rng, size, int(rng.integers(3, 16)))
    else:
        pattern = wave_field(rng, size, stripes=kind == "stripes")
    pattern = pattern + 0.4 * smooth_field(rng, size, int(rng.integers(10, 40)))
    base = tinted(rng, rng.uniform(120, 235), 60)
    swing = tinted(rng, rng.uniform(8, 26), 15)
    return np.clip(base + pattern[..., None] * swing, 0, 255).astype(np.float32)


def wave_field(rng: np.random.Generator, size: int, *, stripes: bool) -> np.ndarray:
    """Draw a ramp, or stripes, in a random direction. Returns (size, size), -1 to 1."""
    direction = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size] / size - 0.5
    along = x * np.cos(direction) + y * np.sin(direction)  # within +-0.71
    if not stripes:
        return along * np.sqrt(2)
    return np.sin(2 * np.pi * (along * rng.uniform(3, 14) + rng.uniform()))


def smooth_field(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Draw smooth noise of about ``cells`` hills across. Returns (size, size), about -1 to 1."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def tinted(rng: np.random.Generator, luma: float, strength: float) -> np.ndarray:
    """Draw a color of the given luma (up to clipping). Returns (3,) float32 RGB, 0 to 255."""
    tint = rng.uniform(-strength, strength, 3)
    return np.clip(luma + tint - tint @ LUMA, 0, 255).astype(np.float32)
