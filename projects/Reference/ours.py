"""A training and an evaluation by this package, with Detectron2's trainer."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling.matcher import Matcher
from recipe import Job, annotation_file, job_config

from gnws_d2.data import Mapper, load_train_dataset
from gnws_d2.engine import Trainer
from gnws_d2.engine.data_order import ResumableLoader
from gnws_d2.projects.digits import make_digits

# Their names here -> in MMDetection.
LOSSES = {
    "loss_rpn_cls": "loss_rpn_cls",
    "loss_rpn_loc": "loss_rpn_bbox",
    "loss_cls": "loss_cls",
    "loss_box_reg": "loss_bbox",
    "loss_mask": "loss_mask",
}
SPLITS = {"train": "TRAIN", "val": "TEST"}


def train(job: Job, weights: Path | None, folder: Path) -> tuple[dict[str, list[float]], Path]:
    """Train, from ``weights`` if given: MMDetection's losses of each iteration, and the file of
    the weights under Detectron2's names."""
    cfg = prepared(job, folder)
    if weights:
        cfg.MODEL.WEIGHTS, cfg.MODEL.REMAKE_PREDICTORS = str(weights), True
    cfg.DATASETS.TEST = ()  # evaluated afterwards
    trainer = (OpenCVMasks if job.change == "masks resized as OpenCV" else Trainer)(cfg)
    change(job, trainer)
    trainer.resume_or_load(resume=False)
    trainer.train()
    histories = trainer.storage.histories()
    losses = {
        theirs: [value for value, _ in histories[name].values()]
        for name, theirs in LOSSES.items()
        if name in histories
    }
    return losses, folder / "model_final.pth"


def evaluate(job: Job, weights: Path, folder: Path) -> dict[str, float]:
    """AP by name, "bbox" and "segm", of a file of weights under either names."""
    cfg = prepared(job, folder)
    cfg.MODEL.WEIGHTS = str(weights)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    results = Trainer.test(cfg, trainer.model)
    return {name: scores["AP"] for name, scores in results.items()}


def prepared(job: Job, folder: Path) -> CfgNode:
    """The config of a job, with its datasets registered."""
    cfg = job_config(job, folder)
    for split, key in SPLITS.items():
        name = f"{job.name}-{split}"
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        file = annotation_file(job, split, folder)
        register_coco_instances(name, {}, str(file), str(make_digits() / split))
        cfg.DATASETS[key] = (name,)
    if job.change == "Detectron2's anchors":
        cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RPN"
    if job.change == "Pillow":
        cfg.INPUT.RESIZE_TRAIN = cfg.INPUT.RESIZE_TEST = "pil"
    return cfg


def change(job: Job, trainer: Trainer) -> None:
    """Change the rules of a model that are not keys of the config."""
    heads: Any = trainer.model.roi_heads
    if job.change == "Detectron2's proposals":
        settings = trainer.cfg.MODEL.ROI_HEADS
        heads.proposal_matcher = Matcher(settings.IOU_THRESHOLDS, settings.IOU_LABELS)
    if job.change == "Detectron2's initialization":
        cfg = trainer.cfg.clone()
        cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
        torch.manual_seed(job.seed)
        trainer.model.load_state_dict(Trainer.build_model(cfg).state_dict())


class OpenCVMasks(Trainer):
    """Resizes bitmaps as MMDetection does: by OpenCV's INTER_NEAREST, which takes the pixel left
    of and above the nearest one."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> ResumableLoader:
        return ResumableLoader(cfg, dataset=load_train_dataset(cfg), mapper=OpenCVMaskMapper(cfg))


class OpenCVMaskMapper(Mapper):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        augs = self.augmentations.augs
        augs[:] = [_ResizeMasks(a) if isinstance(a, T.ResizeShortestEdge) else a for a in augs]


class _ResizeMasks(T.Augmentation):
    def __init__(self, resize: T.Augmentation) -> None:
        self.resize = resize

    def get_transform(self, image: np.ndarray) -> T.Transform:
        plain = self.resize.get_transform(image)
        return _ResizeMasksTransform(plain.h, plain.w, plain.new_h, plain.new_w, plain.interp)


class _ResizeMasksTransform(T.ResizeTransform):
    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        size = (self.new_w, self.new_h)
        return cv2.resize(segmentation, size, interpolation=cv2.INTER_NEAREST)
