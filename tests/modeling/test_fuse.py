"""Detectron2's own modules with GroupNorm + ReLU as one operation compute what they did before."""

import copy
import io

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from measure import allocated
from torch import nn

from gnws_d2.layers import GroupNormReLU, WSConv2d, fold, kernels, restore
from gnws_d2.modeling import fuse_norm_relu
from gnws_d2.modeling.fuse import count_fused

MASK_RCNN = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
# Of each config: fused norms, and all. What remains has no ReLU (shortcuts, FPN), or is in blocks
# of another class (the deformable ones).
FAMILIES = {
    "mask_rcnn_R_18_FPN_gn_ws": (1 + 16 + 2 + 2, 1 + 16 + 3 + 8 + 2 + 2),
    "retinanet_R_18_FPN_gn_ws": (1 + 16 + 4, 1 + 16 + 3 + 6 + 4),
    "panoptic_fpn_R_18_gn_ws": (1 + 16 + 2 + 2 + 7, 1 + 16 + 3 + 8 + 2 + 2 + 7),
    "mask_rcnn_R_50_FPN_deform_gn_ws": (1 + 9 + 12 + 2 + 2, 1 + 48 + 3 + 8 + 2 + 2),
}


# Arguments of fuse_norm_relu after the model: what is rebuilt in backward.
NOTHING, ACTIVATIONS, CONVOLUTIONS = (), (True,), (True, True)
REBUILT = pytest.mark.parametrize("rebuild", [NOTHING, ACTIVATIONS, CONVOLUTIONS])


def twins(cfg, rebuild=NOTHING, dtype=torch.float64):
    torch.manual_seed(0)
    plain = build_model(cfg).to(dtype)
    return plain, fuse_norm_relu(copy.deepcopy(plain), *rebuild)


def blocks(norm="GN", standardized=False):
    torch.manual_seed(0)
    made = nn.Sequential(
        BottleneckBlock(64, 128, bottleneck_channels=32, norm=norm),
        BottleneckBlock(128, 128, bottleneck_channels=32, norm=norm),
    )
    for module in made.modules():
        if standardized and isinstance(module, nn.Conv2d):
            module.__class__ = WSConv2d
    return made


def batch():
    generator = torch.Generator().manual_seed(1)
    pictures = []
    for _ in range(2):
        instances = Instances((64, 96))
        instances.gt_boxes = Boxes(torch.tensor([[5.0, 5, 40, 50], [50, 10, 90, 60]]))
        instances.gt_classes = torch.tensor([1, 3])
        masks = torch.zeros(2, 64, 96, dtype=torch.bool)
        masks[0, 5:50, 5:40] = masks[1, 10:60, 50:90] = True
        instances.gt_masks = BitMasks(masks)
        image = torch.randint(0, 255, (3, 64, 96), generator=generator)
        pictures.append({"image": image, "instances": instances, "height": 64, "width": 96})
    return pictures


def step(model):
    """Losses and gradients."""
    torch.manual_seed(3)
    with EventStorage():
        losses = model(batch())
    sum(losses.values()).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {name: loss.detach() for name, loss in losses.items()}, grads


def backbone_gradients(model, x):
    """Of random gradients of its levels: the mean square of a normalized one has none."""
    generator = torch.Generator().manual_seed(2)
    levels = list(model.backbone(x).values())
    grads = [torch.randn(t.shape, generator=generator).to(t) for t in levels]
    torch.autograd.backward(levels, grads)
    return {n: p.grad for n, p in model.backbone.named_parameters() if p.requires_grad}


