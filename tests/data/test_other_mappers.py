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

REFUSED = r"\.(png|tif) is read as another image by the mapper than by evaluation: .*gnws_d2\.data"
CONFIG = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
BOX = {"bbox": [5, 5, 20, 20], "bbox_mode": 1, "category_id": 0}
POLYGON = {**BOX, "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]]}


@pytest.fixture
def scans(tmp_path):
    """``scans(suffix, background)``: 16-bit images of brighter squares on a background, a third of
    whose pixels are dark; they are the dataset "scans" too."""

    def make(suffix="png", background=300):
        rng, records = np.random.default_rng(0), []
        for number in range(4):
            levels = rng.integers(background, background * 2, (80, 96)).astype(np.uint16)
            levels[30:50, 20:60] += 20000
            levels[:, 64:] = 0
            file = str(tmp_path / f"{number}.{suffix}")
            Image.fromarray(levels).save(file)
            size = {"height": 80, "width": 96, "annotations": [POLYGON]}
            records.append({"file_name": file, "image_id": number, **size})
        DatasetCatalog.register("scans", lambda: records)
        return records

    yield make
    DatasetCatalog.remove("scans")


def by_pillow(record):
    """As Detectron2's tutorial writes a mapper."""
    image = detection_utils.read_image(record["file_name"], format="BGR").copy()
    return {"file_name": record["file_name"], "image": torch.from_numpy(image.transpose(2, 0, 1))}


def windowed(record, share=0.9):
    """A range of its own, of which the brightest are white."""
    levels = cv2.imread(record["file_name"], cv2.IMREAD_UNCHANGED).astype(float)
    low, high = np.quantile(levels, (0, share))
    gray = torch.from_numpy((levels.clip(low, high) - low) / (high - low) * 255)
    return {"image": gray.to(torch.uint8).expand(3, -1, -1)}


AUGMENTATIONS = [T.RandomCrop("relative", (0.7, 0.7)), T.ResizeShortestEdge(64), T.RandomFlip()]
CROPPED = DatasetMapper(is_train=True, augmentations=AUGMENTATIONS, image_format="BGR")
MAPPERS = {  # and whether it is refused
    "detectron2": (lambda cfg: DatasetMapper(cfg, is_train=True), True),
    "cropped": (lambda cfg: CROPPED, True),
    "tutorial": (lambda cfg: by_pillow, True),
    "windowed": (lambda cfg: windowed, False),
    "window of all": (lambda cfg: lambda record: windowed(record, 1.0), False),
    "ours": (lambda cfg: Mapper(cfg, is_train=True), False),
}


def expected(is_refused, said=REFUSED):
    return pytest.raises(DatasetError, match=said) if is_refused else contextlib.nullcontext()


@pytest.mark.parametrize("background", [100, 300, 20000])
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("kind", MAPPERS)
def test_levels_that_are_cut(scans, kind, suffix, background):
    records = scans(suffix, background)
    make, is_refused = MAPPERS[kind]
    mapper = NamingMapper(make(load_config(CONFIG)))
    with expected(is_refused):
        [mapper(record) for record in records * 3]  # a crop may leave too little


LOADERS = [
    lambda cfg, records: build_detection_train_loader(cfg, mapper=DatasetMapper(cfg)),
    lambda cfg, records: build_detection_train_loader(cfg, mapper=by_pillow),
    lambda cfg, records: ([by_pillow(record)] * 2 for record in records),
    lambda cfg, records: ResumableLoader(dataset=records, mapper=by_pillow, total_batch_size=2),
]


@pytest.mark.parametrize("build", LOADERS)
def test_any_train_loader_of_a_trainer(scans, tiny_config, build):
    class Overriding(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return build(cfg, records)

    records, cfg = scans(), tiny_config()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.DATALOADER.NUM_WORKERS = ("scans",), (), 0
    with expected(True):
        Overriding(cfg).train()


@pytest.mark.parametrize("make", [DatasetMapper, Mapper])
def test_any_test_loader(scans, tiny_config, make):
    class Overriding(Trainer):
        @classmethod
        def build_test_loader(cls, cfg, name):
            return build_detection_test_loader(records, mapper=make(cfg, is_train=False))

    records, cfg = scans(), tiny_config()
    model = Overriding.build_model(cfg)
    with expected(make is DatasetMapper):
        Overriding.test(cfg, model, [DatasetEvaluators([])])
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
    (b"P5 60 40 20\n" + (VALUES % 20).astype(np.uint8).tobytes(), True),
]


@pytest.mark.parametrize(("labels", "is_misread"), LABELS)
@pytest.mark.parametrize("flips", ["none", "horizontal"])
def test_labels_that_are_read_as_levels(tmp_path, labels, is_misread, flips):
    image, file = tmp_path / "a.png", tmp_path / "labels.png"
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(image)
    file.write_bytes(labels) if isinstance(labels, bytes) else labels.save(file)
    files = {"file_name": str(image), "sem_seg_file_name": str(file)}
    cfg = load_config("Digits/semantic_R_18_FPN_gn_ws.yaml", ["INPUT.RANDOM_FLIP", flips])
    for kind in (Mapper, DatasetMapper):
        said = r"labels\.png is read as another sem_seg by"
        with expected(is_misread and kind is DatasetMapper, said):
            NamingMapper(kind(cfg, is_train=True))({**files, "height": 40, "width": 60})


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
        cfg = load_config(CONFIG, [*opts, masks])
        mapper = build(cfg, is_train=True)
        loader = make(dataset=records, mapper=mapper, total_batch_size=1, num_workers=0)
        with expected(masks == "True", needed):
            map_one(loader)
