"""The model of mask_rcnn_R_18_FPN_gn_ws.yaml as a LazyConfig."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from gnws_d2 import standardize
from gnws_d2.modeling import WSFastRCNNConvFCHead, WSMaskRCNNConvUpsampleHead

from .lazy_common import dataloader, detectron2_model, lr_multiplier, make_small, optimizer, train  # noqa: F401

model = detectron2_model("mask_rcnn_fpn")
make_small(model)
model.input_format = "RGB"
model.backbone = L(standardize)(model=model.backbone)

rpn = model.proposal_generator
rpn.head.in_channels = 64
rpn.anchor_generator.sizes = [[16], [32], [64], [96], [128]]
rpn.pre_nms_topk, rpn.post_nms_topk = (200, 100), (200, 50)

heads = model.roi_heads
heads.num_classes, heads.batch_size_per_image, heads.positive_fraction = 10, 32, 0.5
heads.box_pooler.sampling_ratio = heads.mask_pooler.sampling_ratio = 1
heads.box_head._target_ = WSFastRCNNConvFCHead
heads.box_head.input_shape = ShapeSpec(channels=64, height=7, width=7)
heads.box_head.conv_dims, heads.box_head.conv_norm = [64, 64], "GN"
heads.box_head.fc_dims = [256]
heads.box_predictor.input_shape = ShapeSpec(channels=256)
heads.mask_head._target_ = WSMaskRCNNConvUpsampleHead
heads.mask_head.input_shape = ShapeSpec(channels=64, height=14, width=14)
heads.mask_head.conv_dims, heads.mask_head.conv_norm = [64, 64, 64], "GN"

train.output_dir = "./output/digits_lazy_mask_rcnn"
