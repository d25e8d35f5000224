"""The twelve published models: architecture, input, schedule and size as the reference has them."""

import pytest
from detectron2.modeling import GeneralizedRCNN, build_model
from torch import nn

from gnws_d2 import StandardizationReport, load_config, model_zoo
from gnws_d2.config import config_names
from gnws_d2.errors import CheckpointError, ConfigError
from gnws_d2.layers import WSConv2d
from gnws_d2.model_zoo.published import find

# All and trainable parameters of MMDetection's models, by family and backbone.
PARAMETERS = {
    ("faster", "R_50"): (43_066_848, 42_841_504),
    ("faster", "R_101"): (62_058_976, 61_833_632),
    ("faster", "X_50_32x4d"): (42_538_720, 42_323_360),
    ("faster", "X_101_32x4d"): (61_687_520, 61_472_160),
    ("mask", "R_50"): (45_711_152, 45_485_808),
    ("mask", "R_101"): (64_703_280, 64_477_936),
    ("mask", "X_50_32x4d"): (45_183_024, 44_967_664),
    ("mask", "X_101_32x4d"): (64_331_824, 64_116_464),
}
# Iterations at batch 16, and the learning rate's drops.
SCHEDULES = {
    "1x": (87_960, (58_640, 80_630)),
    "2x": (175_920, (117_280, 161_260)),
    "20_23_24e": (175_920, (146_600, 168_590)),
}
MODELS = [
    (family, backbone, schedule)
    for family, backbone in PARAMETERS
    for schedule in (["1x"] if family == "faster" else ["2x", "20_23_24e"])
]


def name_of(family: str, backbone: str, schedule: str, norm: str = "gn_ws") -> str:
    folder = "COCO-Detection" if family == "faster" else "COCO-InstanceSegmentation"
    return f"{folder}/{family}_rcnn_{backbone}_FPN_{norm}_{schedule}.yaml"


@pytest.mark.parametrize("model", MODELS, ids="-".join)
def test_model(model):
    family, backbone, schedule = model
    cfg = model_zoo.get_config(name_of(*model))
    iterations, drops = SCHEDULES[schedule]
    assert iterations == cfg.SOLVER.MAX_ITER and drops == cfg.SOLVER.STEPS

    detector = build_model(cfg)
    assert type(detector) is GeneralizedRCNN
    parameters = list(detector.parameters())
    trainable = [p for p in parameters if p.requires_grad]
    counts = sum(p.numel() for p in parameters), sum(p.numel() for p in trainable)
    assert counts == PARAMETERS[family, backbone]

    for name, module in detector.named_modules():
        if isinstance(module, nn.GroupNorm):
            assert (module.num_groups, module.eps) == (32, 1e-5), name
        if isinstance(module, nn.Conv2d):
            normalized = getattr(module, "norm", None) is not None
            assert isinstance(module, WSConv2d) == normalized, name
            assert (module.bias is None) == normalized, name
    convolutions = 53 if "50" in backbone else 104
    expected = {"stem": 1, "backbone": convolutions - 1, "fpn": 8, "rpn": 0, "box_head": 4}
    if family == "mask":
        expected["mask_head"] = 4
    report = StandardizationReport.of(detector)
    assert {row.part: row.standardized for row in report.rows} == expected
    assert all(row.standardized == row.normalized for row in report.rows)


@pytest.mark.parametrize("model", MODELS, ids="-".join)
def test_the_gn_twin_differs_in_nothing_but_the_standardization(model):
    ws, gn = (model_zoo.get_config(name_of(*model, norm)) for norm in ("gn_ws", "gn"))
    names = {"BACKBONE": "build_ws_resnet_fpn_backbone", "ROI_BOX_HEAD": "WSFastRCNNConvFCHead"}
    names["ROI_MASK_HEAD"] = "WSMaskRCNNConvUpsampleHead"
    for section, name in names.items():
        assert ws.MODEL[section].NAME == name
        gn.MODEL[section].NAME = name
    gn.MODEL.WEIGHTS = ws.MODEL.WEIGHTS  # each starts from a backbone of its own kind
    assert gn == ws


