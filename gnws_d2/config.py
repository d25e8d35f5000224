"""Every config key this package adds, and reading and checking a config."""

from __future__ import annotations

import difflib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from .config_files import resolve_config_file
from .config_values import check_components, check_values, leaves
from .config_yaml import own_files, read_config
from .errors import ConfigError, shorten
from .norms import BCN_NORMS

logger = logging.getLogger(__name__)

META_ARCHITECTURE = "WeightStandardizedModel"  # a wrapper around another one

# Those of detectron2.layers.get_norm, which raises a bare KeyError for any other, and ours.
NORMS = (
    *("", "BN", "SyncBN", "FrozenBN", "GN", "LN"),
    *("nnSyncBN", "naiveSyncBN", "naiveSyncBN_N"),
    *BCN_NORMS,
)

# Names of datasets: one, or a tuple of them.
DATASET_KEYS = ("DATASETS.TRAIN", "DATASETS.TEST", "DATASETS.FINAL_TEST")

LONGEST_TIMEOUT = 7 * 24 * 3600  # seconds

# Lengths in epochs -> what they determine, in iterations.
EPOCH_KEYS = {
    "SOLVER.EPOCHS": {"SOLVER.MAX_ITER", "SOLVER.STEPS"},
    "SOLVER.CHECKPOINT_EPOCHS": {"SOLVER.CHECKPOINT_PERIOD"},
    "TEST.EVAL_EPOCHS": {"TEST.EVAL_PERIOD"},
}

# Ignored with a warning where an older config sets them.
REMOVED_KEYS = {
    "SOLVER.ACCUMULATION_NORMALIZER",
    "MODEL.GN.REBUILD_ACTIVATIONS",  # projects/Acceleration: RECOMPUTE_ACTIVATIONS
    "MODEL.GN.REBUILD_CONVOLUTIONS",
}


def add_gnws_config(cfg: CfgNode) -> None:
    """Add this package's keys to ``cfg``, in place, and change no other."""
    # For models that build a part without a registry, such as the head of RetinaNet, and to choose
    # parts: with MODEL.META_ARCHITECTURE "WeightStandardizedModel", the model that is built and
    # then standardized.
    cfg.MODEL.WS = CfgNode()
    cfg.MODEL.WS.META_ARCHITECTURE = "GeneralizedRCNN"
    # Its parts whose normalized convolutions use a standardized weight, of: stem, backbone, fpn,
    # rpn, box_head, mask_head, ... (each model names its own; the build log lists them).
    # The norm itself is chosen by Detectron2's NORM key of the same part.
    cfg.MODEL.WS.PARTS = []
    # Batch-Channel Normalization, where a NORM key is "BCN" (statistics of the batch), "EstBCN"
    # (running estimates, for one or two images a process), "SyncBCN" or "SyncEstBCN" (those of
    # all processes). The components of this package take these values, and any component in a
    # "WeightStandardizedModel".
    cfg.MODEL.BCN = CfgNode()
    # The fraction of the way that the estimates move to the statistics of the batch at each step,
    # at most 1. 0 is unset; training with estimates then refuses to start.
    cfg.MODEL.BCN.MOVING_SPEED = 0.0
    # "lr": the speed falls with the learning rate, without its warm-up. "constant": it stays.
    cfg.MODEL.BCN.SCHEDULE = "lr"
    # Reinitialize the layers that predict classes, boxes and masks if MODEL.WEIGHTS was trained on
    # other classes, and list them, instead of refusing the file.
    cfg.MODEL.REMAKE_PREDICTORS = False
    # How images are resized for evaluation: "pil", as in Detectron2, or "cv2", as in MMDetection,
    # with which the published AP was measured.
    cfg.INPUT.RESIZE_TEST = "pil"
    # The same for training. The two differ where images shrink, and by at most one level where they
    # grow, as most of COCO does.
    cfg.INPUT.RESIZE_TRAIN = "pil"
    # The names of the classes in the predictor's order, and their ids in annotation files and
    # results. Where a dataset is a COCO file (docs/own-data.md), fit_to_data takes them from it.
    cfg.DATASETS.CLASSES = []
    cfg.DATASETS.CATEGORY_IDS = []
    # Datasets that are evaluated once after training, with the best checkpoint.
    cfg.DATASETS.FINAL_TEST = ()
    # Go on without the images and annotations that would train or evaluate wrong, and list them in
    # OUTPUT_DIR/skipped_annotations.json, instead of refusing the dataset.
    cfg.DATALOADER.SKIP_BAD_ANNOTATIONS = False
    # Which images and objects are trained on. "mmdetection" drops objects narrower than a pixel and
    # images with a side below 32, and keeps images that only have crowds; "detectron2" drops only
    # the latter. Both drop images without annotations, unless
    # DATALOADER.FILTER_EMPTY_ANNOTATIONS is False.
    cfg.DATALOADER.FILTER = "mmdetection"
    # The precision of SOLVER.AMP: "float16", or "bfloat16", which needs no scaling of the loss.
    cfg.SOLVER.AMP.DTYPE = "float16"
    # The precision of evaluation: "float32", or under autocast "bfloat16" or "float16".
    cfg.TEST.PRECISION = "float32"
    # The number of micro-batches that each process runs for an optimizer step, one after the other,
    # in the memory of one. It computes what this many processes compute with one micro-batch each.
    # Above 1, REFERENCE_WORLD_SIZE does not scale IMS_PER_BATCH.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # Another IMS_PER_BATCH, to which learning rate and schedule are scaled linearly, in place of
    # the scaling by REFERENCE_WORLD_SIZE. 0 scales to no batch.
    cfg.SOLVER.SCALE_TO_BATCH = 0
    # Lengths in epochs, passes over the images that are trained on, where more than 0. Training
    # turns them into MAX_ITER, CHECKPOINT_PERIOD and TEST.EVAL_PERIOD and sets them back to 0;
    # STEPS keep their fractions of MAX_ITER.
    cfg.SOLVER.EPOCHS = 0.0
    cfg.SOLVER.CHECKPOINT_EPOCHS = 0.0
    cfg.TEST.EVAL_EPOCHS = 0.0
    # The metric whose best evaluation is kept as model_best.pth, such as "bbox/AP50"; "auto"
    # chooses the AP or mIoU of the model's main task, "" keeps none. With several test sets,
    # "auto" takes the first; a name then begins with that of the set: "my_val/bbox/AP50".
    cfg.TEST.BEST_METRIC = "auto"
    # Stop after this many evaluations in a row without a better TEST.BEST_METRIC. 0 never stops.
    cfg.SOLVER.EARLY_STOPPING = 0
    # How many seconds a process waits for another before it ends with an error: one evaluates while
    # the others wait.
    cfg.SOLVER.PROCESS_TIMEOUT = 1800.0
    for key in REMOVED_KEYS - cfg.__dict__[CfgNode.DEPRECATED_KEYS]:
        cfg.register_deprecated_key(key)


