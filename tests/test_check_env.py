"""The environment check: here, and in broken environments.

Those are a Python without packages, and a folder of stand-ins for them on its PYTHONPATH.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from gnws_d2 import check_env

ROOT = Path(__file__).parents[1]

STAND_INS = {
    "setuptools-80.9.0.dist-info/METADATA": "Name: setuptools\nVersion: 80.9.0\n",
    "pkg_resources.py": "",
    "numpy.py": "__version__ = '2.4.6'\ndef ones(shape): ...\ndef zeros(shape, dtype): ...",
    "pillow-13.0.0.dist-info/METADATA": "Name: pillow\nVersion: 13.0.0\n",
    "PIL/Image.py": "def fromarray(array, mode): ...\ndef __getattr__(name): ...",
    "torch/__init__.py": "__version__ = '2.11.0'\nfrom . import ops\ndef from_numpy(array): ...",
    "torch/ops.py": "class torchvision: nms = None",
    "torchvision.py": "__version__ = '0.26.0'",
    "detectron2/__init__.py": "__version__ = '0.6'",
    "detectron2/_C.py": "",
    "detectron2/engine.py": "",
    "detectron2/model_zoo.py": "",
}
SYMBOL = "_C.so: undefined symbol: _ZN3c105ErrorC2E"


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return str(folder / "bin" / "python")


@pytest.fixture
def lay(monkeypatch, tmp_path):
    """Lays stand-ins, of which None is none, where every Python that is started finds them."""

    def lay(files: dict[str, str | None]) -> None:
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        for name, text in files.items():
            if text is not None:
                (tmp_path / name).parent.mkdir(exist_ok=True)
                (tmp_path / name).write_text(text)

    return lay


def test_no_problem_here():
    assert check_env.check() == []


def test_real_torch_with_parts_for_another_one(lay):
    lay(
        {
            "torchvision.py": "__version__ = '0.20.1'",
            "detectron2/__init__.py": "__version__ = '0.6'",
            "detectron2/_C.py": f"raise ImportError('{SYMBOL}')",
        }
    )
    vision, detectron2 = check_env.check()
    assert vision.what == "torchvision" and vision.found.startswith("0.20.1 is made for another")
    assert "torchvision==0." in vision.cure
    assert detectron2.what == "Detectron2" and "built for another torch" in detectron2.found
    assert SYMBOL in detectron2.found and "--no-cache-dir --force-reinstall" in detectron2.cure


def test_nothing_installed(bare_python, monkeypatch):
    monkeypatch.setattr(sys, "executable", bare_python)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    problems = check_env.check()
    assert [each.what for each in problems] == ["setuptools", "NumPy", "torch", "Detectron2"]
    assert all("not installed" in each.found for each in problems)
    assert all(each.cure.startswith("pip install") for each in problems)


@pytest.mark.parametrize(
    ("broken", "what", "found", "cure"),
    [
        ({"pkg_resources.py": None}, "setuptools", "80.9.0", "setuptools<81"),
        (
            {"setuptools-80.9.0.dist-info/METADATA": "Name: setuptools\nVersion: 81.0.0\n"},
            "setuptools",
            "81.0.0",
            "setuptools<81",
        ),
        ({"torchvision.py": None}, "torchvision", "not installed", '"torchvision==0.26.*"'),
        ({"torchvision.py": "__version__ = '0.25.0'"}, "torchvision", "0.25.0 is", "==0.26.*"),
        ({"torch/ops.py": "class torchvision: ..."}, "torchvision", "'nms'", "==0.26.*"),
        (
            {"torch/__init__.py": "raise OSError('libcudart')"},
            "torch",
            "libcudart",
            "torch==2.11.0",
        ),
        ({"torch/__init__.py": "import os; os.abort()"}, "torch", "crash", "torch==2.11.0"),
        ({"numpy.py": "1 / 0"}, "NumPy", "ZeroDivisionError", "--force-reinstall numpy"),
        ({"torch/__init__.py": "from . import ops"}, "NumPy", "'from_numpy'", '"numpy<2"'),
        ({"PIL/Image.py": "def fromarray(array, mode): ..."}, "Pillow", "'NEAREST'", '"pillow>='),
        ({"PIL/Image.py": "def fromarray(array): ..."}, "Pillow", "'mode'", '"pillow>='),
        # a folder without __init__.py, such as a clone
        ({"detectron2/__init__.py": None}, "Detectron2", "not installed", check_env.DETECTRON2),
        ({"detectron2/_C.py": None}, "Detectron2", "is not in", "--force-reinstall"),
        (
            {"detectron2/engine.py": "import numpy; numpy.bool"},
            "NumPy",
            "2.4.6 fails in Detectron2: AttributeError",
            "--upgrade numpy",
        ),
        (
            {"detectron2/engine.py": "from PIL import LINEAR"},
            "Pillow",
            "13.0.0 fails in Detectron2: ImportError",
            '"pillow>=',
        ),
        ({"detectron2/engine.py": "import yacs"}, "Detectron2", "'yacs'", check_env.DETECTRON2),
    ],
)
def test_one_problem(lay, bare_python, monkeypatch, broken, what, found, cure):
    monkeypatch.setattr(sys, "executable", bare_python)
    lay(STAND_INS | broken)
    [problem] = check_env.check()
    assert problem.what == what
    assert found in problem.found
    assert cure in problem.cure


def test_a_hang_is_a_problem(lay, bare_python, monkeypatch):
    monkeypatch.setattr(sys, "executable", bare_python)
    monkeypatch.setattr(check_env, "TIMEOUT", 2)
    lay(STAND_INS | {"torch/__init__.py": "import time; time.sleep(60)"})
    [problem] = check_env.check()
    assert problem.what == "torch" and "no end in time" in problem.found


def run(*command: str) -> tuple[int, str]:
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert ended.stderr == ""
    return ended.returncode, ended.stdout


def test_as_a_script(lay, bare_python):
    script = [bare_python, "gnws_d2/check_env.py"]
    lay(STAND_INS)
    status, output = run(*script)
    assert status == 0
    assert output.startswith("environment ok: python 3.") and "torch 2.11.0," in output
    assert run(*script, "--quiet") == (0, "")

    lay({"torchvision.py": "__version__ = '0.25.0'"})
    cure = 'pip install --force-reinstall --no-deps "torchvision==0.26.*"'
    line = f"torchvision: 0.25.0 is made for another torch than 2.11.0 -> {cure}\n"
    assert run(*script, "--quiet") == (1, line)


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 13, 0)])
def test_other_pythons(lay, bare_python, monkeypatch, capsys, version):
    monkeypatch.setattr(sys, "executable", bare_python)
    monkeypatch.setattr(sys, "argv", ["check_env"])
    lay(STAND_INS)
    monkeypatch.setattr(sys, "version_info", version)
    status = check_env.main()
    output = capsys.readouterr().out
    if version < (3, 10):
        assert status == 1
        assert output.startswith("Python: ") and "from 3.10 to 3.12" in output
    else:
        assert status == 0
        assert output.startswith("warning: Python ") and "environment ok" in output


def test_before_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    git, compiler, headers = check_env.check_before_install()
    assert git.what == "git" and "install git" in git.cure
    assert compiler.what == "C++ compiler" and "install g++" in compiler.cure
    assert "Python.h" in headers.found and "-dev" in headers.cure
    assert check_env.check_before_install("/a/checkout") == [compiler, headers]
    assert check_env.check_before_install("/a/detectron2.whl") == []

    for name in ("git", "g++", "Python.h"):
        (tmp_path / name).touch(mode=0o755)
    assert check_env.check_before_install() == []
    monkeypatch.setenv("CXX", "missing++ -O2")
    assert [each.found for each in check_env.check_before_install()] == ["no missing++"]


def test_the_cures_name_the_pinned_versions():
    requirements = (ROOT / "requirements.txt").read_text().split()
    assert set(check_env.TORCH.split()) <= set(requirements)
    assert f"DETECTRON2 ?= {check_env.DETECTRON2}\n" in (ROOT / "Makefile").read_text()
