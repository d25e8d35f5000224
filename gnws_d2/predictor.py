"""Detect on images in a few lines: Detectron2's DefaultPredictor, loading strictly and by name."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode, instantiate
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.data.transforms import AugInput, Augmentation, AugmentationList
from detectron2.engine import DefaultPredictor
from detectron2.modeling import SemanticSegmentor, build_model
from PIL import Image
from torch import nn

from .checkpoint import Checkpointer, Provenance, local_path, read_checkpoint
from .config import config_from, load_config, with_gnws_keys
from .data import build_test_augmentation
from .errors import CheckpointError, ConfigError, DatasetError
from .layers import fold
from .modeling.errors import build_errors
from .modeling.precision import evaluation_precision

# The attributes by which Detectron2's models leave out detections of a low score.
_SCORE_THRESHOLDS = ("test_score_thresh", "combine_instances_score_thresh")
EXPORTED = (".ts", ".pt2", ".onnx", ".xml")  # suffixes of the files of projects/Export


class Predictor(DefaultPredictor):
    """Detects on images; see ``detectron2.engine.DefaultPredictor``, whose place it takes.

    Weights are loaded strictly, and nothing in their file is executed: each tensor must be there
    and fit. Convolutions with standardized weights become plain ones, which compute the same.
    An exported file, such as model.onnx, takes the place of config and weights.

    Args:
        config: any Detectron2 config, the path of one, or the name of a packaged one. A path that
            ends in .py is a LazyConfig, which is a program and runs. None: that of the weights.
        weights: a file, an address, or a "gnws://" name, or a file that ``gnws export`` wrote.
            "": those that the config names.
        opts: overrides, flat: KEY VALUE pairs, or "key=value" for a LazyConfig.
        add_configs: see :func:`~gnws_d2.config.load_config`.
        score_threshold: detections of a lower score are left out; None: as the config says.
        folded: whether to store the standardized weights in plain convolutions.

    Attributes:
        cfg, model, metadata, aug, input_format: see ``DefaultPredictor``. With an exported file,
            the config is what that stores of one.
        classes: the names of the classes, in the order of ``pred_classes``.
        category_ids: their ids in the annotation files that the model was trained on; where those
            are not known, their indices.
        suggested_threshold: the lowest score that the report of the training suggests, which the
            weights carry; None without one. Only ``score_threshold`` sets one.
        channels: the number of values of a pixel in ``input_format``.

    Raises:
        ConfigError: see :func:`~gnws_d2.config.load_config`; or a config for an exported file.
        GnwsError: an exported file cannot be loaded.
        CheckpointError: the weights cannot be read or do not fit, they would leave a part of the
            model untrained, or they carry no config and none is named.
    """

    def __init__(
        self,
        config: CfgNode | str | os.PathLike | None = None,
        weights: str | os.PathLike = "",
        *,
        opts: Sequence[str] = (),
        add_configs: Sequence[Callable[[CfgNode], None]] = (),
        score_threshold: float | None = None,
        folded: bool = True,
    ) -> None:
        weights, exported = os.fspath(weights), None
        if Path(weights).suffix in EXPORTED:
            if config is not None or opts:
                raise ConfigError(
                    f"{weights} is an exported model, which computes what it was exported with. "
                    "Leave out the config and its overrides."
                )
            from . import ExportedModel  # of projects/Export

            exported = ExportedModel(weights)
            self.cfg = exported.config
        elif isinstance(config, CfgNode):
            self.cfg = with_gnws_keys(config)
            self.cfg.merge_from_list(list(opts))
        elif config is None:
            self.cfg = config_of(weights, opts, add_configs)
        elif os.fspath(config).endswith(".py"):
            from . import load_lazy_config  # of projects/Detection

            self.cfg = load_lazy_config(os.fspath(config), opts)
        else:
            self.cfg = load_config(os.fspath(config), opts, add_configs)

        stuff = 0  # classes of a semantic head
        is_yacs = isinstance(self.cfg, CfgNode)
        if is_yacs:
            model = exported or self.build_model(self.cfg)
            weights = weights or self.cfg.MODEL.WEIGHTS
            augmentations = build_test_augmentation(self.cfg)
            self.input_format = self.cfg.INPUT.FORMAT
            datasets = [*self.cfg.DATASETS.TEST, *self.cfg.DATASETS.TRAIN]
            if hasattr(model, "sem_seg_head"):
                stuff = self.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        else:
            model = instantiate(self.cfg.model).to(self.cfg.train.device)
            weights = weights or self.cfg.train.init_checkpoint
            mapper = self.cfg.dataloader.test.mapper
            augmentations = instantiate(mapper.augmentations)
            self.input_format = mapper.image_format
            names = self.cfg.dataloader.test.dataset.names
            datasets = [names] if isinstance(names, str) else list(names)
        self.channels = convert_PIL_to_numpy(Image.new("RGB", (1, 1)), self.input_format).shape[2]
        self.aug: Augmentation = AugmentationList(augmentations)
        self.model: nn.Module = model
        if exported:
            trained = Provenance.of(self.cfg, [])
            semantic = "sem_seg" in exported.facts["outputs"]
            self.suggested_threshold: float | None = exported.facts.get("score_threshold")
        else:
            cfg = self.cfg if is_yacs else None
            checkpointer = Checkpointer(model, cfg=cfg, for_inference=True)
            trained = Provenance.read(checkpointer.load(weights))
            semantic = isinstance(model, SemanticSegmentor)
            self.suggested_threshold = trained.score_threshold
            self.model = fold(model) if folded else model.eval()
        if score_threshold is not None:
            self.set_score_threshold(score_threshold)
        self.metadata = _metadata(datasets, trained, semantic, stuff)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model of a config, before its weights are loaded. For subclasses to override."""
        with build_errors(cfg):
            return build_model(cfg)

    def set_score_threshold(self, threshold: float) -> None:
        """Leave out detections of a lower score from now on."""
        for module in self.model.modules():
            for name in _SCORE_THRESHOLDS:
                if hasattr(module, name):
                    setattr(module, name, threshold)

    @property
    def classes(self) -> list[str]:
        return list(self.metadata.get("thing_classes") or self.metadata.get("stuff_classes") or [])

    @property
    def category_ids(self) -> list[int]:
        ids = self.metadata.get("thing_dataset_id_to_contiguous_id") or {}
        by_index = {index: id for id, index in ids.items()}
        return [by_index.get(index, index) for index in range(len(self.classes))]

    @overload
    def __call__(self, original_image: np.ndarray) -> dict[str, Any]: ...
    @overload
    def __call__(self, original_image: Sequence[np.ndarray]) -> list[dict[str, Any]]: ...
    def __call__(
        self, original_image: np.ndarray | Sequence[np.ndarray]
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Detect on an image, or on several of any sizes at once.

        The images of a batch are padded to one size, and GroupNorm sees the padding: beside larger
        images, an image gets slightly other scores than alone, as it is evaluated.

        Args:
            original_image: (H, W, 3), in the order BGR, levels 0 to 255; or (H, W, channels), in
                ``input_format``, for a model of 1 or 4 channels; or a list of them.

        Returns:
            The output of the model for one image, a dict: ``instances``, boxes in pixels of that
            image, and where the model has them ``sem_seg`` (classes, H, W) and ``panoptic_seg``.
            For a list of images, a list of such dicts.

        Raises:
            DatasetError: an array has another shape, or the image is so long and narrow that
                nothing would remain of its shorter side.
        """
        if isinstance(original_image, np.ndarray):
            return self([original_image])[0]
        is_yacs = isinstance(self.cfg, CfgNode)
        with torch.no_grad(), evaluation_precision(self.cfg) if is_yacs else nullcontext():
            inputs = [self.prepare(image) for image in original_image]
            return self.model(inputs) if inputs else []

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """The input of the model for an image as :meth:`__call__` takes it: the resized ``image``,
        a float32 tensor (channels, height, width) in ``input_format``, and ``height`` and ``width``
        of the original."""
        is_array = isinstance(image, np.ndarray) and image.ndim == 3
        if is_array and image.shape[2] == 3 and self.input_format != "BGR":
            image = image[:, :, ::-1]
            if self.input_format != "RGB":  # what read_image makes of these colors
                rgb = Image.fromarray(image.astype(np.uint8))
                image = convert_PIL_to_numpy(rgb, self.input_format)
        if not is_array or image.shape[2] != self.channels:
            found = getattr(image, "shape", type(image).__name__)
            form = "BGR" if self.input_format == "RGB" else self.input_format
            raise DatasetError(
                f"an image is an array (H, W, {self.channels}), three channels in the order BGR, "
                f"not {found}. Read it with gnws_d2.data.read_image(file, {form!r})."
            )
        height, width = image.shape[:2]
        resized = AugInput(image)
        try:
            self.aug(resized)
        except ValueError as error:  # a side of 0 pixels
            raise DatasetError(
                f"an image of {width} x {height} pixels cannot be resized for the model ({error}). "
                "Cut it into pieces that are less long and narrow."
            ) from error
        tensor = torch.as_tensor(resized.image.astype("float32").transpose(2, 0, 1))
        return {"image": tensor, "height": height, "width": width}


def config_of(
    weights: str, opts: Sequence[str] = (), add_configs: Sequence[Callable[[CfgNode], None]] = ()
) -> CfgNode:
    """The config that a checkpoint carries; see :func:`~gnws_d2.config.load_config`.

    Raises:
        CheckpointError: it carries none.
        ConfigError: the config has keys that do not exist, or cannot work.
    """
    if not weights:
        raise CheckpointError(
            "Neither a config nor weights are named. Name the file of a trained detector."
        )
    checkpoint = read_checkpoint(local_path(weights))
    stored = Provenance.read(checkpoint).config if isinstance(checkpoint, Mapping) else None
    if stored is None:
        raise CheckpointError(
            f"{weights} does not say which config it was trained with. Name the config, too."
        )
    try:
        content = yaml.safe_load(stored)
    except yaml.YAMLError as error:
        raise CheckpointError(f"the config in {weights} is not YAML. Name the config.") from error
    return config_from(content, f"the config in {weights}", opts, add_configs)


def _metadata(datasets: list[str], trained: Provenance, semantic: bool, stuff: int) -> Metadata:
    """The dataset's where it is known here and has the classes that the model was trained on, else
    what the weights say."""
    known = [name for name in datasets if name in MetadataCatalog.list()]
    values = dict(MetadataCatalog.get(known[0]).as_dict()) if known else {}
    kind = "stuff_classes" if semantic else "thing_classes"
    if trained.classes and trained.classes != values.get(kind):
        values = {kind: trained.classes}
    if trained.category_ids:
        ids = {id: index for index, id in enumerate(trained.category_ids)}
        values["thing_dataset_id_to_contiguous_id"] = ids
    if stuff:
        values.setdefault("stuff_classes", [str(index) for index in range(stuff)])
    return Metadata(**values)
