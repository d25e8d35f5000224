"""``train_net.py`` as its users run it: processes, killing and resuming, torchrun, bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ELSEHOW, TINY
from PIL import Image

ROOT = Path(__file__).parents[1]
TRAIN_NET = ROOT / "projects" / "Detection" / "train_net.py"
pytestmark = pytest.mark.slow

# Registers the two datasets of a folder, then runs train_net.py.
PROGRAM = """
import sys
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances
for split in ("train", "val"):
    name = f"tiny_digits_{split}"
    register_coco_instances(name, {}, f"{FOLDER}/digits_{split}.json", f"{FOLDER}/{split}")
    MetadataCatalog.get(name).thing_classes = list("0123456789")
sys.path.insert(0, TRAIN_NET)
import train_net
if __name__ == "__main__":
    train_net.launch(train_net.main, train_net.default_argument_parser().parse_args())
"""


@pytest.fixture
def train_net(digits, tmp_path):
    """``train_net(*arguments)``: the words of a command that trains on the small Digits."""
    return make_command(tmp_path, digits)


def make_command(tmp_path: Path, folder: Path):
    program = tmp_path / "train_net_tiny.py"
    constants = f"FOLDER, TRAIN_NET = {str(folder)!r}, {str(TRAIN_NET.parent)!r}\n"
    program.write_text(constants + PROGRAM)

    def command(*arguments: object, launcher: tuple[str, ...] = ()) -> list[str]:
        flags = [str(a) for a in arguments if str(a).startswith("--")]
        values = [str(a) for a in arguments if not str(a).startswith("--")]
        words = [sys.executable, *launcher, str(program)]
        words += ["--config-file", "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", "--dist-url", "auto"]
        words += [w for flag in flags for w in flag.split("=")]
        words += [*TINY, "DATASETS.TRAIN", "('tiny_digits_train',)", "MODEL.DEVICE", "cpu"]
        return [*words, "DATASETS.TEST", "('tiny_digits_val',)", *values]

    return command


def run(words: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(words, capture_output=True, text=True, timeout=600)


def losses(output: Path) -> dict[int, float]:
    lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
    return {line["iteration"]: line["total_loss"] for line in lines if "total_loss" in line}


def weights(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(output / "model_final.pth", weights_only=True)["model"]


# Nothing is drawn: all anchors and proposals are used, each picture has the same number of them,
# and only the ground truth counts as foreground. Then the losses' denominators are the same for
# one process with two pictures as for two with one each.
NOTHING_DRAWN = [
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "100000", "MODEL.RPN.NMS_THRESH", "1.0"),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "20", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "1000", "MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.0"),
    *("MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.999]", "TEST.EVAL_PERIOD", "0"),
    *("SOLVER.MAX_ITER", "1", "SOLVER.BASE_LR", "0.01"),
]


@pytest.fixture
def twins(tmp_path) -> Path:
    """A dataset of two pictures with the same annotations, and the second picture brighter."""
    from gnws_d2.data.digits import make_digits

    source = make_digits(tmp_path / "source", num_train=1, num_val=1)
    coco = json.loads((source / "digits_train.json").read_text())
    picture = Image.open(source / "train" / "000000.png")
    picture.point(lambda v: min(255, v + 40)).save(source / "train" / "000001.png")
    coco["images"].append({**coco["images"][0], "id": 2, "file_name": "000001.png"})
    coco["annotations"] += [{**a, "id": a["id"] + 100, "image_id": 2} for a in coco["annotations"]]
    (source / "digits_train.json").write_text(json.dumps(coco))
    return source


@pytest.mark.parametrize(
    ("launcher", "how"),
    [((), []), (("-m", "torch.distributed.run", "--nproc_per_node=2"), []), ((), ELSEHOW)],
)
def test_two_processes_take_the_step_of_one_with_both_pictures(twins, tmp_path, launcher, how):
    command = make_command(tmp_path, twins)
    one, two = tmp_path / "one", tmp_path / "two"
    done = run(command(*NOTHING_DRAWN, *how, "OUTPUT_DIR", one))
    assert done.returncode == 0, done.stderr
    flags = () if launcher else ("--num-gpus=2",)
    done = run(command(*flags, *NOTHING_DRAWN, *how, "OUTPUT_DIR", two, launcher=launcher))
    assert done.returncode == 0, done.stderr
    assert "World size: 2" in (two / "log.txt").read_text()
    assert losses(two)[0] == pytest.approx(losses(one)[0], rel=1e-5)
    # The same step: the gradients were averaged.
    a, b = weights(one), weights(two)
    assert all(torch.allclose(a[k], b[k], rtol=1e-4, atol=1e-5) for k in a)


# (what to compare with, the normalizer): four micro-batches in one process, each with a mean of its
# own, or the same two processes without micro-batches.
TWINS_OF_TWO_PROCESSES = [
    (["SOLVER.ACCUMULATION_STEPS", "4"], "micro_batch"),
    (["--num-gpus=2"], "batch"),
]


@pytest.mark.parametrize(("twin", "normalizer"), TWINS_OF_TWO_PROCESSES)
def test_two_processes_accumulate_two_micro_batches_each(train_net, tmp_path, twin, normalizer):
    batch = ["SOLVER.IMS_PER_BATCH", "4", "SOLVER.ACCUMULATION_NORMALIZER", normalizer]
    batch += [*NOTHING_DRAWN, "MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.3]"]
    one, two = tmp_path / "one", tmp_path / "two"
    for output, options in (
        (one, twin),
        (two, ["--num-gpus=2", "SOLVER.ACCUMULATION_STEPS", "2"]),
    ):
        done = run(train_net(*batch, *options, "OUTPUT_DIR", output))
        assert done.returncode == 0, done.stderr
    assert losses(two)[0] == pytest.approx(losses(one)[0], rel=1e-5)
    a, b = weights(one), weights(two)
    assert all(torch.allclose(a[k], b[k], rtol=1e-4, atol=1e-6) for k in a)


def test_a_killed_run_resumes_to_the_result_of_an_unbroken_one(train_net, tmp_path):
    steps = ["SOLVER.MAX_ITER", "24", "SOLVER.CHECKPOINT_PERIOD", "6", "SOLVER.STEPS", "(15,)"]
    steps += ["DATALOADER.NUM_WORKERS", "1", "INPUT.MIN_SIZE_TRAIN", "(48, 64)"]
    steps += ["MODEL.WEIGHTS", str(tmp_path / "start.pth")]
    start = run(train_net("OUTPUT_DIR", tmp_path / "first", "SOLVER.MAX_ITER", "1"))
    assert start.returncode == 0, start.stderr
    (tmp_path / "first" / "model_final.pth").rename(tmp_path / "start.pth")

    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    process = subprocess.Popen(
        train_net(*steps, "OUTPUT_DIR", broken),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.time() + 300
    while not (broken / "last_checkpoint").exists() and time.time() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    saved = (broken / "last_checkpoint").read_text()
    assert not (broken / "model_final.pth").exists(), "it was not killed in time"
    state = torch.load(broken / saved, weights_only=True)
    for output, flags in ((broken, ["--resume"]), (unbroken, [])):
        done = run(train_net(*flags, *steps, "OUTPUT_DIR", output))
        assert done.returncode == 0, done.stderr

    log = (broken / "log.txt").read_text()
    assert f"Starting training from iteration {state['iteration'] + 1}" in log
    a, b = weights(broken), weights(unbroken)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_eval_only_scores_a_checkpoint(train_net, tmp_path):
    trained = run(train_net("OUTPUT_DIR", tmp_path / "a", "SOLVER.MAX_ITER", "2"))
    assert trained.returncode == 0, trained.stderr
    model = tmp_path / "a" / "model_final.pth"
    done = run(train_net("--eval-only", "OUTPUT_DIR", tmp_path / "b", "MODEL.WEIGHTS", model))
    assert done.returncode == 0, done.stderr
    assert "Evaluation results for segm" in (tmp_path / "b" / "log.txt").read_text()


def broken_json(folder: Path) -> list[str]:
    file = folder / "digits_train.json"
    file.write_text(file.read_text()[:1000])
    return ["digits_train.json", "not valid JSON"]


def missing_annotations(folder: Path) -> list[str]:
    (folder / "digits_train.json").unlink()
    return ["digits_train.json", "does not exist"]


def missing_picture(folder: Path) -> list[str]:
    (folder / "train" / "000000.png").unlink()
    return ["000000.png"]


def truncated_picture(folder: Path) -> list[str]:
    file = folder / "train" / "000000.png"
    file.write_bytes(file.read_bytes()[:2000])
    return ["000000.png"]


def wrong_category(folder: Path) -> list[str]:
    file = folder / "digits_train.json"
    coco = json.loads(file.read_text())
    coco["annotations"][0]["category_id"] = 77
    file.write_text(json.dumps(coco))
    return ["digits_train.json", "category_id=77"]


def not_coco(folder: Path) -> list[str]:
    (folder / "digits_train.json").write_text('{"pictures": []}')
    return ["digits_train.json", "not a COCO annotation file"]


SPOILERS = [
    broken_json,
    missing_annotations,
    missing_picture,
    truncated_picture,
    wrong_category,
    not_coco,
]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda f: f.__name__)
def test_bad_data_ends_in_an_error_that_names_it(tmp_path, spoil):
    from gnws_d2.data.digits import make_digits

    folder = make_digits(tmp_path / "source", num_train=2, num_val=1)
    said = spoil(folder)
    done = run(make_command(tmp_path, folder)("OUTPUT_DIR", tmp_path / "out"))
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert all(words in last for words in said), done.stderr


BAD_OPTIONS = {
    "more classes than the model has": (
        ["MODEL.ROI_HEADS.NUM_CLASSES", "4"],
        ["10 classes", "MODEL.ROI_HEADS.NUM_CLASSES is 4", "Set it to 10"],
    ),
    "a dataset that does not exist": (
        ["DATASETS.TRAIN", "('digits_trian',)"],
        ["'digits_trian'", "not registered", "digits_train"],
    ),
    "an unknown key": (["SOLVER.MAX_ITERS", "3"], ["SOLVER.MAX_ITERS", "SOLVER.MAX_ITER"]),
}


@pytest.mark.parametrize(("options", "said"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options_end_in_an_error_with_the_cure(train_net, tmp_path, options, said):
    done = run(train_net("OUTPUT_DIR", tmp_path / "out", *options))
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert all(words in last for words in said), done.stderr


def test_a_truncated_checkpoint_ends_in_an_error_that_names_it(train_net, tmp_path):
    file = tmp_path / "model.pth"
    torch.save({"model": {"weight": torch.zeros(10_000)}}, file)
    file.write_bytes(file.read_bytes()[:20_000])
    done = run(train_net("--eval-only", "OUTPUT_DIR", tmp_path / "out", "MODEL.WEIGHTS", file))
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert str(file) in last and "damaged or cut off" in last, done.stderr
