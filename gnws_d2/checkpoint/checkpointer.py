"""Detectron2's checkpointer, strict: loading a file that does not fit the model is an error."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from ..errors import CheckpointError
from ..files import atomic_write
from ..modeling import StandardizationReport, part_of
from .provenance import KEY, Provenance
from .resume import check_resumable, from_main_process, last_checkpoint
from .serialization import read_checkpoint, write_checkpoint
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
_STEM = "stem.conv1.weight"

Tensors = dict[str, torch.Tensor]


class Checkpointer(DetectionCheckpointer):
    """Accepts only tensors and plain values; missing, extra or misshaped tensors are errors.

    A file with an ImageNet backbone alone fits every model that has this backbone; the rest of the
    model keeps its initial values, and the log names its parts. To load what matches and no more,
    as Detectron2 does, end MODEL.WEIGHTS in "?matching_heuristics=True".

    Saved files record their provenance, and appear under their names only when complete.

    Args:
        model, save_dir, save_to_disk, checkpointables: see Detectron2's.
        cfg: the config of ``model``. With it, weights trained with other parts standardized are
            refused, weights trained with other preprocessing or classes cause a warning, and
            ``MODEL.REMAKE_PREDICTORS`` is obeyed.
        for_inference: refuse what would leave a part of the model at its initial values: no file, a
            backbone alone, other classes.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        cfg: CfgNode | None = None,
        for_inference: bool = False,
        save_to_disk: bool | None = None,
        **checkpointables: object,
    ) -> None:
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self._cfg = cfg
        self._for_inference = for_inference
        self._remakes = bool(cfg and cfg.MODEL.REMAKE_PREDICTORS and not for_inference)
        self.resumed_from: Path | None = None
        self._loading = ""  # the path that load() was given, for messages
        standardized = StandardizationReport.of(self.model).standardized
        self._own = Provenance(standardized=standardized)
        if cfg is not None:
            self._own = Provenance.of(cfg, standardized)

    def save(self, name: str, **kwargs: Any) -> None:
        """Save the model, the checkpointables and ``kwargs`` as ``name``.pth in the folder.

        A run resumes from the last checkpoint saved, unless it is ``model_best``.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        file = Path(self.save_dir) / f"{name}.pth"
        states = {key: part.state_dict() for key, part in self.checkpointables.items()}
        logger.info("Saving checkpoint to %s", file)
        write_checkpoint(
            {"model": self.model.state_dict(), KEY: self._own.as_dict(), **states, **kwargs}, file
        )
        if name != BEST:
            self.tag_last_checkpoint(file.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(Path(self.save_dir) / "last_checkpoint") as partial:
            partial.write_text(last_filename_basename)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith((".pkl", ".pyth")):
            raise CheckpointError(
                f"{filename} is a pickle, and reading a pickle can run a program hidden in it. If "
                "you trust it, load it with Detectron2, and save model.state_dict() as .pth."
            )
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> Any:
        checkpoint = read_checkpoint(f)
        return checkpoint if isinstance(checkpoint, dict) else {"model": checkpoint}

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if self._for_inference and not path:
            raise CheckpointError(
                "MODEL.WEIGHTS is empty (train.init_checkpoint, of a LazyConfig), and the model "
                "would be untrained. Set it to a trained detector's file."
            )
        self._loading = path
        try:
            return super().load(path, *args, **kwargs)
        except AssertionError as error:
            if "not found" not in str(error):
                raise
            raise CheckpointError(f"{path} is not a file. Correct its path.") from error
        finally:
            self._parsed_url_during_load = None  # an error leaves it set, which blocks later loads

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As Detectron2's, except that only the main process reads what is resumed: all processes
        continue from the same state, also on machines without a shared folder.

        Afterwards ``resumed_from`` is the file that was resumed, or None.

        Raises:
            CheckpointError: the run cannot be continued exactly.
        """
        self.resumed_from, checkpoint = from_main_process(lambda: self._to_resume(resume))
        if self.resumed_from is None:
            return self.load(path, checkpointables=[])
        self._loading = str(self.resumed_from)
        logger.info("Resuming from %s", self.resumed_from)
        self._load_model(checkpoint)
        for key, part in self.checkpointables.items():
            try:
                part.load_state_dict(checkpoint.pop(key))
            except (ValueError, KeyError, TypeError, RuntimeError) as error:
                raise CheckpointError(
                    f"Cannot resume: the state of the {key} in {self.resumed_from} does not fit "
                    f"({error}). Use the config of the run."
                ) from error
        return checkpoint

    def _to_resume(self, resume: bool) -> tuple[Path | None, dict[str, Any]]:
        file = None
        if self.save_dir and (resume or self.checkpointables):  # otherwise it only evaluates
            file = last_checkpoint(Path(self.save_dir), resume)
        if file is None:
            return None, {}
        checkpoint = read_checkpoint(file)
        if self.checkpointables:
            check_resumable(checkpoint, file, self._cfg)
        return file, checkpoint

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        file = self._loading
        tensors = _state_dict(checkpoint["model"], file)
        # Only the user can ask for this: a file must not switch off its own checks.
        if parse_qs(urlparse(file).query).get("matching_heuristics") == ["True"]:
            check_values(tensors, file, like={})
            return super()._load_model(checkpoint)

        own = {n: t for n, t in self.model.state_dict().items() if not _is_of_config(n)}
        expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
        # Where the model has its ResNet: "backbone.bottom_up." with FPN.
        prefix = next((n.removesuffix(_STEM) for n in own if n.endswith(_STEM)), "backbone.")
        if _STEM in tensors and _STEM not in own:
            # A bare backbone; a detector does not need its ImageNet classifier.
            named = tensors.items()
            tensors = {prefix + n: t for n, t in named if not n.startswith("linear.")}
        found = Provenance.read(checkpoint)
        self._check_standardization(found, tensors)
        self._check_input(found)
        check_values(tensors, file, like=own)

        if tensors and all(name.startswith(prefix) for name in tensors):
            fresh = self._rest_of_backbone(expected, prefix)
        else:
            fresh = self._remade_predictors(found, tensors, expected)
        for name in fresh:
            tensors.pop(name, None)
        differences = Differences(tensors, {n: s for n, s in expected.items() if n not in fresh})
        if differences:
            raise CheckpointError(_refusal(file, differences))
        incompatible = super()._load_model({"model": tensors})
        incompatible.missing_keys.clear()  # they have been logged, by part
        return incompatible

    def _check_standardization(self, found: Provenance, tensors: Tensors) -> None:
        if found.standardized is None:
            if self._own.standardized:
                logger.info(
                    "%s does not say which parts were standardized in training; those of the model "
                    "are assumed.",
                    self._loading,
                )
            return
        own, theirs = self._own.standardized or [], found.standardized
        common = set(map(part_of, tensors)) & set(map(part_of, self.model.state_dict()))
        if wrong := sorted(common & set(own).symmetric_difference(theirs)):
            raise CheckpointError(
                f"{self._loading} was trained with Weight Standardization of "
                f"{', '.join(theirs) or 'nothing'}, but the model is built with that of "
                f"{', '.join(own) or 'nothing'}: {', '.join(wrong)} would compute something else. "
                "Choose other weights, or the config that these were trained with."
            )

    def _check_input(self, found: Provenance) -> None:
        for key, trained, own in (
            ("INPUT.FORMAT", found.input_format, self._own.input_format),
            ("MODEL.PIXEL_MEAN", found.pixel_mean, self._own.pixel_mean),
            ("MODEL.PIXEL_STD", found.pixel_std, self._own.pixel_std),
        ):
            if trained is not None and own is not None and trained != own:
                logger.warning(
                    "%s was trained with %s %s, but the config has %s. Use the former, unless you "
                    "train the model on the latter.",
                    *(self._loading, key, trained, own),
                )

    def _rest_of_backbone(self, expected: Shapes, prefix: str) -> set[str]:
        """The tensors of ``expected`` outside the backbone, which keep their initial values."""
        fresh = [name for name in expected if not name.startswith(prefix)]
        parts = ", ".join(dict.fromkeys(map(part_of, fresh)))
        if fresh and self._for_inference:
            raise CheckpointError(
                f"{self._loading} is a backbone alone: {parts} would be untrained. Name a trained "
                "detector's file in MODEL.WEIGHTS."
            )
        if fresh:
            logger.info("%s is a backbone: %s keep their initial values.", self._loading, parts)
        return set(fresh)

    def _remade_predictors(self, found: Provenance, tensors: Tensors, expected: Shapes) -> set[str]:
        """The tensors of ``expected`` that keep their initial values because the classes differ."""
        if self._remakes:
            self._drop_unused_heads(tensors, expected)
        predictors = [name for name in expected if name.startswith(PREDICTORS)]
        is_misshaped = any(n in tensors and tensors[n].shape != expected[n] for n in predictors)
        theirs, own = found.classes or [], self._own.classes or []
        is_renamed = bool(theirs) and bool(own) and theirs != own
        if self._remakes and (is_misshaped or is_renamed):
            modules = dict.fromkeys(name.rpartition(".")[0] for name in predictors)
            logger.warning(
                "%s was trained on other classes: %s keep their initial values.",
                *(self._loading, ", ".join(modules)),
            )
            return set(predictors)
        if is_renamed and not is_misshaped:
            logger.warning(
                "%s was trained on other classes (%s ...) than those of the dataset (%s ...). Set "
                "MODEL.REMAKE_PREDICTORS True to train on these.",
                *(self._loading, ", ".join(theirs[:3]), ", ".join(own[:3])),
            )
        return set()

    def _drop_unused_heads(self, tensors: Tensors, expected: Shapes) -> None:
        unused = set(map(part_of, tensors)) - set(map(part_of, expected))
        for head in unused.intersection(SWITCHES):
            logger.warning(
                "%s has a %s, which the model lacks; it is left out.", self._loading, head
            )
            for name in [name for name in tensors if part_of(name) == head]:
                del tensors[name]


