"""Mappers of users that read another range than evaluation does, or lack a package, are refused."""

import contextlib
import sys

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    detection_utils,
)
from detectron2.data import transforms as T
from detectron2.evaluation import DatasetEvaluators
from PIL import Image

from gnws_d2 import load_config
from gnws_d2.data import Mapper, NamingMapper
from gnws_d2.engine import ResumableLoader, Trainer, map_one
from gnws_d2.errors import DatasetError

REFUSED = r"\.(png|tif) has 16 bits, a palette .* returns another image than evaluation reads"
BOX = {"bbox": [5, 5, 20, 20], "bbox_mode": 1, "category_id": 0}
POLYGON = {**BOX, "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]]}


def scans(folder, suffix, background):
    """16-bit images of brighter squares on a background, a third of whose pixels are dark."""
    rng = np.random.default_rng(0)
    for number in range(4):
        levels = rng.integers(background, background * 2, (80, 96)).astype(np.uint16)
        levels[30:50, 20:60] += 20000
        levels[:, 64:] = 0
        Image.fromarray(levels).save(folder / f"{number}.{suffix}")
    files = sorted(folder.glob(f"*.{suffix}"))
    return [
        {"file_name": str(f), "image_id": n, "height": 80, "width": 96, "annotations": [POLYGON]}
        for n, f in enumerate(files)
    ]


def by_pillow(record):
    """As Detectron2's tutorial writes a mapper."""
    image = detection_utils.read_image(record["file_name"], format="BGR").copy()
    return {"file_name": record["file_name"], "image": torch.from_numpy(image.transpose(2, 0, 1))}


def windowed(record):
    """A range of its own, of which the brightest tenth is white."""
    levels = cv2.imread(record["file_name"], cv2.IMREAD_UNCHANGED).astype(float)
    low, high = np.quantile(levels, (0, 0.9))
    gray = torch.from_numpy((levels.clip(low, high) - low) / (high - low) * 255)
    return {"image": gray.to(torch.uint8).expand(3, -1, -1)}


def detectron2s(cfg):
    return DatasetMapper(cfg, is_train=True)


def cropped(cfg):
    augmentations = [T.RandomCrop("relative", (0.7, 0.7)), T.ResizeShortestEdge(64), T.RandomFlip()]
    return DatasetMapper(is_train=True, augmentations=augmentations, image_format="BGR")


MAPPERS = [
    *((detectron2s, True), (cropped, True), (lambda cfg: by_pillow, True)),
    *((lambda cfg: windowed, False), (lambda cfg: Mapper(cfg, is_train=True), False)),
]


@pytest.mark.parametrize("background", [100, 300, 20000])
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(("make", "is_refused"), MAPPERS)
def test_levels_that_are_cut(tmp_path, make, is_refused, suffix, background):
    records = scans(tmp_path, suffix, background)
    mapper = NamingMapper(make(load_config("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml")))
    if is_refused:
        with pytest.raises(DatasetError, match=REFUSED):
            [mapper(record) for record in records * 3]  # a crop may leave too little
    else:
        [mapper(record) for record in records]


LOADERS = [
    lambda cfg: build_detection_train_loader(cfg, mapper=DatasetMapper(cfg, is_train=True)),
    lambda cfg: build_detection_train_loader(cfg, mapper=by_pillow),
    lambda cfg: ([by_pillow(record)] * 2 for record in DatasetCatalog.get("scans")),
    lambda cfg: ResumableLoader(
        dataset=DatasetCatalog.get("scans"), mapper=by_pillow, total_batch_size=2
    ),
]


@pytest.mark.parametrize("build", LOADERS)
def test_any_train_loader_of_a_trainer(tmp_path, tiny_config, build):
    class Overriding(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return build(cfg)

    records = scans(tmp_path, "png", 300)
    DatasetCatalog.register("scans", lambda: records)
    try:
        cfg = tiny_config()
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.DATALOADER.NUM_WORKERS = ("scans",), (), 0
        with pytest.raises(DatasetError, match=REFUSED):
            Overriding(cfg).train()
    finally:
        DatasetCatalog.remove("scans")


@pytest.mark.parametrize("make", [DatasetMapper, Mapper])
def test_any_test_loader(tmp_path, tiny_config, make):
    class Overriding(Trainer):
        @classmethod
        def build_test_loader(cls, cfg, name):
            return build_detection_test_loader(records, mapper=make(cfg, is_train=False))

    records, cfg = scans(tmp_path, "png", 300), tiny_config()
    model, evaluators = Overriding.build_model(cfg), [DatasetEvaluators([])]
    is_refused = make is DatasetMapper
    with pytest.raises(DatasetError, match=REFUSED) if is_refused else contextlib.nullcontext():
        Overriding.test(cfg, model, evaluators)
    assert not model._forward_pre_hooks


VALUES = np.arange(2400).reshape(40, 60)
PALETTE = Image.fromarray((VALUES // 80).astype(np.uint8))
PALETTE.putpalette([level * 5 % 256 for level in range(256) for _ in range(3)])
LABELS = [  # and whether Detectron2 reads others
    (Image.fromarray(VALUES.astype(np.uint8)), False),
    (Image.fromarray((VALUES // 14).astype(np.uint16)), False),
    (Image.fromarray((VALUES // 6).astype(np.uint16)), True),
    (Image.fromarray(VALUES % 20 == 0), True),
    (PALETTE, True),
]


@pytest.mark.parametrize(("labels", "is_misread"), LABELS)
@pytest.mark.parametrize("flips", ["none", "horizontal"])
def test_labels_that_are_read_as_levels(tmp_path, labels, is_misread, flips):
    files = {
        "file_name": str(tmp_path / "a.png"),
        "sem_seg_file_name": str(tmp_path / "labels.png"),
    }
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(files["file_name"])
    labels.save(files["sem_seg_file_name"])
    record = {**files, "height": 40, "width": 60}
    cfg = load_config("Digits/semantic_R_18_FPN_gn_ws.yaml", ["INPUT.RANDOM_FLIP", flips])
    NamingMapper(Mapper(cfg, is_train=True))(record)
    mapper = NamingMapper(DatasetMapper(cfg, is_train=True))
    if is_misread:
        with pytest.raises(DatasetError, match=r"labels\.png has 16 bits, .* another sem_seg than"):
            mapper(record)
    else:
        mapper(record)


@pytest.mark.parametrize("build", [Mapper, DatasetMapper])
@pytest.mark.parametrize("make", [ResumableLoader, build_detection_train_loader])
def test_a_missing_package_is_named_before_training(tmp_path, monkeypatch, build, make):
    """detectron2#826: Detectron2 crops polygons with shapely."""
    monkeypatch.setitem(sys.modules, "shapely", None)
    monkeypatch.delitem(sys.modules, "shapely.geometry", raising=False)
    Image.fromarray(np.full((80, 96, 3), 90, np.uint8)).save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "height": 80, "width": 96}
    records = [{**record, "annotations": objects} for objects in ([], [BOX], [POLYGON])]
    opts = ["INPUT.CROP.ENABLED", "True", "INPUT.MASK_FORMAT", "bitmask", "MODEL.MASK_ON"]
    needed = r"a\.png cannot be mapped: shapely is not installed\. .*install shapely, or leave out"
    for masks in ("False", "True"):
        cfg = load_config("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", [*opts, masks])
        mapper = build(cfg, is_train=True)
        loader = make(dataset=records, mapper=mapper, total_batch_size=1, num_workers=0)
        is_needed = masks == "True"
        with pytest.raises(DatasetError, match=needed) if is_needed else contextlib.nullcontext():
            map_one(loader)
