"""``train_net.py`` as its users run it: processes, torchrun, killing and resuming."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from processes import run, start
from tiny import ELSEHOW, FEW_PROPOSALS, TINY

from gnws_d2.projects.digits import make_digits

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
    args = train_net.argument_parser().parse_args()
    train_net.launch(train_net.main, args.num_gpus, dist_url=args.dist_url, args=(args,))
"""


@pytest.fixture
def train_net(digits, tmp_path):
    """``train_net(*arguments)``: the words of a command that trains on the small Digits."""
    return make_command(tmp_path, digits)


def make_command(tmp_path: Path, folder: Path):
    program = tmp_path / "train_net_tiny.py"
    constants = f"FOLDER, TRAIN_NET = {str(folder)!r}, {str(TRAIN_NET.parent)!r}\n"
    program.write_text(constants + PROGRAM)

    def command(*arguments: object) -> list[str]:
        flags = [str(a) for a in arguments if str(a).startswith("--")]
        values = [str(a) for a in arguments if not str(a).startswith("--")]
        words = [
            str(program),
            "--config-file",
            "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml",
            "--dist-url",
            "auto",
        ]
        words += [w for flag in flags for w in flag.split("=")]
        words += [*TINY, "DATASETS.TRAIN", "('tiny_digits_train',)", "MODEL.DEVICE", "cpu"]
        return [*words, "DATASETS.TEST", "('tiny_digits_val',)", *values]

    return command


def losses(output: Path) -> dict[int, float]:
    lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
    return {line["iteration"]: line["total_loss"] for line in lines if "total_loss" in line}


def weights(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(output / "model_final.pth", weights_only=True)["model"]


ONE_STEP = [
    *FEW_PROPOSALS,
    *("SOLVER.MAX_ITER", "1", "SOLVER.BASE_LR", "0.01", "DATASETS.TEST", "()"),
]


@pytest.mark.parametrize(
    ("launcher", "how"),
    [(("-m", "torch.distributed.run", "--nproc_per_node=2"), []), ((), ELSEHOW)],
)
def test_two_processes_take_the_step_of_two_micro_batches(train_net, tmp_path, launcher, how):
    one, two = tmp_path / "one", tmp_path / "two"
    done = run(*train_net(*ONE_STEP, *how, "SOLVER.ACCUMULATION_STEPS", "2", "OUTPUT_DIR", one))
    assert done.returncode == 0, done.stderr
    flags = () if launcher else ("--num-gpus=2",)
    done = run(*launcher, *train_net(*flags, *ONE_STEP, *how, "OUTPUT_DIR", two))
    assert done.returncode == 0, done.stderr
    assert "World size: 2" in (two / "log.txt").read_text()
    assert losses(two)[0] == pytest.approx(losses(one)[0], rel=1e-5)
    # The same step: the gradients were averaged.
    a, b = weights(one), weights(two)
    assert all(torch.allclose(a[k], b[k], rtol=1e-4, atol=1e-5) for k in a)


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory) -> Path:
    """The output folder of a short training."""
    folder = tmp_path_factory.mktemp("trained")
    command = make_command(folder, digits)
    done = run(*command(*ONE_STEP, "OUTPUT_DIR", folder / "output"))
    assert done.returncode == 0, done.stderr
    return folder / "output"


def test_a_killed_run_resumes_to_the_result_of_an_unbroken_one(train_net, trained, tmp_path):
    steps = [*FEW_PROPOSALS, "SOLVER.MAX_ITER", "12", "SOLVER.CHECKPOINT_PERIOD", "3"]
    steps += ["SOLVER.STEPS", "(8,)", "DATASETS.TEST", "()"]
    steps += ["DATALOADER.NUM_WORKERS", "1", "INPUT.MIN_SIZE_TRAIN", "(48, 64)"]
    steps += ["MODEL.WEIGHTS", str(trained / "model_final.pth")]

    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    process = start(*train_net(*steps, "OUTPUT_DIR", broken))
    deadline = time.time() + 300
    while not (broken / "last_checkpoint").exists() and time.time() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    saved = (broken / "last_checkpoint").read_text()
    assert not (broken / "model_final.pth").exists(), "it was not killed in time"
    state = torch.load(broken / saved, weights_only=True)
    for output, flags in ((broken, ["--resume"]), (unbroken, [])):
        done = run(*train_net(*flags, *steps, "OUTPUT_DIR", output))
        assert done.returncode == 0, done.stderr

    log = (broken / "log.txt").read_text()
    assert f"Starting training from iteration {state['iteration'] + 1}" in log
    a, b = weights(broken), weights(unbroken)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_eval_only_scores_a_checkpoint_with_the_config_beside_it(train_net, trained, tmp_path):
    """The dumped config is read again."""
    output, model = tmp_path / "out", trained / "model_final.pth"
    words = train_net("--eval-only", *FEW_PROPOSALS, "OUTPUT_DIR", output, "MODEL.WEIGHTS", model)
    words[words.index("--config-file") + 1] = str(trained / "config.yaml")
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert "Evaluation results for segm" in (output / "log.txt").read_text()


def test_an_image_that_is_cut_off_ends_two_processes_with_one_line(tmp_path):
    """Found by a worker of a loader, in processes that wait for each other."""
    folder = make_digits(tmp_path / "source", num_train=2, num_val=1)
    file = folder / "train" / "000000.png"
    file.write_bytes(file.read_bytes()[:2000])
    # More than one step: after the last one, Detectron2 evaluates even after an error.
    options = ["--num-gpus=2", *ONE_STEP, "SOLVER.MAX_ITER", "9", "DATALOADER.NUM_WORKERS", "1"]
    done = run(*make_command(tmp_path, folder)(*options, "OUTPUT_DIR", tmp_path / "out"))
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and lines[0].startswith(f"error: {file} cannot be read")
    assert done.stderr.strip().endswith(lines[0])
