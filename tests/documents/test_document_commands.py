"""The command lines and the code of the documents run, on small data and with a small model.

A line of a document is run as it is shown, or it is in :data:`NOT_RUN`.
"""

import ast
import builtins
import fnmatch
import os
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import processes
import pytest
from documents import DOCUMENTS, ROOT, fenced, is_command, lines, split
from PIL import Image
from tiny import FEW_PROPOSALS

import gnws_d2

sys.path.append(str(ROOT / "tests" / "own_data"))
from coco_files import make_coco

# Lines of the documents, as patterns of a shell -> why they are not run here.
NOT_RUN = {
    "make *": "the environment, the linters, all tests, minutes of training",
    "pip install *": "needs the network",
    "python -m gnws.detectron2_pypi": "needs the network",
    "torchrun *": "needs several GPUs",
    "* --num-gpus [248] *": "needs several GPUs",
    "* --num-machines *": "needs several machines",
    "*COCO-Detection/*": "needs COCO, or a published detector",
    "*python -m pytest *": "tests, as all others",
    "gnws app *": "serves until it is stopped; tests/detection/test_app.py",
    "*python projects/Benchmark/*": "takes minutes; tests/benchmark",
    "python projects/Reference/*": "takes hours; tests/reference",
    "python projects/Digits/run_demo.py *": "takes minutes: make demo",
    "python projects/Export/support.py": "takes minutes; tests/export/test_export_commands.py",
    "python projects/Faults/faults.py": "takes minutes; tests/faults",
    "python projects/Faults/faults.py [[]CORPUS ...]": "takes minutes; tests/faults",
    "python projects/Faults/faults.py --dry-run *": "takes minutes; tests/faults",
    # of the code:
    "*trained=True*": "needs a published detector",
    "*trainer.train()*": "takes minutes",
}
SMALL = [
    *(*FEW_PROPOSALS, "MODEL.DEVICE", "cpu", "VIS_PERIOD", "0", "SEED", "1"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "96", "SOLVER.WARMUP_ITERS", "0"),
    *("TEST.LOSS_IMAGES", "0", "TEST.DETECTIONS_PER_IMAGE", "5"),
]
OVERRIDES = dict(zip(SMALL[::2], SMALL[1::2], strict=True))
LAZY = ["train.device=cpu", "train.max_iter=2", "dataloader.train.total_batch_size=2"]
# What stands for words of the documents, so that a command takes seconds.
STAND_INS = {
    "CONFIG": "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml",
    "--epochs 20": "--epochs 1",
    "epochs=20, output": f"epochs=1, overrides={OVERRIDES}, output",
    **{"epochs=20": "epochs=1", "overrides={": f"overrides={{**{OVERRIDES}, "},
    # ONNX takes a minute: tests/export/test_export.py.
    **{"onnx openvino": "torchscript-trace", "--format onnx": "--format torchscript-trace"},
    **{"exported/model.onnx": "model_trace.ts", "exported/model.xml": "model_trace.ts"},
    **{"output/mine/model": "output/model", "output/digits/model": "output/model"},
    **{'["onnx"]': '["torchscript-trace"]', "theirs.pth": "published.pth"},
    "configs/values/17": "configs/good configs/0",  # not refused, with a traceback
}


def with_stand_ins(text: str) -> str:
    for word, stand_in in STAND_INS.items():
        text = text.replace(word, stand_in)
    return text


def is_run(line: str) -> bool:
    return line.endswith(" --help") or not any(fnmatch.fnmatch(line, p) for p in NOT_RUN)


