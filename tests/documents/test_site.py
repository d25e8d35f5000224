"""The documentation site builds without a warning."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-c", "docs", ".", tmp_path]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True)
