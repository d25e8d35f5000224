"""A training and an evaluation by MMDetection's Runner: ../Benchmark/mmdetection.py says how to
install it."""

import json
from pathlib import Path
from typing import Any

import cv2
import mmdet
import numpy as np
import torch
from detectron2.config import CfgNode
from mmdet.datasets.transforms import Resize
from mmdet.registry import TRANSFORMS
from mmdet.structures.mask import BitmapMasks
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from recipe import Job, annotation_file, job_config, learning_rates

from gnws_d2.checkpoint import detectron2_to_mmdet, read_checkpoint
from gnws_d2.projects.digits import make_digits

BASE = "gn+ws/mask-rcnn_r50_fpn_gn-ws-all_2x_coco.py"


class Steps(Hook):
    """Sets Detectron2's learning rate before each iteration, and keeps the losses after it."""

    def __init__(self, rates: list[float]) -> None:
        self.rates = rates
        self.losses: dict[str, list[float]] = {}

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        for group in runner.optim_wrapper.optimizer.param_groups:
            group["lr"] = self.rates[runner.iter]

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        for name, loss in outputs.items():
            if name.startswith("loss_"):
                self.losses.setdefault(name, []).append(float(loss))


@TRANSFORMS.register_module()
class ExactMaskResize(Resize):
    """Resizes bitmaps to the nearest pixel; MMDetection's takes the one left of and above it."""

    def _resize_masks(self, results: dict[str, Any]) -> None:
        height, width = results["img_shape"]
        masks = [
            cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
            for mask in results["gt_masks"].masks
        ]
        results["gt_masks"] = BitmapMasks(np.stack(masks), height, width)


def train(job: Job, weights: Path | None, folder: Path) -> tuple[dict[str, list[float]], Path]:
    """Train, from ``weights`` if given: the losses of each iteration, and the checkpoint."""
    config = runner_config(job, folder)
    config.load_from = weights and str(weights)
    runner = Runner.from_cfg(config)
    steps = Steps(learning_rates(job_config(job, folder)))
    runner.register_hook(steps)
    runner.train()
    return steps.losses, folder / f"iter_{config.train_cfg.max_iters}.pth"


def evaluate(job: Job, weights: Path, folder: Path) -> dict[str, float]:
    """AP by name, "bbox" and "segm", to a tenth, of a file of weights under Detectron2's names or
    under its own."""
    checkpoint = read_checkpoint(weights)
    if "model" in checkpoint:
        tensors = detectron2_to_mmdet(checkpoint, job_config(job, folder))
        weights = folder / "converted.pth"
        torch.save({"state_dict": dict(tensors)}, weights)
    config = runner_config(job, folder)
    config.load_from = str(weights)
    found = Runner.from_cfg(config).test()
    return {name: 100 * found[f"coco/{name}_mAP"] for name in config.test_evaluator.metric}


def runner_config(job: Job, folder: Path) -> Config:
    """The config of a Runner that trains what :func:`recipe.job_config` says, and evaluates it."""
    register_all_modules()
    cfg = job_config(job, folder)
    base = Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / BASE)
    side = cfg.INPUT.MIN_SIZE_TRAIN[0]
    resize = {"scale": (side, side), "keep_ratio": True}
    train_resize = "ExactMaskResize" if job.change == "masks resized exactly" else "Resize"
    masks = {"with_bbox": True, "with_mask": cfg.MODEL.MASK_ON}
    meta = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    load = {"type": "LoadImageFromFile"}
    pipelines = {
        "train": [
            load,
            {"type": "LoadAnnotations", **masks},
            {"type": train_resize, **resize},
            {"type": "PackDetInputs"},
        ],
        "val": [load, {"type": "Resize", **resize}, {"type": "PackDetInputs", "meta_keys": meta}],
    }
    files = {split: str(annotation_file(job, split, folder)) for split in pipelines}
    categories = json.loads(Path(files["val"]).read_text(encoding="utf-8"))["categories"]
    loaders = {
        split: {
            "batch_size": cfg.SOLVER.IMS_PER_BATCH if split == "train" else 1,
            "num_workers": 0,
            "sampler": {"type": "InfiniteSampler" if split == "train" else "DefaultSampler",
                        "shuffle": split == "train"},
            "dataset": {
                "type": "CocoDataset",
                "ann_file": files[split],
                "data_prefix": {"img": f"{make_digits() / split}/"},
                "metainfo": {"classes": tuple(category["name"] for category in categories)},
                "filter_cfg": {"filter_empty_gt": True, "min_size": 32},
                "test_mode": split == "val",
                "pipeline": pipeline,
            },
        }
        for split, pipeline in pipelines.items()
    }  # fmt: skip
    solver = cfg.SOLVER
    return Config({
        "default_scope": "mmdet",
        "model": model_config(cfg, base.model),
        "work_dir": str(folder),
        "train_dataloader": loaders["train"],
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": solver.MAX_ITER},
        "optim_wrapper": {
            "type": "OptimWrapper",
            "optimizer": {"type": "SGD", "lr": solver.BASE_LR, "momentum": solver.MOMENTUM,
                          "weight_decay": solver.WEIGHT_DECAY},
        },
        "test_dataloader": loaders["val"],
        "test_cfg": {"type": "TestLoop"},
        "test_evaluator": {"type": "CocoMetric", "ann_file": files["val"],
                           "metric": ["bbox", "segm"][: 1 + cfg.MODEL.MASK_ON]},
        "default_hooks": {
            "checkpoint": {"type": "CheckpointHook", "by_epoch": False,
                           "interval": solver.MAX_ITER},
            "logger": {"type": "LoggerHook", "interval": 50},
        },
        "log_processor": {"by_epoch": False},
        "randomness": {"seed": job.seed},
    })  # fmt: skip