def use_available_device(cfg: CfgNode) -> None:
    """Set MODEL.DEVICE to the CPU, with one log line, if it asks for a GPU and none exists."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        _say_that_the_cpu_is_used()
        cfg.MODEL.DEVICE = "cpu"


@functools.cache  # once is enough
def _say_that_the_cpu_is_used() -> None:
    # A warning, so that it is seen where no one has set up logging yet.
    logger.warning("No GPU found: MODEL.DEVICE is set to cpu.")


def load_config(
    file: str | Path,
    opts: Sequence[str] = (),
    add_configs: Sequence[Callable[[CfgNode], None]] = (),
) -> CfgNode:
    """Detectron2's config with this package's keys, a YAML file and overrides merged in order.

    If they name a key of DeepLab or PointRend, two projects of Detectron2, the config gets all
    keys of that project.

    Args:
        file: a path, or the name of a packaged config such as
            "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml"; "" for the defaults alone.
        opts: KEY VALUE pairs, flat.
        add_configs: functions such as ``add_deeplab_config`` that add the keys of other projects.

    Raises:
        ConfigError: a key does not exist, a value has the wrong type, or the whole cannot work.
        FileNotFoundError: neither a file nor a packaged config has that name.
    """
    cfg = get_cfg()
    for add_config in (add_gnws_config, *add_configs):
        add_config(cfg)
    _used_add_configs.update(dict.fromkeys(add_configs))
    path = resolve_config_file(str(file))
    loaded = CfgNode(read_config(path) if path else {})
    named = {key for key, _ in leaves(loaded)} | set(opts[::2])
    cfg = _with_projects(cfg, named)
    defaults = cfg.clone()
    _check_keys(loaded, cfg, path)
    with _merging(path), _other_types(cfg, dict(leaves(loaded))):
        cfg.merge_from_other_cfg(loaded)
    _merge_opts(cfg, opts)
    if cfg.VERSION != defaults.VERSION:
        raise ConfigError(
            f"VERSION is {shorten(cfg.VERSION)}, a version of Detectron2's configs that is not "
            f"supported. Set it to {defaults.VERSION} and use the keys of that version."
        )
    check_values(cfg, defaults)
    use_available_device(cfg)
    check_config(cfg)
    return cfg


def explicit_keys(file: str | Path, opts: Sequence[str] = ()) -> set[str]:
    """The keys that the user set: those of ``opts``, and of the files among ``file`` and its bases
    that are not packaged.

    Where ``opts`` count in epochs, iterations of a file give way: a saved config can be run again
    with SOLVER.EPOCHS.

    Args:
        file, opts: those of :func:`load_config`.
    """
    keys = set()
    for own in own_files(str(file))[0]:
        keys |= {key for key, _ in leaves(CfgNode(own))}
    given = set(opts[::2])
    for epochs, iterations in EPOCH_KEYS.items():
        if epochs in given:
            keys -= iterations
    return keys | given


def packaged_config(file: str | Path) -> CfgNode:
    """The packaged config that ``file`` is or builds on, without anything that a user set;
    Detectron2's defaults where there is none."""
    return load_config(own_files(str(file))[1])


