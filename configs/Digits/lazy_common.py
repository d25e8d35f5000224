"""What the LazyConfigs here share: Digits' data, the optimizer, the schedule, and Detectron2's own
description of a model by its name."""

from pathlib import Path

import detectron2
import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import CosineParamScheduler

import gnws_d2.projects.digits  # noqa: F401  registers the datasets
from gnws_d2.data import Mapper
from gnws_d2.engine import COCOEvaluator


def detectron2_model(name):
    """A model of Detectron2's "common/models", such as "fcos"."""
    models = Path(detectron2.__file__).parent / "model_zoo" / "configs" / "common" / "models"
    return LazyConfig.load(str(models / f"{name}.py")).model


def make_small(model):
    """Give ``model`` the backbone of the YAML configs, R-18-FPN with GN and 64 channels, and their
    preprocessing."""
    model.pixel_mean, model.pixel_std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    backbone = model.backbone
    backbone.bottom_up.stem.norm = "GN"
    stages = backbone.bottom_up.stages
    stages.depth, stages.norm = 18, "GN"
    del stages.stride_in_1x1  # of bottleneck blocks
    backbone.bottom_up.freeze_at = 0
    backbone.out_channels, backbone.norm = 64, "GN"


dataloader = dict(
    train=L(build_detection_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names="digits_train"),
        mapper=L(Mapper)(
            is_train=True,
            augmentations=[L(ResizeShortestEdge)(short_edge_length=128)],
            image_format="RGB",
            use_instance_mask=True,
            instance_mask_format="bitmask",
        ),
        total_batch_size=4,
        num_workers=0,
    ),
    test=L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="digits_val", filter_empty=False),
        mapper=L(Mapper)(
            is_train=False,
            augmentations=[L(ResizeShortestEdge)(short_edge_length=128)],
            image_format="RGB",
        ),
        num_workers=0,
    ),
    evaluator=L(COCOEvaluator)(dataset_name="digits_val"),
)

optimizer = L(torch.optim.SGD)(
    params=L(get_default_optimizer_params)(), lr=0.03, momentum=0.9, weight_decay=1e-4
)

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    warmup_length=0.07,
    warmup_factor=0.001,
    warmup_method="linear",
)

train = dict(
    output_dir="./output/digits_lazy",
    init_checkpoint="",
    max_iter=750,
    amp=dict(enabled=False),
    ddp=dict(broadcast_buffers=False),
    checkpointer=dict(period=200, max_to_keep=100),
    eval_period=750,
    log_period=20,
    process_timeout=1800,  # seconds, as SOLVER.PROCESS_TIMEOUT
    ema_decay=0.0,  # as SOLVER.EMA_DECAY
    device="cuda" if torch.cuda.is_available() else "cpu",
)
