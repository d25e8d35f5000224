"""Fitting a config to the datasets that it names by file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
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
from .catalog import CheckOptions, load_coco, register_source, used_categories
from .coco_file import CocoFile, kept_files, read_coco, state_of
from .errors import DatasetError
from .source import Source, is_ours, is_source
from .summary import shared_images, summary_table

logger = logging.getLogger(__name__)


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
    sources = [name for name in dataset_names(cfg) if is_source(name)]
    if not sources or _is_fitted(cfg, sources):
        if check:
            check(cfg)
        return cfg
    with kept_files():
        changes = _fit(cfg, sources)
        fitted = changes.cfg
        if check:
            check(fitted)
        for change in changes.said:
            logger.info(change)
        _describe(fitted, sources)
    _fitted.add(_state(fitted, sources))
    return fitted


_fitted: set[tuple] = set()  # configs and files that were fitted in this process


def _is_fitted(cfg: CfgNode, sources: Sequence[str]) -> bool:
    present = [name for name in sources if _file(name).is_file()]
    return all(map(is_ours, present)) and _state(cfg, sources) in _fitted


def _state(cfg: CfgNode, sources: Sequence[str]) -> tuple:
    files = sorted({_file(name) for name in sources if _file(name).is_file()})
    return cfg.dump(), *map(state_of, files)


def _present(sources: Sequence[str]) -> list[str]:
    """Those with a file: a saved config is used for prediction where its files are missing."""
    return [name for name in sources if _file(name).exists()]


def _fit(cfg: CfgNode, sources: Sequence[str]) -> _Changes:
    fitted = cfg.clone()
    fitted.defrost()
    _check_architecture(cfg)
    present = _present(sources)
    if not cfg.DATASETS.get("CLASSES") and present != sources:
        missing = next(name for name in sources if name not in present)
        raise DatasetError(f"{_file(missing)} does not exist. Check the path in DATASETS.")
    classes, ids = _classes(cfg, present)
    options = CheckOptions(skip_bad=cfg.DATALOADER.SKIP_BAD_ANNOTATIONS)
    for name in present:
        register_source(name, classes, ids, options)
    training = [name for name in present if name in cfg.DATASETS.TRAIN]
    for name in present:
        if not load_coco(name).annotations and name in training:
            raise DatasetError(f"{name} has no annotations to train on. Add some.")
    changes = _Changes(fitted)
    changes.set("DATASETS.CLASSES", classes)
    changes.set("DATASETS.CATEGORY_IDS", ids)
    for section, node in fitted.MODEL.items():
        if isinstance(node, CfgNode) and "NUM_CLASSES" in node and section != "SEM_SEG_HEAD":
            changes.set(f"MODEL.{section}.NUM_CLASSES", len(classes))
    changes.set("MODEL.REMAKE_PREDICTORS", True)
    changes.say(f"{len(classes)} classes in the data: {', '.join(classes)}")
    _fit_masks(changes, training, present, classes, ids, options)
    _fit_keypoints(changes, training, present)
    if cfg.is_frozen():
        fitted.freeze()
    return changes


_described: set[tuple] = set()  # datasets, their classes and files that were logged


def _describe(cfg: CfgNode, sources: Sequence[str]) -> None:
    """Log once what the datasets hold, and what of it is left out."""
    present = _present(sources)
    described = (*present, *cfg.DATASETS.CLASSES, *(state_of(_file(name)) for name in present))
    if described in _described or not present:
        return
    _described.add(described)
    _say_what_is_left_out(cfg, present)
    logger.info("The data:\n%s", summary_table(present, cfg))
    for one in present:
        for other in present[present.index(one) + 1 :]:
            together = any({one, other} <= set(get_key(cfg, key)) for key in DATASET_KEYS)
            if not together and (shared := shared_images(one, other)):
                logger.warning(
                    "%d images of %s are in %s too, such as %s: results on them say nothing.",
                    *(len(shared), one, other, shared[0]),
                )


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


def _file(name: str) -> Path:
    source = Source.parse(name)
    assert source is not None
    return source.file


def _check_architecture(cfg: CfgNode) -> None:
    built = built_architecture(cfg)
    if built in ("SemanticSegmentor", "PanopticFPN"):
        raise ConfigError(
            f"{built} needs label images, which a COCO instance file lacks. Choose a config of "
            "Faster R-CNN, Mask R-CNN or RetinaNet, or register a dataset with label images."
        )


def _classes(cfg: CfgNode, present: Sequence[str]) -> tuple[list[str], list[int]]:
    """The classes in the predictor's order, and their ids in results."""
    files = {name: read_coco(_file(name)) for name in present}
    used = {name: used_categories(coco) for name, coco in files.items()}
    known = {name: _ids_by_name(coco) | used[name] for name, coco in files.items()}
    training = [name for name in present if name in cfg.DATASETS.TRAIN]
    classes = list(cfg.DATASETS.get("CLASSES", ()))
    registered = _registered_classes(cfg)
    if classes:
        _check_known(classes, training, known)
    else:
        first = dict.fromkeys(c for name in training for c in used[name])
        classes = list(dict.fromkeys([*first, *(c for name in present for c in used[name])]))
        if registered is not None and (training or set(classes) <= set(registered)):
            if new := [c for c in classes if c not in registered]:
                raise DatasetError(
                    f"{', '.join(training or present)}: class {new[0]!r} is not one of the "
                    f"registered dataset's in DATASETS.TRAIN: {', '.join(registered)}. Rename it, "
                    "or train on files alone."
                )
            classes = registered
    if not classes:
        raise DatasetError(f"{', '.join(present)}: no annotations. Add some.")
    ids = [int(number) for number in cfg.DATASETS.get("CATEGORY_IDS", ())]
    if len(ids) == len(set(ids)) == len(classes):
        return classes, ids
    ids = []
    for c in classes:
        # Of the first file that has the class; two files may use one id for two classes.
        wanted = next((known[n][c] for n in [*training, *present] if c in known[n]), -1)
        taken = wanted < 0 or wanted in ids
        highest = max((i for n in present for i in known[n].values()), default=0)
        ids.append(max([highest, *ids]) + 1 if taken else wanted)
    return classes, ids


