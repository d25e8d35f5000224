"""Files of Detectron2's zoo, Caffe2, MMDetection, torchvision and timm, in the models they fit."""

import pickle

import numpy as np
import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch import nn

from gnws_d2 import load_config
from gnws_d2.checkpoint import Checkpointer, detectron2_to_mmdet
from gnws_d2.errors import CheckpointError

GN_WS = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
KINDS = {
    "resnet18": ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64],
    "resnet50": [],
    "resnext50_32x4d": ["MODEL.RESNETS.NUM_GROUPS", 32, "MODEL.RESNETS.WIDTH_PER_GROUP", 4],
}


def plain_config(*opts):
    """A Faster R-CNN with FPN as a plain config of Detectron2, with the input of torchvision."""
    cfg = get_cfg()
    levels = ["p2", "p3", "p4", "p5"]
    cfg.merge_from_list([
        *("MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
        *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
        *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
        *("MODEL.RPN.IN_FEATURES", levels, "MODEL.ROI_HEADS.IN_FEATURES", levels),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256]]),
        *("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
        *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1),
        *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.FPN.OUT_CHANNELS", 16),
        *("MODEL.RESNETS.STRIDE_IN_1X1", False, "INPUT.FORMAT", "RGB"),
        *("MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53]),
        *("MODEL.PIXEL_STD", [58.395, 57.12, 57.375], *opts),
    ])  # fmt: skip
    return cfg


def torchvision_resnet(name, norm):
    layer = (lambda channels: nn.GroupNorm(32, channels)) if norm == "GN" else nn.BatchNorm2d
    model = getattr(torchvision.models, name)(norm_layer=layer)
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


@pytest.mark.parametrize("norm", ["GN", "BN", "FrozenBN"])
@pytest.mark.parametrize("name", KINDS)
def test_a_resnet_of_torchvision_computes_the_same_features(tmp_path, caplog, name, norm):
    theirs = torchvision_resnet(name, norm)
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    cfg = plain_config("MODEL.RESNETS.NORM", norm, *KINDS[name])
    model = build_model(cfg).eval()
    Checkpointer(model, cfg=cfg).load(str(tmp_path / "resnet.pth"))
    assert not warnings_of(caplog)
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = model.backbone.bottom_up(x)
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for stage in range(1, 5):
            x = theirs.get_submodule(f"layer{stage}")(x)
            torch.testing.assert_close(features[f"res{stage + 1}"], x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("opts", "said"),
    [
        (["MODEL.RESNETS.STRIDE_IN_1X1", True], r"Set MODEL\.RESNETS\.STRIDE_IN_1X1 False"),
        (["INPUT.FORMAT", "BGR"], r"trained with INPUT\.FORMAT RGB \(the config has BGR\)"),
        (["MODEL.PIXEL_STD", [1.0, 1, 1]], "PIXEL_STD [58.395, 57.12, 57.375] (the config has [1."),
        (["MODEL.BACKBONE.NAME", "build_ws_resnet_fpn_backbone"], "without Weight Standardization"),
    ],
)
def test_what_computes_something_else_is_warned_of(tmp_path, caplog, opts, said):
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "resnet.pth")
    cfg = plain_config("MODEL.RESNETS.NORM", "BN", *opts)
    model = build_model(cfg)
    caplog.clear()  # what the build says
    Checkpointer(model, cfg=cfg).load(str(tmp_path / "resnet.pth"))
    [warning] = warnings_of(caplog)
    assert said.replace("\\", "") in warning


