"""Names what is wrong with the versions in this environment, and the cure of each problem.

Runs as ``python -m gnws_d2.check_env`` and, where the import of gnws_d2 itself fails, as
``python gnws_d2/check_env.py``. Needs the standard library only, and its syntax suits Pythons
older than the supported ones, so that it can tell their users.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import defaultdict
from typing import NamedTuple

OLDEST, NEWEST = (3, 10), (3, 12)
TORCH = "torch==2.11.0 torchvision==0.26.0"
PILLOW = '"pillow>=9.1,<14"'
DETECTRON2 = (
    "git+https://github.com/facebookresearch/detectron2.git"
    "@02b5c4e295e990042a714712c21dc79b731e8833"
)
TIMEOUT = 300  # seconds; a first import from a slow disk can take a minute

# Runs in a process of its own, which a crash or a hang may end. Says before each attempt what it
# is, and after it the version and the error. What builds on a failed attempt is left out: its error
# would name the wrong cause. Detectron2 is only looked for at first, for its import needs torch.
PROBE = """\
import importlib.metadata, json, sys, traceback, warnings

def say(*words):
    print("\\nprobe:" + json.dumps(words), flush=True)

def attempt(name, statements):
    say(name, "", "a crash, or no end in time")
    error = version = ""
    try:
        exec(statements, {})
    except BaseException as e:
        error = traceback.format_exception_only(type(e), e)[-1].splitlines()[0]
    try:
        version = getattr(sys.modules.get(name), "__version__", None)
        version = str(version or importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        version = ""
    say(name, version, error)
    return not error

warnings.simplefilter("ignore")
setuptools = attempt("setuptools", "import pkg_resources")
numpy = attempt("numpy", "import numpy")
pillow = numpy and attempt("pillow", '''
import numpy
from PIL import Image
Image.fromarray(numpy.zeros((1, 1), "uint8"), mode="L")
Image.NEAREST, Image.BILINEAR, Image.BICUBIC, Image.EXTENT, Image.TRANSPOSE, Image.TRANSVERSE
Image.FLIP_LEFT_RIGHT, Image.FLIP_TOP_BOTTOM, Image.ROTATE_90, Image.ROTATE_180, Image.ROTATE_270
''')
torch = attempt("torch", "import torch")
both = numpy and torch and attempt("both", "import numpy, torch; torch.from_numpy(numpy.ones(1))")
vision = torch and attempt("torchvision", "import torch, torchvision; torch.ops.torchvision.nms")
detectron2 = attempt("detectron2", '''
from importlib.util import find_spec
spec = find_spec("detectron2")
if spec is None or spec.origin is None:  # a clone's folder has no origin
    raise ModuleNotFoundError("No module named 'detectron2'")
''')
compiled = both and detectron2 and attempt("detectron2._C", '''
import detectron2
try:
    import detectron2._C
except ModuleNotFoundError:
    raise ImportError("its compiled part _C is not in " + detectron2.__path__[0])
''')
if compiled and setuptools and pillow and vision:
    attempt("modules", "import detectron2.model_zoo, detectron2.engine")
"""


class Problem(NamedTuple):
    """What has a problem, what was found, and what cures it."""

    what: str
    found: str
    cure: str

    def __str__(self) -> str:
        return f"{self.what}: {self.found} -> {self.cure}"


class _Attempt(NamedTuple):
    version: str = ""
    error: str = ""

    @property
    def found(self) -> str:
        """What to tell of a failed attempt; empty after a good one and for one left out."""
        if not self.version and self.error.startswith("ModuleNotFoundError"):
            return "not installed"
        return f"{self.version} fails: {self.error}".lstrip() if self.error else ""


def _probe() -> dict[str, _Attempt]:
    command = [sys.executable, "-c", PROBE]
    try:
        output = subprocess.run(command, capture_output=True, timeout=TIMEOUT, check=False).stdout
    except subprocess.TimeoutExpired as e:
        output = e.stdout or b""
    attempts: dict[str, _Attempt] = defaultdict(_Attempt)
    for line in output.decode().splitlines():
        if line.startswith("probe:"):
            name, *outcome = json.loads(line[len("probe:") :])
            attempts[name] = _Attempt(*outcome)
    return attempts


def _problem(what: str, found: str, cure: str) -> list[Problem]:
    return [Problem(what, found, cure)] if found else []


def _python() -> list[Problem]:
    found = sys.version.split()[0] if sys.version_info < OLDEST else ""
    cure = "make env PYTHON=python3.11, or another Python from {}.{} to {}.{}"
    return _problem("Python", found, cure.format(*OLDEST, *NEWEST))


def _setuptools(tried: dict[str, _Attempt]) -> list[Problem]:
    version, error = tried["setuptools"]
    if not error and int(version.split(".")[0] or 0) < 81:
        return []
    found = f"{version or 'not installed'}; Detectron2 needs its pkg_resources, gone since 82"
    return _problem("setuptools", found, 'pip install "setuptools<81"')


def _packages(tried: dict[str, _Attempt]) -> list[Problem]:
    reinstall = "pip install --force-reinstall"
    return [
        *_problem("NumPy", tried["numpy"].found, f"{reinstall} numpy"),
        *_problem("Pillow", tried["pillow"].found, f"{reinstall} {PILLOW}"),
        *_problem("torch", tried["torch"].found, f"{reinstall} {TORCH}"),
    ]


def _numpy(tried: dict[str, _Attempt]) -> list[Problem]:
    version, torch, error = tried["numpy"].version, tried["torch"].version, tried["both"].error
    found = f"{version} fails with torch {torch}: {error}" if error else ""
    return _problem("NumPy", found, 'pip install "numpy<2", or a newer torch')


def _torchvision(tried: dict[str, _Attempt]) -> list[Problem]:
    torch, (version, _) = tried["torch"].version, tried["torchvision"]
    two = re.match(r"2\.(\d+)\.", torch)  # torch 2.N and torchvision 0.(N + 15) belong together
    partner = f"0.{int(two[1]) + 15}." if two else ""
    found = tried["torchvision"].found
    if version and not version.startswith(partner):
        found = f"{version} is made for another torch than {torch}"
    wanted = f'--no-deps "torchvision=={partner}*"' if two else TORCH
    return _problem("torchvision", found, f"pip install --force-reinstall {wanted}")


def _detectron2(tried: dict[str, _Attempt]) -> list[Problem]:
    install = "pip install --no-build-isolation"
    if tried["detectron2"].found:
        found = f"{tried['detectron2'].found} (it needs torch, git and a C++ compiler)"
        return _problem("Detectron2", found, f"{install} {DETECTRON2}")
    error = tried["detectron2._C"].error
    if error and "is not in" not in error:
        error = f"built for another torch than {tried['torch'].version}: {error}"
    # Without the cache, in which pip may have it as built for that other torch.
    cure = f"{install} --no-cache-dir --force-reinstall --no-deps {DETECTRON2}"
    return _problem("Detectron2", error, cure)


def _modules(tried: dict[str, _Attempt]) -> list[Problem]:
    error = tried["modules"].error
    if "numpy" in error:
        cure = "pip install --upgrade numpy fvcore matplotlib pycocotools"
        return _problem("NumPy", f"{tried['numpy'].version} fails in Detectron2: {error}", cure)
    if "PIL" in error:
        found = f"{tried['pillow'].version} fails in Detectron2: {error}"
        return _problem("Pillow", found, f"pip install {PILLOW}")
    # This also installs the packages that Detectron2 needs and does not find.
    return _problem("Detectron2", error, f"pip install --no-build-isolation {DETECTRON2}")


CHECKS = [_setuptools, _packages, _numpy, _torchvision, _detectron2, _modules]


def _problems(tried: dict[str, _Attempt]) -> list[Problem]:
    # In an unsupported Python nothing else is worth curing.
    return _python() or [problem for each in CHECKS for problem in each(tried)]


def check() -> list[Problem]:
    """Return the problems of this environment: none if gnws_d2 can run in it."""
    return _problems(_probe())


def check_before_install(source: str = DETECTRON2) -> list[Problem]:
    """Return what this machine lacks for an environment with Detectron2 from ``source``.

    Args:
        source: what pip is to install: a git address, a folder or a wheel.
    """
    python = "python{}.{}".format(*sys.version_info)
    compilers = os.environ.get("CXX", "").split()[:1] or ["c++", "g++", "clang++"]
    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    problems = _python()
    if importlib.util.find_spec("ensurepip") is None:
        problems += _problem("Python", "no module ensurepip", f"apt install {python}-venv")
    if source.startswith("git+") and not shutil.which("git"):
        problems += _problem("git", "not found", "apt install git")
    if source.endswith(".whl"):
        return problems  # nothing has to be compiled
    if not any(map(shutil.which, compilers)):
        problems += _problem("C++ compiler", f"no {' or '.join(compilers)}", "apt install g++")
    if not os.path.exists(header):
        problems += _problem("Python", f"no {header} to compile with", f"apt install {python}-dev")
    return problems


def main() -> int:
    """Print the problems, or the versions if there are none, and return the exit status."""
    parser = argparse.ArgumentParser(description="Check the versions in this environment.")
    parser.add_argument("--quiet", action="store_true", help="print problems only")
    parser.add_argument(
        "--before-install",
        metavar="SOURCE",
        nargs="?",
        const=DETECTRON2,
        help="check instead what it takes to install Detectron2 from SOURCE",
    )
    options = parser.parse_args()
    if options.before_install:
        tried, problems = {}, check_before_install(options.before_install)
    else:
        tried = _probe()
        problems = _problems(tried)
    lines = [str(problem) for problem in problems]
    if not options.quiet:
        if sys.version_info[:2] > NEWEST:
            lines.append(f"warning: Python {sys.version.split()[0]} is newer than any tested one")
        if not problems:
            versions = [f"{name} {each.version}" for name, each in tried.items() if each.version]
            lines.append(", ".join([f"environment ok: python {sys.version.split()[0]}", *versions]))
    print(*lines, sep="\n", end="\n" if lines else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
