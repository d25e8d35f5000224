"""What the tests of this folder share: an untrained detector, and trainings to compare with."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from processes import run
from tiny import TINY
from trainings import CONFIG, STEPS, command

import gnws_d2


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A checkpoint that finds something everywhere: an untrained one."""
    torch.manual_seed(0)
    model = build_model(gnws_d2.load_config(CONFIG, [*TINY, "MODEL.DEVICE", "cpu"]))
    file = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": model.state_dict()}, file)
    return file


@pytest.fixture(scope="session")
def steps(weights) -> list[str]:
    """The overrides of a training of 12 iterations."""
    return [*STEPS, "MODEL.WEIGHTS", str(weights)]


@pytest.fixture(scope="session")
def unbroken(steps, tmp_path_factory) -> Path:
    """The output folder of that training."""
    return trained(tmp_path_factory.mktemp("unbroken"), steps, [])


@pytest.fixture(scope="session")
def unbroken_in_two(steps, tmp_path_factory) -> Path:
    """The same in two processes."""
    return trained(tmp_path_factory.mktemp("unbroken_in_two"), steps, ["--num-gpus=2"])


def trained(output: Path, steps: list[str], flags: list[str]) -> Path:
    done = run(*command(output, *steps, flags=flags))
    assert done.returncode == 0, done.stderr
    return output
