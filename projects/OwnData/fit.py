"""Fit a config to the COCO files that it names as datasets."""

import itertools
import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from gnws_d2.config import DATASET_KEYS, built_architecture, dataset_names, get_key, set_key
from gnws_d2.errors import ConfigError, DatasetError, shorten
from gnws_d2.files import atomic_write

from .anchors import anchor_settings
from .check import Problem
from .coco_file import CocoFile, class_ids, kept_files, read_coco
from .image_files import ImageFiles
from .input_size import input_settings
from .keypoints import flip_pairs, has_side, keypoint_names
from .source import SPLIT_FIX, Source, is_source, source_of
from .summary import summary_table
from .truth import register_source
from .verdict import check_once

logger = logging.getLogger(__name__)

SKIPPED_FILE = "skipped_annotations.json"
Files = Mapping[str, CocoFile]  # by dataset name


def fit_to_data(
    cfg: CfgNode,
    check: Callable[[CfgNode], None] | None = None,
    explicit: Collection[str] | None = None,
    weights: str = "",
) -> CfgNode:
    """Register the COCO files among ``cfg``'s datasets, check them, and fit ``cfg`` to them.

    Sets DATASETS.CLASSES and CATEGORY_IDS, NUM_CLASSES of every head, MODEL.REMAKE_PREDICTORS, and
    what depends on masks and keypoints: MODEL.MASK_ON, INPUT.MASK_FORMAT, NUM_KEYPOINTS; for
    training also the sizes of INPUT, and from other weights than those of a detector
    MODEL.ANCHOR_GENERATOR. Each change is logged with its reason. Where DATASETS.CLASSES is set,
    as in a saved config, the files' classes are matched to it by name.

    Args:
        check: called with the new config before anything is logged, so that an error which it
            raises does not follow a long log.
        explicit: the keys that the user of a training set; None where nothing is trained.
        weights: what training starts from, if that is not MODEL.WEIGHTS.

    Returns:
        a new config, as frozen as ``cfg``; ``cfg`` itself if no dataset is a file.

    Raises:
        DatasetError: a file cannot be used.
        ConfigError: the model cannot be trained on instances.
    """
    sources = {name: source for name in dataset_names(cfg) if (source := source_of(name))}
    if not sources:
        if check:
            check(cfg)
        return cfg
    built, trains = built_architecture(cfg), any(name in cfg.DATASETS.TRAIN for name in sources)
    if built == "SemanticSegmentor" or (built == "PanopticFPN" and trains):
        raise ConfigError(
            f"{built} needs label images, which a COCO instance file lacks. Choose a config of "
            "Faster R-CNN, Mask R-CNN or RetinaNet, or register a dataset with label images."
        )
    with kept_files():
        # A saved config also serves for prediction, where its files may be missing.
        files = {
            name: read_coco(source.file, source.folder)
            for name, source in sources.items()
            if source.file.exists() or not cfg.DATASETS.CLASSES
        }
        classes = _classes(cfg, files)
        used = _register(cfg, sources, files, classes)
        fitted = cfg.clone()
        fitted.defrost()
        settings = [_settings(fitted, used, classes)]
        if explicit is not None:
            start = weights or cfg.MODEL.WEIGHTS
            settings += [input_settings(fitted, explicit), anchor_settings(fitted, explicit, start)]
        said = _change(fitted, itertools.chain(*settings))
        if cfg.is_frozen():
            fitted.freeze()
        if check:
            check(fitted)
        for change in said:
            logger.info(change)
        if files:
            _log_left_out(fitted, files, used)
            if fitted.MODEL.KEYPOINT_ON and (training := _training(fitted, used)):
                _warn_of_flips(fitted, MetadataCatalog.get(training[0]).keypoint_names)
            logger.info("The data:\n%s", summary_table(list(files), fitted))
            _warn_of_shared_images(fitted, used)
    return fitted


def _training(cfg: CfgNode, files: Files) -> list[str]:
    return [name for name in files if name in cfg.DATASETS.TRAIN]