# The functions that have added keys in this process, in order.
_used_add_configs: dict[Callable[[CfgNode], None], None] = {add_gnws_config: None}


def portable_config(cfg: CfgNode) -> CfgNode:
    """A copy of ``cfg`` to save, without the keys that have their default value of this package and
    of the ``add_configs`` that :func:`load_config` was called with.

    Detectron2's plain ``get_cfg()`` reads it where no such key is set; :func:`load_config`, and any
    program that adds the same keys, reads it in any case.
    """
    own = {key for key, _ in leaves(get_cfg())}
    values = dict(leaves(cfg))
    defaults = _all_defaults().items()
    unused = {k for k, v in defaults if k not in own and k in values and values[k] == v}
    return _without(cfg.clone(), unused)


def changed_keys(cfg: CfgNode) -> dict[str, object]:
    """The keys of ``cfg`` whose values are not the defaults, with their values. The defaults are
    Detectron2's, this package's, and those of the ``add_configs`` of :func:`load_config`."""
    known = _all_defaults()
    return {k: v for k, v in leaves(cfg) if k not in known or known[k] != v}


def _all_defaults() -> dict[str, object]:
    defaults = get_cfg()
    for add_config in _used_add_configs:
        add_config(defaults)
    return dict(leaves(defaults))


def _without(node: CfgNode, keys: set[str], prefix: str = "") -> CfgNode:
    for name, value in list(node.items()):
        if isinstance(value, CfgNode) and value:
            _without(value, keys, f"{prefix}{name}.")
        if f"{prefix}{name}" in keys or value == CfgNode():
            del node[name]
    return node


def _with_projects(cfg: CfgNode, named: set[str]) -> CfgNode:
    # Only where needed: a config saved with a project's keys can be read only with them.
    for add_project_config in (add_deeplab_config, _add_pointrend_config):
        unknown = named - {key for key, _ in leaves(cfg)}
        if not unknown:
            break
        extended = cfg.clone()
        add_project_config(extended)
        if unknown & {key for key, _ in leaves(extended)}:
            cfg = extended
    return cfg


def _add_pointrend_config(cfg: CfgNode) -> None:
    try:
        # Not at the top: it imports OpenCV, which nothing else needs.
        from detectron2.projects.point_rend import add_pointrend_config
    except ImportError as error:
        logger.warning(
            "Keys of PointRend are unknown, because it does not import: %s. It needs OpenCV: "
            "pip install opencv-python-headless",
            error,
        )
    else:
        add_pointrend_config(cfg)


