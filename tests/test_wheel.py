"""The package installed from a wheel is complete: its configs, its projects."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml"
# Where the folders of projects/ are installed.
PROJECTS = {
    **{name: f"gnws_d2/projects/{name.lower()}" for name in ("Acceleration", "Detection")},
    **{name: f"gnws_d2/projects/{name.lower()}" for name in ("Digits", "Export", "Report")},
    **{"OwnData": "gnws_d2/projects/own_data", "Command": "gnws"},
}
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
INSTALL = [*PIP, "install", "--no-deps", "--no-build-isolation"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy, as building writes into the source tree and packs what earlier builds left there."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, folder)
    for name in ("gnws_d2", "configs", "projects"):
        ignore = shutil.ignore_patterns("__pycache__", "output")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    return folder


@pytest.fixture(scope="module")
def installed(source, tmp_path_factory) -> Path:
    """From a wheel that is made from an sdist, as an index has it."""
    folder = tmp_path_factory.mktemp("wheel")
    pack = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", pack, folder], cwd=source, check=True)
    [sdist] = folder.glob("gnws_d2-*.tar.gz")
    subprocess.run(
        [*PIP, "wheel", sdist, "--no-deps", "--no-build-isolation", "-w", folder], check=True
    )
    [wheel] = folder.glob("gnws_d2-*.whl")
    subprocess.run([*INSTALL, "--target", folder / "target", wheel], check=True)
    return folder / "target"


def files(folder: Path) -> list[str]:
    suffixes = (".py", ".yaml", ".csv", ".html")
    found = [f for f in folder.rglob("*") if f.suffix in suffixes]
    assert found
    return sorted(str(f.relative_to(folder)) for f in found)


def test_the_wheel_has_all_files(source, installed):
    configs = "model_zoo/configs"
    assert files(installed / "gnws_d2" / configs) == files(source / "configs")
    for project, folder in PROJECTS.items():
        assert files(installed / folder) == files(source / "projects" / project)
    outside = (configs, *(folder.removeprefix("gnws_d2/") for folder in PROJECTS.values()))
    assert files(source / "gnws_d2") == [
        name for name in files(installed / "gnws_d2") if not name.startswith(outside)
    ]


def test_every_dependency_has_one_tested_version(installed):
    [metadata] = installed.glob("gnws_d2-*.dist-info")
    needed = importlib.metadata.PathDistribution(metadata).requires
    needed = [line for line in needed if 'extra == "app"' not in line]  # see setup.py
    pinned = (ROOT / "requirements.txt").read_text().splitlines()
    assert names(needed) == names(line for line in pinned if "==" in line)


def names(requirements: Iterable[str]) -> set[str]:
    return {re.match(r"[\w-]+", line)[0].lower() for line in requirements}


# Where they are, and the command at work; the import needs the files of all installed projects.
SHOW = f"""
import sys, gnws_d2
assert "detectron2.engine" not in sys.modules  # nor what takes as long to import
import gnws.main, gnws_d2.model_zoo, gnws_d2.projects.detection.train_net
print(gnws_d2.__file__)
print(gnws_d2.model_zoo.get_config_file({CONFIG!r}))
sys.argv[1:] = ["zoo", "list"]
gnws.main.main()
"""


def test_the_wheel_runs_without_the_source_tree(installed):
    """In a Python that finds it before its own packages."""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SHOW],
        cwd=installed.parent,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    package, config, *listed = ended.stdout.splitlines()
    assert Path(package) == installed / "gnws_d2/__init__.py"
    assert Path(config) == installed / "gnws_d2/model_zoo/configs" / CONFIG
    assert any(CONFIG in line for line in listed)