def test_training_is_that_of_the_reference():
    """MMDetection's recipe where it differs from Detectron2's defaults, and what must not move."""
    cfg = model_zoo.get_config(name_of("mask", "R_50", "2x"))
    # MMDetection's LinearLR of 500 iterations is at the full rate in the last of them.
    solver = {"IMS_PER_BATCH": 16, "REFERENCE_WORLD_SIZE": 8, "BASE_LR": 0.02, "MOMENTUM": 0.9}
    solver |= {"WEIGHT_DECAY": 1e-4, "WEIGHT_DECAY_NORM": 1e-4, "GAMMA": 0.1, "NESTEROV": False}
    solver |= {"WARMUP_ITERS": 499, "WARMUP_FACTOR": 1e-3, "WARMUP_METHOD": "linear"}
    assert solver.items() <= dict(cfg.SOLVER).items()
    image = {"FORMAT": "RGB", "RANDOM_FLIP": "horizontal", "MIN_SIZE_TRAIN": (800,)}
    image |= {"MAX_SIZE_TRAIN": 1333, "MIN_SIZE_TEST": 800, "MAX_SIZE_TEST": 1333}
    assert image.items() <= dict(cfg.INPUT).items()
    model = cfg.MODEL
    assert (model.PROPOSAL_GENERATOR.NAME, model.ROI_HEADS.NAME) == ("MaxIoURPN", "MaxIoUROIHeads")
    assert model.PIXEL_MEAN == [123.675, 116.28, 103.53]
    assert model.PIXEL_STD == [58.395, 57.12, 57.375]
    assert not model.RESNETS.STRIDE_IN_1X1 and model.BACKBONE.FREEZE_AT == 2
    assert model.RPN.SMOOTH_L1_BETA == model.ROI_BOX_HEAD.SMOOTH_L1_BETA == 0.0
    assert (model.RPN.BATCH_SIZE_PER_IMAGE, model.RPN.POSITIVE_FRACTION) == (256, 0.5)
    heads = {"BATCH_SIZE_PER_IMAGE": 512, "POSITIVE_FRACTION": 0.25, "NUM_CLASSES": 80}
    assert heads.items() <= dict(model.ROI_HEADS).items()
    assert model.ANCHOR_GENERATOR.SIZES == [[32], [64], [128], [256], [512]]
    assert cfg.DATASETS.TRAIN == ("coco_2017_train",) and cfg.DATASETS.TEST == ("coco_2017_val",)


def test_every_config_that_is_listed_is_had_by_name():
    for name in config_names(lazy=True):
        cfg = model_zoo.get_config(name)
        assert cfg.dataloader if name.endswith(".py") else cfg.SOLVER.MAX_ITER, name
    for name in ("mask_rcnn_R_18_FPN_gn_ws.yaml", "fcos_R_18_FPN_gn_ws.py"):
        model = model_zoo.get(f"Digits/{name}", device="cpu")
        assert model.training and model.device.type == "cpu"
    assert model.num_classes == 10
    with pytest.raises(CheckpointError, match="fcos_R_18"):
        model_zoo.get_config("Digits/fcos_R_18_FPN_gn_ws.py", trained=True)
    with pytest.raises(ConfigError, match=r"fcos.*py is a LazyConfig.*Name a YAML"):
        load_config("Digits/fcos_R_18_FPN_gn_ws.py")


@pytest.mark.parametrize("model", MODELS, ids="-".join)
def test_its_published_detector_and_backbone(model):
    assert len(MODELS) == 12
    name = name_of(*model)
    cfg = model_zoo.get_config(name)
    backbone = find(cfg.MODEL.WEIGHTS)
    assert backbone.is_backbone and backbone.name.endswith("_gn_ws")
    assert model_zoo.get_config(backbone.config).MODEL.RESNETS == cfg.MODEL.RESNETS
    url = model_zoo.get_checkpoint_url(name)
    assert model_zoo.get_config(name, trained=True).MODEL.WEIGHTS == url
    assert find(url).config == name and not find(url).is_backbone


def test_there_is_no_published_detector_without_standardization():
    with pytest.raises(CheckpointError, match=r"'.*R_50_FPN_gn_1x'\. Did you mean .*_gn_ws_1x"):
        model_zoo.get_checkpoint_url("COCO-Detection/faster_rcnn_R_50_FPN_gn_1x.yaml")
    with pytest.raises(ConfigError, match="faster_rcnn_R_50_FPN_gn_ws_1x"):
        model_zoo.get_checkpoint_url("COCO-Detection/faster_rcnn_R_51_FPN_gn_ws_1x.yaml")
