"""Processes for a model on the CPU where the machine has two GPUs, as two_gpus/ pretends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from detectron2.utils import comm
from processes import run
from tiny import FEW_PROPOSALS, TINY

from gnws.arguments import parse
from gnws_d2.checkpoint.resume import from_main_process
from gnws_d2.engine import launch
from gnws_d2.projects.detection import lazyconfig_train_net, train_net

TWO_GPUS = Path(__file__).with_name("two_gpus")
FORKED = f"""
import runpy
runpy.run_path("{TWO_GPUS / "sitecustomize.py"}")
runpy.run_path("{TWO_GPUS.parents[1] / "detection" / "forked_train_net.py"}", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["num-gpus", "torchrun"])
def test_two_processes_train_on_the_cpu(tmp_path, launcher):
    config, program = tmp_path / "cpu.yaml", tmp_path / "program.py"
    config.write_text("_BASE_: Digits/mask_rcnn_R_18_FPN_gn_ws.yaml\nMODEL: {DEVICE: cpu}\n")
    opts = ["SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", "0"]
    words = ["--config-file", str(config), "--num-gpus=2", *TINY, *FEW_PROPOSALS, *opts]
    words += ["OUTPUT_DIR", str(tmp_path)]
    if launcher == "num-gpus":
        program.write_text(FORKED)
        done = run(program, *words)
    else:
        torchrun = ["torch.distributed.run", "--nproc_per_node=2", "--standalone"]
        command = [sys.executable, "-m", *torchrun, train_net.__file__, *words]
        env = {**os.environ, "PYTHONPATH": str(TWO_GPUS)}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model_final.pth").exists() and (tmp_path / "log.txt.rank1").exists()


def test_gpus_are_hidden_while_processes_run(monkeypatch):
    seen = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def start(*_):
        seen.append(os.environ.get("CUDA_VISIBLE_DEVICES"))

    monkeypatch.setitem(launch.__globals__, "_start", start)
    launch(print, 2)
    launch(print, 3, device=lambda: "cpu")
    start()
    assert seen == [None, "", "0,1"]
    with pytest.raises(SystemExit, match="3 processes need a GPU each, but this machine has 2"):
        launch(print, 3)


def test_the_device_is_that_of_the_config(tmp_path):
    saved = tmp_path / "a.yaml"
    saved.write_text("MODEL: {DEVICE: xpu}\n")
    args = parse("train", ["--config-file", str(saved)])
    assert train_net.device_of(args) == "xpu"
    args = parse("train", ["--config-file", str(saved), "--device", "cpu"])
    assert train_net.device_of(args) == "cpu"
    args = parse("train", ["--config-file", "Digits/mask_rcnn_R_18_FPN_gn_ws.py", "--device=xpu"])
    assert lazyconfig_train_net.device_of(args) == "xpu"


def test_a_checkpoint_is_sent_without_the_memory_of_gpus(monkeypatch):
    groups = []
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "_get_global_gloo_group", lambda: "gloo")
    monkeypatch.setattr(dist, "broadcast_object_list", lambda found, group: groups.append(group))
    assert from_main_process(lambda: 1) == 1
    assert groups == ["gloo"]
