"""What the documents name exists: links, files, config keys, Python names, commands and flags."""

import importlib.util
import pkgutil
import re
from functools import reduce

import pytest
from documents import DOCUMENTS, ROOT, is_command, lines, name, prose, quoted, split

import gnws_d2
from gnws import arguments
from gnws_d2.model_zoo import get_config_file
from gnws_d2.projects.acceleration import add_acceleration_config

LINKING = [*DOCUMENTS, ROOT / "CHANGELOG.md", *sorted((ROOT / "tests").rglob("README.md"))]
CODE = [f for top in ("gnws_d2", "projects", "tests", "configs") for f in (ROOT / top).rglob("*")]
CODE = {f: f.read_text(encoding="utf-8") for f in CODE if f.suffix in (".py", ".yaml")}
FOLDERS = r"(?<![\w/.{}-])(?:\.ci|configs|docs|gnws_d2|projects|tests)/"
OTHERS_FILES = ("configs/gn+ws", "configs/_base_/")  # of MMDetection
VARIABLE = re.compile(r"(NCCL|GLOO|WANDB|MLFLOW|TORCH)_\w+")  # which other programs read
SHOWN = [(name(d), line) for d in DOCUMENTS for line in lines(d)]
QUOTED = [(name(d), text) for d in DOCUMENTS for text in quoted(d)]
PROGRAMS = {"train_net.py": "train", "lazyconfig_train_net.py": "train"}  # -> their command


def headings(document):
    """The anchors that GitHub gives to the headings."""
    found = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in found}


@pytest.mark.parametrize("document", LINKING, ids=name)
def test_each_link_leads_to_a_file_and_a_heading(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            file = document.parent / path if path else document
            assert file.exists(), target
            assert not anchor or anchor in headings(file), target


def test_each_file_exists():
    for document, text in QUOTED:
        for path in re.findall(FOLDERS + r"[\w.*+/-]*", text):
            found = path in OTHERS_FILES or any(ROOT.glob(path.rstrip("/")))
            assert found, (document, path)
        for path in re.findall(r"(?<![\w/.-])(?:COCO|Digits|Small)[\w-]*/[\w.*-]+", text):
            assert any((ROOT / "configs").glob(path)), (document, path)
        for file in re.findall(r"(?<![\w/.*-])\w+\.py\b", text):
            assert any(f.name == file for f in CODE), (document, file)


def test_each_file_that_the_code_names_exists():
    for file in [*CODE, ROOT / "setup.py", ROOT / "Makefile", ROOT / "requirements.txt"]:
        for path in re.findall(FOLDERS + r"[\w./-]+\.(?:md|py|yaml|json|csv)\b", file.read_text()):
            assert (ROOT / path).exists() or path.startswith(OTHERS_FILES), (file, path)


def load(file="", opts=()):
    return gnws_d2.load_config(file, opts, [add_acceleration_config])


def test_each_config_key_exists():
    """And a name in capitals is the last part of one, or the code has it."""
    cfg = load()
    known = set(re.findall(r"\b[A-Z]\w*\b", "".join([cfg.dump(), *CODE.values()])))
    pattern = re.compile(r"(?<![\w./$])(?:[A-Z]\w*(?:\.[A-Z]\w*)+(?![\w(.])|[A-Z]+_[A-Z_]+\b)")
    for document, text in QUOTED:
        for key in filter(str.isupper, pattern.findall(text)):
            if "." in key:
                reduce(lambda section, part: section[part], key.split("."), cfg)
            else:
                assert key in known or VARIABLE.match(key), (document, key)


def test_each_python_name_exists():
    for _, text in QUOTED:
        for path in re.findall(r"(?<![\w./-])gnws_d2(?:\.\w+)+", text):
            if path != "gnws_d2.projects.NAME":
                pkgutil.resolve_name(path)


def test_each_flag_exists():
    known = {"--train", "--val", "--test", "--help"}  # made of parts, or argparse's
    known |= {"--max-restarts", "--logdir", "--opt_out"}  # of other programs
    known |= {flag for text in CODE.values() for flag in re.findall(r'"(--[\w-]+)"', text)}
    for document, text in QUOTED:
        for flag in re.findall(r"(?<!\S)--[a-z][\w-]+", text):
            assert flag in known, (document, flag)


@pytest.mark.parametrize(
    ("document", "line"), [(d, text) for d, text in [*SHOWN, *QUOTED] if is_command(text)]
)
def test_each_command_has_its_words(document, line):
    """The program, its flags, and the config with what overrides it."""
    line = re.sub(r"^torchrun .*(?=projects/)|^torchrun (?!.*projects/)", "python ", line)
    words = split(re.sub(r"(--config-file )?\.\.\.", "", line))
    program, first, *rest = [{"N": "1", "LEVEL": "light"}.get(word, word) for word in words]
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert f"\n{first}:" in makefile
        assert all(f"\n{word.partition('=')[0]} ?=" in makefile for word in rest)
    elif program == "pip":
        setup = (ROOT / "setup.py").read_text(encoding="utf-8")
        assert all(f'"{extra}": ' in setup for extra in re.findall(r"\.\[(\w+)\]", line))
    elif first == "-m" and rest[0] == "pytest":
        paths = [ROOT / word for word in rest if word.startswith("tests")]
        tests = [f.read_text() for p in paths for f in (p.rglob("*.py") if p.is_dir() else [p])]
        assert "-k" not in rest or any(re.search(rf"def test_\w*{rest[-1]}", t) for t in tests)
    elif first == "-m":
        assert importlib.util.find_spec(rest[0])
    elif program == "gnws" and (not rest or "--help" in rest):
        assert first in (*arguments.COMMANDS, "COMMAND", "--help")
    elif program == "gnws" or first.rpartition("/")[2] in PROGRAMS:
        args = arguments.parse(PROGRAMS.get(first.rpartition("/")[2], first), rest)
        config = (getattr(args, "config_file", "") or "").replace("CONFIG", "")
        config = config and get_config_file(config)
        assert config.endswith(".py") or load(config, getattr(args, "opts", []))
    elif first.startswith("projects/"):
        folder = (ROOT / first).parent
        text = "".join(text for file, text in CODE.items() if file.parent == folder)
        assert (ROOT / first).is_file()
        assert all(f'"{w}"' in text for w in rest if w.startswith("--") and w != "--help")


@pytest.mark.parametrize("line", [line for _, line in SHOWN if not is_command(line)])
def test_what_is_no_command_overrides_a_config(line):
    """Or it is the one that activates, or the example of an error, which has two lines."""
    if not line.startswith((". .venv/bin/activate", "error: mine.json: ", "[x, y, ")):
        load(opts=line.removeprefix("... ").split())