COMMANDS = [line for document in DOCUMENTS for line in lines(document) if is_command(line)]
RUN = [*{with_stand_ins(line): line for line in COMMANDS if is_run(line)}.values()]
TRAIN = next(line for line in RUN if "--output output/mine" in line)  # of docs/own-data.md


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The files that the documents speak of."""
    folder = tmp_path_factory.mktemp("made")
    for part, images in (("train", 6), ("valid", 3)):
        file = f"FOLDER/{part}/_annotations.coco.json"
        make_coco(folder, file, images, image_folder=f"FOLDER/{part}")
    for file in ("mine.json", "more.json"):
        make_coco(folder, file, 6)
    for file in ("a.json", "d.json"):
        make_coco(folder, file, masks=False)
    for file in ("photo.jpg", "image.png", "photos/a.jpg", "photos/b.jpg", "images/val/3.png"):
        (folder / file).parent.mkdir(exist_ok=True)
        Image.open(folder / "images" / "0.png").save(folder / file)
    (folder / "labels" / "val").mkdir(parents=True)
    (folder / "labels" / "classes.txt").write_text("cat\ndog\n")
    (folder / "labels" / "val" / "3.txt").write_text("1 0.5 0.5 0.3 0.3\n")
    config = '_BASE_: "Small/mask_rcnn_R_18_FPN_gn_ws.yaml"\nMODEL: {ROI_HEADS: {NUM_CLASSES: 2}}'
    (folder / "my_config.yaml").write_text(config)
    video = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (64, 48))
    for _ in range(3):
        video.write(np.zeros((48, 64, 3), np.uint8))
    video.release()
    run(TRAIN, folder)
    for file in ("model_best.pth", "model_final.pth"):
        os.link(folder / "output" / "mine" / file, folder / "output" / file)
    for line in (
        *(f"gnws convert d.json --to cvat --output {name}.xml" for name in ("b", "annotations")),
        "gnws convert-weights --to mmdet output/model_final.pth published.pth",
        "gnws predict --weights output/model_best.pth --input photos --confidence-threshold 0 "
        "--output found",
        "gnws export --weights output/model_best.pth --input image.png --format onnx --output .",
    ):
        run(line, folder)
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy; weights, which are replaced and never written to, are links."""

    def copy(source: str, target: str) -> None:
        (os.link if source.endswith((".pth", ".ts")) else shutil.copy)(source, target)

    shutil.copytree(made, tmp_path, copy_function=copy, dirs_exist_ok=True)
    return tmp_path


def run(line: str, folder: Path) -> None:
    """Run a command line in ``folder``, which its ``--output`` is then in."""
    words = []
    for word in split(with_stand_ins(line)):
        words += sorted(folder.glob(word)) if "*" in word else [word]
    program, first, *rest = words
    if "lazyconfig" in str(first):
        rest += LAZY
    elif first == "train":
        rest += SMALL if "--epochs" in rest else [*SMALL, "SOLVER.MAX_ITER", "2"]
    output = folder / rest[rest.index("--output") + 1] if "--output" in rest else folder
    if output.is_file():
        output.unlink()
    first = ROOT / first if str(first).startswith("projects/") else first
    start = ["-m", "gnws.main", first] if program == "gnws" else [first]
    done = processes.run(*start, *rest, cwd=folder)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "Traceback" not in said and output.exists(), said


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in RUN if line != TRAIN])
def test_a_command_runs(line, folder):
    run(line, folder)


CODE = [text for document in DOCUMENTS for text in fenced(document, "python")]


def own(code: str) -> str:
    """The code, or where it uses names of a reader's program, its imports."""
    tree = ast.parse(code)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    known = {name.id for name in names if isinstance(name.ctx, ast.Store)} | {*dir(builtins)}
    known |= {alias.asname or alias.name for node in imports for alias in node.names}
    is_whole = all(name.id in known for name in names) and is_run(code)
    return code if is_whole else "\n".join(map(ast.unparse, imports))


@pytest.mark.slow
@pytest.mark.parametrize("code", [text for text in CODE if own(text) == text])
def test_code_runs(code, folder):
    (folder / "code.py").write_text(with_stand_ins(code))
    done = processes.run("code.py", cwd=folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", [text for text in CODE if own(text) != text])
def test_other_code_imports_what_is_there(code):
    exec(own(code), {})


@pytest.mark.parametrize("text", [text for d in DOCUMENTS for text in fenced(d, "yaml")])
def test_a_config_is_read(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    gnws_d2.load_config(str(tmp_path / "config.yaml"))


def test_what_is_not_run_is_still_shown():
    assert all(fnmatch.filter([*COMMANDS, *CODE], pattern) for pattern in NOT_RUN)