def _classes(cfg: CfgNode, files: Files) -> dict[str, int]:
    """The classes in the predictor's order, and their ids in results. Files that do not match the
    given classes are refused."""
    training, given = _training(cfg, files), list(cfg.DATASETS.CLASSES)
    in_training = {c for name in training for c in files[name].category_ids}
    if training and (missing := [c for c in given if c not in in_training]):
        raise DatasetError(
            f"{', '.join(training)}: DATASETS.CLASSES has {missing[0]!r}, which is no category "
            f"there. Its categories: {', '.join(sorted(in_training))}. Correct DATASETS.CLASSES, "
            "or set it to [] to take them from the data."
        )
    in_files = list(dict.fromkeys(c for coco in files.values() for c in coco.used_categories))
    elsewhere = [n for n in cfg.DATASETS.TRAIN if n in DatasetCatalog and not is_source(n)]
    lists = [MetadataCatalog.get(name).get("thing_classes") for name in elsewhere]
    registered = list(next(filter(None, lists), []))
    known = given or (registered if training or set(in_files) <= set(registered) else [])
    for name, coco in files.items():
        if known and coco.used_categories and not set(coco.category_ids) & set(known):
            raise DatasetError(
                f"{name} has none of the model's classes ({', '.join(known)}), but "
                f"{', '.join(coco.category_ids)}. Rename them, or correct DATASETS.CLASSES."
            )
    if not (classes := known or in_files):
        name, coco = next(iter(files.items()))
        raise DatasetError(f"{name}: {_why_no_class(coco)}")
    ids = [int(number) for number in cfg.DATASETS.CATEGORY_IDS]
    if len(ids) == len(set(ids)) == len(classes):
        return dict(zip(classes, ids, strict=True))
    return class_ids(classes, *(coco.category_ids for coco in files.values()))


def _why_no_class(coco: CocoFile) -> str:
    if not coco.annotations:
        return "it has no annotations, so its classes are unknown. Name a file with annotations."
    found = shorten(coco.annotations[0].get("category_id"))
    hint = " It is a panoptic file." if "segments_info" in coco.annotations[0] else ""
    return (
        f"none of its {len(coco.annotations)} annotations has the id of a category as category_id: "
        f"the first has {found}.{hint} Export it again as COCO instances, with whole numbers."
    )


def _register(
    cfg: CfgNode, sources: Mapping[str, Source], files: Files, classes: Mapping[str, int]
) -> Files:
    """Check and register the files, and return the used part of each."""
    training = _training(cfg, files)
    masks_on = cfg.MODEL.MASK_ON and (not training or any(files[n].has_masks for n in training))
    found: dict[tuple[str, Path | None, bool], tuple[ImageFiles, CocoFile, list[Problem]]] = {}
    used: dict[str, CocoFile] = {}
    empty: dict[str, str] = {}  # those without an object, and why
    for name, coco in files.items():
        # A model with masks is evaluated on a set of boxes alone for boxes alone.
        needs_masks = masks_on and (name in training or coco.has_masks)
        key = coco.file, sources[name].folder, needs_masks
        if key not in found:  # both parts of a file are checked at once
            images = sources[name].images(coco.file_names)
            found[key] = images, *check_once(coco, images, needs_masks)
            if not cfg.DATALOADER.SKIP_BAD_ANNOTATIONS:
                refuse(coco.file, found[key][-1])
            for listed, path in itertools.islice(images.renamed.items(), 1):
                logger.warning(
                    "%s: images found under other names in %s: %d, such as %s for %s.",
                    *(coco.file, images.folder, len(images.renamed)),
                    *(shorten(path), shorten(listed)),
                )
        images, sound, _ = found[key]
        part = sources[name].part
        used[name] = register_source(name, part, coco, sound, images, classes)
        if not used[name].objects:
            empty[name] = _why_no_object(coco, sound, part)
    for name, reason in empty.items():
        if name not in cfg.DATASETS.TRAIN:
            logger.warning("%s: nothing can be scored, AP will be nan: %s.", name, reason)
        elif set(cfg.DATASETS.TRAIN) <= set(empty):
            raise DatasetError(f"{name}: no annotations to train on: {reason}.")
        elif files[name].annotations:
            logger.warning("%s: its images are background: %s.", name, reason)
    skipped = {file: list(map(vars, bad)) for (file, *_), (*_, bad) in found.items() if bad}
    if skipped and comm.is_main_process():
        output = Path(cfg.OUTPUT_DIR) / SKIPPED_FILE
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(output) as partial:
            partial.write_text(json.dumps(skipped, indent=1), encoding="utf-8")
        count = sum(map(len, skipped.values()))
        logger.warning("%d bad images and annotations are skipped; %s lists them.", count, output)
    return used


