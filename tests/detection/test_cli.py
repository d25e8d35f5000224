"""``gnws``, and how many lines common mistakes cost their user."""

import importlib
import json
import os
import sys
from pathlib import Path

import processes
import pytest

from gnws_d2.projects.detection import cli

sys.path.append(str(Path(__file__).parents[1] / "data"))
from coco_files import make_coco

SMALL = "Small/faster_rcnn_R_18_FPN_gn_ws.yaml"
MOST_LINES = 3


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_a_function_with_help(name, monkeypatch, capsys):
    module, function, *_ = cli.COMMANDS[name]
    assert callable(getattr(importlib.import_module(module), function))
    monkeypatch.setattr(sys, "argv", ["gnws", name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    help = capsys.readouterr().out
    assert help.startswith(f"usage: gnws {name}") and len(help.splitlines()) > 5


def test_without_a_command_it_lists_them(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gnws"])
    assert cli.main() == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in cli.COMMANDS)
    monkeypatch.setattr(sys, "argv", ["gnws", "trian"])
    with pytest.raises(SystemExit, match="no command 'trian'"):
        cli.main()


@pytest.mark.parametrize(
    ("words", "is_lazy"),
    [
        ([], False),
        (["--config-file", "a.yaml"], False),
        (["--config-file", "a.py", "model.x=1"], True),
        (["--config-file=a.py"], True),
        (["--config-file"], False),
        (["--output", "a.py"], False),
    ],
)
def test_a_python_config_goes_to_the_other_program(words, is_lazy):
    assert cli._is_lazy(words) is is_lazy


# mistake -> (words after "gnws train", what the error says)
MISTAKES = {
    "a mistyped key": (
        ["--train", "mine.json", "SOLVER.MAX_ITERS", "5"],
        "Did you mean SOLVER.MAX_ITER",
    ),
    "a file that does not exist": (["--train", "none.json"], "none.json does not exist"),
    "a folder without images": (["--train", "mine.json=empty"], "does not exist"),
    "a file that is cut off": (["--train", "cut.json=images"], "cut off"),
    "two corners for a box": (["--train", "corners.json=images"], "looks like two corners"),
    "an unknown category": (["--train", "category.json=images"], "category_id, 99"),
    "weights that do not exist": (["--train", "mine.json", "--weights", "none.pth"], "none.pth"),
    "weights of another model": (["--train", "mine.json", "--weights", "other.pth"], "other.pth"),
    "a config that does not exist": (
        ["--train", "mine.json", "--config-file", "Small/faster_rcnn.yaml"],
        "neither a file nor a config",
    ),
    "evaluation without weights": (
        ["--eval-only", "--val", "mine.json", "--config-file", SMALL],
        "MODEL.WEIGHTS is empty",
    ),
    "neither data nor a config": ([], "Add --data FOLDER"),
    "a negative number of epochs": (["--train", "mine.json", "--epochs", "-1"], "SOLVER.EPOCHS"),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_costs_few_lines(mistake, tmp_path):
    import torch

    words, said = MISTAKES[mistake]
    file = make_coco(tmp_path, images=6)
    content = json.loads(file.read_text())
    file.rename(tmp_path / "mine.json")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.json").write_text(json.dumps(content)[:-40])
    corners, category = json.loads(json.dumps(content)), json.loads(json.dumps(content))
    for annotation in corners["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x, y, x + width, y + height]
    category["annotations"][0]["category_id"] = 99
    (tmp_path / "corners.json").write_text(json.dumps(corners))
    (tmp_path / "category.json").write_text(json.dumps(category))
    torch.save({"model": {"weight": torch.zeros(3)}}, tmp_path / "other.pth")
    done = processes.run(
        *("-m", "gnws_d2.projects.detection.cli", "train", *words, "OUTPUT_DIR", "output"),
        cwd=tmp_path,
        env={**os.environ, "GNWS_D2_DEBUG": "0"},
    )
    lines = (done.stdout + done.stderr).splitlines()
    assert done.returncode == 1 and said in lines[-1], lines
    assert len(lines) <= MOST_LINES, lines
