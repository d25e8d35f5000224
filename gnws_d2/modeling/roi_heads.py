"""ROI heads that assign proposals to objects as MMDetection does."""

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads
from torch import nn

from .initialization import init_mask_predictor, init_xavier
from .matcher import MaxIoUMatcher


@ROI_HEADS_REGISTRY.register()
class MaxIoUROIHeads(StandardROIHeads):
    """``detectron2.modeling.roi_heads.StandardROIHeads`` with the targets of MMDetection's
    ``StandardRoIHead``.

    - Proposals are matched as without the ground truth that is added to them; a ground-truth box
      matches itself, even where two are the same.
    - With masks, low-quality matches from an IoU of 0.5 move a proposal to the object whose best
      it is; see :class:`~.matcher.MaxIoUMatcher`. Without masks there are none.
    - The linear layers of the box head and the mask predictor are initialized as in MMDetection;
      see :mod:`.initialization`.

    Heads, parameter names and inference are those of ``StandardROIHeads``. Source:
    ``BaseSampler.sample`` and the configs ``configs/_base_/models/{faster,mask}-rcnn_r50_fpn.py``
    of MMDetection 3.3.0.
    """

    plain_class = StandardROIHeads  # which they are at inference

    @configurable
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.proposal_matcher.ends_in_truth = self.proposal_append_gt
        init_xavier(m for m in self.box_head.modules() if isinstance(m, nn.Linear))
        if self.mask_on:
            init_mask_predictor(self.mask_head)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        heads = cfg.MODEL.ROI_HEADS
        low_quality_iou = 0.5 if cfg.MODEL.MASK_ON else None
        matcher = MaxIoUMatcher(heads.IOU_THRESHOLDS, heads.IOU_LABELS, low_quality_iou)
        return {**super().from_config(cfg, input_shape), "proposal_matcher": matcher}
