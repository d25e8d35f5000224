"""What the documents show: their text, blocks of code, words in backticks and command lines."""

from __future__ import annotations

import re
import shlex
import textwrap
from itertools import dropwhile
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "MODEL_ZOO.md", "CONTRIBUTING.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("projects/*/README.md")),
]
_FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?:    .*\n|\n(?=    ))+")
is_command = re.compile(r"(?:\w+=\S+ )*(gnws|python|make|pip|torchrun) [\w-]").match


def name(document: Path) -> str:
    return str(document.relative_to(ROOT))


def fenced(document: Path, language: str) -> list[str]:
    """The blocks of code in a language."""
    blocks = _FENCED.findall(document.read_text(encoding="utf-8"))
    return [text for of, text in blocks if of == language]


def lines(document: Path) -> list[str]:
    """What can be typed: the lines of the other blocks, without comments, continued ones joined."""
    text = _FENCED.sub("", document.read_text(encoding="utf-8"))
    text = "\n".join(textwrap.dedent(block) for block in _INDENTED.findall(text))
    text = re.sub(r"(^|\s)#.*", r"\1", text.replace("\\\n", " "), flags=re.MULTILINE)
    text = text.replace(".venv/bin/python", "python").replace(".venv/bin/gnws", "gnws")
    found = (" ".join(line.split()) for line in re.split(r"\n|; |&& ", text))
    return [line for line in found if line]


def split(line: str) -> list[str]:
    """The words of a command line, without the variables that it sets."""
    return list(dropwhile(re.compile(r"\w+=").match, shlex.split(line)))


def prose(document: Path) -> str:
    """The text without blocks of code."""
    return _INDENTED.sub("", _FENCED.sub("", document.read_text(encoding="utf-8")))


def quoted(document: Path) -> list[str]:
    """What stands in backticks, each on one line."""
    return [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", prose(document))]
