"""Documents in which a command writes the part between two marks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from gnws_d2.files import atomic_write


def update_marked(document: Path, parts: Mapping[str, str]) -> None:
    """Write ``document`` again with each of ``parts``, by name, between the lines
    ``<!-- name: ... -->`` and ``<!-- end of name -->``.

    Raises:
        ValueError: the marks of a part are missing; nothing is written.
    """
    text = document.read_text(encoding="utf-8")
    for name, part in parts.items():
        marks = rf"(<!-- {name}: .* -->\n)[\s\S]*?(<!-- end of {name} -->)"
        text, found = re.subn(marks, lambda m, part=part: f"{m[1]}{part}\n{m[2]}", text)
        if not found:
            raise ValueError(
                f"{document} has no place for the table {name!r}. Put <!-- {name}: made by ... "
                f"--> and <!-- end of {name} --> on lines there."
            )
    with atomic_write(document) as partial:
        partial.write_text(text, encoding="utf-8")
