"""A loss that turns NaN ends training with the name of the layer."""

import pytest
from detectron2.modeling import build_model

from gnws_d2.engine import Trainer
from gnws_d2.engine.nonfinite import first_nonfinite_module


class BreaksLater(Trainer):
    """Sets what ``broken`` names to NaN before the second step."""

    broken = ""

    def run_step(self):
        if self.iter == 1:
            module = self.model.get_submodule(self.broken)
            module.register_forward_hook(lambda module, inputs, output: output * float("nan"))
        super().run_step()


@pytest.mark.parametrize("broken", ["backbone.bottom_up.res3.0.conv2", "roi_heads.box_head.conv1"])
@pytest.mark.parametrize("steps", ["1", "2"])
def test_training_names_the_module_with_the_first_nonfinite_output(tiny_config, broken, steps):
    opts = ["SOLVER.ACCUMULATION_STEPS", steps]
    trainer = BreaksLater(tiny_config("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", *opts))
    trainer.broken = broken
    with pytest.raises(FloatingPointError, match=rf"'{broken}'"):
        trainer.train()


def test_a_nonfinite_parameter_is_named(tiny_config):
    model = build_model(tiny_config())
    name = "backbone.fpn_lateral3.weight"
    model.get_parameter(name).data[0] = float("inf")
    said = first_nonfinite_module(model, [])
    assert name in said and "earlier step" in said
