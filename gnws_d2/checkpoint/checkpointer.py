"""Detectron2's checkpointer, strict: loading a file that does not fit the model is an error."""

import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.config import CfgNode
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.utils.file_io import PathManager
from torch import nn

from ..config import with_gnws_keys
from ..errors import CheckpointError, GnwsError
from ..files import atomic_write, write_checkpoint
from ..modeling import StandardizationReport, part_of
from .contents import Tensors, contents_of
from .names import detectron2_names
from .provenance import KEY, Provenance
from .read import read_checkpoint
from .resume import check_resumable, from_main_process, last_checkpoint
from .structure import Differences, Shapes, check_values

logger = logging.getLogger(__name__)

BEST = "model_best"  # as Detectron2's hook names it
# The layers that depend on the list of classes.
PREDICTORS = (
    *("roi_heads.box_predictor.", "roi_heads.mask_head.predictor."),
    *("roi_heads.mask_head.prediction.", "roi_heads.mask_head.point_head.predictor."),  # PointRend
    *("head.cls_score.", "sem_seg_head.predictor."),
)
# Heads that a config key leaves out.
SWITCHES = {"mask_head": "MODEL.MASK_ON", "keypoint_head": "MODEL.KEYPOINT_ON"}
# Where models have their bare backbone: with FPN, in ViTDet, without either.
_BACKBONES = ("backbone.bottom_up.", "backbone.net.", "backbone.", "bottom_up.", "net.", "")
_CLASSIFIER = re.compile(r"(stem\.)?(linear|fc|fc1000|head|pred)\.")  # of an ImageNet backbone
# What a classifier of torchvision or timm takes.
_TORCHVISION: dict[str, Any] = {
    "input_format": "RGB",
    "pixel_mean": [123.675, 116.28, 103.53],
    "pixel_std": [58.395, 57.12, 57.375],
}
_HARDLY = 0.1  # of the tensors


