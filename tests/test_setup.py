"""``.ci/setup``: where Detectron2 comes from, and the versions of torch."""

import os
import shutil
import socket
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

SETUP = Path(__file__).parents[1] / ".ci" / "setup"


@pytest.fixture
def load(monkeypatch, tmp_path):
    """``load(DETECTRON2=...)``: the script as a module, with the variables of the Makefile."""

    def load(**variables: str) -> ModuleType:
        defaults = dict.fromkeys(("DETECTRON2", "TORCH", "TORCH_INDEX"), "")
        for name, value in {"VENV": str(tmp_path / "venv"), **defaults, **variables}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(os, "environ", os.environ.copy())  # which the script changes
        monkeypatch.setattr(sys, "path", sys.path.copy())
        loader = SourceFileLoader("ci_setup", str(SETUP))
        loader.exec_module(setup := module_from_spec(spec_from_loader("ci_setup", loader)))
        return setup

    yield load
    for name in ("check_env", "detectron2_pypi"):  # which it imports from the package's folder
        sys.modules.pop(name, None)


def test_a_host_that_does_not_answer_is_out_of_reach(load, monkeypatch):
    setup = load()
    monkeypatch.setattr(setup, "WAIT", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/detectron2.git"
        assert setup.obstacle(f"git+{url}@02b5c4e2") == f"{url} does not answer within 1 seconds"
    refused = setup.obstacle(f"git+{url}")
    assert refused.startswith(f"{url} is out of reach (fatal: ")


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_what_it_takes_to_compile(load, monkeypatch, tmp_path):
    setup = load()
    repository = tmp_path / "detectron2.git"
    subprocess.run(["git", "init", "-q", "--bare", repository], check=True)
    source = f"git+file://{repository}@02b5c4e2"
    monkeypatch.setenv("CXX", sys.executable)
    assert setup.obstacle(source) == setup.obstacle(str(repository)) == ""
    monkeypatch.setenv("CXX", "missing++ -O2")
    assert setup.obstacle(source) == "there is no C++ compiler (missing++)"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert setup.obstacle(source) == "git is not installed"
    assert setup.obstacle(str(tmp_path / "a.whl")) == "there is no such folder or wheel"
    (tmp_path / "a.whl").touch()
    assert setup.obstacle(str(tmp_path / "a.whl")) == ""


def test_only_a_source_that_was_not_asked_for_is_replaced(load):
    assert load().refuse("git+https://host/x.git", "no git") == "no git"
    with pytest.raises(SystemExit, match=r"^error: Detectron2 from /checkout: no"):
        load(DETECTRON2="/checkout").refuse("/checkout", "no compiler")


def test_another_torch_comes_with_its_torchvision(load):
    pinned = load().requirements()
    other = load(TORCH="2.14.1").requirements()
    assert set(other) - set(pinned) == {"torch==2.14.1", "torchvision"}
    assert len(other) == len(pinned)
