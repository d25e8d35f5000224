"""docs/tutorial.ipynb runs from top to bottom, with fewer images and a smaller model."""

import os
import shlex
import sys
from pathlib import Path

import nbformat
import processes
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import Image
from tiny import FEW_PROPOSALS
from traitlets.config import Config

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"
SMALL = [
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.CONV_DIM", "32"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.ROI_MASK_HEAD.CONV_DIM", "32"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "80"),
    *(*FEW_PROPOSALS, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "5"),
]


@pytest.fixture
def shell(tmp_path, monkeypatch) -> InteractiveShell:
    """What runs the cells of a notebook, here without a process of its own."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # which it replaces
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))


@pytest.mark.slow
def test_the_tutorial_runs(shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EPOCHS", "1")
    commands, shown_by = [], {}

    def system(line: str) -> None:  # what follows a "!"
        program, name, *words = shlex.split(shell.var_expand(line, depth=1))
        assert program == "gnws"
        if name == "export":  # ONNX takes half a minute; see tests/export
            words[words.index("onnx")] = "torchscript-trace"
        more = SMALL if name == "train" else []
        done = processes.run("-m", "gnws.main", name, *words, *more, cwd=tmp_path, env=os.environ)
        said = done.stdout + done.stderr
        assert done.returncode == 0 and "Traceback" not in said and "error: " not in said, said
        commands.append(name)
        shown_by[name] = done.stdout

    shell.system = system
    shown = []
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            source = cell.source.replace("num_train=80, num_val=20", "num_train=8, num_val=4")
            done = shell.run_cell(source)
            done.raise_error()
            shown.append(done.result)
    assert commands == [
        *("convert", "check-data", "browse", "train", "predict", "convert", "export")
    ]
    start, _, training = shown_by["train"].partition("Starting training")
    assert 20 < start.count("\n") <= 60
    evaluation = training.partition("The loss of 4 validation images")[2].partition("The best is")[
        0
    ]
    assert "segm/AP" in evaluation and evaluation.count("\n") <= 10
    assert sum(isinstance(result, Image) for result in shown) == 3
    output = tmp_path / "tutorial" / "output"
    assert (output / "model_best.pth").is_file() and (output / "report" / "report.html").is_file()
    assert (tmp_path / "tutorial" / "found" / "detections.json").is_file()
    assert (tmp_path / "tutorial" / "exported" / "model_trace.ts").is_file()
