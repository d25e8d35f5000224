"""Training steps, also on images and batches that are nearly empty, training and evaluation."""

import contextlib
import itertools
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetFromList, DatasetMapper, MapDataset
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from tiny import FEW_PROPOSALS
from torch.utils.data import DataLoader, IterableDataset

from gnws_d2.engine import Trainer, build_evaluator
from gnws_d2.errors import ConfigError
from gnws_d2.projects.detection import train_net

MASK_RCNN = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
CONFIGS = {"mask": [MASK_RCNN], "faster": [MASK_RCNN, "MODEL.MASK_ON", "False"]}
# A training that takes a second.
SHORT = [*FEW_PROPOSALS, "SOLVER.CHECKPOINT_PERIOD", "1", "DATASETS.TEST", "()"]


def picture(boxes: list[list[float]], classes: list[int]) -> dict:
    """A noise image of 64x64 pixels with the given boxes, the masks filling them."""
    masks = torch.zeros(len(boxes), 64, 64, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[int(y0) : int(y1), int(x0) : int(x1)] = True
    instances = Instances((64, 64))
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4).float())
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    instances.gt_masks = BitMasks(masks)
    image = torch.randint(0, 255, (3, 64, 64), generator=torch.Generator().manual_seed(0))
    return {"image": image.float(), "instances": instances, "height": 64, "width": 64}


def step(model: torch.nn.Module, batch: list[dict]) -> dict[str, torch.Tensor]:
    with EventStorage():
        losses = model.train()(batch)
    sum(losses.values()).backward()
    return losses


def all_finite(model: torch.nn.Module, losses: dict[str, torch.Tensor]) -> bool:
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return all(torch.isfinite(t).all() for t in [*losses.values(), *grads])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("count", [1, 2])
def test_a_training_step_reaches_every_parameter(tiny_config, config, count):
    torch.manual_seed(0)
    model = build_model(tiny_config(*config))
    losses = step(model, [picture([[8, 8, 40, 40], [20, 4, 60, 50]], [1, 7])] * count)
    assert ("loss_mask" in losses) == ("MODEL.MASK_ON" not in config)
    assert all_finite(model, losses)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("others", [0, 1])
def test_an_image_without_annotations(tiny_config, config, others):
    model = build_model(tiny_config(*config))
    losses = step(model, [picture([], [])] + [picture([[8, 8, 40, 40]], [1])] * others)
    assert all_finite(model, losses)
    if not others:
        assert losses["loss_rpn_loc"] == 0


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_batch_without_proposals(tiny_config, config):
    """All proposals are suppressed, and there is no ground truth to be one: empty head batches."""
    opts = ["MODEL.RPN.POST_NMS_TOPK_TRAIN", "0", "MODEL.RPN.POST_NMS_TOPK_TEST", "0"]
    model = build_model(tiny_config(*config, *opts))
    losses = step(model, [picture([], [])])
    assert all_finite(model, losses)
    with torch.no_grad():
        (found,) = model.eval()([picture([], [])])
    assert len(found["instances"]) == 0


def resumed(kind: type[Trainer], cfg, last: str) -> Trainer:
    """A trainer that continues from the checkpoint ``last``."""
    (Path(cfg.OUTPUT_DIR) / "last_checkpoint").write_text(last)
    trainer = kind(cfg)
    trainer.resume_or_load(resume=True)
    return trainer


