"""Detectors of each family on the device of pretend_device.py, and what a step of theirs costs."""

import os
from concurrent.futures import ProcessPoolExecutor

import pretend_device
import pytest
import torch
from detectron2.config import instantiate
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from pretend_device import NAME, Device, Pretend
from processes import context
from tiny import ELSEHOW, FEW_PROPOSALS, TINY

from gnws.arguments import parse
from gnws_d2 import Predictor, load_config
from gnws_d2.engine import Trainer
from gnws_d2.layers import EstimatedBatchNorm2d, WSConv2d, fold, weight_standardization, ws_conv
from gnws_d2.projects import digits as digits_package
from gnws_d2.projects.acceleration import accelerate, add_acceleration_config
from gnws_d2.projects.detection import train_net
from gnws_d2.projects.detection.lazy_config import load_lazy_config

MASK_RCNN = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
OPTS = [*TINY, *FEW_PROPOSALS, "MODEL.DEVICE", NAME, "DATALOADER.NUM_WORKERS", "0"]
OPTS += ["TEST.DETECTIONS_PER_IMAGE", "3"]
# A training step on two images of 64 x 64 with its optimizer, the second one: the calls, the waits,
# and how many of those are in this package, all as Device counts them.
COSTS = {
    "mask_rcnn_R_18_FPN_gn.yaml": (1268, 76, 0),
    "mask_rcnn_R_18_FPN_gn_ws.yaml": (1428, 76, 0),
    "mask_rcnn_R_18_FPN_bcn_ws.yaml": (2116, 76, 0),
}
PLAIN = ["MODEL.PROPOSAL_GENERATOR.NAME", "RPN", "MODEL.ROI_HEADS.NAME", "StandardROIHeads"]
MARGIN = 1.01  # one more operator for each convolution is over it
OTHERS = ["retinanet", "keypoint_rcnn", "cascade_mask_rcnn", "pointrend"]
OTHERS = [f"{name}_R_18_FPN_gn_ws.yaml" for name in OTHERS] + ["fcos_R_18_FPN_gn_ws.py"]
OTHERS += ["panoptic_fpn_R_18_gn_ws.yaml", "deeplab_v3_plus_R_50_gn_ws.yaml"]
OTHERS += ["mask_rcnn_R_50_FPN_deform_gn_ws.yaml"]


@pytest.fixture(scope="module")
def on_device(digits):
    """``on_device(function, ...)`` calls it in a process that has the device."""
    with ProcessPoolExecutor(1, context(), prepare, (dict(os.environ),)) as pool:
        yield lambda *words, **options: pool.submit(*words, **options).result()


def prepare(environment):
    os.environ.update(environment)
    torch.set_num_threads(1)
    digits_package.register()
    pretend_device.register()
    # Weights of a class of its own take plain operations; these stand for torch's own class.
    for module in (ws_conv, weight_standardization):
        module.takes_plain_operations = lambda *_: False


def trained(name, *opts, steps=1):
    """The calls and the waits of the last training step of a config in Digits/. Detects, too."""
    torch.manual_seed(0)
    file = MASK_RCNN if name.endswith(".py") else f"Digits/{name}"
    cfg = load_config(file, [*OPTS, "MODEL.WEIGHTS", "", *opts], [add_acceleration_config])
    data = next(iter(Trainer.build_train_loader(cfg)))
    with Device() as device, EventStorage():
        model = accelerate(build_model(cfg), cfg)
        if name.endswith(".py"):
            model = instantiate(load_lazy_config(f"Digits/{name}").model).to(NAME)
        model.test_score_thresh = 0.0  # of RetinaNet and FCOS: untrained, they find something, too
        for layer in model.modules():
            if isinstance(layer, EstimatedBatchNorm2d):
                layer.moving_speed = 0.1
        optimizer = Trainer.build_optimizer(cfg, model.train())
        for _ in range(steps):
            device.calls.clear(), device.waits.clear()
            optimizer.zero_grad()
            sum(model(data).values()).backward()
            optimizer.step()
        cost = device.calls.copy(), device.waits.copy()
        params = [p for p in model.parameters() if p.requires_grad]
        assert params and all(isinstance(p.grad, Pretend) for p in params)
        found, same = (detected(part, data) for part in (model.eval(), fold(model)))
        assert found.device.type == NAME and found.numel() and torch.equal(found, same)
    return cost


