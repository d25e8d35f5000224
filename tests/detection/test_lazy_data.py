"""LazyConfigs that train on files of one's own."""

import sys
from pathlib import Path

import pytest
from detectron2.config import instantiate

from gnws_d2.projects.detection.lazy_config import load_lazy_config
from gnws_d2.projects.own_data.catalog import unregister
from gnws_d2.projects.own_data.lazy_data import fit_lazy_config, name_data

sys.path.append(str(Path(__file__).parents[1] / "data"))
from coco_files import make_coco


@pytest.mark.parametrize("name", ["fcos_R_18_FPN_gn_ws", "mask_rcnn_R_18_FPN_gn_ws"])
def test_the_model_gets_the_classes_of_the_data(name, tmp_path):
    cfg = load_lazy_config(f"Digits/{name}.py")
    train, val = (f"{make_coco(tmp_path, images=10)}#{part}" for part in ("train", "val"))
    try:
        name_data(cfg, {"train": [train], "val": [val], "test": []}, eval_only=False)
        fit_lazy_config(cfg)
        model = instantiate(cfg.model)
        weights = {n: t for n, t in model.state_dict().items() if "cls_score.weight" in n}
        # Mask R-CNN has a score of the background as well.
        assert [len(t) for t in weights.values()] == [2 if name.startswith("fcos") else 3]
        # Polygons, where Digits has RLE.
        assert cfg.dataloader.train.mapper.instance_mask_format == "polygon"
        assert len(instantiate(cfg.dataloader.train.dataset)) == 8
        assert instantiate(cfg.dataloader.evaluator)._coco_api.getCatIds() == [3, 7]
    finally:
        unregister(train), unregister(val)


def test_an_evaluation_prefers_the_test_set(tmp_path):
    cfg = load_lazy_config("Digits/fcos_R_18_FPN_gn_ws.py")
    name_data(cfg, {"train": ["a"], "val": ["b"], "test": ["c"]}, eval_only=True)
    assert cfg.dataloader.test.dataset.names == ["c"]
    assert cfg.dataloader.evaluator.dataset_name == "c"
    assert cfg.dataloader.train.dataset.names == "digits_train"