def model_config(cfg: CfgNode, model: Any) -> Any:
    """MMDetection's ``model`` with the numbers of ``cfg``."""
    m = cfg.MODEL
    width = [m.RESNETS.RES2_OUT_CHANNELS * 2**stage for stage in range(4)]
    model.type = "MaskRCNN" if m.MASK_ON else "FasterRCNN"
    # Detectron2 has no zero_init_residual, which only matters without an ImageNet backbone.
    model.backbone.update(depth=m.RESNETS.DEPTH, frozen_stages=m.BACKBONE.FREEZE_AT - 1,
                          init_cfg=None, zero_init_residual=False)  # fmt: skip
    model.neck.update(in_channels=width, out_channels=m.FPN.OUT_CHANNELS)
    channels = {"in_channels": m.FPN.OUT_CHANNELS}
    model.rpn_head.update(**channels, feat_channels=m.FPN.OUT_CHANNELS)
    sizes = [size for [size] in m.ANCHOR_GENERATOR.SIZES]
    model.rpn_head.anchor_generator.update(scales=[1.0], base_sizes=sizes)
    heads, classes = model.roi_head, m.ROI_HEADS.NUM_CLASSES
    box, mask = m.ROI_BOX_HEAD, m.ROI_MASK_HEAD
    heads.bbox_roi_extractor.out_channels = m.FPN.OUT_CHANNELS
    heads.bbox_roi_extractor.roi_layer.sampling_ratio = box.POOLER_SAMPLING_RATIO
    heads.bbox_head.update(type="ConvFCBBoxHead", **channels, num_classes=classes,
                           num_shared_convs=box.NUM_CONV, conv_out_channels=box.CONV_DIM,
                           num_shared_fcs=box.NUM_FC, fc_out_channels=box.FC_DIM)  # fmt: skip
    heads.mask_roi_extractor.out_channels = m.FPN.OUT_CHANNELS
    heads.mask_roi_extractor.roi_layer.sampling_ratio = mask.POOLER_SAMPLING_RATIO
    heads.mask_head.update(**channels, num_convs=mask.NUM_CONV, conv_out_channels=mask.CONV_DIM,
                           num_classes=classes)  # fmt: skip
    rpn, rcnn = model.train_cfg.rpn, model.train_cfg.rcnn
    rpn.sampler.num = m.RPN.BATCH_SIZE_PER_IMAGE
    rcnn.sampler.update(num=m.ROI_HEADS.BATCH_SIZE_PER_IMAGE,
                        pos_fraction=m.ROI_HEADS.POSITIVE_FRACTION)  # fmt: skip
    model.train_cfg.rpn_proposal.update(nms_pre=m.RPN.PRE_NMS_TOPK_TRAIN,
                                        max_per_img=m.RPN.POST_NMS_TOPK_TRAIN)  # fmt: skip
    model.test_cfg.rpn.update(nms_pre=m.RPN.PRE_NMS_TOPK_TEST,
                              max_per_img=m.RPN.POST_NMS_TOPK_TEST)  # fmt: skip
    if not m.MASK_ON:
        del heads.mask_roi_extractor, heads.mask_head
        # The rule of its Faster R-CNN configs.
        rcnn.assigner.match_low_quality = False
    return model
