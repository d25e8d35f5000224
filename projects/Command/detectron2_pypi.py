"""Installs a copy of Detectron2 from PyPI, without its compiled part, into this environment.

Runs as ``python -m gnws.detectron2_pypi``; docs/installation.md says what the copy is. Needs
pip, and no git, compiler or torch.
"""

import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

REQUIREMENT = "sal-detectron2==0.7.2"
SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
# What the copy lacks, for .ci/setup.
MISSING = "rotated boxes, Detectron2's own deformable classes and the fast COCO evaluation"


def install(folder: str) -> int:
    """Install the copy into ``folder``, such as site-packages; return pip's exit status."""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, "requirements.txt")
        file.write_text(f"{REQUIREMENT} --hash=sha256:{SHA256}\n")
        # The wheel is marked as one for Python 3.10, and names versions of its time.
        options = ["--no-deps", "--only-binary=:all:", "--python-version", "3.10"]
        options += ["--require-hashes", "--upgrade", "--target", folder, "-r", str(file)]
        pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *options]
        status = subprocess.run(pip, check=False).returncode
    for binary in Path(folder, "detectron2").glob("_C.*"):
        binary.unlink()  # compiled for CPython 3.10 and another torch
    return status


if __name__ == "__main__":
    sys.exit(install(sysconfig.get_path("purelib")))