def _ids_by_name(coco: CocoFile) -> dict[str, int]:
    return {name: number for number, name in coco.class_names.items()}


def _registered_classes(cfg: CfgNode) -> list[str] | None:
    for name in cfg.DATASETS.TRAIN:
        if is_source(name) or name not in DatasetCatalog.list():
            continue
        if classes := MetadataCatalog.get(name).get("thing_classes"):
            return list(classes)
    return None


def _check_known(
    classes: Sequence[str], training: Sequence[str], known: dict[str, dict[str, int]]
) -> None:
    in_training = {c for name in training for c in known[name]}
    if training and (missing := [c for c in classes if c not in in_training]):
        raise DatasetError(
            f"{', '.join(training)}: DATASETS.CLASSES has {missing[0]!r}, which is no category "
            f"there. Its categories: {', '.join(sorted(in_training))}. Correct DATASETS.CLASSES, "
            "or set it to [] to take them from the data."
        )
    for name, ids in known.items():
        if not set(ids) & set(classes):
            raise DatasetError(
                f"{name} has none of the classes in DATASETS.CLASSES ({', '.join(classes)}), but "
                f"{', '.join(ids)}. Correct DATASETS.CLASSES."
            )


def _say_what_is_left_out(cfg: CfgNode, present: Sequence[str]) -> None:
    classes = cfg.DATASETS.CLASSES
    training = [name for name in present if name in cfg.DATASETS.TRAIN]
    trained: set[str] = set()
    for name in training:
        coco = load_coco(name)
        trained |= {coco.class_names[a["category_id"]] for a in coco.annotations or ()}
    unused: set[str] = set()
    for name in present:
        coco = read_coco(_file(name))
        used = used_categories(coco)
        unused |= set(coco.class_names.values()) - set(used) - set(classes)
        if other := [c for c in used if c not in classes]:
            logger.warning(
                "%s: annotations of %s are left out, which DATASETS.CLASSES does not have.",
                *(name, _list(other)),
            )
    if unused:
        logger.info("Categories without annotations are left out: %s", _list(sorted(unused)))
    if training and (untrained := [c for c in classes if c not in trained]):
        logger.warning(
            "No training image has an object of %s. The model will not find any.", _list(untrained)
        )


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _fit_masks(
    changes: _Changes,
    training: Sequence[str],
    present: Sequence[str],
    classes: Sequence[str],
    ids: Sequence[int],
    options: CheckOptions,
) -> None:
    cfg = changes.cfg
    if not cfg.MODEL.MASK_ON:
        return
    objects = {name: _objects(name) for name in present}
    with_masks = {n: sum(bool(o.get("segmentation")) for o in objects[n]) for n in present}
    if training and not any(with_masks[name] for name in training):
        changes.set("MODEL.MASK_ON", False)
        changes.say("The training data has boxes only")
        return
    for name in present:
        # An evaluation set of boxes alone is evaluated for boxes alone.
        partly = name in training or with_masks[name]
        if partly and with_masks[name] < len(objects[name]):
            register_source(
                name, classes, ids, CheckOptions(skip_bad=options.skip_bad, needs_masks=True)
            )
            try:
                load_coco(name)
            except DatasetError as error:
                lacking = len(objects[name]) - with_masks[name]
                raise DatasetError(
                    f"{error} {lacking} of {len(objects[name])} objects have boxes only: "
                    "MODEL.MASK_ON False trains on all boxes."
                ) from error
    if any(isinstance(o.get("segmentation"), dict) for n in training for o in objects[n]):
        changes.set("INPUT.MASK_FORMAT", "bitmask")
        changes.say("The training data has masks as RLE")


def _objects(name: str) -> list[dict[str, Any]]:
    """The annotations that are trained on: all but crowds."""
    return [a for a in load_coco(name).annotations or () if not a.get("iscrowd")]


def _fit_keypoints(changes: _Changes, training: Sequence[str], present: Sequence[str]) -> None:
    cfg = changes.cfg
    if not cfg.MODEL.KEYPOINT_ON or not training:
        return
    lacking = [n for n in training if not any(o.get("keypoints") for o in _objects(n))]
    if lacking:
        raise DatasetError(
            f"{', '.join(lacking)}: no annotation has keypoints, but MODEL.KEYPOINT_ON is True. "
            "Choose a config without keypoints, or set it to False."
        )
    names = MetadataCatalog.get(training[0]).get("keypoint_names")
    if not names:
        raise DatasetError(
            f"{training[0]}: its categories do not name their keypoints. Add the member keypoints "
            "to them, a list of names."
        )
    changes.set("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", len(names))
    sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS
    if len(sigmas) != len(names):
        changes.set("TEST.KEYPOINT_OKS_SIGMAS", [1 / len(names)] * len(names))
    changes.say(f"{len(names)} keypoints in the data: {', '.join(names)}")
