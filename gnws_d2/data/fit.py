"""Fitting a config to the datasets that it names by file."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..config import (
    DATASET_KEYS,
    ConfigError,
    built_architecture,
    dataset_names,
    get_key,
    set_key,
)
from .catalog import CheckOptions, load_coco, register_source
from .coco_file import CocoFile, kept_files, read_coco, state_of
from .errors import DatasetError
from .source import Source, is_source
from .summary import summary_table

logger = logging.getLogger(__name__)

Files = Mapping[str, CocoFile]  # by dataset name


def fit_to_data(cfg: CfgNode, check: Callable[[CfgNode], None] | None = None) -> CfgNode:
    """Register the COCO files among ``cfg``'s datasets, check them, and fit ``cfg`` to them.

    Sets DATASETS.CLASSES and CATEGORY_IDS, NUM_CLASSES of every head, MODEL.REMAKE_PREDICTORS, and
    what depends on masks and keypoints: MODEL.MASK_ON, INPUT.MASK_FORMAT, NUM_KEYPOINTS. Each
    change is logged with its reason. Where DATASETS.CLASSES is set, as in a saved config, the
    files' classes are matched to it by name.

    Args:
        check: called with the new config before anything is logged, so that its error is not the
            last of many lines.

    Returns:
        a new config, as frozen as ``cfg``; ``cfg`` itself if no dataset is a file, or it was fitted
        to these files already.

    Raises:
        DatasetError: a file cannot be used.
        ConfigError: the model cannot be trained on instances.
    """
    check = check or (lambda cfg: None)
    sources = [name for name in dataset_names(cfg) if is_source(name)]
    # Not all: a saved config is used for prediction where its files are missing.
    present = [name for name in sources if _file(name).exists()]
    if not sources or _state(cfg, present) in _fitted:
        check(cfg)
        return cfg
    _check_architecture(cfg)
    if not cfg.DATASETS.CLASSES and present != sources:
        missing = next(name for name in sources if name not in present)
        raise DatasetError(f"{_file(missing)} does not exist. Check the path in DATASETS.")
    with kept_files():
        files = {name: read_coco(_file(name)) for name in present}
        classes, ids = _classes(cfg, files)
        used = _register(cfg, files, classes, ids)
        changes = _fit(cfg, used, classes, ids)
        check(changes.cfg)
        for change in changes.said:
            logger.info(change)
        if present:
            _say_what_is_left_out(changes.cfg, files, used)
            logger.info("The data:\n%s", summary_table(present, changes.cfg))
            _warn_of_shared_images(changes.cfg, used)
    _fitted.add(_state(changes.cfg, present))
    return changes.cfg


_fitted: set[tuple] = set()  # what was fitted in this process


def _state(cfg: CfgNode, present: Sequence[str]) -> tuple:
    """All that the fit to the files ``present`` depends on."""
    keys = cfg.DATASETS.dump(), cfg.MODEL.dump(), cfg.INPUT.MASK_FORMAT
    files = sorted({_file(name) for name in present})
    return *keys, cfg.DATALOADER.SKIP_BAD_ANNOTATIONS, *map(state_of, files)


def _file(name: str) -> Any:
    source = Source.parse(name)
    assert source is not None
    return source.file


def _training(cfg: CfgNode, files: Files) -> list[str]:
    return [name for name in files if name in cfg.DATASETS.TRAIN]


def _check_architecture(cfg: CfgNode) -> None:
    built = built_architecture(cfg)
    if built in ("SemanticSegmentor", "PanopticFPN"):
        raise ConfigError(
            f"{built} needs label images, which a COCO instance file lacks. Choose a config of "
            "Faster R-CNN, Mask R-CNN or RetinaNet, or register a dataset with label images."
        )


def _classes(cfg: CfgNode, files: Files) -> tuple[list[str], list[int]]:
    """The classes in the predictor's order, and their ids in results."""
    training = _training(cfg, files)
    order = [*training, *(name for name in files if name not in training)]
    classes = list(cfg.DATASETS.CLASSES)
    registered = _registered_classes(cfg)
    if classes:
        _check_known(classes, training, files)
    else:
        classes = list(dict.fromkeys(c for name in order for c in files[name].used_categories))
        if registered is not None and (training or set(classes) <= set(registered)):
            if new := [c for c in classes if c not in registered]:
                raise DatasetError(
                    f"{', '.join(training or files)}: class {new[0]!r} is not one of the "
                    f"registered dataset's in DATASETS.TRAIN: {', '.join(registered)}. Rename it, "
                    "or train on files alone."
                )
            classes = registered
    if not classes:
        raise DatasetError(f"{', '.join(files)}: no annotations. Add some.")
    ids = [int(number) for number in cfg.DATASETS.CATEGORY_IDS]
    if len(ids) == len(set(ids)) == len(classes):
        return classes, ids
    ids = []
    known = [files[name].category_ids for name in order]
    highest = max((number for of_file in known for number in of_file.values()), default=0)
    for c in classes:
        # Of the first file that has the class; two files may use one id for two classes.
        wanted = next((of_file[c] for of_file in known if c in of_file), None)
        ids.append(max([highest, *ids]) + 1 if wanted is None or wanted in ids else wanted)
    return classes, ids


