"""Exported files detect what the model in Detectron2 detects, in images of several sizes."""

import dataclasses
import json
import resource
import sys
from contextlib import nullcontext

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from detectron2.modeling import build_model
from openvino import opset13

from gnws_d2.errors import GnwsError
from gnws_d2.projects.export import (
    EXACT,
    FORMATS,
    Detector,
    Exporter,
    Tolerance,
    formats,
    load_exported,
)
from gnws_d2.projects.export import exporter as export
from gnws_d2.projects.export.branch_free import BranchFreeDetector

export_file = sys.modules["gnws_d2.export.export"]  # a function has the name of the module
FASTER = ["MODEL.MASK_ON", "False"]
ALL = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "30"]
NOTHING = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.99"]
# Of three images, more than are kept in one, nothing in one, and some in one.
SOME = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.53", "TEST.DETECTIONS_PER_IMAGE", "5"]
# Two levels of the pyramid for each stage, one with fewer anchors than are kept. Recording takes
# seconds for each level; test_export_commands.py has them all.
TWO_LEVELS = [
    *("MODEL.RPN.IN_FEATURES", "['p2', 'p6']", "MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [64]]"),
    *("MODEL.ROI_HEADS.IN_FEATURES", "['p2', 'p3']"),
]


def model_of(cfg):
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    with torch.no_grad():  # classes far enough apart not to change places by rounding
        model.roi_heads.box_predictor.cls_score.weight.mul_(40)
    return model


def images(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, *size), generator=generator).float() for size in sizes]


@torch.no_grad()
@pytest.mark.parametrize("opts", [ALL, NOTHING, [*FASTER, *ALL]], ids=["mask", "nothing", "faster"])
def test_without_branches_the_same_is_detected(tiny_config, opts):
    """Against Detectron2's own selection of boxes; 65 is the smallest side."""
    model = model_of(tiny_config("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", *opts))
    assert BranchFreeDetector(model).smallest == 65
    for image in images((65, 65), (96, 130), (128, 128), (70, 200)):
        expected, found = Detector(model)(image), BranchFreeDetector(model)(image)
        assert len(expected) == len(found) == 3 + model.roi_heads.mask_on
        assert (len(expected[0]) > 0) == (opts is not NOTHING)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)


@torch.no_grad()
def test_without_branches_what_is_not_finite_is_left_out(tiny_config):
    model = model_of(tiny_config("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", *FASTER, *ALL))
    delta = model.proposal_generator.rpn_head.anchor_deltas
    delta.bias[0] = torch.nan
    [image] = images((96, 96))
    expected, found = Detector(model)(image), BranchFreeDetector(model)(image)
    assert len(expected[0]) and torch.equal(found[0], expected[0])


@pytest.mark.parametrize("format", ["torchscript-trace", "torchscript-script"])
def test_torchscript(tiny_config, tmp_path, format):
    model = model_of(tiny_config("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", *ALL))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    results = export(model, format, tmp_path / "model.ts", images((96, 96), (128, 80)), {"a": 1})
    assert [result.same for result in results] == [30, 30]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    stored = {"facts.json": ""}
    torch.jit.load(str(tmp_path / "model.ts"), _extra_files=stored)
    assert json.loads(stored["facts.json"]) == {
        "a": 1,
        "outputs": ["boxes", "scores", "classes", "masks"],
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("opts", "counts"),
    [(SOME, [5, 0, 2]), ([*FASTER, *ALL], [30, 30, 30])],
    ids=["mask", "faster"],
)
def test_torch_export_onnx_and_openvino(tiny_config, tmp_path, opts, counts):
    """In sizes that were not recorded, an image with nothing in it among them."""
    cfg = tiny_config("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", *TWO_LEVELS, *opts)
    exporter = Exporter(model_of(cfg), images((96, 96), (160, 100), (65, 257)), {"a": [1, "b"]})
    for format in ("onnx", "torch-export", "openvino", "openvino-int8"):
        rounded = format == "openvino-int8"  # of random weights, other detections are as good
        file = tmp_path / FORMATS[format].file
        results = exporter.export(format, file, Tolerance(share=0) if rounded else None)
        if not rounded:
            found = [(result.expected, result.found) for result in results]
            assert found == [(n, n) for n in counts]
            assert [result.same for result in results] == counts
        outputs = ["boxes", "scores", "classes", *(["masks"] if opts is SOME else [])]
        facts = load_exported(file).facts
        assert facts.pop("precision", "f32") == "f32"
        assert facts == {"a": [1, "b"], "outputs": outputs}

    stored = openvino.Core().read_model(tmp_path / "model.xml")
    assert [output.any_name for output in stored.outputs] == outputs
    weights = [node for node in stored.get_ops() if node.get_type_name() == "Constant"]
    assert openvino.Type.f16 not in {node.get_element_type() for node in weights}
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    names = [output.name for output in session.get_outputs()]
    assert names == outputs
    assert session.get_inputs()[0].shape == [3, "height", "width"]
    shapes = [output.shape for output in session.get_outputs()]
    each = [["detections", 4], ["detections"], ["detections"], ["detections", 1, 28, 28]]
    assert shapes == each[: len(names)]
    assert json.loads(session.get_modelmeta().custom_metadata_map["a"]) == [1, "b"]
    assert {node.domain for node in _nodes(tmp_path / "model.onnx")} <= {"", "ai.onnx"}


