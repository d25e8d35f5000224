"""FCOS R-18-FPN with GN+WS, heads included, on Digits."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from gnws_d2 import standardize

from .lazy_common import (  # noqa: F401
    dataloader,
    detectron2_model,
    lr_multiplier,
    optimizer,
    pixel_mean,
    pixel_std,
    train,
)

plain = detectron2_model("fcos")
plain.pixel_mean, plain.pixel_std = pixel_mean, pixel_std
plain.num_classes = 10
plain.backbone.bottom_up.stem.norm = "GN"
stages = plain.backbone.bottom_up.stages
stages.depth, stages.norm = 18, "GN"
del stages.stride_in_1x1  # of bottleneck blocks
plain.backbone.bottom_up.freeze_at = 0
plain.backbone.out_channels, plain.backbone.norm = 64, "GN"
plain.backbone.top_block.in_channels = 64
plain.head.input_shape = [ShapeSpec(channels=64)] * 5
plain.head.conv_dims = [64, 64]

model = L(standardize)(model=plain, parts=["stem", "backbone", "fpn", "head"])
train.output_dir = "./output/digits_fcos"
optimizer.lr = 0.01
