"""Exported files detect what the model in Detectron2 detects, in images of several sizes."""

import dataclasses
import functools
import json
import resource
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from detectron2.modeling import build_model
from openvino import opset13
from tiny import TINY

import gnws_d2
from gnws_d2.checkpoint import Checkpointer
from gnws_d2.errors import GnwsError
from gnws_d2.projects.export import EXACT, FORMATS, ROUNDED, Detector, Exporter, Tolerance, export
from gnws_d2.projects.export.branch_free import BranchFreeDetector
from gnws_d2.projects.export.export_model import facts
from gnws_d2.projects.export.exporter import _publish, publish
from gnws_d2.projects.export.formats import _quantize

MASK_RCNN = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
FASTER = ["MODEL.MASK_ON", "False"]
# Beside GN in the backbone; projects/Export/support.py has models of GN alone.
NORMS = ["MODEL.FPN.NORM", "SyncBN", "MODEL.ROI_BOX_HEAD.NORM", "EstBCN"]
NORMS += ["MODEL.ROI_MASK_HEAD.NORM", "FrozenBN"]
ALL = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "30"]
NOTHING = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.99"]
# Of three images, more than are kept in one, one detection in one, and nothing in one.
SOME = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.584", "TEST.DETECTIONS_PER_IMAGE", "5"]
SIZES, COUNTS = [(96, 96), (160, 100), (65, 257)], [5, 1, 0]
# Two levels of the pyramid for each stage, one with fewer anchors than are kept. Recording takes
# seconds for each level; projects/Export/support.py has all of them.
TWO_LEVELS = [
    *("MODEL.RPN.IN_FEATURES", "['p2', 'p6']", "MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [64]]"),
    *("MODEL.ROI_HEADS.IN_FEATURES", "['p2', 'p3']", "INPUT.MIN_SIZE_TEST", "80"),
]


def model_of(cfg):
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    with torch.no_grad():  # classes far enough apart not to change places by rounding
        model.roi_heads.box_predictor.cls_score.weight.mul_(40)
    for module in model.modules():
        if hasattr(module, "running_var"):  # about the fan-in, as where it was trained
            module.running_var.fill_(9 * module.num_features)
    return model


def images(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, *size), generator=generator).float() for size in sizes]


@pytest.fixture(scope="module")
def exported(tiny_digits, tmp_path_factory):
    """``folder`` has a checkpoint and its exported files, named as in FORMATS; ``results`` is what
    the export of each format returned, and ``exporter`` wrote them."""
    folder = tmp_path_factory.mktemp("exported")
    opts = [*TINY, *TWO_LEVELS, *NORMS, *SOME, "DATASETS.TEST", "('tiny_digits_val',)"]
    cfg = gnws_d2.load_config(MASK_RCNN, [*opts, "MODEL.DEVICE", "cpu"])
    Checkpointer(model_of(cfg), str(folder), cfg=cfg).save("model")
    predictor = gnws_d2.Predictor(weights=folder / "model.pth", folded=False)
    before = {name: tensor.clone() for name, tensor in predictor.model.state_dict().items()}
    writer = Exporter(predictor.model, images(*SIZES), {**facts(predictor), "a": [1, "b"]})
    results = {}
    for name, how in FORMATS.items():
        # In 8 bits, random weights detect something else.
        tolerance = Tolerance(share=0) if how.tolerance == ROUNDED else None
        results[name] = writer.export(name, folder / how.file, tolerance)
    after = predictor.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    return SimpleNamespace(folder=folder, results=results, exporter=writer)


@torch.no_grad()
@pytest.mark.parametrize(
    "opts",
    [ALL, NOTHING, [*FASTER, *ALL], [*NORMS, *ALL]],
    ids=["mask", "nothing", "faster", "norms"],
)
def test_without_branches_the_same_is_detected(tiny_config, opts):
    """Against Detectron2's own selection of boxes; 65 is the smallest side."""
    model = model_of(tiny_config(MASK_RCNN, *opts))
    assert BranchFreeDetector(model).smallest == 65
    for image in images((65, 65), (96, 130), (128, 128), (70, 200)):
        expected, found = Detector(model)(image), BranchFreeDetector(model)(image)
        assert len(expected) == len(found) == 3 + model.roi_heads.mask_on
        assert (len(expected[0]) > 0) == (opts is not NOTHING)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)


