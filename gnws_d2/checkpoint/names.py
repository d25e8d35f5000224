"""The tensors of a detector under MMDetection's names and under Detectron2's.

The two frameworks hold the same tensors in the same layout; only the names differ, one to one.
Names read from MMDetection 3.3.0 (``gn1`` .. ``gn3``, ``shared_convs.N.gn``, ...). Its backbones
have the names of torchvision and timm (``bn1`` .. ``bn3``, whatever the norm is there).
"""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from detectron2.config import CfgNode

from ..config import config_names, load_config
from ..errors import CheckpointError
from .contents import contents_of
from .structure import Differences, Shapes, check_values, shapes_of

CPU = ("MODEL.DEVICE", "cpu")  # of models whose shapes alone are asked for
_BOTTOM_UP = "backbone.bottom_up."  # where a detector has its ResNet; MMDetection: "backbone."

# A module in Detectron2; its counterpart in MMDetection; what is subtracted from its first number.
_MODULES = (
    (r"stem\.conv1", "conv1", 0),
    (r"res(\d+)\.(\d+)\.conv(\d+)", "layer{}.{}.conv{}", 1),
    (r"res(\d+)\.(\d+)\.shortcut", "layer{}.{}.downsample.0", 1),
    (r"linear", "fc", 0),  # the classifier of an ImageNet backbone
    (r"backbone\.fpn_lateral(\d+)", "neck.lateral_convs.{}.conv", 2),
    (r"backbone\.fpn_output(\d+)", "neck.fpn_convs.{}.conv", 2),
    (r"proposal_generator\.rpn_head\.conv", "rpn_head.rpn_conv", 0),
    (r"proposal_generator\.rpn_head\.objectness_logits", "rpn_head.rpn_cls", 0),
    (r"proposal_generator\.rpn_head\.anchor_deltas", "rpn_head.rpn_reg", 0),
    (r"roi_heads\.box_head\.conv(\d+)", "roi_head.bbox_head.shared_convs.{}.conv", 1),
    (r"roi_heads\.box_head\.fc(\d+)", "roi_head.bbox_head.shared_fcs.{}", 1),
    (r"roi_heads\.box_predictor\.cls_score", "roi_head.bbox_head.fc_cls", 0),
    (r"roi_heads\.box_predictor\.bbox_pred", "roi_head.bbox_head.fc_reg", 0),
    (r"roi_heads\.mask_head\.mask_fcn(\d+)", "roi_head.mask_head.convs.{}.conv", 1),
    (r"roi_heads\.mask_head\.deconv", "roi_head.mask_head.upsample", 0),
    (r"roi_heads\.mask_head\.predictor", "roi_head.mask_head.conv_logits", 0),
)
# The end of a convolution's name in MMDetection, and that of the norm behind it, "gn" or "bn".
_NORMS = ((r"downsample\.0$", "downsample.1"), (r"\.conv$", ".{}"), (r"conv(\d+)$", r"{}\1"))


def mmdet_to_detectron2(
    state_dict: Mapping[str, torch.Tensor], config: CfgNode | str | None = None
) -> dict[str, torch.Tensor]:
    """Rename the tensors of a Faster or Mask R-CNN of MMDetection for Detectron2.

    Args:
        state_dict: what an OpenMMLab ``.pth`` file holds, or has under ``state_dict``: a whole
            detector, or an ImageNet backbone under bare names (``conv1``, ``layer1.0.conv1``, ...),
            with or without its classifier, which becomes ``linear``.
        config: the model that the tensors have to fit: a config, or the file or name of one. By
            default any packaged one, with any number of classes.

    Returns:
        The same tensors in the same order, not copied.

    Raises:
        CheckpointError: a tensor is missing, unknown, of another shape, not finite, or not a
            tensor; the message lists them and names a packaged config that would fit.
    """
    return _convert(state_dict, config, to_detectron2=True)


def detectron2_to_mmdet(
    state_dict: Mapping[str, torch.Tensor], config: CfgNode | str | None = None
) -> dict[str, torch.Tensor]:
    """The inverse of :func:`mmdet_to_detectron2`, with the same checks."""
    return _convert(state_dict, config, to_detectron2=False)


def detectron2_names(state_dict: dict[str, Any], own: Iterable[str]) -> dict[str, Any]:
    """Tensors of MMDetection, torchvision or timm under the names of a model of Detectron2, which
    are ``own``; those of a bare backbone begin with "stem" and "res2" to "res5". Others keep their
    names."""
    if "conv1.weight" in state_dict:
        own = [re.sub(r"^.*?(?=(stem|res\d)\.)", "", name) for name in own]
        own += ["linear.weight", "linear.bias"]
    elif "backbone.conv1.weight" not in state_dict:
        return state_dict
    norm = _norm(state_dict)
    names = {theirs: name for name in own if (theirs := _renamed(name, norm))}
    return {names.get(name, name): tensor for name, tensor in state_dict.items()}


def _norm(names: Iterable[str]) -> str:
    bn = r"(backbone\.)?bn1\..*|.*\.running_var"
    return "bn" if any(re.fullmatch(bn, name) for name in names) else "gn"


def mmdet_name(name: str, norm: str = "gn") -> str:
    """The name in MMDetection of the tensor that Detectron2 calls ``name``; ``norm`` is how norms
    are called there.

    Raises:
        CheckpointError: no GN or GN+WS Faster or Mask R-CNN has such a tensor.
    """
    if renamed := _renamed(name, norm):
        return renamed
    raise CheckpointError(
        f"{name} is not a tensor of a GN or GN+WS Faster or Mask R-CNN with FPN; other models "
        "have no counterpart in MMDetection's configs/gn+ws."
    )


