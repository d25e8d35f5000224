"""What is wrong with a dataset is reported with the file, the finding and the fix."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_lvis_instances

from gnws_d2.data import load_train_dataset
from gnws_d2.engine.data_order import ResumableLoader
from gnws_d2.errors import DatasetError

FILES = [
    (register_coco_instances, r"a\.json does not exist\. Put it there"),
    (register_lvis_instances, r"theirs needs lvis, .* Install it: pip install lvis"),
]


@pytest.mark.parametrize(("register", "said"), FILES)
def test_a_dataset_that_cannot_be_loaded(tiny_config, register, said):
    register("theirs", {}, "a.json", "images")
    cfg = tiny_config()
    cfg.DATASETS.TRAIN = ("theirs",)
    try:
        with pytest.raises(DatasetError, match=said):
            ResumableLoader(cfg)
    finally:
        DatasetCatalog.remove("theirs"), MetadataCatalog.remove("theirs")


def test_another_number_of_classes_than_the_model_has(tiny_config, caplog):
    cfg = tiny_config()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    ResumableLoader(cfg)
    assert "has 10 classes, but MODEL.ROI_HEADS.NUM_CLASSES is 80. Set it to 10" in caplog.text
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    with pytest.raises(DatasetError, match=r"of class 9, .*NUM_CLASSES is 4\. Set it to 10"):
        ResumableLoader(cfg)


def test_a_dataset_that_is_not_registered(tiny_config):
    cfg = tiny_config()
    cfg.DATASETS.TRAIN = ("digits_trian",)
    with pytest.raises(DatasetError, match=r"'digits_trian', which is not reg.*mean digits_train"):
        ResumableLoader(cfg)


@pytest.mark.parametrize(("ignored", "warned"), [(255, True), (65535, False), (-1, False)])
def test_a_class_that_is_ignored(tiny_config, caplog, ignored, warned):
    cfg = tiny_config("Digits/semantic_R_18_FPN_gn_ws.yaml")
    cfg.DATASETS.TRAIN = ("digits_sem_seg_train",)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 300, ignored
    load_train_dataset(cfg)
    assert ("IGNORE_VALUE 255 is one of the 300 classes" in caplog.text) == warned
