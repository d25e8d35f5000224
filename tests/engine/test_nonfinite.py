"""A loss that turns NaN ends training with the name of the layer."""

import pytest
import torch
from detectron2.modeling import build_model
from tiny import FEW_PROPOSALS
from torch import nn

from gnws_d2.engine import Trainer
from gnws_d2.engine.nonfinite import first_nonfinite_module, nonfinite_module_named


class BreaksLater(Trainer):
    """Sets what ``broken`` names to NaN before the second step."""

    broken = ""

    def run_step(self):
        if self.iter == 1:
            module = self.model.get_submodule(self.broken)
            module.register_forward_hook(lambda module, inputs, output: output * float("nan"))
        super().run_step()


@pytest.mark.parametrize(
    ("broken", "steps"),
    [("backbone.bottom_up.res3.0.conv2", "1"), ("roi_heads.box_head.conv1", "2")],
)
def test_training_names_the_module_with_the_first_nonfinite_output(tiny_config, broken, steps):
    opts = [*FEW_PROPOSALS, "SOLVER.ACCUMULATION_STEPS", steps]
    trainer = BreaksLater(tiny_config("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", *opts))
    trainer.broken = broken
    with pytest.raises(FloatingPointError, match=rf"'{broken}'"):
        trainer.train()


class Draws(nn.Module):
    """Keeps what its dropout draws, and the precision it computes in."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(64, 4)
        self.seen = []

    def forward(self, x: torch.Tensor, *, scale: float) -> torch.Tensor:
        dropped = self.dropout(x)
        y = self.linear(dropped)
        self.seen.append((dropped, y.dtype))
        return y * scale


def test_calls_are_repeated_with_their_arguments_draws_and_precision():
    model = Draws()
    says = pytest.raises(FloatingPointError, match=r"^stop\n.*output .*''")
    with says, nonfinite_module_named(model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(torch.ones(2, 64), scale=1.0)
        model(torch.ones(2, 64), scale=float("inf"))
        torch.rand(9)
        raise FloatingPointError("stop")
    first, second, again, last = model.seen
    for call, repeated in ((first, again), (second, last)):
        assert torch.equal(call[0], repeated[0]) and call[1] == repeated[1]
    assert not torch.equal(first[0], second[0]) and first[1] != second[1]
    assert not model._forward_pre_hooks


def test_a_nonfinite_parameter_is_named(tiny_config):
    model = build_model(tiny_config())
    name = "backbone.fpn_lateral3.weight"
    model.get_parameter(name).data[0] = float("inf")
    said = first_nonfinite_module(model, [])
    assert name in said and "earlier step" in said
