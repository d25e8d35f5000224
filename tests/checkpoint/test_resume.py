"""What ``--resume`` refuses or says, before it loads anything."""

import logging
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from processes import START_METHOD
from tiny import FEW_PROPOSALS
from torch import nn

from gnws_d2.checkpoint import Checkpointer
from gnws_d2.checkpoint.resume import from_main_process
from gnws_d2.engine import Trainer
from gnws_d2.errors import CheckpointError

CONFIG = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"


@pytest.fixture
def trainer(tiny_config):
    """``trainer("KEY", "VALUE", ...)`` of a run of two iterations."""

    def make(*opts):
        steps = ["SOLVER.MAX_ITER", "2", "DATASETS.TEST", "()", "SOLVER.CHECKPOINT_PERIOD", "1"]
        return Trainer(tiny_config(CONFIG, *FEW_PROPOSALS, *steps, *opts))

    return make


@pytest.fixture
def trained(trainer) -> Path:
    """The folder of such a run, complete."""
    trainer().train()
    return Path(trainer().cfg.OUTPUT_DIR)


def edit(file: Path, change) -> None:
    checkpoint = torch.load(file, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, file)


def warnings_of(caplog, trainer, resume):
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="gnws_d2"):
        trainer.resume_or_load(resume=resume)
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_nothing_to_resume_and_a_used_folder_are_said(trainer, caplog):
    first = trainer()
    (said,) = warnings_of(caplog, first, resume=True)
    assert said.startswith(f"Nothing to resume: {first.cfg.OUTPUT_DIR} has no checkpoint")
    assert first.start_iter == 0
    assert not warnings_of(caplog, first, resume=False)
    first.train()
    (said,) = warnings_of(caplog, trainer(), resume=False)
    assert "already has checkpoints (model_0000000.pth, model_0000001.pth, model_final.pth)" in said
    again = trainer("SOLVER.MAX_ITER", "3")
    (said,) = warnings_of(caplog, again, resume=True)
    # Of a cosine that ends after 2 iterations, and of one that ends after 3.
    assert "SOLVER.MAX_ITER is 3, was trained with 2." in said
    assert "The learning rate of iteration 2 is 0.0075, and was to be 0." in said
    assert again.start_iter == 2


def test_a_checkpoint_that_cannot_be_continued_is_refused(trainer, trained):
    def refused(message):
        with pytest.raises(CheckpointError, match=message):
            trainer().resume_or_load(resume=True)

    last = trained / "last_checkpoint"
    for change, message in (
        (lambda c: c.pop("trainer"), "model_final.pth has no trainer state"),
        (lambda c: c.update(trainer=3), "model_final.pth has no trainer state"),
        (lambda c: c["trainer"].pop("iteration"), "model_final.pth has no trainer state"),
        (lambda c: c["trainer"]["_trainer"].pop("optimizer"), "has no trainer state"),
        (lambda c: c["trainer"]["_trainer"]["optimizer"].update(state={}), "is empty"),
        (lambda c: c["trainer"]["_trainer"]["optimizer"]["param_groups"].pop(), "does not fit"),
    ):
        whole = (trained / "model_final.pth").read_bytes()
        edit(trained / "model_final.pth", change)
        refused(message)
        (trained / "model_final.pth").write_bytes(whole)
    last.write_text("model_0000009.pth")
    refused(r"names 'model_0000009\.pth', which does not exist\. Write one of model_0000000\.pth")
    last.unlink()
    (trained / "model_best.pth").touch()  # which has weights alone
    refused(r"last_checkpoint is missing\. Write one of model_0000000\.pth, (?!.*best).* without")


