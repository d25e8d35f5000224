"""Train a LazyConfig on COCO files."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import create_keypoint_hflip_indices
from omegaconf import DictConfig, ListConfig, OmegaConf

import gnws_d2
from gnws_d2.data import Mapper

from .fit import fit_to_data
from .source import is_source


def name_data(cfg: Any, splits: Mapping[str, Sequence[str]], eval_only: bool) -> None:
    """Set the datasets of ``cfg`` that the command line names.

    Args:
        splits: names for "train", "val" and "test", see :func:`~.arguments.data_splits`.
        eval_only: only evaluate, on the test images if there are any.
    """
    tested = splits["test"] if eval_only and splits["test"] else splits["val"]
    if splits["train"] and not eval_only:
        cfg.dataloader.train.dataset.names = list(splits["train"])
    if tested:
        cfg.dataloader.test.dataset.names = list(tested)
        cfg.dataloader.evaluator.dataset_name = tested[0]


def fit_lazy_config(cfg: Any, skip_bad: bool = False) -> None:
    """Register and check the COCO files among the datasets of ``cfg``, and set the model's numbers
    of classes and keypoints, the mapper's mask format, and :class:`~gnws_d2.data.Mapper` for
    Detectron2's. Where the data has boxes alone, the mask heads are left out.

    Args:
        skip_bad: as DATALOADER.SKIP_BAD_ANNOTATIONS.

    Raises:
        DatasetError: see :func:`~.fit.fit_to_data`.
    """
    named = cfg.dataloader.train.dataset.names, cfg.dataloader.test.dataset.names
    train, test = ((n,) if isinstance(n, str) else tuple(n) for n in named)
    if not any(map(is_source, (*train, *test))):
        return
    has_keypoints = any(_parts_with(cfg.model, "keypoint_head"))
    opts = ["DATASETS.TRAIN", repr(train), "DATASETS.TEST", repr(test), "MODEL.MASK_ON", "True"]
    opts += ["MODEL.KEYPOINT_ON", str(has_keypoints), "MODEL.DEVICE", "cpu"]
    opts += ["DATALOADER.SKIP_BAD_ANNOTATIONS", str(skip_bad), "OUTPUT_DIR", cfg.train.output_dir]
    fitted = fit_to_data(gnws_d2.load_config("", opts))
    for node in _parts_with(cfg.model, "num_classes"):
        node.num_classes = len(fitted.DATASETS.CLASSES)
    for mapper in (cfg.dataloader.train.mapper, cfg.dataloader.test.mapper):
        if "instance_mask_format" in mapper:
            mapper.instance_mask_format = fitted.INPUT.MASK_FORMAT
        if mapper.get("_target_") is DatasetMapper:
            mapper._target_ = Mapper  # which reads 16 bits, and names the image in its errors
    mapper = cfg.dataloader.train.mapper
    if not fitted.MODEL.MASK_ON:
        # Boxes can be recomputed from masks alone.
        mapper.update(
            {key: False for key in ("use_instance_mask", "recompute_boxes") if key in mapper}
        )
        _leave_out_masks(cfg.model)
    if has_keypoints:
        for node in _parts_with(cfg.model, "num_keypoints"):
            node.num_keypoints = fitted.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
        if "keypoint_hflip_indices" in mapper:  # numbers, of the dataset that the config was for
            mapper.keypoint_hflip_indices = create_keypoint_hflip_indices(train)
        cfg.dataloader.evaluator.kpt_oks_sigmas = list(fitted.TEST.KEYPOINT_OKS_SIGMAS)


def _leave_out_masks(model: Any) -> None:
    for node in list(_parts_with(model, "mask_head")):
        for key in ("mask_in_features", "mask_pooler", "mask_head"):
            node.pop(key, None)
    for node in _parts_with(model, "parts"):  # of what is standardized
        node.parts = [part for part in node.parts if part != "mask_head"]


def _parts_with(node: Any, key: str) -> Iterator[Any]:
    """The parts of a model that define ``key``; some interpolate that of another."""
    if isinstance(node, (DictConfig, ListConfig)):
        names = node if isinstance(node, DictConfig) else range(len(node))
        own = [name for name in names if not OmegaConf.is_interpolation(node, name)]
        if key in own:
            yield node
        for name in own:
            yield from _parts_with(node[name], key)