def assert_same(found, expected, tolerance):
    """``tolerance`` is relative to the largest value of each tensor."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (found[name] - tensor).abs().max()
        assert error <= tolerance * tensor.abs().max(), (name, float(error), tensor.abs().max())


@pytest.mark.slow
@REBUILT
def test_losses_and_gradients_of_a_detector_stay_the_same(tiny_config, double, rebuild):
    cfg = tiny_config(MASK_RCNN)
    plain, fused = twins(cfg, rebuild)
    (losses, grads), (fused_losses, fused_grads) = step(plain.train()), step(fused.train())
    assert all(g is not None and g.abs().max() > 0 for g in grads.values())
    assert_same(fused_losses, losses, 1e-12)
    assert_same(fused_grads, grads, 1e-10)


@pytest.mark.slow
def test_a_bottleneck_backbone_stays_the_same(tiny_config):
    opts = ["MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.RES2_OUT_CHANNELS", "256"]
    cfg = tiny_config(MASK_RCNN, *opts, "MODEL.RESNETS.WIDTH_PER_GROUP", "32")
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain, fused = twins(cfg)
    rebuilt = [fuse_norm_relu(copy.deepcopy(plain), *r) for r in (ACTIVATIONS, CONVOLUTIONS)]
    expected = backbone_gradients(plain, x)
    for model in (fused, *rebuilt):
        assert_same(backbone_gradients(model, x), expected, 1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_fused(tiny_config, name):
    model = build_model(tiny_config(f"Digits/{name}.yaml", "MODEL.GN.FUSE_RELU", "always"))
    assert count_fused(model) == FAMILIES[name]


def test_a_head_of_a_sequence_stays_the_same(tiny_config):
    plain, fused = twins(tiny_config("Digits/retinanet_R_18_FPN_gn_ws.yaml"))
    levels = [torch.randn(1, 32, size, size, dtype=torch.float64) for size in (8, 4, 2, 2, 2)]
    assert not any(isinstance(m, nn.ReLU) for m in fused.head.modules())
    for a, b in zip(plain.head(levels), fused.head(levels), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_fusing_twice_is_fusing_once(tiny_config):
    _, fused = twins(tiny_config(MASK_RCNN))
    before = [type(m) for m in fused.modules()]
    assert [type(m) for m in fuse_norm_relu(fused).modules()] == before


def test_names_in_a_state_dict_stay_as_they_are(tiny_config):
    plain, fused = twins(tiny_config(MASK_RCNN), CONVOLUTIONS)
    assert list(plain.state_dict()) == list(fused.state_dict())
    assert [n for n, _ in plain.named_modules()] != []
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in fused.named_parameters()]


def features(model):
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(model.device)
    with torch.no_grad():
        return model.eval().backbone(x.to(next(model.parameters()).dtype))


def test_it_is_copied_and_pickled(tiny_config):
    _, fused = twins(tiny_config(MASK_RCNN), CONVOLUTIONS)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    expected = features(fused)
    for copied in (copy.deepcopy(fused), torch.load(file, weights_only=False)):
        assert_same(features(copied), expected, 0)
        copied.backbone.bottom_up.stem.conv1.weight.data.zero_()
        assert_same(features(fused), expected, 0)


@REBUILT
def test_it_is_taken_back(tiny_config, rebuild):
    plain, fused = twins(tiny_config(MASK_RCNN), rebuild)
    restore(fused)
    assert [(n, type(m)) for n, m in plain.named_modules()] == [
        (n, type(m)) for n, m in fused.named_modules()
    ]
    assert_same(features(fused), features(plain), 0)
    assert count_fused(fuse_norm_relu(fused)) == FAMILIES["mask_rcnn_R_18_FPN_gn_ws"]


def test_a_folded_copy_knows_nothing_of_this_package(tiny_config):
    from gnws_d2.engine.activation_checkpointing import checkpoint_activations

    plain, fused = twins(tiny_config(MASK_RCNN), CONVOLUTIONS)
    checkpoint_activations(fused, ["res3"])
    folded = fold(fused)
    assert not any(type(m).__module__.startswith("gnws_d2") for m in folded.modules())
    assert not any("forward" in m.__dict__ for m in folded.modules())
    assert_same(features(folded), features(plain), 0)
    assert count_fused(fused)[0] > 0


def test_checkpointed_stages_of_a_model_that_rebuilds(tiny_config):
    from gnws_d2.engine.activation_checkpointing import checkpoint_activations

    plain, fused = twins(tiny_config(MASK_RCNN), CONVOLUTIONS)
    checkpoint_activations(fused, ["res3", "res4"])
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_same(backbone_gradients(fused, x), backbone_gradients(plain, x), 1e-12)


@REBUILT
def test_blocks_are_compiled_without_a_break(rebuild):
    plain = blocks().double()
    fused = fuse_norm_relu(copy.deepcopy(plain), *rebuild)
    x = torch.randn(2, 64, 8, 9, dtype=torch.float64)
    grads = []
    for model in (plain, torch.compile(fused, fullgraph=True, backend="aot_eager")):
        y = model(x)
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape))
        grads.append({name: p.grad for name, p in model.named_parameters()})
    compiled = {name.removeprefix("_orig_mod."): grad for name, grad in grads[1].items()}
    assert_same(compiled, grads[0], 1e-12)


def test_a_frozen_stage_is_fused_as_well(tiny_config):
    plain, fused = twins(tiny_config(MASK_RCNN, "MODEL.BACKBONE.FREEZE_AT", "2"), CONVOLUTIONS)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = backbone_gradients(plain, x)
    assert "bottom_up.res2.0.conv1.weight" not in expected
    assert_same(backbone_gradients(fused, x), expected, 1e-12)


def test_other_norms_are_left_alone(tiny_config):
    for name in ("bcn_ws", "bn"):
        cfg = tiny_config(f"Digits/mask_rcnn_R_18_FPN_{name}.yaml", "MODEL.BCN.MOVING_SPEED", "0.1")
        model = build_model(cfg)
        before = [type(m) for m in model.modules()]
        fuse_norm_relu(model, rebuild_activations=True)
        assert count_fused(model)[0] == 0 or name == "bn"  # its heads have GN
        types = zip(before, model.backbone.modules(), strict=False)
        assert not any(isinstance(m, GroupNormReLU) for _, m in types)


CHOICES = [
    # FUSE_RELU, REBUILD_ACTIVATIONS, device, kernels -> fused
    ("auto", False, "cpu", "auto", False),
    ("auto", False, "cuda", "auto", True),
    ("auto", False, "cuda", "torch", False),
    ("auto", True, "cpu", "auto", True),
    ("always", False, "cpu", "torch", True),
    ("never", False, "cuda", "auto", False),
]


@pytest.mark.parametrize(("choice", "rebuild", "device", "triton", "fused"), CHOICES)
def test_the_config_and_the_machine_choose(
    tiny_config, monkeypatch, caplog, choice, rebuild, device, triton, fused
):
    from gnws_d2.modeling import meta_arch

    caplog.set_level("INFO")
    monkeypatch.setattr(kernels, "_works", lambda *_: True)
    monkeypatch.setenv(kernels.VARIABLE, triton)
    opts = ["MODEL.GN.FUSE_RELU", choice, "MODEL.GN.REBUILD_ACTIVATIONS", str(rebuild)]
    cfg = tiny_config(MASK_RCNN, *opts)
    cfg.MODEL.DEVICE = device
    model = meta_arch.WeightStandardizedModel(cfg)  # not moved to the device
    assert (count_fused(model)[0] > 0) is fused
    assert ("one operation in 21 of 32 GroupNorms" in caplog.text) is fused
    assert ("forward" in model.backbone.__dict__) is rebuild


def kept_by(model):
    """Bytes that a forward leaves for backward, beside the input."""
    x = torch.randn(1, 64, 64, 64)
    model(x)
    with allocated("cpu") as meter:
        y = model(x)
    assert y.requires_grad
    return meter.now


@pytest.mark.parametrize("standardized", [False, True])
def test_with_convolutions_rebuilt_a_block_keeps_what_it_does_with_frozen_batch_norm(standardized):
    plain, frozen = blocks(standardized=standardized), blocks("FrozenBN")
    shortcut = 0 if standardized else 128 * 64 * 64 * 4  # not rebuilt without WS
    kept = [kept_by(fuse_norm_relu(copy.deepcopy(plain), *r)) for r in (ACTIVATIONS, CONVOLUTIONS)]
    assert kept[1] - shortcut == pytest.approx(kept_by(frozen), rel=0.01)  # but for statistics
    assert kept[0] > 1.25 * kept[1]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_what_is_rebuilt_gives_the_same_gradients_bit_for_bit(autocast, frozen):
    plain = blocks(standardized=True)
    if frozen:
        plain[0].conv3.weight.requires_grad_(False)
    x = torch.randn(2, 64, 8, 9, generator=torch.Generator().manual_seed(1))
    grads = []
    for rebuild in (NOTHING, ACTIVATIONS, CONVOLUTIONS):
        model = fuse_norm_relu(copy.deepcopy(plain), *rebuild)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = model(x)
        y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype))
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    for ours in grads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(ours, grads[0], strict=True))


@pytest.mark.parametrize("rebuild", [ACTIVATIONS, CONVOLUTIONS])
def test_second_derivatives_through_what_is_rebuilt(rebuild):
    plain = blocks(standardized=True).double()
    x = torch.randn(1, 64, 4, 5, generator=torch.Generator().manual_seed(1)).double()
    found = []
    for model in (plain, fuse_norm_relu(copy.deepcopy(plain), *rebuild)):
        leaves = [x.clone().requires_grad_(), *model.parameters()]
        (grad,) = torch.autograd.grad(model(leaves[0]).pow(3).sum(), leaves[:1], create_graph=True)
        # That of the last bias alone is 0.
        found.append(torch.autograd.grad(grad.square().sum(), leaves, materialize_grads=True))
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs)


DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    ),
]


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("device", DEVICES)
@REBUILT
def test_in_deterministic_mode_a_second_step_gives_the_same_bits(deterministic, device, rebuild):
    """Torch then fills new tensors with NaN, too: none is read before it is written."""
    model = fuse_norm_relu(blocks(standardized=True), *rebuild).to(device)
    x = torch.randn(2, 64, 40, 40, generator=torch.Generator().manual_seed(1)).to(device)
    steps = []
    for _ in range(2):
        y = model(x)
        steps.append([y.detach(), *torch.autograd.grad(y.square().sum(), list(model.parameters()))])
    assert all(torch.isfinite(t).all() for t in steps[0])
    assert all(torch.equal(a, b) for a, b in zip(*steps, strict=True))


def test_convolutions_alone_are_not_rebuilt():
    with pytest.raises(ValueError, match="rebuild_activations=True"):
        fuse_norm_relu(blocks(), rebuild_convolutions=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_a_detector_on_a_gpu_has_the_gradients_of_stock(tiny_config, monkeypatch, format):
    monkeypatch.setattr(kernels, "MIN_ELEMENTS", 0)
    plain, fused = twins(tiny_config(MASK_RCNN), rebuild=ACTIVATIONS, dtype=torch.float32)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).cuda()
    grads = []
    for model in (plain, fused):
        model.cuda().to(memory_format=format)
        grads.append(backbone_gradients(model, x.contiguous(memory_format=format)))
    assert_same(grads[1], grads[0], 1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, which counts its memory")
def test_rebuilding_takes_less_memory_on_a_gpu(tiny_config):
    peaks = []
    for model in twins(tiny_config(MASK_RCNN), rebuild=ACTIVATIONS, dtype=torch.float32):
        model.cuda()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        backbone_gradients(model, torch.randn(2, 3, 512, 512, device="cuda"))
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < peaks[0]