def _state_dict(found: Any, file: str) -> Tensors:
    """``found`` without what wrappers and older versions add, changed in place: a state dict may
    hold the versions of its modules."""
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        raise CheckpointError(
            f"{file} is an OpenMMLab file. Convert it with `gnws convert-weights {file} "
            "OUTPUT.pth`, or name it gnws://... if it is one of the model zoo."
        )
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise CheckpointError(
            f"{file} holds no state dict, a dict of names and tensors. Save model.state_dict()."
        )
    consume_prefix_in_state_dict_if_present(found, "module.")
    for name in filter(_is_of_config, list(found)):
        del found[name]
    return found


def _is_of_config(name: str) -> bool:
    """Whether the config, not the file, sets this tensor: Detectron2 no longer saves some, training
    sets the moving speed, and frozen layers lack it."""
    return (
        name in ("pixel_mean", "pixel_std")
        or "anchor_generator.cell_anchors" in name
        or name.endswith(".estbn_moving_speed")
    )


def _refusal(file: str, differences: Differences) -> str:
    """Why a file that differs is refused, and the fix; common mistakes have their own message."""
    anyway = 'end MODEL.WEIGHTS in "?matching_heuristics=True"'
    remake = "to train on other classes than it was trained on, set MODEL.REMAKE_PREDICTORS True"
    misshaped = differences.misshaped
    missing = set(map(part_of, differences.missing))
    unexpected = set(map(part_of, differences.unexpected))
    classes = bool(misshaped) and all(name.startswith(PREDICTORS) for name in misshaped)
    also = f"; also, {remake}" if classes else ""
    for head, key in SWITCHES.items() if classes or not misshaped else ():
        if unexpected == {head} and not missing:
            return (
                f"{file} has a {head}, and the model has none. Set {key} True, or {anyway} to "
                f"leave it out{also}."
            )
        if missing == {head} and not unexpected:
            return (
                f"{file} has no {head}, and the model has one. Set {key} False, or {anyway} to "
                f"train it from its initial values{also}."
            )
    fix = remake if classes else f"{anyway} to load what matches"
    return (
        f"{file} does not fit the model: {differences}. Use the config it was trained with, or "
        f"{fix}."
    )