def _registered_classes(cfg: CfgNode) -> list[str] | None:
    for name in cfg.DATASETS.TRAIN:
        if is_source(name) or name not in DatasetCatalog:
            continue
        if classes := MetadataCatalog.get(name).get("thing_classes"):
            return list(classes)
    return None


def _check_known(classes: Sequence[str], training: Sequence[str], files: Files) -> None:
    in_training = {c for name in training for c in files[name].category_ids}
    if training and (missing := [c for c in classes if c not in in_training]):
        raise DatasetError(
            f"{', '.join(training)}: DATASETS.CLASSES has {missing[0]!r}, which is no category "
            f"there. Its categories: {', '.join(sorted(in_training))}. Correct DATASETS.CLASSES, "
            "or set it to [] to take them from the data."
        )
    for name, coco in files.items():
        if not set(coco.category_ids) & set(classes):
            raise DatasetError(
                f"{name} has none of the classes in DATASETS.CLASSES ({', '.join(classes)}), but "
                f"{', '.join(coco.category_ids)}. Correct DATASETS.CLASSES."
            )


def _register(
    cfg: CfgNode, files: Files, classes: Sequence[str], ids: Sequence[int]
) -> dict[str, CocoFile]:
    """Register the files, and return what of them is used."""
    training = _training(cfg, files)
    masks_on = cfg.MODEL.MASK_ON and (not training or any(files[n].has_masks for n in training))
    used = {}
    for name, coco in files.items():
        # An evaluation set of boxes alone is evaluated for boxes alone.
        needs_masks = masks_on and (name in training or coco.has_masks)
        options = CheckOptions(cfg.DATALOADER.SKIP_BAD_ANNOTATIONS, needs_masks)
        register_source(name, classes, ids, options)
        used[name] = load_coco(name)
        if name in training and not used[name].annotations:
            raise DatasetError(f"{name} has no annotations to train on. Add some.")
    return used


