"""What is compared: one model with the same weights, made in each of these ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from baselines import (
    Formula,
    plain_formula,
    plain_reference,
    timm_formula,
    timm_reference,
    use_formula,
)
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

import gnws_d2
from gnws_d2.config import ConfigError
from gnws_d2.layers import fold
from gnws_d2.projects.acceleration import accelerate, add_acceleration_config

# The eight architectures, and the configs that they are the models of.
ARCHITECTURES = {
    f"{kind}_rcnn_{depth}_FPN": f"{folder}/{kind}_rcnn_{depth}_FPN_gn_ws_{schedule}.yaml"
    for kind, folder, schedule in (
        ("faster", "COCO-Detection", "1x"),
        ("mask", "COCO-InstanceSegmentation", "2x"),
    )
    for depth in ("R_50", "R_101", "X_50_32x4d", "X_101_32x4d")
}

BASE = "GN"  # what all are divided by
CONTROL = "GN again"
PLAIN = "GN + plain WS"
TIMM = "GN + timm WS"
OURS = "GN+WS"

_REBUILT = ["MODEL.GN.FUSE_RELU", "always", "MODEL.GN.RECOMPUTE_ACTIVATIONS", "True"]
# Choices of this package, each as overrides of the config: a row of its own, "GN+WS, <name>".
OPTIONS: dict[str, list[str]] = {
    "fused": ["MODEL.GN.FUSE_RELU", "always"],
    "fused, rebuilt": _REBUILT,
    "convolutions rebuilt": [*_REBUILT, "MODEL.GN.RECOMPUTE_CONVOLUTIONS", "True"],
    "compiled": [
        *("MODEL.COMPILE.PARTS", "['backbone', 'rpn', 'box_head']"),
        *("INPUT.SIZE_DIVISIBILITY", "32"),  # for each size by itself
    ],
}

# Detectron2's own model, in which nothing of this package has a part.
_STOCK = [
    *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"),
    *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
]
_NORMS = ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")
_FROZEN = [word for part in _NORMS for word in (f"MODEL.{part}.NORM", "FrozenBN")]


@dataclass(frozen=True)
class Variant:
    """One way to make the model.

    Attributes:
        name: in the tables.
        opts: overrides of the config, KEY VALUE.
        formula: what Detectron2's own model is given in place of this package's standardization.
        reference: its mathematics in float64; None without standardization.
        folded: plain convolutions with the standardized weights stored; for inference alone.
    """

    name: str
    opts: Sequence[str] = ()
    formula: Formula | None = None
    reference: Formula | None = plain_reference
    folded: bool = False

    @property
    def is_stock(self) -> bool:
        return "build_resnet_fpn_backbone" in self.opts


def variants(mode: str) -> list[Variant]:
    """All that a training step, or inference ("train" or "infer"), is compared over."""
    ours = [Variant(OURS)]
    if mode == "infer":
        ours.append(Variant(f"{OURS}, folded", folded=True))
    return [
        Variant("FrozenBN", [*_STOCK, *_FROZEN], reference=None),
        Variant(BASE, _STOCK, reference=None),
        Variant(CONTROL, _STOCK, reference=None),
        Variant(PLAIN, _STOCK, plain_formula),
        Variant(TIMM, _STOCK, timm_formula, timm_reference),
        *ours,
        *(Variant(f"{OURS}, {name}", opts) for name, opts in OPTIONS.items()),
    ]


def load_config(model: str, opts: Sequence[str], device: str) -> CfgNode:
    """The config of an architecture, or of another name or file, with overrides.

    Raises:
        gnws_d2.config.ConfigError: an override names a key that the package does not have.
    """
    # VIS_PERIOD draws pictures; a learning rate of 0 takes its step and leaves all weights equal.
    fixed = [
        "MODEL.DEVICE",
        device,
        "MODEL.WEIGHTS",
        "",
        "VIS_PERIOD",
        "0",
        "SOLVER.BASE_LR",
        "0.0",
    ]
    file = ARCHITECTURES.get(model, model)
    return gnws_d2.load_config(file, [*fixed, *opts], [add_acceleration_config])


def build(
    variant: Variant, model: str, device: str, training: bool, state: dict[str, torch.Tensor]
) -> nn.Module:
    """The model of a variant, with the weights of ``state``."""
    cfg = load_config(model, variant.opts, device)
    built = accelerate(build_model(cfg), cfg)
    if variant.formula is not None:
        _give_formula(built, variant.formula)
    _load(built, state)
    built.train(training)
    return fold(built) if variant.folded else built


def build_reference(
    variant: Variant, model: str, device: str, training: bool, state: dict[str, torch.Tensor]
) -> nn.Module:
    """The same mathematics in float64, with nothing of this package in it."""
    opts = variant.opts if variant.is_stock else _STOCK
    built = build_model(load_config(model, opts, device))
    if variant.reference is not None:
        _give_formula(built, variant.reference)
    _load(built, state)
    built.double().train(training)
    # Anchors are given, not computed: rounded otherwise, other ones could be sampled.
    built.proposal_generator.anchor_generator.float()
    return built


def initial_state(model: str) -> dict[str, torch.Tensor]:
    """Random weights for all variants of ``model``. Affine parameters and biases are no longer
    exactly 1 and 0, where a mistake in their gradients could hide. The last norm of a residual
    block starts small, as in training: with 1, the rounding of random networks is amplified until
    nothing can be compared."""
    torch.manual_seed(0)
    state = dict(build_model(load_config(model, _STOCK, "cpu")).state_dict())
    for name, tensor in state.items():
        if tensor.dim() == 1:
            state[name] = tensor + 0.1 * torch.randn_like(tensor)
        if name.endswith("conv3.norm.weight"):
            state[name] = 0.2 * state[name]
    return state


def _give_formula(model: nn.Module, formula: Callable) -> None:
    gnws_d2.standardize(model)  # which convolutions
    use_formula(model, formula)


def _load(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if "running_" not in name]  # FrozenBN's, 0 and 1
    if missing or unexpected:
        raise ConfigError(f"the variants' tensors differ: {missing} missing, {unexpected} unknown.")
