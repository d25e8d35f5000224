"""FCOS R-18-FPN with GN+WS, heads included, on Digits."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from gnws_d2 import standardize

from .lazy_common import dataloader, detectron2_model, lr_multiplier, make_small, optimizer, train  # noqa: F401

plain = detectron2_model("fcos")
make_small(plain)
plain.num_classes = 10
plain.backbone.top_block.in_channels = 64
plain.head.input_shape = [ShapeSpec(channels=64)] * 5
plain.head.conv_dims = [64, 64]

model = L(standardize)(model=plain, parts=["stem", "backbone", "fpn", "head"])
train.output_dir = "./output/digits_fcos"
optimizer.lr = 0.01
