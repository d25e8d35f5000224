"""Training of a LazyConfig: resumed from the middle, and on COCO files."""

import json
import sys
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import instantiate

from gnws_d2.engine import ResumableLoader
from gnws_d2.errors import CheckpointError
from gnws_d2.projects.detection import lazyconfig_train_net
from gnws_d2.projects.detection.lazy_config import load_lazy_config
from gnws_d2.projects.own_data import fit_lazy_config, name_data

sys.path.append(str(Path(__file__).parents[1] / "own_data"))
from coco_files import forget_sources, make_coco  # noqa: F401

MASK_RCNN = "Digits/mask_rcnn_R_18_FPN_gn_ws.py"
OPTS = [
    *("train.device=cpu", "train.max_iter=4", "train.checkpointer.period=2", "train.eval_period=0"),
    *("dataloader.train.total_batch_size=2", "+train.seed=5"),
    "dataloader.train.mapper.augmentations.0.short_edge_length=[48,64]",  # drawn for each image
]


def test_it_ends_with_the_checkpoint_of_an_unbroken_one(digits, tmp_path):
    opts = [*OPTS, "train.ema_decay=0.9", f"train.output_dir={tmp_path}"]
    cfg = load_lazy_config(MASK_RCNN, opts)
    lazyconfig_train_net.train(cfg.copy(), resume=False)
    final = tmp_path / "model_final.pth"
    whole = torch.load(final, weights_only=True)
    for last in ("model_0000001.pth", "model_0000003.pth"):  # or killed before the final one
        final.unlink()
        (tmp_path / "last_checkpoint").write_text(last)
        lazyconfig_train_net.train(cfg.copy(), resume=True)
        resumed = torch.load(final, weights_only=True)
        assert resumed["iteration"] == 3
        torch.testing.assert_close(resumed["model"], whole["model"], rtol=0, atol=0)
        states = [c["trainer"]["hooks"]["WeightAverage"] for c in (resumed, whole)]
        assert states[0]["steps"] == 4
        torch.testing.assert_close(*states, rtol=0, atol=0)


def test_a_resumed_run_says_what_differs(digits, tmp_path, caplog):
    def train(*opts: str) -> str:
        caplog.clear()
        opts = [*OPTS, "train.max_iter=1", f"train.output_dir={tmp_path}", *opts]
        with caplog.at_level("WARNING", logger="gnws_d2"):
            lazyconfig_train_net.train(load_lazy_config(MASK_RCNN, opts), resume=True)
        return caplog.text

    train()
    assert "model_final.pth" not in train("train.eval_period=7", "dataloader.test.num_workers=1")
    said = train("train.max_iter=2", "model.roi_heads.positive_fraction=0.25")
    assert "train.max_iter is 2, was trained with 1" in said
    assert "model.roi_heads.positive_fraction is 0.25, was trained with 0.5" in said
    with pytest.raises(CheckpointError, match=r"another optimizer .* optimizer\.lr is 0\.5, was"):
        train("train.max_iter=3", "optimizer.lr=0.5")
    with pytest.raises(CheckpointError, match="has finished 2 iterations"):
        train()


def test_a_loader_of_ones_own_is_built_as_it_says():
    node = load_lazy_config(MASK_RCNN, OPTS).dataloader.train
    assert isinstance(lazyconfig_train_net.build_train_loader(node), ResumableLoader)
    node.collate_fn = len  # an argument that ours does not have
    assert not isinstance(lazyconfig_train_net.build_train_loader(node), ResumableLoader)


@pytest.mark.parametrize("name", ["fcos_R_18_FPN_gn_ws", "mask_rcnn_R_18_FPN_gn_ws"])
def test_the_model_gets_the_classes_of_the_data(name, tmp_path):
    cfg = load_lazy_config(f"Digits/{name}.py")
    train, val = (f"{make_coco(tmp_path, images=10)}#{part}" for part in ("train", "val"))
    name_data(cfg, {"train": [train], "val": [val], "test": []}, eval_only=False)
    fit_lazy_config(cfg)
    model = instantiate(cfg.model)
    weights = {n: t for n, t in model.state_dict().items() if "cls_score.weight" in n}
    # Mask R-CNN has a score of the background as well.
    assert [len(t) for t in weights.values()] == [2 if name.startswith("fcos") else 3]
    # Polygons, where Digits has RLE.
    assert cfg.dataloader.train.mapper.instance_mask_format == "polygon"
    assert len(instantiate(cfg.dataloader.train.dataset)) == 8
    assert sorted(instantiate(cfg.dataloader.evaluator)._coco_api.cats) == [3, 7]


OTHERS = {"Cascade": "cascade_rcnn", "C4": "mask_rcnn_c4", "PointRend": "mask_rcnn_fpn"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["packaged", *OTHERS])
def test_a_model_with_masks_trains_on_boxes(kind, tmp_path):
    """A mask head that is left in would look for gt_masks."""
    cfg = load_lazy_config(MASK_RCNN, [*OPTS, f"train.output_dir={tmp_path}", "train.max_iter=1"])
    if kind != "packaged":
        cfg.model = model_zoo.get_config(f"common/models/{OTHERS[kind]}.py").model
        cfg.dataloader.train.mapper.recompute_boxes = True
    if kind == "PointRend":
        cfg.model.roi_heads.mask_head._target_ = "detectron2.projects.point_rend.PointRendMaskHead"
    assert "mask_head" in cfg.model.roi_heads
    train = f"{make_coco(tmp_path, images=10, masks=False)}#train"
    name_data(cfg, {"train": [train], "val": [train], "test": []}, eval_only=False)
    fit_lazy_config(cfg)
    assert not cfg.dataloader.train.mapper.use_instance_mask
    lazyconfig_train_net.train(cfg, resume=False)
    weights = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert weights and not any("mask" in name for name in weights)


def test_a_model_with_keypoints_gets_those_of_the_data(tmp_path):
    file = make_coco(tmp_path, images=10)
    content = json.loads(file.read_text())
    for category in content["categories"]:
        category["keypoints"], category["skeleton"] = ["left_eye", "nose", "right_eye"], []
    for annotation in content["annotations"]:
        x, y, *_ = annotation["bbox"]
        annotation |= {"keypoints": [x + 2, y + 2, 2, x + 4, y + 2, 2, x + 6, y + 2, 2]}
        annotation |= {"num_keypoints": 3}
    file.write_text(json.dumps(content))
    cfg = load_lazy_config(MASK_RCNN, OPTS)
    cfg.model = model_zoo.get_config("common/models/keypoint_rcnn_fpn.py").model
    cfg.dataloader.train.mapper.update(use_keypoint=True, keypoint_hflip_indices=list(range(17)))
    name_data(cfg, {"train": [str(file)], "val": [str(file)], "test": []}, eval_only=False)
    fit_lazy_config(cfg)
    assert cfg.model.roi_heads.keypoint_head.num_keypoints == 3
    assert cfg.dataloader.train.mapper.keypoint_hflip_indices == [2, 1, 0]
    assert len(instantiate(cfg.dataloader.evaluator)._kpt_oks_sigmas) == 3


def test_an_evaluation_prefers_the_test_set():
    cfg = load_lazy_config(MASK_RCNN)
    name_data(cfg, {"train": ["a"], "val": ["b"], "test": ["c"]}, eval_only=True)
    assert cfg.dataloader.test.dataset.names == ["c"]
    assert cfg.dataloader.evaluator.dataset_name == "c"
    assert cfg.dataloader.train.dataset.names == "digits_train"
