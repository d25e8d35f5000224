"""``gnws``: its commands, their help, and how many lines common mistakes cost their user."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch

import gnws.main
from gnws import arguments
from gnws_d2.projects import export

sys.path.append(str(Path(__file__).parents[1] / "own_data"))
from coco_files import make_coco

# Prints the help of each command; argv[1:] are modules that must not be imported for it.
HELP = """
import sys
from gnws.arguments import COMMANDS, parse
for words in ([], ["--help"], *([name, "--help"] for name in COMMANDS)):
    try:
        parse(words=words)
    except SystemExit as end:
        assert end.code == 0, words
imported = [name for name in sys.argv[1:] if name in sys.modules]
assert not imported, imported
"""


def test_help_needs_neither_torch_nor_detectron2():
    words = [sys.executable, "-c", HELP, "torch", "detectron2", "numpy", "gnws_d2"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in arguments.COMMANDS:
        assert f"\n    {name} " in done.stdout or f"\n    {name}\n" in done.stdout
        assert f"usage: gnws {name} [-h]" in done.stdout


def test_a_program_takes_the_arguments_of_its_command(monkeypatch, capsys):
    words = ["--config-file", "a.yaml", "--num-gpus", "2", "OUTPUT_DIR", "x"]
    monkeypatch.setattr(sys, "argv", ["train_net.py", *words])
    args = arguments.parse("train")
    assert args == arguments.parse(words=["train", *words])
    assert (args.config_file, args.num_gpus, args.opts) == ("a.yaml", 2, ["OUTPUT_DIR", "x"])
    assert args.eval_only is False and arguments.parse("eval", words).eval_only is True
    with pytest.raises(SystemExit):
        arguments.parse("train", ["--help"])
    assert capsys.readouterr().out.startswith("usage: train_net.py [-h]")


EPOCHS = ("0", "-1", "many", "nan", "inf")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train --data d --project x", "no --project. Did you mean --output?"),
        ("train --imgsz 640", 'Write INPUT.MIN_SIZE_TRAIN "(N,)" INPUT.MIN_SIZE_TEST N after'),
        ("eval --weights w --epochs 3", "there is no --epochs"),
        ("train --output a OUTPUT_DIR b", "--output a and OUTPUT_DIR b contradict"),
        ("train --name a OUTPUT_DIR=b", "--name a and OUTPUT_DIR b contradict"),
        ("train --name a --output b", "--output: not allowed with argument --name"),
        ("train --name a --num-machines 2", "Use --output FOLDER"),
        ("train --config-file a.py --seed 1 +train.seed=2", "--seed 1 and train.seed 2 contradict"),
        ("train --config-file a.py --epochs 1", "--epochs is for YAML configs"),
        ("predict --input x --weights y --output-dir z", "no --output-dir. Did you mean --output?"),
        ("predict --input x --weights y --device cpu", "Write --opts MODEL.DEVICE NAME"),
        ("train --num_gpus 2", "Did you mean --num-gpus?"),
        *((f"train --epochs {n}", f"invalid positive_number value: '{n}'") for n in EPOCHS),
        ("train --num-gpus two", "--num-gpus: invalid int value: 'two'"),
        ("train --data d SOLVER.BASE_LR", "SOLVER.BASE_LR has no value after it"),
        ("train --data d A 1 --resume", "--resume comes after overrides"),
        *((f"{c} --data d", "Add --weights FILE") for c in ("eval", "train --eval-only")),
        *((f"{c} --input x", "Add --weights FILE") for c in ("predict", "export")),
        (f"eval {__file__}", "has no flag before it"),
    ],
)
def test_wrong_words_cost_one_line_that_says_what_to_type(words, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        arguments.parse(words=words.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and line.startswith(f"gnws {words.split()[0]}: error: ")


def test_overrides_are_taken_in_both_forms():
    words = ["predict", "--input", "x", "--opts", "MODEL.WEIGHTS=a=b", "TEST.AUG.FLIP", "c=d"]
    args = arguments.parse(words=words)
    assert args.opts == ["MODEL.WEIGHTS", "a=b", "TEST.AUG.FLIP", "c=d"]
    assert args.weights == "a=b"


BATCH = "dataloader.train.total_batch_size"
SHORT = {
    "--batch-size 4 --lr 0.1 SEED 3": "SOLVER.BASE_LR 0.1 SOLVER.IMS_PER_BATCH 4 SEED 3",
    "--output a --seed 3 OUTPUT_DIR=a": "SEED 3 OUTPUT_DIR a",
    "--classes b --classes a --device cpu": "DATASETS.CLASSES ['b',·'a'] MODEL.DEVICE cpu",
    "--config-file a.py --weights w --lr 2 x=1": "optimizer.lr=2 train.init_checkpoint=w x=1",
    "--config-file a.py --seed 3 --batch-size 4 train.seed=3": f"{BATCH}=4 train.seed=3",
}


@pytest.mark.parametrize("words", SHORT)
def test_a_flag_is_short_for_a_key(words):
    opts = arguments.parse(words=["train", *words.split()]).opts
    assert [word.replace(" ", "·") for word in opts] == SHORT[words].split()


@pytest.mark.parametrize(
    ("existing", "new", "resumed"),
    [([], "x", "x"), (["x", "x-9", "x-10", "x-old", "x2"], "x-11", "x-10"), (["x"], "x-2", "x")],
)
def test_a_name_numbers_its_folders(existing, new, resumed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in existing:
        (tmp_path / "output" / name).mkdir(parents=True)
    for flags, expected in (([], new), (["--resume"], resumed)):
        args = arguments.parse(words=["train", "--name", "x", *flags])
        assert args.opts == ["OUTPUT_DIR", f"output/{expected}"]


@pytest.mark.parametrize(
    ("words", "module"),
    [
        *((words, "train_net") for words in ("train", "train --config-file a.yaml")),
        ("train --weights a.py", "train_net"),
        ("eval --config-file=a.py", "lazyconfig_train_net"),
        ("train --config-file a.py model.x=1", "lazyconfig_train_net"),
    ],
)
def test_a_python_config_goes_to_the_other_program(words, module, monkeypatch):
    called = []
    programs = {f"gnws_d2.projects.detection.{module}": argparse.Namespace(main=called.append)}
    monkeypatch.setattr(sys, "argv", ["gnws", *words.split()])
    monkeypatch.setattr(gnws.main.importlib, "import_module", programs.__getitem__)
    gnws.main.main()
    assert called[0].command == words.split()[0]


def test_without_detectron2_a_command_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gnws", "train", "--data", "d"])
    monkeypatch.setattr(gnws.main.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"error: Detectron2 is not .*gnws.detectron2_pypi"):
        gnws.main.main()


def test_the_formats_are_those_of_export():
    assert arguments.FORMATS == tuple(export.FORMATS)


MOST_LINES = 3
DIGITS = "Digits/mask_rcnn_R_18_FPN_gn_ws"
# mistake -> (words after "gnws train", what the error says)
MISTAKES = {
    "a file that does not exist": (["--train", "none.json"], "none.json does not exist"),
    "a folder without images": (["--train", "mine.json=empty"], "the images, such as '0.png'"),
    "a file that is cut off": (["--train", "cut.json=images"], "cut off"),
    "two corners for a box": (["--train", "corners.json=images"], "looks like two corners"),
    "weights that do not exist": (["--train", "mine.json", "--weights", "none.pth"], "none.pth"),
    "a folder of weights": (["--train", "mine.json", "--weights", "empty"], "empty is a folder."),
    "no process": (["--train", "mine.json", "--num-gpus", "0"], "--num-gpus is 0. Set"),
    "weights of another model": (["--train", "mine.json", "--weights", "other.pth"], "other.pth"),
    "neither data nor a config": ([], "Add --data FOLDER"),
    "a key": (["--config-file", f"{DIGITS}.yaml", "SOLVER.MAX_ITERS=3"], "mean SOLVER.MAX_ITER"),
    "of a LazyConfig": (["--config-file", f"{DIGITS}.py", "train.itre=3"], "no key train.itre"),
    "a model": (
        ["--config-file", f"{DIGITS}.yaml", "--eval-only", "--weights", "cut.pth"],
        "cut off",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_costs_few_lines(mistake, tmp_path):
    words, said = MISTAKES[mistake]
    file = make_coco(tmp_path, images=6)
    content = json.loads(file.read_text())
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.json").write_text(json.dumps(content)[:-40])
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x, y, x + width, y + height]
    (tmp_path / "corners.json").write_text(json.dumps(content))
    torch.save({"model": {"weight": torch.zeros(3)}}, tmp_path / "other.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "other.pth").read_bytes()[:-100])
    done = processes.run(
        *("-m", "gnws.main", "train", *words, "OUTPUT_DIR", "output"),
        cwd=tmp_path,
        env={**os.environ, "GNWS_D2_DEBUG": "0"},
    )
    lines = (done.stdout + done.stderr).splitlines()
    assert done.returncode == 1 and said in lines[-1], lines
    assert len(lines) <= MOST_LINES, lines
