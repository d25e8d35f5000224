"""One self-contained HTML page: no file beside it and no network is needed to read it."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(**parts: Any) -> str:
    """template.html filled with ``parts``, of which it needs each; every text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template("template.html").render(**parts)


def data_uri(image: bytes) -> str:
    """The address that holds a PNG or JPEG itself."""
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def number(value: float | None, digits: int = 1) -> str:
    """``value`` with so many digits after the point; a dash if undefined."""
    return "\N{EN DASH}" if value is None or math.isnan(value) else f"{value:.{digits}f}"
