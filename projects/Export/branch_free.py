"""Faster and Mask R-CNN without branches on data, which ``torch.export`` does not allow.

Detectron2's inference branches in Python on how many boxes are left, whether all are finite, and
whether a feature map has more anchors than needed. A graph that is recorded once for all images
cannot. This module holds the two selections of boxes and a few other functions without branches;
they select the same boxes. They replace Detectron2's while the graph is recorded.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import torchvision
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn
from torch.nn import functional as F

Size = tuple[int, int]  # height, width; symbols while a graph is recorded


class BranchFreeDetector(nn.Module):
    """A :class:`~gnws_d2.projects.export.interface.Detector` of a ``GeneralizedRCNN`` with RPN and
    ``StandardROIHeads``, recordable by ``torch.export`` for images of any height and width from
    :meth:`smallest` pixels on."""

    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__()
        self.model = model.eval()

    @property
    def smallest(self) -> int:
        """Below this side length the coarsest feature map has one row, which torch records as a
        special case."""
        return 2 * self.model.backbone.size_divisibility + 1

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        model = self.model
        height, width = image.shape[-2:]
        unit = model.backbone.size_divisibility
        right, bottom = ((side + unit - 1) // unit * unit - side for side in (width, height))
        padded = F.pad((image - model.pixel_mean) / model.pixel_std, (0, right, 0, bottom))[None]
        images = ImageList(padded, [(height, width)])
        with _in_place_of_detectron2():
            features = model.backbone(padded)
            proposals, _ = model.proposal_generator(images, features, None)
            [found], _ = model.roi_heads(images, features, proposals, None)
        masks = [found.pred_masks] if found.has("pred_masks") else []
        outputs = (found.pred_boxes.tensor, found.scores, found.pred_classes, *masks)
        return tuple(output[:-1] for output in outputs)  # see _select_detections


@contextmanager
def _in_place_of_detectron2() -> Iterator[None]:
    replacements = {
        # A window of 1 and a stride of 2.
        "backbone.fpn.LastLevelMaxPool.forward": lambda _, x: [x[:, :, ::2, ::2]],
        "proposal_generator.rpn.find_top_rpn_proposals": _select_proposals,
        # (N, 4) boxes of the only image to (N, 5) with its index, 0, in front.
        "poolers.convert_boxes_to_pooler_format": lambda boxes: F.pad(boxes[0].tensor, (1, 0)),
        "roi_heads.fast_rcnn.fast_rcnn_inference": _select_detections,
    }
    # The first checks whether a group to be normalized has one value; in evaluation it may.
    norms = {"_verify_batch_size": lambda size: None, "batch_norm": _batch_norm}
    with ExitStack() as stack, mock.patch.multiple(F, **norms), patch_builtin_len():
        for name, replacement in replacements.items():
            stack.enter_context(mock.patch(f"detectron2.modeling.{name}", replacement))
        yield


class _Instances(Instances):
    """Instances that do not check the lengths of their fields."""

    def set(self, name: str, value: object) -> None:
        self._fields[name] = value


def _boxes(tensor: torch.Tensor) -> Boxes:
    boxes = Boxes.__new__(Boxes)  # its __init__ branches on their number
    boxes.tensor = tensor
    return boxes


def _batch_norm(x, mean, var, weight, bias, training=False, momentum=0.1, eps=1e-5):
    """In evaluation mode. torch's own branches on whether the input is empty, which is unknown for
    detected boxes."""
    if isinstance(x.shape[0], int):
        return torch.batch_norm(x, weight, bias, mean, var, training, momentum, eps, True)
    scale = weight * (var + eps).rsqrt()
    return x * scale[:, None, None] + (bias - mean * scale)[:, None, None]


def _select_proposals(
    proposals: list[torch.Tensor],
    logits: list[torch.Tensor],
    image_sizes: Sequence[Size],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> list[Instances]:
    """What ``find_top_rpn_proposals`` selects, for one image."""
    [size] = image_sizes
    best = []
    for level, (boxes, scores) in enumerate(zip(proposals, logits, strict=True)):
        top, index = scores[0].topk(torch.sym_min(scores.shape[1], pre_nms_topk))
        best.append((boxes[0][index], top, torch.full_like(top, level)))
    boxes, scores, levels = map(torch.cat, zip(*best, strict=True))
    finite = boxes.isfinite().all(1) & scores.isfinite()
    boxes = _clip(boxes, size)
    large = (boxes[:, 2:] - boxes[:, :2] > min_box_size).all(1)
    [kept] = torch.nonzero(finite & large, as_tuple=True)
    boxes, scores = boxes[kept], scores[kept]
    kept = _nms(boxes, scores, levels[kept], nms_thresh, size, post_nms_topk)
    result = _Instances(size)
    result.proposal_boxes, result.objectness_logits = _boxes(boxes[kept]), scores[kept]
    return [result]


def _select_detections(
    boxes: Sequence[torch.Tensor],
    scores: Sequence[torch.Tensor],
    image_shapes: Sequence[Size],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[torch.Tensor]]:
    """What ``fast_rcnn_inference`` selects, for one image, and one more detection at the end: a
    mask head cannot run on nothing in ONNX Runtime."""
    (box, score, size) = boxes[0], scores[0], image_shapes[0]
    finite = box.isfinite().all(1) & score.isfinite().all(1)
    score = score[:, :-1]  # the last class is the background
    box = _clip(box.unflatten(1, (-1, 4)).expand(-1, score.shape[1], -1), size)
    rows, classes = torch.nonzero((score > score_thresh) & finite[:, None], as_tuple=True)
    box, score = box[rows, classes], score[rows, classes]
    kept = _nms(box, score, classes, nms_thresh, size, topk_per_image)
    result = _Instances(size)
    result.pred_boxes = _boxes(F.pad(box[kept], (0, 0, 0, 1), value=1.0))
    result.scores, result.pred_classes = F.pad(score[kept], (0, 1)), F.pad(classes[kept], (0, 1))
    return [result], [rows[kept]]


def _clip(boxes: torch.Tensor, size: Size) -> torch.Tensor:
    height, width = size
    x0, y0, x1, y1 = boxes.unbind(-1)
    clipped = (x0.clamp(0, width), y0.clamp(0, height), x1.clamp(0, width), y1.clamp(0, height))
    return torch.stack(clipped, -1)


def _nms(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    groups: torch.Tensor,
    threshold: float,
    size: Size,
    most: int,
) -> torch.Tensor:
    """The indices that ``batched_nms`` keeps, by descending score, at most ``most`` of them."""
    # Each group is moved to where no other is.
    moved = boxes + groups.to(boxes)[:, None] * (torch.sym_max(*size) + 1)
    # torchvision tells torch.export that at least two boxes are kept: two that always are.
    far = boxes.new_tensor([[-4, -4, -3, -3], [-2, -2, -1, -1]])
    low = scores.new_full((2,), torch.finfo(scores.dtype).min)
    kept = torchvision.ops.nms(torch.cat((moved, far)), torch.cat((scores, low)), threshold)
    [ours] = torch.nonzero(kept < scores.shape[0], as_tuple=True)
    kept = kept[ours][: torch.sym_min(ours.shape[0], most)]
    torch._check(kept.shape[0] <= most)  # or its bound overflows in what is computed from it
    return kept
