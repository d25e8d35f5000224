"""What makes micro-batches, one after the other, the same as the large batch they are cut from.

In Detectron2 a picture of a batch depends on the others in three ways:

- Each loss is divided by something counted in the batch: the losses of the RPN by the number of
  images, those of the box head by the number of sampled proposals, that of the mask head by the
  number of foreground ones. The mean over micro-batches is another, as they differ in the latter
  two; weighted by count / total count, their losses add up to that of the batch.
- Pictures are padded to the largest of the batch, which the statistics of a norm see.
- Anchors are sampled for all pictures and proposals for all pictures thereafter, from one stream of
  random numbers.

All of this has to be known before the first backward. So backbone, RPN and sampling are run
beforehand, without gradients, and what they needed of the batch is handed to each micro-batch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import (
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
)
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from ..config import ConfigError
from ..modeling.proposal_generator import MaxIoURPN
from ..modeling.roi_heads import MaxIoUROIHeads

# What each part has to be, looked up in this order. A subclass may have losses of its own.
_KNOWN: dict[str, tuple[type, ...]] = {
    "": (GeneralizedRCNN,),
    "proposal_generator": (RPN, MaxIoURPN),
    "roi_heads": (StandardROIHeads, MaxIoUROIHeads),
    "roi_heads.box_predictor": (FastRCNNOutputLayers,),
    "roi_heads.mask_head": (MaskRCNNConvUpsampleHead,),
}


def check_known(model: nn.Module) -> None:
    """Raise ConfigError where ``model`` makes other use of a batch than is known here."""
    heads: Any = getattr(model, "roi_heads", None)
    for name, known in _KNOWN.items():
        if name == "roi_heads.mask_head" and not heads.mask_on:
            continue
        part = operator.attrgetter(name)(model) if name else model
        if type(part) not in known:
            raise _unknown(f"{name or 'the model'} is a {type(part).__name__}")
    if heads.keypoint_on:
        raise _unknown("it has a keypoint loss")
    if heads.box_predictor.use_fed_loss:
        raise _unknown("it has a federated loss")


def _unknown(what: str) -> ConfigError:
    return ConfigError(
        'SOLVER.ACCUMULATION_NORMALIZER is "batch", but how the losses of a batch come about is '
        f"known here for Faster and Mask R-CNN alone, and {what}. Set it to "
        '"micro_batch", the mean of the micro-batches.'
    )


@dataclass(frozen=True)
class Share:
    """What a micro-batch takes from the large batch: the weight of each of its losses, the height
    and width to pad to, and the states of the random numbers with which its anchors and its
    proposals are sampled."""

    weights: dict[str, float]
    size: tuple[int, int]
    anchor_draws: torch.Tensor
    proposal_draws: torch.Tensor


def share_out(
    model: GeneralizedRCNN,
    parts: Sequence[list[dict[str, Any]]],
    precision: Callable[[], AbstractContextManager],
) -> list[Share]:
    """The share of every micro-batch. Random numbers and buffers of the model stay as they were.

    Args:
        model: one that :func:`check_known` accepts, in training mode.
        parts: the micro-batches of one optimizer step.
        precision: gives the context that the forward of a step runs in.

    Returns:
        A share for each of ``parts``. The weights of a loss sum to 1 over them, or are 0 where
        there is nothing to count.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    draws_before = _get_draws(model)
    counts, anchor_draws, proposal_draws, found = [], [], [], []
    # What is logged here would be logged a second time by the step.
    with torch.no_grad(), EventStorage():
        shapes = [model.preprocess_image(part).tensor.shape[-2:] for part in parts]
        size = (max(h for h, _ in shapes), max(w for _, w in shapes))
        for part in parts:
            anchor_draws.append(_get_draws(model))
            with precision():
                images = _pad(model.preprocess_image(part), size)
                targets = [_boxes(picture["instances"]).to(model.device) for picture in part]
                features = model.backbone(images.tensor)
                proposals, _ = model.proposal_generator(images, features, targets)
            found.append((proposals, targets))
        for proposals, targets in found:
            proposal_draws.append(_get_draws(model))
            sampled = model.roi_heads.label_and_sample_proposals(proposals, targets)
            counts.append(_counts(sampled, model.roi_heads.num_classes))
        # A BatchNorm in training has counted the batch in; it will once more.
        for buffer, before in buffers:
            buffer.copy_(before)
    _set_draws(model, draws_before)
    totals = {name: max(sum(count[name] for count in counts), 1) for name in counts[0]}
    weights = [{name: n / totals[name] for name, n in count.items()} for count in counts]
    return [
        Share(w, size, anchors, proposals)
        for w, anchors, proposals in zip(weights, anchor_draws, proposal_draws, strict=True)
    ]


@contextmanager
def taking(model: GeneralizedRCNN, share: Share) -> Iterator[None]:
    """Let the forward of a micro-batch within the context take its share of the large batch."""
    preprocess = model.preprocess_image
    hooks = [
        part.register_forward_pre_hook(lambda *_, draws=draws: _set_draws(model, draws))
        for part, draws in (
            (model.proposal_generator, share.anchor_draws),
            (model.roi_heads, share.proposal_draws),
        )
    ]
    model.preprocess_image = lambda part: _pad(preprocess(part), share.size)
    try:
        yield
    finally:
        del model.preprocess_image  # that of the object; the one of its class is left
        for hook in hooks:
            hook.remove()


def _boxes(instances: Instances) -> Instances:
    """What sampling looks at. The masks of a whole batch would take room on the device."""
    boxes, classes = instances.gt_boxes, instances.gt_classes
    return Instances(instances.image_size, gt_boxes=boxes, gt_classes=classes)


def _counts(sampled: list[Any], background: int) -> dict[str, int]:
    """What each loss of these pictures is divided by."""
    rois = sum(len(proposals) for proposals in sampled)
    foreground = sum(int((proposals.gt_classes != background).sum()) for proposals in sampled)
    return {
        **{"loss_rpn_cls": len(sampled), "loss_rpn_loc": len(sampled)},
        **{"loss_cls": rois, "loss_box_reg": rois, "loss_mask": foreground},
    }


def _pad(images: ImageList, size: tuple[int, int]) -> ImageList:
    height, width = images.tensor.shape[-2:]
    padded = F.pad(images.tensor, (0, size[1] - width, 0, size[0] - height))
    return ImageList(padded, images.image_sizes)


def _get_draws(model: GeneralizedRCNN) -> torch.Tensor:
    """The state of the random numbers of the model's device, on which it samples."""
    cuda = model.device.type == "cuda"
    return torch.cuda.get_rng_state(model.device) if cuda else torch.get_rng_state()


def _set_draws(model: GeneralizedRCNN, state: torch.Tensor) -> None:
    if model.device.type == "cuda":
        torch.cuda.set_rng_state(state, model.device)
    else:
        torch.set_rng_state(state)