def check_config(cfg: CfgNode) -> None:
    """Raise ConfigError if ``cfg`` describes what cannot be built, before anything is built."""
    check_components(cfg)
    if cfg.MODEL.WS.PARTS and cfg.MODEL.META_ARCHITECTURE != META_ARCHITECTURE:
        raise ConfigError(
            f"MODEL.WS.PARTS is {shorten(list(cfg.MODEL.WS.PARTS))}, but "
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE!r}, which does not read it. "
            f"Set MODEL.META_ARCHITECTURE to {META_ARCHITECTURE!r} and "
            f"MODEL.WS.META_ARCHITECTURE to {cfg.MODEL.META_ARCHITECTURE!r}, or MODEL.WS.PARTS "
            "to []."
        )
    _check_bcn(cfg)
    _check_batch(cfg)
    for key, norm, channels_key, channels in _normalized_widths(cfg):
        if norm not in NORMS:
            raise ConfigError(
                f"{key} is {shorten(norm)}, which is not a norm of Detectron2 or of this "
                f"package. Use one of {', '.join(repr(n) for n in NORMS)}."
            )
        if norm in ("GN", *BCN_NORMS) and channels % 32:
            raise ConfigError(
                f"{key} is {norm!r}, which uses 32 groups, but {channels_key} is {channels}, not a "
                f"multiple of 32. Change {channels_key}, or choose another norm for this part."
            )


def _check_bcn(cfg: CfgNode) -> None:
    bcn = cfg.MODEL.BCN
    if not 0 <= bcn.MOVING_SPEED <= 1:
        raise ConfigError(
            f"MODEL.BCN.MOVING_SPEED is {bcn.MOVING_SPEED}, but it is a fraction. Set it to more "
            "than 0 and at most 1, or to 0 if no norm has estimates."
        )
    if cfg.MODEL.META_ARCHITECTURE == META_ARCHITECTURE:
        return
    for section, node in cfg.MODEL.items():
        if not isinstance(node, CfgNode) or node.get("NORM") not in BCN_NORMS:
            continue
        named = "BACKBONE" if section in ("RESNETS", "FPN") else section
        component = cfg.MODEL[named].get("NAME", "")
        if not component.startswith(("WS", "build_ws_")):
            raise ConfigError(
                f"MODEL.{section}.NORM is {node.NORM!r}, which Detectron2's own components do not "
                f"know (MODEL.{named}.NAME is {shorten(component)}). Name the component of "
                f"this package there, or set MODEL.META_ARCHITECTURE to {META_ARCHITECTURE!r} and "
                f"MODEL.WS.META_ARCHITECTURE to {cfg.MODEL.META_ARCHITECTURE!r}."
            )