@functools.cache  # asked for each tensor in turn by the search, the checks and the renaming
def _renamed(name: str, norm: str) -> str:
    module, _, parameter = name.removeprefix(_BOTTOM_UP).rpartition(".")
    conv = module.removesuffix(".norm")
    for pattern, target, index_offset in _MODULES:
        match = re.fullmatch(pattern, conv)
        if match:
            first, *others = match.groups() or (0,)
            renamed = target.format(int(first) - index_offset, *others)
            if conv != module:
                end, after = next(pair for pair in _NORMS if re.search(pair[0], renamed))
                renamed = re.sub(end, after.format(norm), renamed)
            prefix = "backbone." if name.startswith(_BOTTOM_UP) else ""
            return f"{prefix}{renamed}.{parameter}"
    return ""


def _convert(
    state_dict: Mapping[str, torch.Tensor], config: CfgNode | str | None, to_detectron2: bool
) -> dict[str, torch.Tensor]:
    state_dict = contents_of(state_dict, "the file")["model"]
    check_values(state_dict, "the state dict")
    if config is None:
        described, names, differences = _closest_packaged(state_dict, to_detectron2)
    else:
        described = config if isinstance(config, str) else "the config"
        cfg = load_config(config, CPU) if isinstance(config, str) else config
        names, differences = _match(state_dict, shapes_of(cfg), to_detectron2)
    if differences:
        raise CheckpointError(
            f"The checkpoint does not fit {described}: {differences}."
            + _hint(state_dict, config is not None, to_detectron2)
        )
    return {names[name]: tensor for name, tensor in state_dict.items() if name in names}


def _match(
    state_dict: Mapping[str, torch.Tensor], expected: Shapes, to_detectron2: bool
) -> tuple[dict[str, str], Differences]:
    """The new name of each expected tensor by its old one, and how ``state_dict`` differs from
    what is ``expected`` of a model, under Detectron2's names."""
    expected = _relevant(expected, state_dict)
    norm = _norm(state_dict)
    names = {name: mmdet_name(name, norm) for name in expected}
    if to_detectron2:
        names = {theirs: name for name, theirs in names.items()}
    return names, Differences(state_dict, dict(zip(names, expected.values(), strict=True)))


def _hint(state_dict: Mapping[str, torch.Tensor], one_config: bool, to_detectron2: bool) -> str:
    rows = {
        name.split(".")[-2]: len(tensor)
        for name, tensor in state_dict.items()
        if name.endswith((".fc_cls.bias", ".fc_reg.bias")) and tensor.ndim == 1
    }
    background_first = rows.get("fc_reg") == 4 * rows.get("fc_cls", 0) != 0
    if background_first or any(n.startswith(("bbox_head.", "mask_head.")) for n in state_dict):
        return (
            " It is a file of MMDetection 1.x, whose background is the first class. Upgrade it "
            "with MMDetection's tools/model_converters/upgrade_model_version.py."
        )
    if not one_config:
        return " To convert a model of your own, name its config."
    name, _, differences = _closest_packaged(state_dict, to_detectron2)
    classes = _num_classes(state_dict)
    number = f", with MODEL.ROI_HEADS.NUM_CLASSES {classes}" if classes else ""
    return "" if differences else f" It fits {name}{number}."


def _closest_packaged(
    state_dict: Mapping[str, torch.Tensor], to_detectron2: bool
) -> tuple[str, dict[str, str], Differences]:
    """The packaged config with the fewest differences, and the result of :func:`_match`."""
    classes = _num_classes(state_dict)
    # One config of each set of shapes; all others have the shapes of one of these.
    one = r"/(faster|mask)_rcnn_\w+_FPN_gn_ws(_1x|_2x|)\.yaml$"
    matches = [
        (name, *_match(state_dict, _packaged_shapes(name, classes), to_detectron2))
        for name in config_names()
        if re.search(one, name)
    ]
    return min(matches, key=lambda match: len(match[2]))


@functools.cache
def _packaged_shapes(name: str, classes: int | None) -> Shapes:
    opts = () if classes is None else ("MODEL.ROI_HEADS.NUM_CLASSES", str(classes))
    return shapes_of(load_config(name, [*CPU, *opts]))


def _relevant(expected: Shapes, state_dict: Mapping[str, torch.Tensor]) -> Shapes:
    """All of ``expected``; for a bare backbone, its part of it, with a classifier if it has one."""
    if not _is_backbone(state_dict):
        return expected
    backbone = {
        name.removeprefix(_BOTTOM_UP): shape
        for name, shape in expected.items()
        if name.startswith(_BOTTOM_UP)
    }
    classifier = state_dict.get("fc.weight", state_dict.get("linear.weight"))
    if classifier is not None and classifier.ndim == 2:
        classes, channels = len(classifier), backbone[list(backbone)[-1]][0]
        backbone |= {"linear.weight": (classes, channels), "linear.bias": (classes,)}
    return backbone


def _is_backbone(names: Mapping[str, object]) -> bool:
    """Whether this is a backbone alone, under bare names."""
    mmdet = ("backbone.", "neck.", "rpn_head.", "roi_head.", "bbox_head.", "mask_head.")
    return not any(name.startswith((*mmdet, "proposal_generator.", "roi_heads.")) for name in names)


def _num_classes(state_dict: Mapping[str, torch.Tensor]) -> int | None:
    """The number of classes of the box predictor, without the background."""
    for name, tensor in state_dict.items():
        if name.endswith((".fc_cls.bias", ".cls_score.bias")) and tensor.ndim == 1:
            return max(1, len(tensor) - 1)
    return None
