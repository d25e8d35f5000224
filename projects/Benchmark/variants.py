"""What is compared: one model with the same weights, built in each of these ways."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

import gnws_d2
from gnws_d2.layers import StandardizedConv, fold
from gnws_d2.projects.acceleration import accelerate, add_acceleration_config

# The eight architectures, and a config of each.
ARCHITECTURES = {
    f"{kind}_rcnn_{depth}_FPN": f"{folder}/{kind}_rcnn_{depth}_FPN_gn_ws_{schedule}.yaml"
    for kind, folder, schedule in (
        ("faster", "COCO-Detection", "1x"),
        ("mask", "COCO-InstanceSegmentation", "2x"),
    )
    for depth in ("R_50", "R_101", "X_50_32x4d", "X_101_32x4d")
}


@dataclass(frozen=True)
class Case:
    """What all variants are compared on, one image at a time."""

    level: str  # "backbone" (with FPN) or "model"
    model: str  # an architecture, or the name or file of a config
    size: tuple[int, int]  # height and width of the image, before padding
    mode: str  # "train" or "infer"
    precision: str = "fp32"  # or "bf16" (autocast)
    device: str = "cpu"
    opts: Sequence[str] = ()  # overrides of the config, KEY VALUE

    @property
    def training(self) -> bool:
        return self.mode == "train"

    def autocast(self) -> torch.autocast:
        kind = torch.device(self.device).type
        return torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16")

    def config(self, opts: Sequence[str] = ()) -> CfgNode:
        """The model's config with more overrides."""
        fixed = ["MODEL.DEVICE", self.device, "MODEL.WEIGHTS", "", "VIS_PERIOD", "0"]
        # The optimizer takes its step, and all weights stay as they are.
        fixed += ["SOLVER.BASE_LR", "0.0"]
        file = ARCHITECTURES.get(self.model, self.model)
        return gnws_d2.load_config(file, [*fixed, *self.opts, *opts], [add_acceleration_config])


# Of a weight (C_out, C_in / groups, kh, kw); the result has its shape.
Formula = Callable[[torch.Tensor], torch.Tensor]


def plain_formula(weight: torch.Tensor) -> torch.Tensor:
    """Plain operations and autograd's backward, as ``ConvWS2d`` of mmcv at each forward: unbiased
    deviation, epsilon added to it. In float64 it is the reference for this package."""
    flat = weight.flatten(1)
    mean = flat.mean(1).view(-1, 1, 1, 1)
    std = flat.std(1).view(-1, 1, 1, 1)
    return (weight - mean) / (std + 1e-5)


def timm_formula(weight: torch.Tensor) -> torch.Tensor:
    """PyTorch's batch normalization, as ``StdConv2d`` of timm: biased variance, epsilon inside the
    root. Other results: detectors trained with the formula above need the formula above."""
    flat = weight.reshape(1, len(weight), -1)
    return F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).view_as(weight)


BASE = "GN"  # the others' times are divided by its times
CONTROL = "GN again"
OURS = "GN+WS"

# Detectron2's own backbone and heads. All variants assign and sample as the config says.
_STOCK = [
    *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"),
    *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
]
_NORMS = ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")
_FROZEN = [word for part in _NORMS for word in (f"MODEL.{part}.NORM", "FrozenBN")]
_FUSED = ["MODEL.GN.FUSE_RELU", "always"]
_RECOMPUTED = [*_FUSED, "MODEL.GN.RECOMPUTE_ACTIVATIONS", "True"]
_CONVOLUTIONS = [*_RECOMPUTED, "MODEL.GN.RECOMPUTE_CONVOLUTIONS", "True"]


@dataclass(frozen=True)
class Variant:
    """One way to build the model."""

    name: str  # in the results
    opts: Sequence[str] = ()  # overrides of the config, KEY VALUE
    formula: Formula | None = plain_formula  # of the standardization; None without it
    stock: bool = False  # Detectron2's backbone and heads, which compute formula at each forward
    folded: bool = False  # plain convolutions that store the standardized weights


VARIANTS = [
    Variant("FrozenBN", _FROZEN, formula=None, stock=True),
    Variant(BASE, formula=None, stock=True),
    Variant(CONTROL, formula=None, stock=True),
    Variant("GN + plain WS", stock=True),
    Variant("GN + timm WS", formula=timm_formula, stock=True),
    Variant(OURS),
    Variant(f"{OURS}, folded", folded=True),  # for inference only
    Variant(f"{OURS}, fused", _FUSED),
    Variant(f"{OURS}, fused, recomputed", _RECOMPUTED),
    Variant(f"{OURS}, convolutions recomputed", _CONVOLUTIONS),
]


def build(
    variant: Variant, case: Case, state: dict[str, torch.Tensor], exact: bool = False
) -> nn.Module:
    """The model of a variant with the weights of ``state``; if ``exact``, the same mathematics in
    float64, in Detectron2's own model."""
    stock = variant.stock or exact
    opts = variant.opts if variant.stock or not exact else ()
    cfg = case.config([*_STOCK, *opts] if stock else opts)
    model = accelerate(build_model(cfg), cfg)
    if stock and variant.formula is not None:
        gnws_d2.standardize(model)  # chooses the convolutions
        use_formula(model, variant.formula)
    model.load_state_dict(state)
    model.train(case.training)
    if exact:
        # Rounded differently, other anchors could be sampled.
        model.double().proposal_generator.anchor_generator.float()
        return model
    return fold(model) if variant.folded else model


def use_formula(model: nn.Module, formula: Formula) -> None:
    """Make the standardized convolutions compute ``formula`` at each forward, in place."""
    for conv in model.modules():
        if isinstance(conv, StandardizedConv):
            conv._conv_forward = lambda x, weight, bias, conv=conv: nn.Conv2d._conv_forward(
                conv, x, formula(weight), bias
            )


def initial_state(case: Case) -> dict[str, torch.Tensor]:
    """Random weights for all variants. Affine parameters and biases are not exactly 1 and 0, which
    could hide a wrong gradient. The last norm of a residual block starts small, as in training:
    with 1, random networks amplify rounding until nothing can be compared."""
    torch.manual_seed(0)
    state = dict(build_model(case.config(_STOCK)).cpu().state_dict())
    for name, tensor in state.items():
        if tensor.dim() == 1:
            state[name] = tensor + 0.1 * torch.randn_like(tensor)
        if name.endswith("conv3.norm.weight"):
            state[name] = 0.2 * state[name]
    return state
