"""The names of a detector's tensors in MMDetection and in Detectron2.

The two frameworks hold the same tensors in the same layout; only the names differ, one to one.
Read from MMDetection 3.3.0 (GN models: ``gn1`` .. ``gn3``, ``shared_convs.N.gn``, ...).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping

import torch

from .checkpointer import CheckpointError

# MMDetection's module, Detectron2's module; a number of one is the number of the other, plus what
# is written behind it.
_MODULES = (
    ("backbone.conv1", "backbone.bottom_up.stem.conv1"),
    ("backbone.gn1", "backbone.bottom_up.stem.conv1.norm"),
    ("backbone.layer{s}.{b}.conv{c}", "backbone.bottom_up.res{s+1}.{b}.conv{c}"),
    ("backbone.layer{s}.{b}.gn{c}", "backbone.bottom_up.res{s+1}.{b}.conv{c}.norm"),
    ("backbone.layer{s}.{b}.downsample.0", "backbone.bottom_up.res{s+1}.{b}.shortcut"),
    ("backbone.layer{s}.{b}.downsample.1", "backbone.bottom_up.res{s+1}.{b}.shortcut.norm"),
    ("neck.lateral_convs.{l}.conv", "backbone.fpn_lateral{l+2}"),
    ("neck.lateral_convs.{l}.gn", "backbone.fpn_lateral{l+2}.norm"),
    ("neck.fpn_convs.{l}.conv", "backbone.fpn_output{l+2}"),
    ("neck.fpn_convs.{l}.gn", "backbone.fpn_output{l+2}.norm"),
    ("rpn_head.rpn_conv", "proposal_generator.rpn_head.conv"),
    ("rpn_head.rpn_cls", "proposal_generator.rpn_head.objectness_logits"),
    ("rpn_head.rpn_reg", "proposal_generator.rpn_head.anchor_deltas"),
    ("roi_head.bbox_head.shared_convs.{n}.conv", "roi_heads.box_head.conv{n+1}"),
    ("roi_head.bbox_head.shared_convs.{n}.gn", "roi_heads.box_head.conv{n+1}.norm"),
    ("roi_head.bbox_head.shared_fcs.{n}", "roi_heads.box_head.fc{n+1}"),
    ("roi_head.bbox_head.fc_cls", "roi_heads.box_predictor.cls_score"),
    ("roi_head.bbox_head.fc_reg", "roi_heads.box_predictor.bbox_pred"),
    ("roi_head.mask_head.convs.{n}.conv", "roi_heads.mask_head.mask_fcn{n+1}"),
    ("roi_head.mask_head.convs.{n}.gn", "roi_heads.mask_head.mask_fcn{n+1}.norm"),
    ("roi_head.mask_head.upsample", "roi_heads.mask_head.deconv"),
    ("roi_head.mask_head.conv_logits", "roi_heads.mask_head.predictor"),
)


def mmdet_to_detectron2(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the tensors of an MMDetection GN or GN+WS detector for Detectron2.

    Args:
        state_dict: what an OpenMMLab ``.pth`` file holds under ``state_dict``.

    Returns:
        The same tensors in the same order, not copied.

    Raises:
        CheckpointError: a name is not one of these detectors'; all such names are listed.
    """
    return _rename(state_dict, _TO_DETECTRON2, "MMDetection")


def detectron2_to_mmdet(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of :func:`mmdet_to_detectron2`."""
    return _rename(state_dict, _TO_MMDET, "Detectron2")


def _rename(
    state_dict: Mapping[str, torch.Tensor],
    rules: list[tuple[re.Pattern, Callable[[re.Match], str]]],
    framework: str,
) -> dict[str, torch.Tensor]:
    renamed, unknown = {}, []
    for name, tensor in state_dict.items():
        module, _, parameter = name.rpartition(".")
        for pattern, target in rules:
            if match := pattern.fullmatch(module):
                renamed[f"{target(match)}.{parameter}"] = tensor
                break
        else:
            unknown.append(f"{name} {tuple(tensor.shape)}")
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} of {len(state_dict)} tensors are not those of a GN or GN+WS Faster or "
            f"Mask R-CNN with FPN in {framework}: {', '.join(unknown)}."
        )
    return renamed


_NUMBER = re.compile(r"\{(\w)\+?(\d?)\}")


def _rule(source: str, target: str, sign: int) -> tuple[re.Pattern, Callable[[re.Match], str]]:
    """A pattern for the module ``source``, and what makes the name ``target`` of its match."""
    literal = _NUMBER.split(source)[::3]
    numbers = [f"(?P<{letter}>[0-9]+)" for letter, _ in _NUMBER.findall(source)]
    pattern = "".join(
        itertools.chain(*itertools.zip_longest(map(re.escape, literal), numbers, fillvalue=""))
    )
    added = {n: sign * int(plus) for n, plus in _NUMBER.findall(source + target) if plus}

    def fill(match: re.Match) -> str:
        return _NUMBER.sub(lambda n: str(int(match[n[1]]) + added.get(n[1], 0)), target)

    return re.compile(pattern), fill


_TO_DETECTRON2 = [_rule(mmdet, detectron2, +1) for mmdet, detectron2 in _MODULES]
_TO_MMDET = [_rule(detectron2, mmdet, -1) for mmdet, detectron2 in _MODULES]
