"""Diagnoses the environment: what is wrong with its versions, and the fix of each problem.

Runs as ``python -m gnws.check_env``, or ``python projects/Command/check_env.py`` where nothing is
installed. Needs the standard library only, and its syntax suits Pythons older than the supported
ones, so that it can tell their users.
"""

from __future__ import annotations

import json
import subprocess
import sys

OLDEST, NEWEST = (3, 10), (3, 13)
DETECTRON2 = (
    "git+https://github.com/facebookresearch/detectron2.git"
    "@02b5c4e295e990042a714712c21dc79b731e8833"
)
# The two ways to get Detectron2; gnws_d2's own first error also names them.
INSTALL = (
    f"pip install --no-build-isolation {DETECTRON2} (git, a C++ compiler), "
    "or python -m gnws.detectron2_pypi (from PyPI, not compiled)"
)
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
TIMEOUT = 300  # seconds; a first import from a slow disk can take a minute


_REINSTALL = "pip install --force-reinstall"
_PILLOW = """
import numpy
from PIL import Image
Image.fromarray(numpy.zeros((1, 1), "uint8"), mode="L")
Image.NEAREST, Image.BILINEAR, Image.BICUBIC, Image.EXTENT, Image.TRANSPOSE
"""
_GPU = """
import torch
if torch.version.cuda and not torch.cuda.is_available():
    raise Warning("torch is built for CUDA, some 3 GB, and finds no GPU")
"""
_DETECTRON2 = """
from importlib.util import find_spec
spec = find_spec("detectron2")
if spec is None or spec.origin is None:  # a clone's folder has no origin
    raise ModuleNotFoundError("No module named 'detectron2'")
"""
_COMPILED = """
import torch
from importlib.util import find_spec
if find_spec("detectron2._C") is None:
    raise Warning("not compiled; this package works without it")
import detectron2._C
"""
# Each: what is checked; a statement that raises an error for a problem, or a Warning for what
# works with a limit; the fix; the checks without whose success the error would mislead.
_CHECKS: list[tuple[str, str, str, tuple[str, ...]]] = [
    # Detectron2 imports it; setuptools 82 no longer has it.
    ("setuptools", "import pkg_resources", 'pip install "setuptools<81"', ()),
    ("numpy", "import numpy", f"{_REINSTALL} numpy", ()),
    ("pillow", _PILLOW, f'{_REINSTALL} "pillow>=9.1,<14"', ("numpy",)),
    ("torch", "import torch", f"{_REINSTALL} torch torchvision", ()),
    ("GPU", _GPU, f"without one, make env VENV=... TORCH_INDEX={TORCH_INDEX}", ("torch",)),
    (
        "numpy with torch",
        "import numpy, torch; torch.from_numpy(numpy.ones(1))",
        'pip install "numpy<2", or a newer torch',
        ("numpy", "torch"),
    ),
    (
        "torchvision",  # its operators do not load beside another torch than the one it is made for
        "import torch, torchvision; torch.ops.torchvision.nms",
        "pip install --upgrade torch=={torch} torchvision",
        ("torch",),
    ),
    ("detectron2", _DETECTRON2, INSTALL, ()),
    (
        "detectron2._C",
        _COMPILED,
        f"{_REINSTALL} --no-cache-dir --no-build-isolation --no-deps {DETECTRON2}",
        ("torch", "detectron2"),
    ),
    (
        "detectron2's imports",
        "import detectron2.model_zoo, detectron2.engine",
        "pip install --upgrade numpy pillow fvcore iopath matplotlib pycocotools cloudpickle "
        "omegaconf packaging tensorboard termcolor yacs",
        ("setuptools", "numpy with torch", "pillow", "torchvision", "detectron2"),
    ),
]

# Runs in a process of its own, which a crash or a hang may end: prints the versions, and each check
# with its error, before and after it. Only a warning does not fail.
_PROBE = """\
import importlib.metadata, json, sys, warnings

def say(*words):
    print("\\nprobe:" + json.dumps(words), flush=True)

for name in "setuptools numpy pillow torch torchvision sal-detectron2 detectron2".split():
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        continue
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    commit = origin.get("vcs_info", {}).get("commit_id", "")[:8]
    say("version", name, " ".join([found.version, commit or origin.get("url", "")]).strip())

warnings.simplefilter("ignore")
failed = set()
for what, code, fix, needs in json.loads(sys.argv[1]):
    if failed.isdisjoint(needs):
        say("error", what, "a crash, or no end in time")
        error = ""
        try:
            exec(code, {})
        except Warning as e:
            say("warning", what, str(e))
        except BaseException as e:
            error = f"{type(e).__name__}: {e}".splitlines()[0]
            failed.add(what)
        say("error", what, error)
    else:
        failed.add(what)
"""


def check() -> tuple[list[str], list[str]]:
    """Return what is wrong with this environment, and what else to report, one line each.

    Each line names a package or a check, what was found and the fix. gnws_d2 runs where nothing is
    wrong; the other lines are then limits, and the versions.
    """
    python = sys.version.split()[0]
    if sys.version_info < OLDEST:  # nothing else is worth fixing
        return [f"Python: {python} -> make env PYTHON=python3.11, or another from 3.10 to 3.13"], []
    probe = [sys.executable, "-c", _PROBE, json.dumps(_CHECKS)]
    try:
        output = subprocess.run(probe, capture_output=True, timeout=TIMEOUT, check=False).stdout
    except subprocess.TimeoutExpired as e:
        output = e.stdout or b""
    found: dict[str, dict[str, str]] = {"version": {}, "error": {}, "warning": {}}
    for line in output.decode().splitlines():
        if line.startswith("probe:"):
            kind, what, text = json.loads(line[len("probe:") :])
            found[kind][what] = text
    versions = found["version"]
    lines: dict[str, list[str]] = {"error": [], "warning": []}
    for kind in lines:
        for what, _, fix, _ in _CHECKS:
            if found[kind].get(what):
                text = ": ".join(filter(None, (what, versions.get(what), found[kind][what])))
                lines[kind].append(f"{text} -> {fix.format(torch=versions.get('torch'))}")
    if sys.version_info[:2] > NEWEST:
        lines["warning"].append(f"Python: {python} is newer than any tested one")
    names = [f"{name} {version}" for name, version in versions.items()]
    return lines["error"], [*lines["warning"], ", ".join([f"python {python}", *names])]


def main() -> int:
    """Print the lines of :func:`check`, and return the exit status."""
    problems, remarks = check()
    for line in [*remarks, *(f"error: {problem}" for problem in problems)]:
        print(line)
    print("The environment does not work." if problems else "The environment works.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