@pytest.mark.parametrize(
    ("name", "opts", "message"),
    [
        ("resnet50", ["MODEL.RESNETS.NORM", "GN"], "it has BatchNorm where the model has another"),
        ("resnet50", ["MODEL.RESNETS.DEPTH", 101], r"missing: .*res4\.6\.conv1\.weight"),
        ("resnet101", [], r"unexpected: layer3\.\d+\."),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused(tmp_path, name, opts, message):
    torch.save(getattr(torchvision.models, name)().state_dict(), tmp_path / "resnet.pth")
    model = build_model(plain_config("MODEL.RESNETS.NORM", "BN", *opts))
    with pytest.raises(CheckpointError, match=message):
        Checkpointer(model).load(str(tmp_path / "resnet.pth"))


def caffe2_blobs(resnet, norm):
    """The tensors of a ResNet under the names of Detectron before version 2."""
    branches = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    blobs = {"fc1000_w": np.zeros((10, 2048), np.float32), "fc1000_b": np.zeros(10, np.float32)}
    for name, tensor in resnet.state_dict().items():
        stage, *words = name.split(".")
        if "running" in name or "batches" in name:
            continue  # are within the weights
        base = "conv1"
        if stage != "stem":
            base = f"{stage}_{words[0]}_{branches.get(words[1], 'branch1')}"
        if "norm" in words:
            base = f"res_{base}" if base == "conv1" and norm == "bn" else base
            end = f"_{norm}_s" if words[-1] == "weight" else f"_{norm}_b"
        else:
            end = "_w"
        blobs[base + end] = tensor.numpy()
    return blobs | {"conv1_w_momentum": blobs["conv1_w"]}


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "GN"])
def test_a_backbone_of_caffe2_is_complete_or_refused(tmp_path, norm):
    cfg = plain_config("MODEL.RESNETS.NORM", norm, "MODEL.RESNETS.STRIDE_IN_1X1", True)
    file = tmp_path / "R-50.pkl"
    torch.manual_seed(0)
    source = build_model(cfg).backbone.bottom_up
    blobs = caffe2_blobs(source, norm[-2:].lower())
    file.write_bytes(pickle.dumps({"blobs": blobs} if norm == "BN" else blobs, protocol=2))
    ours, theirs = build_model(cfg), build_model(cfg)
    Checkpointer(ours, cfg=cfg).load(str(file))
    DetectionCheckpointer(theirs).load(str(file))
    expected = theirs.backbone.bottom_up.state_dict()
    for name, tensor in ours.backbone.bottom_up.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
        assert "running" in name or torch.equal(tensor, source.state_dict()[name]), name
    del blobs["res4_3_branch2b_w"]
    file.write_bytes(pickle.dumps(blobs))
    with pytest.raises(CheckpointError, match=r"1 missing: .*res4\.3\.conv2\.weight"):
        Checkpointer(build_model(cfg)).load(str(file))


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_detector_of_detectron2_s_zoo(tmp_path, protocol):
    cfg = plain_config()
    source = build_model(cfg)
    arrays = {name: tensor.numpy() for name, tensor in source.state_dict().items()}
    arrays["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((3, 4), np.float32)
    content = {"model": arrays, "__author__": "Detectron2 Model Zoo"}
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    model = build_model(cfg)
    Checkpointer(model, cfg=cfg, for_inference=True).load(str(tmp_path / "model_final.pkl"))
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_a_backbone_of_c4_includes_the_last_stage_in_its_heads(tmp_path):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.RESNETS.STRIDE_IN_1X1", False])
    theirs, model = torchvision_resnet("resnet50", "BN"), build_model(cfg)
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    Checkpointer(model).load(str(tmp_path / "resnet.pth"))
    assert torch.equal(model.roi_heads.res5[0].conv1.weight, theirs.layer4[0].conv1.weight)
    without = {n: t for n, t in theirs.state_dict().items() if not n.startswith("layer4.0")}
    torch.save(without, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"missing: roi_heads\.res5\.0\."):
        Checkpointer(model).load(str(tmp_path / "resnet.pth"))


META = {"dataset_meta": {"classes": tuple("abcdefghij")}, "cfg": "model = dict(type='ConvWS')"}
WRITTEN = {
    "as it is": lambda state: state,
    "MMEngine": lambda state: {"meta": META, "state_dict": state, "message_hub": {}},
    "mmcv": lambda state: {"meta": {"CLASSES": list("abcdefghij")}, "state_dict": state},
    "wrapped": lambda state: {"state_dict": {f"module.{n}": t for n, t in state.items()}},
    "averaged": lambda state: {
        "ema_state_dict": {f"module._orig_mod.{n}": t for n, t in state.items()}
        | {"steps": torch.tensor(3)}
    },
    "averaged beside": lambda state: {
        "state_dict": state, "ema_state_dict": {n: t + 1 for n, t in state.items()}
    },
}  # fmt: skip


@pytest.mark.parametrize("written", WRITTEN)
def test_a_detector_of_mmdetection(tmp_path, tiny_config, written):
    cfg = tiny_config(GN_WS)
    source, model = build_model(cfg), build_model(cfg)
    theirs = detectron2_to_mmdet(source.state_dict(), cfg)
    torch.save(WRITTEN[written](theirs), tmp_path / "epoch_12.pth")
    Checkpointer(model, cfg=cfg, for_inference=True).load(str(tmp_path / "epoch_12.pth"))
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_what_mmdetection_says_of_its_model_is_compared(tmp_path, tiny_config, caplog):
    cfg = tiny_config(GN_WS, "DATASETS.CLASSES", str(list("0123456789")))
    model = build_model(cfg)
    state = detectron2_to_mmdet(model.state_dict(), cfg)
    torch.save({"meta": META, "state_dict": state}, tmp_path / "epoch_12.pth")
    Checkpointer(model, cfg=cfg).load(str(tmp_path / "epoch_12.pth"))
    assert "was trained on other classes (a, b, c ...)" in caplog.text
    plain = {**META, "cfg": "model = dict(conv_cfg=None)"}
    torch.save({"meta": plain, "state_dict": state}, tmp_path / "epoch_12.pth")
    with pytest.raises(CheckpointError, match="with Weight Standardization of nothing, but"):
        Checkpointer(model, cfg=cfg).load(str(tmp_path / "epoch_12.pth"))


def test_hardly_any_match_is_an_error_without_advice_that_does_not_help(tmp_path):
    state = {f"encoder.{i}.weight": torch.zeros(3) for i in range(40)}
    model = build_model(load_config(GN_WS))
    own = dict(list(model.state_dict().items())[:2])
    for extra in ({}, own):
        torch.save({"model": {**state, **extra}}, tmp_path / "other.pth")
        for query in ("", "?matching_heuristics=True"):
            with pytest.raises(CheckpointError, match=r"of its 4[02] tensors") as caught:
                Checkpointer(model).load(f"{tmp_path}/other.pth{query}")
            assert "heuristics" not in str(caught.value).replace(query, "")