class Checkpointer(DetectionCheckpointer):
    """Loads the files of Detectron2 and MMDetection, and backbones of torchvision and timm, without
    executing anything in them; missing, extra or misshaped tensors are errors.

    A file with an ImageNet backbone alone fits every model that has this backbone; the rest of the
    model keeps its initial values, and the log names its parts. To load what matches and no more,
    as Detectron2 does, end MODEL.WEIGHTS in "?matching_heuristics=True".

    Saved files record their provenance, and appear under their names only when complete.

    Args:
        model, save_dir, save_to_disk, checkpointables: see Detectron2's.
        cfg: the config of ``model``, also one without this package's keys. With it, weights trained
            with other parts standardized are refused, weights trained with other preprocessing or
            classes cause a warning, and ``MODEL.REMAKE_PREDICTORS`` is obeyed.
        values: those of a LazyConfig by dotted key, which a resumed run compares.
        for_inference: refuse what would leave a part of the model at its initial values: no file, a
            backbone alone, other classes.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        cfg: CfgNode | None = None,
        values: Mapping[str, Any] | None = None,
        for_inference: bool = False,
        save_to_disk: bool | None = None,
        **checkpointables: object,
    ) -> None:
        model = getattr(model, "_orig_mod", model)  # of torch.compile
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self._cfg = cfg = None if cfg is None else with_gnws_keys(cfg)
        self._values = values or {}
        self._for_inference = for_inference
        self._remakes = bool(cfg and cfg.MODEL.REMAKE_PREDICTORS and not for_inference)
        self.resumed_from: Path | None = None
        self._standardized = parts = StandardizationReport.of(self.model).standardized
        self._own = Provenance.of(cfg, parts) if cfg else Provenance(standardized=parts)

    def save(self, name: str, **kwargs: Any) -> None:
        """Save the model, the checkpointables and ``kwargs`` as ``name``.pth in the folder.

        A run resumes from the last one saved, but not from ``model_best``, which is without the
        checkpointables.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        file = Path(self.save_dir) / f"{name}.pth"
        parts = self.checkpointables.items() if name != BEST else ()
        states = {key: part.state_dict() for key, part in parts}
        logger.info("Saving checkpoint to %s", file)
        own = self._own.as_dict() | ({"values": self._values} if self._values else {})
        write_checkpoint({"model": self.model.state_dict(), KEY: own, **states, **kwargs}, file)
        if name != BEST:
            self.tag_last_checkpoint(file.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(Path(self.save_dir) / "last_checkpoint") as partial:
            partial.write_text(last_filename_basename)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """As Detectron2's; ``path`` is a value of MODEL.WEIGHTS.

        Raises:
            CheckpointError: the file cannot be had or read, or does not fit.
        """
        if path:
            logger.info("Loading from %s", path)
            checkpoint = contents_of(read_checkpoint(local_path(path)), path)
            keys = self.checkpointables if checkpointables is None else checkpointables
            return self._take(checkpoint, path, [key for key in keys if key in checkpoint])
        if self._for_inference:
            raise CheckpointError(
                "MODEL.WEIGHTS is empty (train.init_checkpoint, of a LazyConfig), and the model "
                "would be untrained. Set it to a trained detector's file."
            )
        logger.info("No checkpoint is named: the model keeps its initial values.")
        return {}

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As Detectron2's, except that only the main process reads what is resumed: all processes
        continue from the same state, also on machines without a shared folder.

        Afterwards ``resumed_from`` is the file that was resumed, or None.

        Raises:
            CheckpointError: the run cannot be continued exactly.
        """

        def read() -> tuple[Path | None, dict[str, Any]]:
            file = None
            if self.save_dir and (resume or self.checkpointables):  # otherwise it only evaluates
                file = last_checkpoint(Path(self.save_dir), resume)
            checkpoint = contents_of(read_checkpoint(file), str(file)) if file else {}
            if file and self.checkpointables:
                check_resumable(checkpoint, file, self._cfg, self._values)
            return file, checkpoint

        self.resumed_from, checkpoint = from_main_process(read)
        if self.resumed_from is None:
            return self.load(path, checkpointables=[])
        logger.info("Resuming from %s", self.resumed_from)
        return self._take(checkpoint, str(self.resumed_from), self.checkpointables)

    def _take(self, checkpoint: dict[str, Any], file: str, keys: Iterable[str]) -> dict[str, Any]:
        """Load the model and the checkpointables that ``keys`` name, and return what is left."""
        self._load_strictly(checkpoint, file)
        for key in keys:
            try:
                self.checkpointables[key].load_state_dict(checkpoint.pop(key))
            except (ValueError, KeyError, TypeError, RuntimeError) as error:
                raise CheckpointError(
                    f"Cannot resume: the state of the {key} in {file} does not fit ({error}). Use "
                    "the config of the run."
                ) from error
        return checkpoint

    def _load_strictly(self, checkpoint: dict[str, Any], file: str) -> None:
        own = {n: t for n, t in self.model.state_dict().items() if not _is_of_config(n)}
        found, state = Provenance.read(checkpoint), checkpoint.pop("model")
        if {"bn1.weight", "fc.weight"} <= state.keys():
            found = replace(found, **_TORCHVISION)
        for name in filter(_is_of_config, list(state)):
            del state[name]
        tensors = detectron2_names(state, own)
        is_renamed = tensors is not state
        is_caffe2 = checkpoint.get("__author__") == "Caffe2"
        # Only the user can ask for this: a file must not switch off its own checks.
        lenient = parse_qs(urlparse(file).query).get("matching_heuristics") == ["True"]
        check_values(tensors, file, like={} if lenient else own)
        if lenient or len(own.keys() & tensors.keys()) < _HARDLY * min(len(own), len(tensors)):
            tensors = _matched(own, tensors, file, is_caffe2)
        if lenient:
            self._log_incompatible_keys(self._load_model({"model": tensors}))
            return

        expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
        backbone = _backbone(tensors, expected)
        if backbone:
            tensors = {n: t for n, t in tensors.items() if n in own or not _CLASSIFIER.match(n)}
        is_plain = bool(backbone) and ("bn1.weight" in state or "__author__" in checkpoint)
        self._check_standardization(file, tensors, found.standardized, is_plain)
        self._check_input(file, found, is_renamed)
        if backbone:
            fresh = self._rest_of_backbone(file, expected, backbone)
        else:
            fresh = self._remade_predictors(file, found, tensors, expected)
        if is_caffe2 and not any(name.endswith(".running_var") for name in tensors):
            # Its norms have the statistics within their weights.
            fresh |= {n for n in expected if n.endswith((".running_mean", ".running_var"))}
        for name in fresh:
            tensors.pop(name, None)
        differences = Differences(tensors, {n: s for n, s in expected.items() if n not in fresh})
        if differences:
            raise CheckpointError(_refusal(file, differences))
        self._load_model({"model": tensors})

    def _check_standardization(
        self, file: str, tensors: Tensors, theirs: list[str] | None, is_plain: bool
    ) -> None:
        own = self._standardized
        if is_plain and own:
            logger.warning(
                "%s was trained without Weight Standardization as far as is known: standardized "
                "convolutions compute something else. Train it further, or name another backbone.",
                file,
            )
        elif theirs is not None:
            common = set(map(part_of, tensors)) & set(map(part_of, self.model.state_dict()))
            if wrong := sorted(common & set(own).symmetric_difference(theirs)):
                raise CheckpointError(
                    f"{file} was trained with Weight Standardization of "
                    f"{', '.join(theirs) or 'nothing'}, but the model is built with that of "
                    f"{', '.join(own) or 'nothing'}: {', '.join(wrong)} would compute something "
                    "else. Choose other weights, or the config that these were trained with."
                )
        elif own:
            logger.info(
                "%s does not say which parts were standardized in training; those of the model are "
                "assumed.",
                file,
            )

    def _check_input(self, file: str, found: Provenance, is_renamed: bool) -> None:
        theirs = found.input
        others = [
            f"{key} {theirs[key]} (the config has {value})"
            for key, value in self._own.input.items()
            if None not in (value, theirs.get(key)) and theirs[key] != value
        ]
        if others:
            logger.warning(
                "%s was trained with %s. Set them as there, unless you train the model further.",
                *(file, ", ".join(others)),
            )
        blocks = (m for m in self.model.modules() if isinstance(m, BottleneckBlock))
        if is_renamed and any(max(block.conv1.stride) > 1 for block in blocks):
            logger.warning(
                "%s has names of torchvision, whose ResNets have their strides in the 3x3 "
                "convolutions, and the model has them in the 1x1. Set "
                "MODEL.RESNETS.STRIDE_IN_1X1 False, unless the file is of Caffe's style.",
                file,
            )

    def _rest_of_backbone(self, file: str, expected: Shapes, backbone: tuple[str, ...]) -> set[str]:
        """The tensors of ``expected`` outside the backbone, which keep their initial values."""
        fresh = [name for name in expected if not name.startswith(backbone)]
        parts = ", ".join(dict.fromkeys(map(part_of, fresh)))
        if fresh and self._for_inference:
            raise CheckpointError(
                f"{file} is a backbone alone: {parts} would be untrained. Name a trained "
                "detector's file in MODEL.WEIGHTS."
            )
        if fresh:
            logger.info("%s is a backbone: %s keep their initial values.", file, parts)
        return set(fresh)

    def _remade_predictors(
        self, file: str, found: Provenance, tensors: Tensors, expected: Shapes
    ) -> set[str]:
        """The tensors of ``expected`` that keep their initial values because the classes differ.
        Then a head that the model lacks leaves ``tensors``."""
        unused = set(map(part_of, tensors)) - set(map(part_of, expected))
        for head in unused.intersection(SWITCHES) if self._remakes else ():
            logger.warning("%s has a %s, which the model lacks; it is left out.", file, head)
            for name in [name for name in tensors if part_of(name) == head]:
                del tensors[name]
        predictors = [name for name in expected if name.startswith(PREDICTORS)]
        is_misshaped = any(n in tensors and tensors[n].shape != expected[n] for n in predictors)
        theirs, own = found.classes or [], self._own.classes or []
        is_renamed = bool(theirs) and bool(own) and theirs != own
        if self._remakes and (is_misshaped or is_renamed):
            modules = dict.fromkeys(name.rpartition(".")[0] for name in predictors)
            logger.warning(
                "%s was trained on other classes: %s keep their initial values.",
                *(file, ", ".join(modules)),
            )
            return set(predictors)
        if is_renamed and not is_misshaped:
            logger.warning(
                "%s was trained on other classes (%s ...) than those of the dataset (%s ...). Set "
                "MODEL.REMAKE_PREDICTORS True to train on these.",
                *(file, ", ".join(theirs[:3]), ", ".join(own[:3])),
            )
        return set()


def local_path(weights: str) -> str:
    """The local file of a value of MODEL.WEIGHTS, fetched first where it is an address.

    Raises:
        CheckpointError: it cannot be fetched, or is no file.
    """
    try:
        local = PathManager.get_local_path(weights.partition("?")[0])
    except GnwsError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"{weights} cannot be fetched ({error}). Name a file on this machine."
        ) from error
    if os.path.isdir(local):
        raise CheckpointError(f"{weights} is a folder. Name a file in it.")
    if weights and not os.path.isfile(local):
        raise CheckpointError(f"{weights} does not exist. Correct its path.")
    return local


def _matched(own: Tensors, tensors: Tensors, file: str, is_caffe2: bool) -> Tensors:
    """``tensors`` by Detectron2's heuristics: under the names of the model that end in theirs."""
    try:
        matched = align_and_update_state_dicts(own, tensors, c2_conversion=is_caffe2)
    except (ValueError, AssertionError) as error:
        raise CheckpointError(
            f"{file} does not fit the model: {error} Use the config it was trained with."
        ) from error
    count = len(own.keys() & matched.keys())
    if count < _HARDLY * min(len(own), len(tensors)):
        names = ", ".join(list(tensors)[:3])
        raise CheckpointError(
            f"{file} does not fit the model: {count} of its {len(tensors)} tensors ({names} ...) "
            "have a name and shape of the model's. Use the config it was trained with, or other "
            "weights."
        )
    return matched


def _backbone(tensors: Tensors, expected: Shapes) -> tuple[str, ...]:
    """If ``tensors`` are of a backbone alone, what its names begin with; else ()."""
    found = [name for name in expected if name in tensors]
    parts = {*map(part_of, found)}
    if not parts or parts - {"stem", "backbone", "res5"} or len(found) == len(expected):
        return ()
    prefix = next(p for p in _BACKBONES if any(name.startswith(p) for name in found))
    return prefix, "roi_heads.res5."


def _is_of_config(name: str) -> bool:
    """Whether the config, not the file, sets this tensor: Detectron2 no longer saves some, training
    sets the moving speed, and frozen layers lack it."""
    ends = name.endswith(".estbn_moving_speed")
    return ends or name in ("pixel_mean", "pixel_std") or "anchor_generator.cell_anchors" in name


def _refusal(file: str, differences: Differences) -> str:
    """Why a file that differs is refused, and the fix; common mistakes have their own message."""
    anyway = 'end MODEL.WEIGHTS in "?matching_heuristics=True"'
    remake = "to train on other classes than it was trained on, set MODEL.REMAKE_PREDICTORS True"
    misshaped = differences.misshaped
    missing = set(map(part_of, differences.missing))
    unexpected = set(map(part_of, differences.unexpected))
    classes = bool(misshaped) and all(name.startswith(PREDICTORS) for name in misshaped)
    if (classes or not misshaped) and len(missing | unexpected) == 1 and missing != unexpected:
        [head] = missing | unexpected
        has, other, on, instead = "a", "none", True, "leave it out"
        if missing:
            has, other, on, instead = "no", "one", False, "train it from its initial values"
        if head in SWITCHES:
            also = f"; also, {remake}" if classes else ""
            return (
                f"{file} has {has} {head}, and the model has {other}. Set {SWITCHES[head]} {on}, "
                f"or {anyway} to {instead}{also}."
            )
    norms = {**differences.missing, **differences.unexpected}
    if norms and not misshaped and all(".running_" in name for name in norms):
        with_norm, without = ("the model", "it") if missing else ("it", "the model")
        return (
            f"{file} does not fit the model: {with_norm} has BatchNorm where {without} has another "
            "norm. Set the NORM keys of the parts, such as MODEL.RESNETS.NORM, to that of the file."
        )
    fix = remake if classes else f"{anyway} to load what matches"
    return (
        f"{file} does not fit the model: {differences}. Use the config it was trained with, or "
        f"{fix}."
    )