def _check_batch(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    for key, least in (
        *(("SOLVER.ACCUMULATION_STEPS", 1), ("SOLVER.SCALE_TO_BATCH", 0)),
        *(("SOLVER.EARLY_STOPPING", 0), *((key, 0) for key in EPOCH_KEYS)),
    ):
        if not get_key(cfg, key) >= least:  # NaN is not
            raise ConfigError(f"{key} is {get_key(cfg, key)}. Set it to {least} or more.")
    if not 1 <= solver.PROCESS_TIMEOUT <= LONGEST_TIMEOUT:
        raise ConfigError(
            f"SOLVER.PROCESS_TIMEOUT is {solver.PROCESS_TIMEOUT}. Set it to a number of seconds "
            f"from 1 to {LONGEST_TIMEOUT}."
        )
    key = "SCALE_TO_BATCH" if solver.SCALE_TO_BATCH else "IMS_PER_BATCH"
    if solver[key] % solver.ACCUMULATION_STEPS:
        raise ConfigError(
            f"SOLVER.ACCUMULATION_STEPS is {solver.ACCUMULATION_STEPS}, which does not divide "
            f"SOLVER.{key}, {solver[key]}. Choose a divisor of {solver[key]}."
        )

    if solver.EARLY_STOPPING and not cfg.TEST.BEST_METRIC:
        raise ConfigError(
            f"SOLVER.EARLY_STOPPING is {solver.EARLY_STOPPING}, but TEST.BEST_METRIC is empty: "
            'nothing can improve. Set it to "auto".'
        )


def _normalized_widths(cfg: CfgNode) -> Iterator[tuple[str, str, str, int]]:
    """(norm key, norm, channels key, channels) of every part that Detectron2's configs norm."""
    resnets = cfg.MODEL.RESNETS
    uses_resnet = "resnet" in cfg.MODEL.BACKBONE.NAME
    if uses_resnet:
        for key in ("STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS"):
            yield "MODEL.RESNETS.NORM", resnets.NORM, f"MODEL.RESNETS.{key}", resnets[key]
        if resnets.DEPTH >= 50:
            width = resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP
            key = "MODEL.RESNETS.NUM_GROUPS x MODEL.RESNETS.WIDTH_PER_GROUP"
            yield "MODEL.RESNETS.NORM", resnets.NORM, key, width
    retinanet, fpn = cfg.MODEL.RETINANET, cfg.MODEL.FPN
    yield "MODEL.RETINANET.NORM", retinanet.NORM, "MODEL.FPN.OUT_CHANNELS", fpn.OUT_CHANNELS
    for section, width in (
        ("FPN", "OUT_CHANNELS"),
        ("ROI_BOX_HEAD", "CONV_DIM"),
        ("ROI_MASK_HEAD", "CONV_DIM"),
        ("SEM_SEG_HEAD", "CONVS_DIM"),
    ):
        key = f"MODEL.{section}"
        yield f"{key}.NORM", cfg.MODEL[section].NORM, f"{key}.{width}", cfg.MODEL[section][width]


def _merge_opts(cfg: CfgNode, opts: Sequence[str]) -> None:
    if len(opts) % 2:
        raise ConfigError(
            f"overrides come in pairs, KEY VALUE; found {len(opts)} words: {shorten(opts)}"
        )
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        node = cfg
        for word in key.split("."):
            if key in REMOVED_KEYS:
                break
            if not isinstance(node, CfgNode) or word not in node:
                raise _unknown_key(key, value, cfg, "the command line")
            node = node[word]
        if isinstance(node, CfgNode) and key not in REMOVED_KEYS:
            raise _is_section(key, value, "the command line")
        with _merging(f"{key} {shorten(value)}"), _other_types(cfg, {key: value}):
            cfg.merge_from_list([key, value])


def _check_keys(loaded: CfgNode, cfg: CfgNode, source: str) -> None:
    known = {key for key, _ in leaves(cfg)} | REMOVED_KEYS
    for key, value in leaves(loaded):
        if any(k.startswith(key + ".") for k in known):
            raise _is_section(key, value, source)
        if key not in known:
            raise _unknown_key(key, value, cfg, source)


@contextmanager
def _merging(source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # yacs parses values as literals, which can fail in many ways
        text = shorten(str(error) or repr(error), quote=False)
        raise ConfigError(f"{source}: {text}") from error


def _is_section(key: str, value: object, source: str) -> ConfigError:
    fix = "Set the keys in it, or remove it."
    return ConfigError(f"{source} sets {key} to {shorten(value)}, but it is a section. {fix}")


def _unknown_key(key: str, value: object, cfg: CfgNode, source: str) -> ConfigError:
    near = difflib.get_close_matches(key, [name for name, _ in leaves(cfg)], n=3, cutoff=0.6)
    fix = f"Did you mean {' or '.join(near)}?" if near else "Remove it."
    found = f"{source} sets {shorten(key, quote=False)} to {shorten(value)}"
    return ConfigError(f"{found}, a key that does not exist. {fix}")


@contextmanager
def _other_types(cfg: CfgNode, values: dict[str, object]) -> Iterator[None]:
    """Let the block merge those of ``values`` that Detectron2 refuses for their type alone: a whole
    number for a fraction, as in "SOLVER.EPOCHS 12", and a dataset's name for a tuple of it."""
    convert: dict[str, Callable[[Any], Any]] = {}
    for key, written in values.items():
        value = CfgNode._decode_cfg_value(written)
        if type(value) is int and type(get_key(cfg, key)) is float:
            convert[key] = float
            set_key(cfg, key, 0)
        elif type(value) is str and key in DATASET_KEYS:
            convert[key] = lambda name: (name,)
            set_key(cfg, key, "")
    yield
    for key, function in convert.items():
        set_key(cfg, key, function(get_key(cfg, key)))


def get_key(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted key; None where there is no such key."""
    node: Any = cfg
    for word in key.split("."):
        node = node.get(word) if isinstance(node, CfgNode) else None
    return node


def dataset_names(cfg: CfgNode, keys: Sequence[str] = DATASET_KEYS) -> list[str]:
    """The datasets that ``keys`` of ``cfg`` name, each once."""
    return list(dict.fromkeys(name for key in keys for name in get_key(cfg, key) or ()))


def built_architecture(cfg: CfgNode) -> str:
    """MODEL.META_ARCHITECTURE, seen through this package's wrapper."""
    name = cfg.MODEL.META_ARCHITECTURE
    return cfg.MODEL.WS.META_ARCHITECTURE if name == META_ARCHITECTURE else name


def set_key(cfg: CfgNode, key: str, value: object) -> None:
    """Set a dotted key that exists."""
    section, _, name = key.rpartition(".")
    (get_key(cfg, section) if section else cfg)[name] = value