@torch.no_grad()
def detected(model, data):
    result = model([{"image": image["image"]} for image in data])[0]
    return result["sem_seg"] if "sem_seg" in result else result["instances"].scores


@pytest.mark.parametrize("name", [*OTHERS, "mask_rcnn_R_18_FPN_gn_ws.yaml"])
def test_a_family_trains_and_detects(on_device, name):
    on_device(trained, name, *(ELSEHOW if name not in OTHERS else ()))


@pytest.mark.parametrize("name", COSTS)
def test_a_step_costs_no_more_than_it_did(on_device, name):
    calls, waits = on_device(trained, name, steps=2)
    own = sum(count for place, count in waits.items() if " gnws_d2/" in place)
    print(name, calls.total(), waits.total(), own)
    assert calls.total() <= COSTS[name][0] * MARGIN, calls.most_common()
    assert waits.total() <= COSTS[name][1] * MARGIN and own <= COSTS[name][2], waits.most_common()


def test_a_step_waits_no_more_than_by_detectron2s_rules(on_device):
    (_, own), (_, plain) = (
        on_device(trained, "mask_rcnn_R_18_FPN_gn.yaml", *opts, steps=2) for opts in ([], PLAIN)
    )
    print(own.total(), plain.total())
    assert own.total() <= plain.total(), (own - plain).most_common()


def own_data(folder, output):
    """Train and evaluate on own data, write a report, and detect."""
    words = ["--config-file", MASK_RCNN, "--data", str(folder), *OPTS, "OUTPUT_DIR", str(output)]
    words += ["SOLVER.MAX_ITER", "1", "SOLVER.EMA_DECAY", "0.9", "SOLVER.ACCUMULATION_STEPS", "2"]
    with Device():
        outcome = train_net.run(parse("train", words))
        found = Predictor(weights=outcome.weights, opts=["MODEL.DEVICE", NAME])
        scores = found(torch.zeros(64, 64, 3).byte().numpy())["instances"].scores
    return outcome.reports, scores.device.type


def test_own_data_end_in_a_report(on_device, digits, tmp_path):
    reports, device = on_device(own_data, digits, tmp_path)
    assert len(reports) == 1 and reports[0].exists() and device == NAME


def refused():
    """Which uses of CPU tensors together with those of the device raise."""
    with Device():
        own, cpu, conv = torch.ones(2, 3, device=NAME), torch.ones(2, 3), WSConv2d(3, 4, 1).to(NAME)
        image = torch.ones(1, 3, 4, 4)
        calls = {
            "a number": lambda: own + cpu[0, 0],
            "a copy": lambda: own.copy_(cpu),
            "an index": lambda: own[torch.tensor([0])],
            "an addition": lambda: own + cpu,
            "a list": lambda: torch.stack([own[0, 0], cpu[0, 0]]),
            "an index of the device": lambda: cpu[torch.tensor([0], device=NAME)],
            "values": lambda: own.index_put_((own > 0,), cpu.flatten()),
            "an image": lambda: conv(image),
            "a weight": lambda: torch.conv2d(image.to(NAME), conv.weight.cpu()),
        }
        found = []
        for name, call in calls.items():
            try:
                call()
            except RuntimeError as error:
                assert "two devices" in str(error)
                found.append(name)
        return found


def test_mixed_devices_are_refused_as_by_cuda(on_device):
    expected = ["an addition", "a list", "an index of the device", "values"]
    assert on_device(refused) == [*expected, "an image", "a weight"]
