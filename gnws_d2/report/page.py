"""One self-contained HTML page: no file beside it and no network is needed to read it."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


@dataclass(frozen=True)
class Picture:
    """An image of the page.

    Attributes:
        name: what it is; the alternative text.
        content: the bytes of a PNG or JPEG.
        width: in pixels, below which it would be unreadable; 0 if it may be of any size.
    """

    name: str
    content: bytes
    width: int = 0

    @property
    def uri(self) -> str:
        kind = "png" if self.content.startswith(b"\x89PNG") else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(self.content).decode()}"


@dataclass(frozen=True)
class Pair:
    """An image with its objects, and with its detections."""

    title: str
    caption: str
    truth: Picture
    prediction: Picture


@dataclass(frozen=True)
class TaskSection:
    """The results of boxes or of masks.

    Attributes:
        name: "box" or "mask".
        ap: percent by COCO's name.
        threshold: the suggested score threshold; None if no detection is right.
        at_threshold: numbers at that threshold, by name.
        classes: rows of the table of classes, by column.
        confused: pairs of classes: class, detected as, count, share.
    """

    name: str
    ap: Mapping[str, float]
    threshold: float | None
    at_threshold: Mapping[str, float]
    classes: Sequence[Mapping[str, Any]]
    confused: Sequence[tuple[str, str, int, float]]
    plots: Sequence[Picture]


@dataclass(frozen=True)
class Page:
    """What the page shows; see template.html."""

    title: str
    subtitle: str
    notes: Sequence[str]
    tasks: Sequence[TaskSection]
    pairs: Mapping[str, Sequence[Pair]]
    training: Sequence[Picture]
    data: Mapping[str, Mapping[str, Any]]
    commands: Sequence[tuple[str, str]]
    changed_config: Mapping[str, Any]
    config: str
    environment: str
    missing: Sequence[str] = field(default_factory=tuple)


def render(page: Page) -> str:
    """The page as HTML; every text in it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template("template.html").render(page=page)


def number(value: float | None, digits: int = 1) -> str:
    """``value`` with so many digits after the point; a dash if undefined."""
    return "\N{EN DASH}" if value is None or math.isnan(value) else f"{value:.{digits}f}"
