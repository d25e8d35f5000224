"""The losses of validation images, which show when a model begins to learn by heart."""

import logging
from collections import Counter
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..data import Mapper, NamingMapper, build_test_augmentation, dataset_errors
from ..errors import ConfigError
from ..modeling.precision import evaluation_precision
from .data_order import start_worker

logger = logging.getLogger(__name__)


class ValidationLoss:
    """A function for Detectron2's ``EvalHook``, in all processes: {"validation": {"total": ...}},
    the mean of each loss over images of DATASETS.TEST.

    They are TEST.LOSS_IMAGES, evenly spaced among those with objects, resized as for evaluation.
    Norms keep their statistics, and what the model samples, such as proposals, is the same each
    time.

    Args:
        model: without a wrapper for several processes.

    Raises:
        ConfigError: a dataset is not a list.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        self._cfg, self._model = cfg, model
        names, proposals = cfg.DATASETS.TEST, cfg.DATASETS.PROPOSAL_FILES_TEST
        with dataset_errors(names):
            records = get_detection_dataset_dicts(
                names,
                filter_empty=False,
                proposal_files=proposals if cfg.MODEL.LOAD_PROPOSALS else None,
            )
        if not isinstance(records, list):
            raise ConfigError(
                f"TEST.LOSS_IMAGES is {cfg.TEST.LOSS_IMAGES}, but {', '.join(names)} is a "
                f"{type(records).__name__}, not a list of images. Set it to 0."
            )
        usable = list(filter(_has_truth, records))
        step = -(-len(usable) // cfg.TEST.LOSS_IMAGES) or 1
        arguments = {**Mapper.from_config(cfg), "augmentations": build_test_augmentation(cfg)}
        self._loader: Any = []
        if usable:
            self._loader = build_detection_test_loader(
                dataset=usable[::step],
                mapper=NamingMapper(Mapper(**arguments)),
                num_workers=cfg.DATALOADER.NUM_WORKERS,
            )
            self._loader.worker_init_fn = start_worker

    def __call__(self) -> dict[str, dict[str, float]]:
        sums, count = Counter[str](), 0
        self._model.train()
        for module in self._model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        # The model logs what it samples, which is not of training.
        device = next(self._model.parameters()).device
        own = [device] * (device.type == "cuda")  # by default, all GPUs that are visible start
        with torch.no_grad(), torch.random.fork_rng(own), EventStorage(1):
            torch.manual_seed(0)
            for batch in self._loader:
                with evaluation_precision(self._cfg):
                    losses = self._model(batch)
                sums.update({name.removeprefix("loss_"): float(v) for name, v in losses.items()})
                count += len(batch)
        self._model.train()
        found = comm.all_gather((sums, count))
        count = sum(part for _, part in found)
        if not count:
            return {}
        means = {k: sum(part[k] for part, _ in found) / count for k in found[0][0]}
        means["total"] = sum(means.values())
        logger.info("The loss of %d validation images is %.4g.", count, means["total"])
        return {"validation": means}


def _has_truth(record: dict[str, Any]) -> bool:
    objects = [a for a in record.get("annotations", ()) if not a.get("iscrowd")]
    return bool(objects) or "sem_seg_file_name" in record
