"""``gnws_d2.Predictor``: what Detectron2's predictor finds; by config, names or checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetMapper
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from PIL import Image
from tiny import TINY

from gnws_d2 import Predictor
from gnws_d2.checkpoint import Checkpointer
from gnws_d2.config import get_config_file
from gnws_d2.data import read_image
from gnws_d2.engine import Trainer
from gnws_d2.errors import CheckpointError, ConfigError, DatasetError, GnwsError
from gnws_d2.layers.ws_conv import StandardizedConv
from gnws_d2.model_zoo import fetch as fetching
from gnws_d2.projects.export import export

MASK_RCNN = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
ALL = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.05", "TEST.DETECTIONS_PER_IMAGE", "20"]


def image(height=96, width=128, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def saved(tiny_config, tmp_path):
    """``saved(config, *opts)``: a config and a checkpoint of its untrained model."""

    def make(name=MASK_RCNN, *opts, **extra):
        cfg = tiny_config(name, *ALL, *opts)
        torch.manual_seed(0)
        Checkpointer(build_model(cfg), str(tmp_path), cfg=cfg).save("model", **extra)
        cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
        return cfg

    return make


def assert_same(found, expected):
    for name, value in expected["instances"].get_fields().items():
        ours = getattr(found["instances"].get(name), "tensor", found["instances"].get(name))
        assert len(ours) and torch.equal(ours, getattr(value, "tensor", value)), name


@pytest.mark.parametrize("opts", [[], ["INPUT.FORMAT", "BGR"]], ids=["RGB", "BGR"])
def test_it_finds_what_detectron2_s_predictor_finds(saved, opts):
    cfg = saved(MASK_RCNN, *opts)
    predictor = Predictor(cfg)
    assert not any(isinstance(module, StandardizedConv) for module in predictor.model.modules())
    assert_same(predictor(image()), DefaultPredictor(cfg)(image()))
    assert_same(Predictor(cfg, folded=False)(image()), DefaultPredictor(cfg)(image()))
    assert isinstance(predictor, DefaultPredictor) and predictor.classes == list("0123456789")


@pytest.mark.parametrize(("format", "means"), [("L", 1), ("L", 3), ("RGBA", 4)])
def test_images_of_one_and_four_channels(tiny_config, tmp_path, format, means):
    """From a training step on, against Detectron2's mapper, model and loading. A gray image may
    meet the three means of a model of colors."""
    values = ["MODEL.PIXEL_MEAN", str([99.0] * means), "MODEL.PIXEL_STD", str([50.0] * means)]
    cfg = tiny_config(MASK_RCNN, *ALL, *values, "INPUT.FORMAT", format, "SOLVER.MAX_ITER", "1")
    cfg.DATASETS.TEST = ()
    Trainer(cfg).train()
    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR, "model_final.pth"))
    file = str(tmp_path / "a.png")
    Image.fromarray(np.dstack([image(), image(seed=1)[..., :1]])).save(file)
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    with torch.no_grad():
        [expected] = model([DatasetMapper(cfg, is_train=False)({"file_name": file})])
    predictor = Predictor(weights=cfg.MODEL.WEIGHTS)
    assert_same(predictor(read_image(file, format)), expected)
    if format == "L":
        assert_same(predictor(read_image(file, "BGR")), expected)


def test_a_config_of_detectron2_alone(tmp_path):
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
    cfg.MODEL.DEVICE, cfg.INPUT.MIN_SIZE_TEST, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = "cpu", 64, 0
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST, cfg.MODEL.WEIGHTS = 20, str(tmp_path / "model.pth")
    DetectionCheckpointer(build_model(cfg), str(tmp_path)).save("model")
    before = cfg.clone()
    assert_same(Predictor(cfg)(image()), DefaultPredictor(cfg)(image()))
    assert cfg == before


def test_several_images_are_one_batch(saved):
    cfg = saved()
    predictor, images = Predictor(cfg), [image(seed=1), image(seed=2), image(200, 96, seed=3)]
    same_size = predictor(images[:2])
    for one, found in zip(images[:2], same_size, strict=True):
        assert torch.allclose(found["instances"].scores, predictor(one)["instances"].scores)
    inputs = [predictor.prepare(one) for one in images]
    model = build_model(cfg).eval()
    Checkpointer(model, cfg=cfg).load(cfg.MODEL.WEIGHTS)
    with torch.no_grad():
        expected = model(inputs)
    for found, other, one in zip(predictor(images), expected, images, strict=True):
        assert_same(found, other)
        assert found["instances"].image_size == one.shape[:2]
    assert predictor([]) == []


def test_a_checkpoint_or_a_published_one_alone_or_with_a_config_s_name(monkeypatch, saved):
    cfg = saved()
    monkeypatch.setattr(fetching, "find", lambda path: path)
    monkeypatch.setattr(fetching, "fetch", lambda entry: cfg.MODEL.WEIGHTS)
    expected = DefaultPredictor(cfg)(image())
    assert_same(Predictor(weights=cfg.MODEL.WEIGHTS)(image()), expected)
    assert_same(Predictor(weights="gnws://mine")(image()), expected)
    opts = [*TINY, *ALL, "MODEL.DEVICE", "cpu"]
    assert_same(Predictor(MASK_RCNN, cfg.MODEL.WEIGHTS, opts=opts)(image()), expected)
    fewer = Predictor(weights=cfg.MODEL.WEIGHTS, opts=["TEST.DETECTIONS_PER_IMAGE", "3"])
    assert len(fewer(image())["instances"]) == 3


def test_a_lazy_config(tmp_path, tiny_digits):
    name = "Digits/fcos_R_18_FPN_gn_ws.py"
    cfg = LazyConfig.load(get_config_file(name))
    torch.manual_seed(0)
    model = instantiate(cfg.model).eval()
    Checkpointer(model, str(tmp_path)).save("model")
    predictor = Predictor(
        name, tmp_path / "model.pth", opts=["train.device=cpu"], score_threshold=0.0
    )
    model.test_score_thresh = 0.0
    with torch.no_grad():
        [expected] = model([predictor.prepare(image())])
    assert predictor.prepare(image())["image"].shape == (3, 128, 171)  # of the config's mapper
    assert_same(predictor(image()), expected)
    with pytest.raises(ConfigError, match=r"no key train\.devise\. Did you mean train\.device"):
        Predictor(name, opts=["train.devise=cpu"])
    with pytest.raises(CheckpointError, match="does not say which config"):
        Predictor(weights=tmp_path / "model.pth")


def test_the_threshold_is_that_of_every_kind_of_model(saved):
    for name in ("cascade_mask_rcnn_R_18_FPN_gn_ws", "retinanet_R_18_FPN_gn_ws"):
        opts = ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", "INPUT.MIN_SIZE_TEST", "128"]
        predictor = Predictor(saved(f"Digits/{name}.yaml", *opts))
        scores = predictor(image())["instances"].scores
        middle = float(scores.median())
        predictor.set_score_threshold(middle)
        kept = predictor(image())["instances"].scores
        assert 0 < len(kept) and kept.min() >= middle > scores.min()


def test_names_and_ids_come_with_the_weights(saved, tmp_path):
    """Also where the dataset is not known, or none is named."""
    cfg = saved(MASK_RCNN, "DATASETS.TRAIN", "()", "DATASETS.TEST", "()")
    assert Predictor(cfg).classes == []
    checkpoint = torch.load(cfg.MODEL.WEIGHTS, weights_only=True)
    names, ids = list("abcdefghij"), list(range(90, 100))
    checkpoint["gnws_d2"] |= {"classes": names, "category_ids": ids}
    torch.save(checkpoint, tmp_path / "mine.pth")
    predictor = Predictor(weights=tmp_path / "mine.pth")
    assert predictor.classes == predictor.metadata.thing_classes == names
    assert predictor.category_ids == ids


def test_what_would_be_untrained_is_refused(saved, tmp_path):
    cfg = saved()
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(CheckpointError, match=r"MODEL\.WEIGHTS is empty"):
        Predictor(cfg)
    with pytest.raises(CheckpointError, match="Neither a config nor weights"):
        Predictor()
    with pytest.raises(CheckpointError, match=r"no\.pth does not exist"):
        Predictor(weights=tmp_path / "no.pth")


def test_a_stored_config_that_is_not_understood_names_the_checkpoint(saved, tmp_path):
    cfg = saved()
    checkpoint = torch.load(cfg.MODEL.WEIGHTS, weights_only=True)
    checkpoint["gnws_d2"]["config"] += "\nMINE: 3\n"
    torch.save(checkpoint, tmp_path / "mine.pth")
    with pytest.raises(ConfigError, match=r"^the config in .*mine\.pth: .*no key MINE"):
        Predictor(weights=tmp_path / "mine.pth")


def test_what_is_no_image_is_an_error(saved):
    predictor = Predictor(saved())
    for shape, message in (
        ((4, 4), r"\(H, W, 3\).*not \(4, 4\)"),
        ((4, 4, 4), r"not \(4, 4, 4\)"),
        ((2, 20000, 3), "20000 x 2 pixels cannot be resized"),
    ):
        with pytest.raises(DatasetError, match=message):
            predictor(np.zeros(shape, np.uint8))


@pytest.mark.slow
def test_an_exported_file_in_place_of_a_checkpoint(saved, tmp_path):
    """See tests/export/test_export.py for what it finds."""
    cfg = saved(MASK_RCNN, "INPUT.MIN_SIZE_TEST", "80")
    predictor, file = Predictor(cfg, folded=False), tmp_path / "model_trace.ts"
    tensors = [predictor.prepare(image(seed=seed))["image"] for seed in (1, 2)]
    facts = {"format": "RGB", "resize": cfg.INPUT.RESIZE_TEST, "min_size": 80, "max_size": 1333}
    export(predictor.model, "torchscript-trace", file, tensors, facts)
    with pytest.raises(GnwsError, match=r"does not store 'classes'"):
        Predictor(weights=file)
    facts |= {"classes": list("abcdefghij"), "category_ids": list(range(7, 17))}
    facts |= {"score_threshold": 0.4}
    export(predictor.model, "torchscript-trace", file, tensors, facts)
    exported = Predictor(weights=file)
    assert exported.suggested_threshold == 0.4
    assert exported.classes == list("abcdefghij") and exported.category_ids == list(range(7, 17))
    scores = exported(image())["instances"].scores
    few = Predictor(weights=file, score_threshold=float(scores.median()))(image())["instances"]
    assert len(few) and torch.equal(few.scores, scores[scores > scores.median()])
    with pytest.raises(ConfigError, match=r"exported model.*Leave out the config"):
        Predictor(cfg, file)
