"""What the tests share: a small Digits, and a detector that takes a fraction of a second a step."""

import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from tiny import TINY, allow_double, register_tiny_digits
from torch import nn

import gnws_d2
from gnws_d2.files import CACHE_VARIABLE
from gnws_d2.model_zoo.fetch import MIRROR_VARIABLE
from gnws_d2.projects import digits as digits_package
from gnws_d2.projects.acceleration import accelerate, add_acceleration_config

# Tests run in two processes (make test): one thread each, and in the commands that they start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# A GPU's convolutions would by default round to 11 bits, unlike what they are compared with.
torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def pytest_configure(config: pytest.Config) -> None:
    """The cache folder is that of all processes of these tests, not the user's, and holds a Digits
    of 16 training and 4 validation images."""
    if "PYTEST_XDIST_WORKER" in os.environ:  # has the variable from the process that started it
        return
    folder = Path(tempfile.mkdtemp(prefix="gnws_d2_tests_"))
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    made = digits_package.make_digits(folder, num_train=16, num_val=4)
    made.rename(folder / digits_package.make.NAME)
    os.environ[CACHE_VARIABLE] = str(folder)
    os.environ[MIRROR_VARIABLE] = str(folder)  # no test depends on the network
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(folder / "hypothesis")
    digits_package.register()


@pytest.fixture(scope="session")
def digits() -> Path:
    """The folder of the small Digits."""
    return digits_package.make_digits()


@pytest.fixture(scope="session")
def tiny_digits(digits) -> Path:
    """The same, registered as tiny_digits_train and tiny_digits_val."""
    register_tiny_digits(digits)
    yield digits
    for split in ("train", "val"):
        DatasetCatalog.remove(f"tiny_digits_{split}")
        MetadataCatalog.remove(f"tiny_digits_{split}")


@pytest.fixture
def tiny_config(tiny_digits, tmp_path) -> Callable[..., CfgNode]:
    """``tiny_config("Digits/...yaml", "KEY", "VALUE", ...)``: that model, small, on the CPU."""

    def make(
        name: str = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml",
        *opts: str,
        add_configs: Sequence[Callable[[CfgNode], None]] = (),
    ) -> CfgNode:
        datasets = ["DATASETS.TRAIN", "('tiny_digits_train',)"]
        datasets += ["DATASETS.TEST", "('tiny_digits_val',)", "MODEL.DEVICE", "cpu"]
        output = ["OUTPUT_DIR", str(tmp_path / "output")]
        return gnws_d2.load_config(name, [*TINY, *datasets, *output, *opts], add_configs)

    return make


@pytest.fixture
def accelerated_config(tiny_config) -> Callable[..., CfgNode]:
    """The same with the keys of projects/Acceleration."""
    return functools.partial(tiny_config, add_configs=[add_acceleration_config])


@pytest.fixture
def accelerated(accelerated_config) -> Callable[..., nn.Module]:
    """``accelerated("Digits/...yaml", "KEY", "VALUE", ...)``: the model of such a config."""

    def build(*words: str) -> nn.Module:
        cfg = accelerated_config(*words)
        return accelerate(build_model(cfg), cfg)

    return build


@pytest.fixture
def double(monkeypatch) -> None:
    """Lets a detector train in float64, where Detectron2 or torch would refuse it or round."""
    allow_double(monkeypatch)