class _Changes:
    """Sets keys of a config, and collects in ``said`` which have changed and why."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self.said: list[str] = []
        self._made: list[str] = []

    def set(self, key: str, value: Any) -> None:
        if get_key(self.cfg, key) != value:
            set_key(self.cfg, key, value)
            self._made.append(f"{key} {value}")

    def say(self, reason: str) -> None:
        if self._made:
            self.said.append(f"{reason}. Set: {', '.join(self._made)}")
        self._made = []


def _fit(cfg: CfgNode, used: Files, classes: list[str], ids: list[int]) -> _Changes:
    fitted = cfg.clone()
    fitted.defrost()
    changes = _Changes(fitted)
    changes.set("DATASETS.CLASSES", classes)
    changes.set("DATASETS.CATEGORY_IDS", ids)
    for section, node in fitted.MODEL.items():
        if isinstance(node, CfgNode) and "NUM_CLASSES" in node and section != "SEM_SEG_HEAD":
            changes.set(f"MODEL.{section}.NUM_CLASSES", len(classes))
    changes.set("MODEL.REMAKE_PREDICTORS", True)
    changes.say(f"{len(classes)} classes in the data: {', '.join(classes)}")
    training = {name: used[name] for name in _training(cfg, used)}
    if cfg.MODEL.MASK_ON and training:
        _fit_masks(changes, training)
    if cfg.MODEL.KEYPOINT_ON and training:
        _fit_keypoints(changes, training)
    if cfg.is_frozen():
        fitted.freeze()
    return changes


def _objects(coco: CocoFile) -> list[dict[str, Any]]:
    """The annotations that are trained on: all but crowds."""
    return [a for a in coco.annotations or () if not a.get("iscrowd")]


def _fit_masks(changes: _Changes, training: Files) -> None:
    if not any(coco.has_masks for coco in training.values()):
        changes.set("MODEL.MASK_ON", False)
        changes.say("The training data has boxes only")
    objects = itertools.chain.from_iterable(map(_objects, training.values()))
    if any(isinstance(o.get("segmentation"), dict) for o in objects):
        changes.set("INPUT.MASK_FORMAT", "bitmask")
        changes.say("The training data has masks as RLE")


def _fit_keypoints(changes: _Changes, training: Files) -> None:
    lacking = [n for n, c in training.items() if not any(o.get("keypoints") for o in _objects(c))]
    if lacking:
        raise DatasetError(
            f"{', '.join(lacking)}: no annotation has keypoints, but MODEL.KEYPOINT_ON is True. "
            "Choose a config without keypoints, or set it to False."
        )
    first = next(iter(training))
    names = MetadataCatalog.get(first).get("keypoint_names")
    if not names:
        raise DatasetError(
            f"{first}: its categories do not name their keypoints. Add the member keypoints "
            "to them, a list of names."
        )
    changes.set("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", len(names))
    if len(changes.cfg.TEST.KEYPOINT_OKS_SIGMAS) != len(names):
        changes.set("TEST.KEYPOINT_OKS_SIGMAS", [1 / len(names)] * len(names))
    changes.say(f"{len(names)} keypoints in the data: {', '.join(names)}")


def _say_what_is_left_out(cfg: CfgNode, files: Files, used: Files) -> None:
    classes = cfg.DATASETS.CLASSES
    unused: set[str] = set()
    for name, coco in files.items():
        unused |= set(coco.class_names.values()) - set(coco.used_categories) - set(classes)
        if other := [c for c in coco.used_categories if c not in classes]:
            logger.warning(
                "%s: annotations of %s are left out, which DATASETS.CLASSES does not have.",
                *(name, _list(other)),
            )
    if unused:
        logger.info("Categories without annotations are left out: %s", _list(sorted(unused)))
    training = _training(cfg, used)
    trained = {c for name in training for c in used[name].used_categories}
    if training and (untrained := [c for c in classes if c not in trained]):
        logger.warning(
            "No training image has an object of %s. The model will not find any.", _list(untrained)
        )


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _warn_of_shared_images(cfg: CfgNode, used: Files) -> None:
    images = {
        name: {
            os.path.realpath(os.path.join(MetadataCatalog.get(name).image_root, image["file_name"]))
            for image in coco.images
        }
        for name, coco in used.items()
    }
    for one, other in itertools.combinations(images, 2):
        together = any({one, other} <= set(get_key(cfg, key)) for key in DATASET_KEYS)
        if not together and (shared := images[one] & images[other]):
            logger.warning(
                "%d images of %s are in %s too, such as %s: results on them say nothing.",
                *(len(shared), one, other, min(shared)),
            )