def test_convolutions_and_nothing_else_are_quantized(tmp_path):
    """Against float64, by half a step of the weights, whose scale is that of their filter, and of
    the input, whose scale is that of the images."""
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(8, 3, 3, 3)).astype(np.float32)
    image = opset13.parameter([3, -1, -1], np.float32)
    image.output(0).set_names({"image"})
    batch = opset13.unsqueeze(opset13.multiply(image, np.float32(0.01)), [0])
    out = opset13.convolution(batch, weight, [1, 1], [0, 0], [0, 0], [1, 1])
    quantized = formats._quantize(
        openvino.Model([opset13.multiply(out, np.float32(3))], [image]), images((40, 60), (50, 30))
    )
    users = [
        target.get_node().get_type_name()
        for node in quantized.get_ops()
        if node.get_type_name() == "FakeQuantize"
        for target in node.output(0).get_target_inputs()
    ]
    assert users == ["Convolution"]

    [seen] = images((40, 60))
    [found] = openvino.compile_model(quantized, "CPU")([seen.numpy()]).values()
    x, w = seen.double()[None] * 0.01, torch.from_numpy(weight).double()
    expected = 3 * torch.nn.functional.conv2d(x, w)
    steps = w.abs().amax((1, 2, 3), keepdim=True) / 127, x.max() / 127
    worst = torch.nn.functional.conv2d(x + steps[1] / 2, torch.ones_like(w) * steps[0] / 2)
    worst += torch.nn.functional.conv2d(torch.ones_like(x) * steps[1] / 2, w.abs())
    error = (torch.from_numpy(found) - expected).abs()
    assert 1e-3 < error.max() and (error < 3 * worst).all()


def _nodes(file):
    import onnx

    return onnx.load(str(file)).graph.node


def test_a_file_that_differs_is_not_kept(tiny_config, tmp_path):
    model = model_of(tiny_config("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", *ALL))
    (tmp_path / "model.ts").write_text("from before")
    with pytest.raises(GnwsError, match=r"of 30 detections .* finds 0 within -1"):
        nothing = dataclasses.replace(EXACT, difference=-1)
        export(model, "torchscript-trace", tmp_path / "model.ts", images((96, 96)), {}, nothing)
    assert [file.name for file in tmp_path.iterdir() if file.suffix != ""] == ["model.ts"]
    assert (tmp_path / "model.ts").read_text() == "from before"


@pytest.mark.parametrize(("others", "kept"), [(5, True), (6, False)])
def test_of_detections_that_suppress_each_other_another_may_stay(others, kept):
    """In a format that sums in another order, one of twenty."""
    boxes = torch.arange(400.0).reshape(100, 4)
    expected = (boxes, torch.linspace(1, 0, 100), torch.arange(100))
    moved = boxes.clone()
    moved[:others] += 1000
    found = (moved, *expected[1:])
    with nullcontext() if kept else pytest.raises(GnwsError, match="95% have to be the same"):
        tolerance = FORMATS["onnx"].tolerance
        [result] = export_file._compare_all("onnx", [expected], [found], tolerance)
        assert result.same == 95
    assert FORMATS["torch-export"].tolerance == FORMATS["torchscript-trace"].tolerance == EXACT


def test_weights_in_a_second_file_are_never_those_of_another_export(tmp_path, monkeypatch):
    """A process that ends between the two files leaves no model."""
    written = tmp_path / "new" / "model.xml"
    for folder, text in ((tmp_path, "old"), (written.parent, "new")):
        folder.mkdir(exist_ok=True)
        for suffix in (".xml", ".bin"):
            (folder / f"model{suffix}").write_text(text)
    publish, seen = export_file.publish, []

    def stop_at_the_second(part, file):
        seen.append(file.name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        publish(part, file)

    monkeypatch.setattr(export_file, "publish", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        export_file._publish(written, tmp_path / "model.xml")
    assert seen == ["model.bin", "model.xml"] and not (tmp_path / "model.xml").exists()
    monkeypatch.undo()
    export_file._publish(written, tmp_path / "model.xml")
    assert [(tmp_path / f"model{suffix}").read_text() for suffix in (".xml", ".bin")] == ["new"] * 2


def test_a_name_has_the_suffix_of_its_format(tiny_config, tmp_path):
    with pytest.raises(GnwsError, match=r"model.onnx is not a name for openvino.*model.xml"):
        export(torch.nn.Identity(), "openvino", tmp_path / "model.onnx", [])


@pytest.mark.parametrize(
    "format", ["torchscript-trace", pytest.param("torch-export", marks=pytest.mark.slow)]
)
def test_a_full_disk_is_an_error_that_leaves_nothing(tiny_config, tmp_path, format):
    """The limit of a file's size stands for the disk: torch's writer would end the process."""
    model = model_of(tiny_config("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", *ALL, *TWO_LEVELS))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(
            GnwsError, match=r"model\S* cannot be written .*too large.* Make room"
        ):
            export(model, format, tmp_path / FORMATS[format].file, images((96, 96)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not [file for file in tmp_path.iterdir() if file.is_file()]


@pytest.mark.parametrize(
    ("config", "format", "reason"),
    [
        ("retinanet_R_18_FPN_gn_ws", "onnx", "has RetinaNet"),
        ("cascade_mask_rcnn_R_18_FPN_gn_ws", "torch-export", "has CascadeROIHeads"),
        ("keypoint_rcnn_R_18_FPN_gn_ws", "torchscript-script", "has keypoints"),
        ("pointrend_R_18_FPN_gn_ws", "onnx", "has PointRendMaskHead"),
        ("panoptic_fpn_R_18_gn_ws", "torchscript-trace", "a panoptic model returns a list"),
    ],
)
def test_what_a_format_does_not_support_is_refused(tiny_config, tmp_path, config, format, reason):
    model = build_model(tiny_config(f"Digits/{config}.yaml"))
    with pytest.raises(GnwsError, match=reason):
        export(model, format, tmp_path / FORMATS[format].file, images((96, 96)))
    assert not list(tmp_path.glob("model*"))
