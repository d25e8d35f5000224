"""What the tests of this folder share: untrained detectors, and trainings to compare with."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from processes import run
from tiny import TINY
from trainings import CONFIG, STEPS, command

import gnws_d2
from gnws_d2.checkpoint import Checkpointer


@pytest.fixture
def checkpoint(tiny_config, tmp_path) -> Callable[..., str]:
    """``checkpoint(config, *opts)``: the file of an untrained model, which carries its config."""

    def make(name: str, *opts: str) -> str:
        few = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.05", "TEST.DETECTIONS_PER_IMAGE", "5"]
        cfg = tiny_config(f"Digits/{name}.yaml", *few, *opts)
        torch.manual_seed(0)
        Checkpointer(build_model(cfg), str(tmp_path), cfg=cfg).save("model")
        return str(tmp_path / "model.pth")

    return make


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
