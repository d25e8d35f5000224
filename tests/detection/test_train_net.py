"""``train_net.py`` as its users run it, in one process and in two."""

import json
from pathlib import Path

import pytest
import torch
from processes import run
from tiny import ELSEHOW
from trainings import FORKED, ONE_STEP, TRAIN_NET, command, result

from gnws_d2.projects.digits import make_digits

pytestmark = pytest.mark.slow


def losses(output: Path) -> dict[int, float]:
    lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
    return {line["iteration"]: line["total_loss"] for line in lines if "total_loss" in line}


@pytest.mark.parametrize(("program", "how"), [(TRAIN_NET, []), (FORKED, ELSEHOW)])
def test_two_processes_take_the_step_of_two_micro_batches(digits, tmp_path, program, how):
    """On a COCO file, which each process splits, fits the config to and registers by itself."""
    one, two = tmp_path / "one", tmp_path / "two"
    data = ["--train", f"{digits / 'digits_train.json'}={digits / 'train'}"]
    done = run(*command(one, *ONE_STEP, *how, "SOLVER.ACCUMULATION_STEPS", "2", flags=data))
    assert done.returncode == 0, done.stderr
    done = run(*command(two, *ONE_STEP, *how, flags=["--num-gpus=2", *data], program=program))
    assert done.returncode == 0, done.stderr
    assert "World size: 2" in (two / "log.txt").read_text()
    assert losses(two)[0] == pytest.approx(losses(one)[0], rel=1e-5)
    scored = [folder / "inference" / "coco_instances_results.json" for folder in (one, two)]
    images = [{found["image_id"] for found in json.loads(f.read_text())} for f in scored]
    assert images[0] == images[1] and len(images[0]) == 3
    # The same step: the gradients were averaged.
    a, b = result(one)["model"], result(two)["model"]
    assert all(torch.allclose(a[k], b[k], rtol=1e-4, atol=1e-5) for k in a)


def test_an_image_that_is_cut_off_ends_two_processes_with_one_line(tmp_path):
    """Found by a worker of a loader, in processes that wait for each other."""
    folder = make_digits(tmp_path / "source", num_train=2, num_val=1)
    file = folder / "train" / "000000.png"
    file.write_bytes(file.read_bytes()[:2000])
    data = f"{folder / 'digits_train.json'}={folder / 'train'}"
    # More than one step: after the last one, Detectron2 evaluates even after an error.
    opts = [*ONE_STEP, "SOLVER.MAX_ITER", "9", "DATALOADER.NUM_WORKERS", "1"]
    flags = ["--num-gpus=2", "--train", data, "--val", data]
    done = run(*command(tmp_path / "out", *opts, flags=flags))
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    # The launcher stops the other process by a signal, which that may mention.
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Stopping after")]
    assert lines[-1].startswith(f"error: {file} cannot be read")
    assert not any(line.startswith("error: ") for line in lines[:-1])