@torch.no_grad()
def test_without_branches_what_is_not_finite_is_left_out(tiny_config):
    model = model_of(tiny_config(MASK_RCNN, *FASTER, *ALL))
    model.proposal_generator.rpn_head.anchor_deltas.bias[0] = torch.nan
    [image] = images((96, 96))
    expected, found = Detector(model)(image), BranchFreeDetector(model)(image)
    assert len(expected[0]) and torch.equal(found[0], expected[0])


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_a_file_detects_the_same_in_all_sizes_and_stores_its_facts(exported, format):
    """In sizes that were not recorded, an image with nothing in it among them."""
    results = exported.results[format]
    assert [result.expected for result in results] == COUNTS
    if FORMATS[format].tolerance != ROUNDED:
        assert [(result.found, result.same) for result in results] == [(n, n) for n in COUNTS]
    assert FORMATS["torch-export"].tolerance == FORMATS["torchscript-trace"].tolerance == EXACT
    if format == "torch-export":  # seconds to load
        return
    predictor = gnws_d2.Predictor(weights=exported.folder / FORMATS[format].file)
    assert predictor.classes == list("0123456789")
    stored = predictor.model.facts
    precision = "bf16" if "bfloat16" in format else "f32"
    assert stored.pop("precision", precision) == precision
    assert stored["a"] == [1, "b"] and stored["min_size"] == 80
    assert stored["outputs"] == ["boxes", "scores", "classes", "masks"]


@pytest.mark.slow
def test_the_interface_of_onnx_and_openvino(exported):
    outputs = ["boxes", "scores", "classes", "masks"]
    stored = openvino.Core().read_model(exported.folder / "model.xml")
    assert [output.any_name for output in stored.outputs] == outputs
    weights = [node for node in stored.get_ops() if node.get_type_name() == "Constant"]
    assert openvino.Type.f16 not in {node.get_element_type() for node in weights}
    file = str(exported.folder / "model.onnx")
    session = onnxruntime.InferenceSession(file)
    assert [output.name for output in session.get_outputs()] == outputs
    assert session.get_inputs()[0].shape == [3, "height", "width"]
    assert [output.shape for output in session.get_outputs()] == [
        *(["detections", 4], ["detections"], ["detections"], ["detections", 1, 28, 28])
    ]
    assert json.loads(session.get_modelmeta().custom_metadata_map["a"]) == [1, "b"]
    assert {node.domain for node in onnx.load(file).graph.node} <= {"", "ai.onnx"}


def test_convolutions_and_nothing_else_are_quantized(tmp_path):
    """Against float64, by half a step of the weights, whose scale is that of their filter, and of
    the input, whose scale is that of the images."""
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(8, 3, 3, 3)).astype(np.float32)
    image = opset13.parameter([3, -1, -1], np.float32)
    image.output(0).set_names({"image"})
    batch = opset13.unsqueeze(opset13.multiply(image, np.float32(0.01)), [0])
    out = opset13.convolution(batch, weight, [1, 1], [0, 0], [0, 0], [1, 1])
    quantized = _quantize(
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


def test_a_file_that_differs_is_not_kept(tiny_config, tmp_path):
    model = model_of(tiny_config(MASK_RCNN, *ALL))
    (tmp_path / "model.ts").write_text("from before")
    with pytest.raises(GnwsError, match=r"of 30 detections .* finds 0 within -1"):
        nothing = dataclasses.replace(EXACT, difference=-1)
        export(model, "torchscript-trace", tmp_path / "model.ts", images((96, 96)), {}, nothing)
    assert [file.name for file in tmp_path.iterdir() if file.suffix != ""] == ["model.ts"]
    assert (tmp_path / "model.ts").read_text() == "from before"


def test_weights_in_a_second_file_are_never_those_of_another_export(tmp_path, monkeypatch):
    """A process that ends between the two files leaves no model."""
    written, target = tmp_path / "new" / "model.xml", tmp_path / "model.xml"
    written.parent.mkdir()
    for suffix in (".xml", ".bin"):
        written.with_suffix(suffix).write_text("new")
        target.with_suffix(suffix).write_text("old")

    def stop_at_the_model(part, file):
        if file == target:
            raise KeyboardInterrupt
        publish(part, file)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("gnws_d2.projects.export.exporter.publish", stop_at_the_model)
        _publish(written, target)
    assert target.with_suffix(".bin").read_text() == "new" and not target.exists()
    written.with_suffix(".bin").write_text("newer")
    _publish(written, target)
    assert (target.read_text(), target.with_suffix(".bin").read_text()) == ("new", "newer")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torchscript-trace", "torch-export", "openvino"])
def test_a_full_disk_is_an_error_that_leaves_nothing(exported, tmp_path, monkeypatch, format):
    """The limit of a file's size stands for the disk: torch's writer would end the process."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    save, few = openvino.save_model, (100_000, limit[1])
    fill = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, few)
    try:
        with pytest.raises(GnwsError, match=r"cannot be written .* Make room"):
            if format == "openvino":  # whose writer has an error of its own
                monkeypatch.setattr(openvino, "save_model", lambda *a, **k: [fill(), save(*a, **k)])
            else:
                fill()
            exported.exporter.export(format, tmp_path / FORMATS[format].file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list(tmp_path.iterdir())


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
    with pytest.raises(GnwsError, match=r"model\.txt is not a name for .* Name it like model"):
        export(model, format, tmp_path / "model.txt", [])
    assert not list(tmp_path.iterdir())
