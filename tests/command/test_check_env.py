"""The environment check: here, and in broken environments.

Those are a Python without packages, and a folder of stand-ins for them on its PYTHONPATH.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from gnws import check_env

ROOT = Path(__file__).parents[2]


def metadata(name: str, version: str) -> dict[str, str]:
    return {f"{name}-{version}.dist-info/METADATA": f"Name: {name}\nVersion: {version}\n"}


STAND_INS = {
    "pkg_resources.py": "",
    "numpy.py": "def ones(shape): ...\ndef zeros(shape, dtype): ...",
    "PIL/Image.py": "def fromarray(array, mode): ...\ndef __getattr__(name): ...",
    "torch/__init__.py": "from . import cuda, ops, version\ndef from_numpy(array): ...",
    "torch/cuda.py": "def is_available(): return False",
    "torch/version.py": "cuda = None",
    "torch/ops.py": "class torchvision: nms = None",
    "torchvision.py": "",
    "detectron2/__init__.py": "",
    "detectron2/_C.py": "",
    "detectron2/engine.py": "",
    "detectron2/model_zoo.py": "",
    **metadata("numpy", "2.4.6"),
    **metadata("pillow", "13.0.0"),
    **metadata("torch", "2.11.0"),
    **metadata("detectron2", "0.6"),
}
TORCH, D2 = "torch/__init__.py", "detectron2"
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


@pytest.mark.slow
def test_no_problem_here():
    problems, [*_, versions] = check_env.check()
    assert problems == []
    assert "torch 2." in versions and "detectron2 0." in versions


def test_nothing_installed(bare_python, monkeypatch):
    monkeypatch.setattr(sys, "executable", bare_python)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    problems = check_env.check()[0]
    names = [problem.split(":")[0] for problem in problems]
    assert names == ["setuptools", "numpy", "torch", "detectron2"]
    assert all("No module named" in problem for problem in problems)
    assert all(" -> pip install " in problem for problem in problems)
    assert check_env.DETECTRON2 in problems[-1]
    assert "gnws.detectron2_pypi" in problems[-1]


@pytest.mark.parametrize(
    ("file", "text", "what", "found", "fix"),
    [
        ("pkg_resources.py", None, "setuptools", "No module", "setuptools<81"),
        ("torchvision.py", None, "torchvision", "No module", "torch==2.11.0 torchvision"),
        ("torch/ops.py", "class torchvision: ...", "torchvision", "'nms'", "torch==2.11.0"),
        (TORCH, "raise OSError('libcudart')", "torch", "2.11.0: OSError", "reinstall"),
        (TORCH, "import os; os.abort()", "torch", "crash", "torch torchvision"),
        (TORCH, "from . import ops, version", "numpy with torch", "'from_numpy'", '"numpy<2"'),
        ("numpy.py", "1 / 0", "numpy", "2.4.6: ZeroDivisionError", "reinstall numpy"),
        ("PIL/Image.py", "def fromarray(array, mode): ...", "pillow", "'NEAREST'", '"pillow>='),
        ("PIL/Image.py", "def fromarray(array): ...", "pillow", "'mode'", '"pillow>='),
        # a folder without __init__.py, such as a clone
        (f"{D2}/__init__.py", None, D2, "0.6: ModuleNotFound", check_env.DETECTRON2),
        (f"{D2}/_C.py", f"raise ImportError('{SYMBOL}')", f"{D2}._C", SYMBOL, "--no-cache-dir"),
        (f"{D2}/engine.py", "import yacs", "detectron2's imports", "'yacs'", " yacs"),
        (f"{D2}/engine.py", "from PIL import LINEAR", f"{D2}'s imports", "LINEAR", "numpy pillow"),
    ],
)
def test_one_problem(lay, bare_python, monkeypatch, file, text, what, found, fix):
    monkeypatch.setattr(sys, "executable", bare_python)
    lay(STAND_INS | {file: text})
    [problem] = check_env.check()[0]
    assert problem.startswith(f"{what}: ")
    assert found in problem.split(" -> ")[0]
    assert fix in problem.split(" -> ")[1]


def test_a_hang_is_a_problem(lay, bare_python, monkeypatch):
    monkeypatch.setattr(sys, "executable", bare_python)
    monkeypatch.setattr(check_env, "TIMEOUT", 2)
    lay(STAND_INS | {"torch/__init__.py": "import time; time.sleep(60)"})
    [problem] = check_env.check()[0]
    assert problem.startswith("torch: ") and "no end in time" in problem


def run(*command: str) -> tuple[int, list[str]]:
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert ended.stderr == ""
    return ended.returncode, ended.stdout.splitlines()


def test_as_a_script(lay, bare_python):
    lay(STAND_INS)
    status, [line, verdict] = run(bare_python, "projects/Command/check_env.py")
    assert (status, verdict) == (0, "The environment works.")
    assert line.startswith("python 3.")
    assert line.endswith("numpy 2.4.6, pillow 13.0.0, torch 2.11.0, detectron2 0.6")

    lay({"torch/ops.py": "class torchvision: ..."})
    status, [_, line, verdict] = run(bare_python, "projects/Command/check_env.py")
    assert (status, verdict) == (1, "The environment does not work.")
    assert line.startswith("error: torchvision: ")


def test_limits_are_no_problems(lay, bare_python):
    commit = '{"url": "https://host/x.git", "vcs_info": {"commit_id": "02b5c4e295e9"}}'
    lay(
        STAND_INS
        | {"torch/version.py": "cuda = '13.0'", "detectron2/_C.py": None}
        | {"detectron2-0.6.dist-info/direct_url.json": commit}
    )
    status, [gpu, compiled, line, _] = run(bare_python, "projects/Command/check_env.py")
    assert status == 0
    assert gpu.startswith("GPU: torch is built for CUDA") and check_env.TORCH_INDEX in gpu
    assert compiled.startswith("detectron2._C: not compiled")
    assert line.endswith("detectron2 0.6 02b5c4e2")


@pytest.mark.parametrize(
    ("version", "status", "begin", "said"),
    [
        ((3, 9, 18), 1, "error: Python: ", "from 3.10 to 3.13"),
        ((3, 14, 0), 0, "Python: ", "newer than any tested"),
    ],
)
def test_other_pythons(lay, bare_python, monkeypatch, capsys, version, status, begin, said):
    monkeypatch.setattr(sys, "executable", bare_python)
    lay(STAND_INS)
    monkeypatch.setattr(sys, "version_info", version)
    assert check_env.main() == status
    output = capsys.readouterr().out
    assert output.startswith(begin) and said in output


def test_without_detectron2_the_layers_work_and_the_check_is_named(bare_python, lay):
    lay({})
    ended = subprocess.run(
        [bare_python, "-c", "import gnws_d2"], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0
    assert "No module named 'detectron2'" in ended.stderr
    assert "`python -m gnws.check_env`" in ended.stderr
