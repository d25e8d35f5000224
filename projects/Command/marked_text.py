"""Documents in which a command writes the part between two marks."""

from __future__ import annotations

import re


def replace_marked(text: str, name: str, made: str) -> str:
    """``text`` with ``made`` between the lines ``<!-- name: ... -->`` and ``<!-- end of name -->``.

    Raises:
        ValueError: the marks are missing.
    """
    marks = rf"(<!-- {name}: .* -->\n)[\s\S]*?(<!-- end of {name} -->)"
    text, found = re.subn(marks, lambda m: f"{m[1]}{made}\n{m[2]}", text)
    if not found:
        raise ValueError(
            f"the document has no place for the table {name!r}. Put <!-- {name}: made by ... --> "
            f"and <!-- end of {name} --> on lines there."
        )
    return text
