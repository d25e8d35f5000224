"""What is wrong with a dataset is reported with the file, the finding and the fix."""

from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from gnws_d2.engine.data_order import ResumableLoader
from gnws_d2.errors import DatasetError
from gnws_d2.projects.digits import make_digits


@pytest.fixture
def folder(tmp_path) -> Path:
    """Digits of two training images, registered as spoiled_digits."""
    folder = make_digits(tmp_path, num_train=2, num_val=1)
    file = str(folder / "digits_train.json")
    register_coco_instances("spoiled_digits", {}, file, str(folder / "train"))
    yield folder
    DatasetCatalog.remove("spoiled_digits")
    MetadataCatalog.remove("spoiled_digits")


def missing_annotations(folder: Path) -> str:
    (folder / "digits_train.json").unlink()
    return r"digits_train\.json does not exist\. Put it there"


def missing_image(folder: Path) -> str:
    (folder / "train" / "000000.png").unlink()
    return r"000000\.png does not exist"


def truncated_image(folder: Path) -> str:
    file = folder / "train" / "000000.png"
    file.write_bytes(file.read_bytes()[:2000])
    return r"000000\.png cannot be read"


@pytest.mark.parametrize("spoil", [missing_annotations, missing_image, truncated_image])
def test_bad_data_is_an_error_that_names_it(tiny_config, folder, spoil):
    cfg = tiny_config()
    cfg.DATASETS.TRAIN = ("spoiled_digits",)
    said = spoil(folder)
    with pytest.raises(DatasetError, match=said):
        next(iter(ResumableLoader(cfg)))


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