@pytest.mark.parametrize("config", [MASK_RCNN, "Digits/mask_rcnn_R_18_FPN_bcn_ws.yaml"])
def test_training_lowers_the_loss_and_ends_with_coco_figures_and_a_checkpoint(tiny_config, config):
    opts = [*FEW_PROPOSALS, "SOLVER.MAX_ITER", "12", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    trainer = Trainer(tiny_config(config, *opts))
    trainer.train()
    history = [v for v, _ in trainer.storage.history("total_loss").values()]
    assert np.mean(history[-3:]) < np.mean(history[:3])
    results = trainer._last_eval_results
    assert set(results) == {"bbox", "segm"} and "AP50" in results["segm"]
    assert trainer.checkpointer.get_checkpoint_file().endswith("model_final.pth")


def test_test_time_augmentation_is_evaluated(tiny_config):
    cfg = tiny_config(MASK_RCNN, "TEST.AUG.MIN_SIZES", "(48, 64)")
    cfg.TEST.AUG.FLIP = False
    results = train_net.Trainer.test_with_TTA(cfg, Trainer.build_model(cfg))
    assert set(results) == {"bbox_TTA", "segm_TTA"}


class WithDataLoader(Trainer):
    """Overrides the train loader as Detectron2 documents it."""

    @classmethod
    def build_train_loader(cls, cfg):
        mapper = DatasetMapper(cfg, is_train=True)
        dataset = MapDataset(DatasetFromList(DatasetCatalog.get(cfg.DATASETS.TRAIN[0])), mapper)
        return DataLoader(dataset, batch_size=2, collate_fn=list)


def test_any_train_loader_trains_and_resumes_with_its_first_batch(tiny_config, caplog):
    opts = [*SHORT, "SOLVER.MAX_ITER", "2", "SOLVER.ACCUMULATION_STEPS", "2"]
    cfg = tiny_config(MASK_RCNN, *opts)
    # Detectron2's loggers do not propagate.
    with caplog.at_level("INFO", logger="gnws_d2.engine.data_order"):
        WithDataLoader(cfg).train()
    (said,) = [r for r in caplog.records if "cannot start in the middle" in r.getMessage()]
    assert said.levelname == "INFO" and "DataLoader" in said.getMessage()

    trainer = resumed(WithDataLoader, cfg, "model_0000000.pth")
    seen = []
    trainer.model.register_forward_pre_hook(lambda module, args: seen.extend(args[0]))
    trainer.train()
    assert trainer.start_iter == 1
    assert [d["image_id"] for d in seen] == [d["image_id"] for d in trainer.data_loader.dataset][:2]
    (said,) = [r for r in caplog.records if r.levelname == "WARNING" and "gnws_d2" in r.name]
    assert "reads the data from the start" in said.getMessage()


class Stream(IterableDataset):
    def __iter__(self):
        yield from itertools.cycle(DatasetCatalog.get("digits_val")[:3])


def test_a_dataset_without_a_length_is_trained_on(tiny_config):
    DatasetCatalog.register("stream", Stream)
    try:
        cfg = tiny_config(MASK_RCNN, *SHORT, "DATASETS.TRAIN", "('stream',)")
        trainer = Trainer(cfg)
        trainer.train()
        assert trainer.iter == cfg.SOLVER.MAX_ITER
    finally:
        DatasetCatalog.remove("stream")


@pytest.mark.parametrize("fails", [False, True])
def test_the_data_workers_end_with_the_training(tiny_config, fails):
    opts = [*SHORT, "SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "1"]
    trainer, before = Trainer(tiny_config(MASK_RCNN, *opts)), set(multiprocessing.active_children())

    def look(module, args):
        assert set(multiprocessing.active_children()) - before
        if fails:
            raise FloatingPointError

    trainer.model.register_forward_pre_hook(look)
    with pytest.raises(FloatingPointError) if fails else contextlib.nullcontext() as error:
        trainer.train()
    assert bool(error) == fails  # with its traceback, as a caller may keep it
    assert set(multiprocessing.active_children()) <= before


def test_a_run_killed_before_its_final_checkpoint_gets_it_when_resumed(tiny_config):
    cfg = tiny_config(MASK_RCNN, *SHORT, "SOLVER.MAX_ITER", "2")
    Trainer(cfg).train()
    final = Path(cfg.OUTPUT_DIR) / "model_final.pth"
    expected = torch.load(final, weights_only=True)
    final.unlink()
    resumed(Trainer, cfg, "model_0000001.pth").train()
    found = torch.load(final, weights_only=True)
    assert found["iteration"] == expected["iteration"] == 1
    torch.testing.assert_close(found["model"], expected["model"], rtol=0, atol=0)
    torch.testing.assert_close(found["trainer"], expected["trainer"], rtol=0, atol=0)


def test_a_dataset_without_an_evaluator_is_refused_with_the_cure(tiny_config):
    with pytest.raises(ConfigError, match=r"'unjudged'.*evaluator_type None.*coco"):
        build_evaluator(tiny_config(), "unjudged")
