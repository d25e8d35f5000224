"""The losses of validation images, against the model's own on the same images."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tiny import FEW_PROPOSALS

from gnws_d2.data import Mapper, build_test_augmentation
from gnws_d2.engine import Trainer
from gnws_d2.engine.validation_loss import ValidationLoss
from gnws_d2.errors import ConfigError

FASTER_RCNN = ["Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", "MODEL.MASK_ON", "False"]
WITH_BCN = ["Digits/mask_rcnn_R_18_FPN_bcn_ws.yaml"]
# All anchors and proposals: nothing is sampled at random.
ALL = ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", "100000", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "5000"]


@pytest.fixture
def val(tiny_digits):
    """Images of digits, one of them without objects and one with a crowd alone."""
    records = [dict(r) for r in DatasetCatalog.get("tiny_digits_train")[:7]]
    records[1]["annotations"] = []
    records[2]["annotations"] = [{**records[2]["annotations"][0], "iscrowd": 1}]
    DatasetCatalog.register("few_val", lambda: records)
    MetadataCatalog.get("few_val").set(
        thing_classes=MetadataCatalog.get("tiny_digits_train").thing_classes, evaluator_type="coco"
    )
    yield records
    DatasetCatalog.remove("few_val")
    MetadataCatalog.remove("few_val")


@pytest.mark.parametrize("config", [FASTER_RCNN, WITH_BCN])
def test_the_means_are_those_of_the_model_and_nothing_of_it_moves(tiny_config, val, config):
    cfg = tiny_config(*config, *ALL, "DATASETS.TEST", "('few_val',)", "TEST.LOSS_IMAGES", "3")
    torch.manual_seed(0)
    model = build_model(cfg).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    numbers = torch.get_rng_state()
    with EventStorage() as storage:
        found = ValidationLoss(cfg, model)()["validation"]
        assert not storage.latest()
    assert torch.equal(torch.get_rng_state(), numbers)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert all(module.training for module in model.modules())

    arguments = Mapper.from_config(cfg)
    mapper = Mapper(**{**arguments, "augmentations": build_test_augmentation(cfg)})
    for module in model.modules():
        module.training = "BatchNorm" not in type(module).__name__
    with torch.no_grad(), EventStorage():  # of five images with objects each second
        losses = [model([mapper(val[i])]) for i in (0, 4, 6)]
    for name in losses[0]:
        mean = sum(float(loss[name]) for loss in losses) / 3
        assert found.pop(name.removeprefix("loss_")) == pytest.approx(mean, rel=1e-5)
    total = sum(float(v) for loss in losses for v in loss.values()) / 3
    assert found == {"total": pytest.approx(total, rel=1e-5)}


def test_it_is_written_at_each_evaluation_and_changes_no_training(tiny_config, val, tmp_path):
    opts = [*FEW_PROPOSALS, "SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "2"]
    opts += ["DATASETS.TEST", "('few_val',)"]
    cfg = tiny_config(*FASTER_RCNN, *opts, "TEST.LOSS_IMAGES", "5")
    plain = tiny_config(*FASTER_RCNN, *opts, "OUTPUT_DIR", str(tmp_path / "plain"))
    for each in (cfg, plain):
        torch.manual_seed(0)
        Trainer(each).train()
    final, expected = (
        torch.load(Path(each.OUTPUT_DIR, "model_final.pth"), weights_only=True)["model"]
        for each in (cfg, plain)
    )
    torch.testing.assert_close(final, expected, rtol=0, atol=0)
    lines = Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()
    written = [line for line in map(json.loads, lines) if "validation/total" in line]
    assert [line["iteration"] for line in written] == [1, 4]  # the last one after training
    assert set(written[0]) >= {f"validation/{n}" for n in ("cls", "box_reg", "rpn_cls", "rpn_loc")}


def test_a_set_without_objects_has_none(tiny_config, val):
    for record in val:
        record["annotations"] = []
    cfg = tiny_config(*FASTER_RCNN, "DATASETS.TEST", "('few_val',)", "TEST.LOSS_IMAGES", "3")
    assert ValidationLoss(cfg, build_model(cfg))() == {}


def test_what_is_no_list_is_refused(tiny_config):
    DatasetCatalog.register("other_val", lambda: torch.utils.data.TensorDataset(torch.zeros(2)))
    try:
        cfg = tiny_config(*FASTER_RCNN, "DATASETS.TEST", "('other_val',)", "TEST.LOSS_IMAGES", "3")
        with pytest.raises(ConfigError, match=r"TEST.LOSS_IMAGES is 3, but other_val is a TensorD"):
            ValidationLoss(cfg, build_model(cfg))
    finally:
        DatasetCatalog.remove("other_val")
