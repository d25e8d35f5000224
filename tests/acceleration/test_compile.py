"""Compiled parts find what the model finds; names stay."""

import copy

import pytest
import torch
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from gnws_d2.errors import ConfigError

MASK_RCNN = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
PARTS = "['backbone', 'rpn', 'box_head', 'mask_head']"
SIZES = [(64, 64), (64, 80), (96, 64)]


def picture(size: tuple[int, int], seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    truth = Instances(size, gt_classes=torch.tensor([3, 7]))
    truth.gt_boxes = Boxes(torch.tensor([[8.0, 8, 40, 40], [20, 4, 60, 50]]))
    truth.gt_masks = PolygonMasks([[b.numpy()[[0, 1, 2, 1, 2, 3]]] for b in truth.gt_boxes.tensor])
    image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
    return {"image": image, "instances": truth, "height": size[0], "width": size[1]}


def two_models(accelerated, *opts: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The same weights, as they are and compiled."""
    # Enough to be found, and not so much that the order of equal scores decides.
    found = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "5"]
    torch.manual_seed(0)
    plain = accelerated(MASK_RCNN, *found)
    eager = ["MODEL.COMPILE.PARTS", PARTS, "MODEL.COMPILE.BACKEND", "eager"]
    compiled = accelerated(MASK_RCNN, *found, *eager, *opts)
    compiled.load_state_dict(plain.state_dict())
    return plain, compiled


@pytest.fixture(autouse=True)
def _reset():
    torch._dynamo.reset()
    limit = torch._dynamo.config.recompile_limit
    yield
    torch._dynamo.config.recompile_limit = limit


@pytest.mark.slow
def test_detections_losses_and_gradients_are_the_same(accelerated):
    models = two_models(accelerated, "MODEL.COMPILE.BACKEND", "aot_eager")
    torch._dynamo.utils.counters.clear()
    for size in SIZES:
        with torch.no_grad():
            a, b = (model.eval()([picture(size)])[0]["instances"] for model in models)
        assert len(a) == len(b) == 5
        torch.testing.assert_close(a.scores, b.scores)
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, rtol=1e-4, atol=1e-3)
        assert torch.equal(a.pred_masks, b.pred_masks)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 3  # compiled it was
    losses = []
    for model in models:
        torch.manual_seed(1)
        with EventStorage():
            losses.append(model.train()([picture(SIZES[1])]))
        sum(losses[-1].values()).backward()
    torch.testing.assert_close(losses[1], losses[0])
    for (name, p), (_, q) in zip(*(m.named_parameters() for m in models), strict=True):
        assert (q.grad - p.grad).norm() <= 1e-3 * p.grad.norm(), name


def test_names_stay_and_a_copy_is_not_compiled(accelerated):
    plain, compiled = two_models(accelerated)
    assert list(plain.state_dict()) == list(compiled.state_dict())
    assert [n for n, _ in plain.named_modules()] == [n for n, _ in compiled.named_modules()]
    assert compiled.backbone._compiled_call_impl is not None
    assert copy.deepcopy(compiled).backbone._compiled_call_impl is None


@pytest.mark.slow
@pytest.mark.parametrize("how", ["never", "always"])
def test_the_default_compiler_finds_the_same_gradients(accelerated, how):
    torch.manual_seed(0)
    resnet = accelerated(MASK_RCNN, "MODEL.GN.FUSE_RELU", how).backbone.bottom_up.train()
    stage = resnet.res3
    x = torch.randn(1, resnet.output_shape()["res2"].channels, 16, 16)
    found = []
    for function in (stage, torch.compile(stage, fullgraph=True)):  # or raises at a graph break
        y = function(x)
        slope = torch.linspace(-1, 1, y.numel()).view(y.shape)
        found.append([y, *torch.autograd.grad(y, list(stage.parameters()), slope)])
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_few_sizes_are_compiled_each(accelerated):
    """Ten sizes become three, which are three graphs of the backbone."""
    few = ["MODEL.COMPILE.PARTS", "['backbone']", "INPUT.SIZE_DIVISIBILITY", "64"]
    _, compiled = two_models(accelerated, *few)
    assert torch._dynamo.config.recompile_limit >= 64
    torch._dynamo.utils.counters.clear()
    for height in range(60, 160, 10):
        with torch.no_grad():
            compiled.eval()([picture((height, 64))])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3


def test_a_part_that_is_not_there_is_refused_with_those_that_are(accelerated):
    retinanet = "Digits/retinanet_R_18_FPN_gn_ws.yaml"
    with pytest.raises(ConfigError, match=r"'box_head'.*compiled: backbone, head"):
        accelerated(retinanet, "MODEL.COMPILE.PARTS", "['box_head']")