def refuse(file: str, problems: Sequence[Problem]) -> None:
    """Raise DatasetError with the first of the problems of a file, and their number."""
    if problems:
        more = f" There are {len(problems) - 1} more." if len(problems) > 1 else ""
        raise DatasetError(
            f"{file}: {problems[0].reason.rstrip('.')}.{more} Fix the file (gnws check-data lists "
            "everything), or go on without these images and annotations: --skip-bad-annotations, "
            "DATALOADER.SKIP_BAD_ANNOTATIONS True."
        )


def _why_no_object(coco: CocoFile, sound: CocoFile, part: str) -> str:
    """Why no annotation of a file, or of a part of it, is used as an object."""
    listed, left = (len(file.annotations or ()) for file in (coco, sound))
    crowds, objects = sum(bool(a.get("iscrowd")) for a in sound.annotations or ()), sound.objects
    kinds = {
        "bad (gnws check-data lists them)": listed - left,
        "crowds, which are not trained on (set iscrowd to 0)": crowds,
        "without width or height": left - crowds - len(objects),
        "of other classes or images": len(objects),
    }
    found = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    reason = f"its {listed} annotations are {found}" if listed else "it has no annotations"
    return f"{reason}. {SPLIT_FIX}" if part and objects else reason


def _change(cfg: CfgNode, settings: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    """Set what follows from the data, and return a sentence on each change. ``settings`` come one
    by one, as later ones depend on earlier ones."""
    said = []
    for reason, values in settings:
        new = {key: value for key, value in values.items() if get_key(cfg, key) != value}
        for key, value in new.items():
            set_key(cfg, key, value)
        if new:
            now = ", ".join(f"{key} is {value}" for key, value in new.items())
            said.append(f"{reason}, therefore now {now}")
    return said


def _settings(
    cfg: CfgNode, used: Files, classes: Mapping[str, int]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """A fact about the data, and the values of the keys that follow from it."""
    heads = [
        f"MODEL.{section}.NUM_CLASSES"
        for section, node in cfg.MODEL.items()
        if isinstance(node, CfgNode) and "NUM_CLASSES" in node and section != "SEM_SEG_HEAD"
    ]
    yield (
        f"{len(classes)} classes in the data: {', '.join(classes)}",
        {
            "DATASETS.CLASSES": list(classes),
            "DATASETS.CATEGORY_IDS": list(classes.values()),
            **dict.fromkeys(heads, len(classes)),
            "MODEL.REMAKE_PREDICTORS": True,
        },
    )
    training = {name: used[name] for name in _training(cfg, used)}
    if cfg.MODEL.MASK_ON and training:
        if not any(coco.has_masks for coco in training.values()):
            yield "The training data has boxes only", {"MODEL.MASK_ON": False}
        objects = [o for coco in training.values() for o in coco.objects]
        if any(isinstance(o.get("segmentation"), dict) for o in objects):
            yield "The training data has masks as RLE", {"INPUT.MASK_FORMAT": "bitmask"}
    if cfg.MODEL.KEYPOINT_ON and training:
        names = _keypoint_names(cfg, used)
        values: dict[str, Any] = {"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": len(names)}
        if len(cfg.TEST.KEYPOINT_OKS_SIGMAS) != len(names):
            values["TEST.KEYPOINT_OKS_SIGMAS"] = [1 / len(names)] * len(names)
        yield f"{len(names)} keypoints in the data: {', '.join(names)}", values


def _keypoint_names(cfg: CfgNode, used: Files) -> list[str]:
    """The names of the keypoints, which have to be those of all classes and files."""
    points = {
        name: [o["keypoints"] for o in coco.objects if o.get("keypoints")]
        for name, coco in used.items()
    }
    for name in _training(cfg, used):
        if not any(any(point[2::3]) for point in points[name]):
            raise DatasetError(
                f"{name}: no annotation has keypoints that are visible, but MODEL.KEYPOINT_ON is "
                "True. Choose a config without keypoints, or set it to False."
            )
    # Those that were registered elsewhere too, and validation data that has keypoints.
    named = dict.fromkeys([*cfg.DATASETS.TRAIN, *(name for name in used if points[name])])
    names, *others = (MetadataCatalog.get(name).get("keypoint_names") for name in named)
    if not names:
        raise DatasetError(
            f"{next(iter(named))}: its categories do not name their keypoints. Add the member "
            "keypoints to them, a list of names."
        )
    for name, other in zip(named, (names, *others), strict=True):
        own = map(keypoint_names, used[name].categories if name in used else ())
        differ = any(_mirrored(listed) != _mirrored(names) for listed in own if listed)
        differ |= any(len(point) != 3 * len(names) for point in points.get(name, ()))
        if differ or other != names:
            message = (
                f"{name}: not all classes have the keypoints {', '.join(names)} in this order. A "
                "model has one list for all classes: correct the member keypoints of the "
                "categories, or choose classes with DATASETS.CLASSES."
            )
            if differ or name in cfg.DATASETS.TRAIN:
                raise DatasetError(message)
            logger.warning(message)  # perhaps only the words differ
    return names


def _mirrored(names: Sequence[str]) -> list[tuple[int, ...]]:
    """The pairs that a mirror exchanges, by their places in the list."""
    return [tuple(map(names.index, pair)) for pair in flip_pairs(names)]


def _warn_of_flips(cfg: CfgNode, names: Sequence[str]) -> None:
    """Warn of keypoints that would keep their names in a mirrored image."""
    pairs = flip_pairs(names)
    paired = set(itertools.chain(*pairs))
    alone = [n for n in names if n not in paired and (not pairs or has_side(n))]
    if cfg.INPUT.RANDOM_FLIP == "horizontal" and alone and len(names) > 1:
        logger.warning(
            "INPUT.RANDOM_FLIP is horizontal, but these keypoints have no counterpart on the other "
            "side, and keep their names in a mirrored image: %s. If they have sides, name them "
            "like left_eye and right_eye, or set INPUT.RANDOM_FLIP none.",
            ", ".join(alone),
        )


def _log_left_out(cfg: CfgNode, files: Files, used: Files) -> None:
    """Log the categories that are not used, and the classes that are not trained on."""
    classes = cfg.DATASETS.CLASSES
    unused: set[str] = set()
    for name, coco in files.items():
        unused |= set(coco.class_names.values()) - set(coco.used_categories) - set(classes)
        if other := [repr(c) for c in coco.used_categories if c not in classes]:
            logger.warning(
                "%s: annotations of %s are left out, which DATASETS.CLASSES does not have.",
                *(name, ", ".join(other)),
            )
    if unused:
        names = ", ".join(map(repr, sorted(unused)))
        logger.info("Categories without annotations are left out: %s", names)
    training = [used[name] for name in _training(cfg, used)]
    trained = {coco.class_names[o["category_id"]] for coco in training for o in coco.objects}
    if training and (untrained := [repr(c) for c in classes if c not in trained]):
        logger.warning(
            "No training image has an object of %s. The model will not find any.",
            ", ".join(untrained),
        )


def _warn_of_shared_images(cfg: CfgNode, used: Files) -> None:
    if len(used) < 2:  # resolving paths takes time
        return
    images = {
        name: {
            os.path.realpath(os.path.join(MetadataCatalog.get(name).image_root, image["file_name"]))
            for image in coco.images
        }
        for name, coco in used.items()
    }
    for one, other in itertools.combinations(images, 2):
        together = any({one, other} <= set(get_key(cfg, key)) for key in DATASET_KEYS)
        if shared := images[one] & images[other]:
            meaning = "scores on them are not meaningful"
            if together:
                meaning = "both annotations are used. Name one of them if they say the same"
            logger.warning(
                "%d images of %s are also in %s, such as %s: %s.",
                *(len(shared), one, other, min(shared), meaning),
            )