def test_what_a_resumed_run_would_ignore_is_refused(trainer, trained):
    for key, value, former in (
        ("SOLVER.BASE_LR", "0.5", "0.03"),
        ("SOLVER.MOMENTUM", "0.8", "0.9"),
        ("SOLVER.WEIGHT_DECAY", "0.5", "0.0001"),
        ("SOLVER.WEIGHT_DECAY_NORM", "0.5", "0.0001"),
        ("SOLVER.NESTEROV", "True", "False"),
        ("SOLVER.BIAS_LR_FACTOR", "2.0", "1.0"),
        ("SEED", "8", "7"),
    ):
        with pytest.raises(CheckpointError, match=rf"{key} is {value}, was {former}\. Resume"):
            trainer(key, value).resume_or_load(resume=True)


@pytest.mark.parametrize(
    ("key", "value", "former"),
    [
        ("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "False"),
        ("SOLVER.IMS_PER_BATCH", "4", "2"),
        ("INPUT.MIN_SIZE_TRAIN", "[48, 64]", "[64]"),
        ("MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.3]", "[0.5]"),
        ("DATALOADER.FILTER", "'detectron2'", "'mmdetection'"),
        ("DATASETS.TRAIN", "['tiny_digits_val']", "['tiny_digits_train']"),
    ],
)
def test_a_value_that_changes_the_training_is_said(trainer, trained, caplog, key, value, former):
    (trained / "last_checkpoint").write_text("model_0000000.pth")
    (said,) = warnings_of(caplog, trainer(key, value), resume=True)
    assert f"model_0000000.pth: {key} is {value}, was trained with {former}. The resumed" in said
    is_order = key.startswith(("DATA", "SOLVER.IMS"))
    assert ("another order" in said) == is_order and "learning rate" not in said


def test_what_changes_no_training_is_not_said_and_a_shorter_one_is_refused(
    trainer, trained, caplog
):
    free = ["DATALOADER.NUM_WORKERS", "1", "TEST.DETECTIONS_PER_IMAGE", "3", "SEED", "-1"]
    assert not warnings_of(caplog, trainer(*free, "MODEL.RPN.PRE_NMS_TOPK_TEST", "9"), resume=True)
    shorter = trainer("SOLVER.MAX_ITER", "1")
    shorter.resume_or_load(resume=True)
    with pytest.raises(
        CheckpointError, match=r"finished 2 iterations, and SOLVER.MAX_ITER .* is 1"
    ):
        shorter.train()


class State:
    """What a trainer saves, small."""

    def __init__(self) -> None:
        self.iteration = 0

    def state_dict(self):
        optimizer = {"param_groups": [{"lr": 0.1}], "state": {}}
        return {"iteration": self.iteration, "optimizer": optimizer}

    def load_state_dict(self, state):
        self.iteration = state["iteration"]


def resume_in_process(rank: int, folder: Path) -> None:
    """Each process has a folder of its own, as on machines without a shared one."""
    options = {"init_method": f"file://{folder}/rendezvous", "rank": rank, "world_size": 2}
    dist.init_process_group("gloo", **options)
    try:
        own = folder / str(rank)
        torch.manual_seed(rank)
        model, state = nn.Linear(2, 2), State()
        found = Checkpointer(model, str(own), trainer=state).resume_or_load("", resume=True)
        torch.save([model.weight.data, state.iteration, found["note"]], folder / f"found_{rank}")
        (own / "last_checkpoint").write_text("none.pth")
        with pytest.raises(CheckpointError, match=r"/0/last_checkpoint names 'none\.pth'"):
            Checkpointer(model, str(own), trainer=state).resume_or_load("", resume=True)
        kind = ZeroDivisionError if rank == 0 else RuntimeError
        with pytest.raises(kind, match="division by zero"):
            from_main_process(lambda: 1 / 0)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_all_processes_resume_what_the_first_one_has(tmp_path):
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    model, state = nn.Linear(2, 2), State()
    state.iteration = 7
    Checkpointer(model, str(tmp_path / "0"), trainer=state, save_to_disk=True).save("m", note="n")
    mp.start_processes(resume_in_process, (tmp_path,), nprocs=2, start_method=START_METHOD)
    for rank in range(2):
        weight, iteration, note = torch.load(tmp_path / f"found_{rank}")
        assert torch.equal(weight, model.weight) and (iteration, note) == (7, "n")
