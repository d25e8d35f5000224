"""Detectron2's config with this package's keys: the keys, reading a config, saving one.

Merging, types and deprecated keys are the work of yacs and fvcore, and builders refuse what cannot
be built. Here are the keys, suggestions for a mistyped one, and checks of the keys themselves.
"""

from __future__ import annotations

import ast
import copy
import difflib
import hashlib
import importlib
import io
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.logger import log_first_n
from simpleeval import DEFAULT_OPERATORS, EvalWithCompoundTypes

from .errors import ConfigError, shorten

logger = logging.getLogger(__name__)

AddConfig = Callable[[CfgNode], None]

META_ARCHITECTURE = "WeightStandardizedModel"  # a wrapper around another one

# Names of datasets: one, or a tuple of them.
DATASET_KEYS = ("DATASETS.TRAIN", "DATASETS.TEST", "DATASETS.FINAL_TEST")

# Lengths in epochs or minutes -> what they determine, in iterations.
EPOCH_KEYS = {
    "SOLVER.EPOCHS": {"SOLVER.MAX_ITER", "SOLVER.STEPS"},
    "SOLVER.MINUTES": {"SOLVER.MAX_ITER", "SOLVER.STEPS"},
    "SOLVER.CHECKPOINT_EPOCHS": {"SOLVER.CHECKPOINT_PERIOD"},
    "TEST.EVAL_EPOCHS": {"TEST.EVAL_PERIOD"},
}

# Ignored with a warning where an older config sets them.
_REMOVED_KEYS = {
    "SOLVER.ACCUMULATION_NORMALIZER",
    "MODEL.GN.REBUILD_ACTIVATIONS",  # projects/Acceleration: RECOMPUTE_ACTIVATIONS
    "MODEL.GN.REBUILD_CONVOLUTIONS",
}
_PRECISIONS = ("float32", "bfloat16", "float16")
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "INPUT.RESIZE_TRAIN": ("pil", "cv2"),
    "INPUT.RESIZE_TEST": ("pil", "cv2"),
    "INPUT.AUGMENTATION": ("", "light", "medium", "strong"),
    "DATALOADER.FILTER": ("mmdetection", "detectron2"),
    "SOLVER.AMP.DTYPE": _PRECISIONS[1:],
    "TEST.PRECISION": _PRECISIONS,
    "MODEL.BCN.SCHEDULE": ("lr", "constant"),
}
_LEAST = {
    **dict.fromkeys(EPOCH_KEYS, 0),
    **{"SOLVER.ACCUMULATION_STEPS": 1, "SOLVER.SCALE_TO_BATCH": 0},
    **{"SOLVER.EARLY_STOPPING": 0, "SOLVER.PROCESS_TIMEOUT": 1},
    **{"SOLVER.CHECKPOINTS_KEPT": 0, "SOLVER.EMA_DECAY": 0, "TEST.LOSS_IMAGES": 0},
}
# Projects that come with Detectron2: their keys are known where a config sets one of them.
_PROJECTS = {
    "deeplab": "add_deeplab_config",
    "panoptic_deeplab": "add_panoptic_deeplab_config",
    "point_rend": "add_pointrend_config",
}

_COMMENT = "#| "  # before the lines of a saved config that are for this package

_PACKAGED = Path(__file__).parent / "model_zoo" / "configs"  # in a wheel
_CHECKOUT = Path(__file__).parents[1] / "configs"  # in a source tree
CONFIG_ROOT = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT


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
    # How strongly training changes colors, sizes and crops: "", "light", "medium" or "strong".
    cfg.INPUT.AUGMENTATION = ""
    # Also turn training images by quarters, for data without an up.
    cfg.INPUT.ANY_WAY_UP = False
    # The names of the classes in the predictor's order, and their ids in annotation files and
    # results. Where a dataset is a COCO file (docs/own-data.md), they are taken from it.
    cfg.DATASETS.CLASSES = []
    cfg.DATASETS.CATEGORY_IDS = []
    # Datasets that are evaluated once after training, with the best checkpoint.
    cfg.DATASETS.FINAL_TEST = ()
    # Go on without the images and annotations that would train or evaluate wrong, and list them in
    # OUTPUT_DIR/skipped_annotations.json, instead of refusing the dataset.
    cfg.DATALOADER.SKIP_BAD_ANNOTATIONS = False
    # The fraction of the images that Detectron2's RandomSubsetTrainingSampler keeps; its own config
    # lacks this key.
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 1.0
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
    # How many checkpoints are kept beside model_best.pth, the newest ones. 0 keeps all, as
    # Detectron2 does; training on files of one's own keeps 2.
    cfg.SOLVER.CHECKPOINTS_KEPT = 0
    # Minutes that a training on COCO files of one's own takes, where more than 0: a few iterations
    # are timed before it, and MAX_ITER follows.
    cfg.SOLVER.MINUTES = 0.0
    # The decay, such as 0.999, of a moving average of the weights, which is evaluated and saved.
    # 0 averages nothing.
    cfg.SOLVER.EMA_DECAY = 0.0
    # At each evaluation during training, log the losses of so many images of DATASETS.TEST.
    # Training on files of one's own takes 100.
    cfg.TEST.LOSS_IMAGES = 0
    # The metric whose best evaluation is kept as model_best.pth, such as "bbox/AP50"; "auto"
    # chooses the AP or mIoU of the model's main task, "" keeps none. With several test sets,
    # "auto" takes the first; a name then begins with that of the set: "my_val/bbox/AP50".
    cfg.TEST.BEST_METRIC = "auto"
    # Stop after this many evaluations in a row without a better TEST.BEST_METRIC. 0 never stops.
    cfg.SOLVER.EARLY_STOPPING = 0
    # How many seconds a process waits for another before it ends with an error: one evaluates while
    # the others wait.
    cfg.SOLVER.PROCESS_TIMEOUT = 1800.0
    for key in _REMOVED_KEYS - cfg.__dict__[CfgNode.DEPRECATED_KEYS]:
        cfg.register_deprecated_key(key)


def with_gnws_keys(cfg: CfgNode) -> CfgNode:
    """A copy of any Detectron2 config, which has this package's keys at their defaults where
    ``cfg`` lacks them."""
    complete = cfg.clone()
    complete.defrost()
    add_gnws_config(complete)
    complete.merge_from_other_cfg(cfg)
    return complete


def load_config(
    file: str | Path, opts: Sequence[str] = (), add_configs: Sequence[AddConfig] = ()
) -> CfgNode:
    """Detectron2's config with this package's keys, a YAML file and overrides merged in order.

    If they name a key of a project that comes with Detectron2 (DeepLab, Panoptic-DeepLab,
    PointRend), the config gets all keys of that project. Of the YAML tags that run Python, tuples
    and arithmetic are understood, as in Detectron2's RetinaNet configs; the others are refused.

    Args:
        file: a path, or the name of a packaged config such as
            "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml"; "" for the defaults alone. The
            ``_BASE_`` of a file may be such a name, too.
        opts: KEY VALUE pairs, flat.
        add_configs: functions such as ``add_deeplab_config`` that add the keys of other projects.

    Raises:
        ConfigError: there is no such file, a key does not exist, or a value cannot be used.
    """
    path = resolve_config_file(str(file))
    return config_from(_read(path).merged[path] if path else {}, path, opts, add_configs)


def config_from(
    content: dict[str, Any],
    source: str,
    opts: Sequence[str] = (),
    add_configs: Sequence[AddConfig] = (),
) -> CfgNode:
    """:func:`load_config` with the content of a YAML file; ``source`` names it in errors."""
    try:
        loaded = CfgNode(content)
    except Exception as error:  # values that no config holds, such as dates
        raise ConfigError(f"{source}: {error}. Write KEY: VALUE lines.") from error
    cfg = get_cfg()
    for add_config in (add_gnws_config, *add_configs):
        add_config(cfg)
    _add_configs.update(dict.fromkeys(add_configs))
    cfg = _with_projects(cfg, {key for key, _ in leaves(loaded)} | set(opts[::2]))
    if loaded.get("VERSION", cfg.VERSION) != cfg.VERSION:
        raise ConfigError(
            f"{source}: VERSION is {loaded.VERSION}, and only {cfg.VERSION} is read. Use the keys "
            "of that version of Detectron2's configs."
        )
    with _merge_errors(cfg, source):
        for key, value in list(leaves(loaded)):
            if value is None and isinstance(get_key(cfg, key), CfgNode):
                raise ValueError(f"{key} is null, but it is a section. Set the keys in it")
            set_key(loaded, key, _coerced(cfg, key, value))
        cfg.merge_from_other_cfg(loaded)
    if len(opts) % 2:
        raise ConfigError(f"overrides come in pairs, KEY VALUE; found {' '.join(opts)!r}.")
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        with _merge_errors(cfg, f"the override {key} {shorten(text, quote=False)}"):
            cfg.merge_from_list([key, _coerced(cfg, key, text)])
    _check(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        # A warning, so that it is seen where no one has set up logging yet.
        log_first_n(logging.WARNING, "No GPU found: MODEL.DEVICE is set to cpu.", name=__name__)
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def own_settings(file: str | Path) -> tuple[set[str], str]:
    """The keys that ``file`` and its bases set, without the packaged ones among these, and the
    packaged one that it is or builds on; "" where there is none."""
    if not file:
        return set(), ""
    reader = _read(resolve_config_file(str(file)))
    packaged = [name for name in reader.merged if is_packaged(Path(name))]
    own = [CfgNode(_parsed(reader.texts[name])) for name in reader.merged if name not in packaged]
    keys = {key for content in own for key, _ in leaves(content)}
    return keys - {"_BASE_"}, packaged[-1] if packaged else ""


def _read(file: str) -> type[_ConfigFile]:
    """A YAML config and the files that its ``_BASE_`` names.

    Raises:
        ConfigError: a file is missing, or is no mapping in YAML without tags that run Python.
    """
    if file.endswith(".py"):
        raise ConfigError(
            f"{file} is a LazyConfig, a Python program: `gnws train` and `gnws eval` take it, and "
            "gnws_d2.model_zoo.get_config. Name a YAML config here."
        )
    reader = cast(type[_ConfigFile], type("OneConfig", (_ConfigFile,), {"texts": {}, "merged": {}}))
    try:
        if isinstance(reader.load_yaml_with_base(file), dict):
            return reader
        raise TypeError
    except (OSError, AssertionError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read: {shorten(str(error), quote=False)}") from error
    except (TypeError, AttributeError) as error:  # it is empty or a list, or _BASE_ is no name
        raise ConfigError(f"{file} or its _BASE_ is no config. Write KEY: VALUE lines.") from error
    except RecursionError as error:
        raise ConfigError(f"{file} is nested too deeply, or based on itself.") from error


class _Loader(yaml.SafeLoader):
    """Understands ``!!python/tuple``, and ``!!python/object/apply:eval`` of numbers and lists."""

    def evaluate(self, node: yaml.Node) -> Any:
        (expression,) = self.construct_sequence(node)
        try:
            if {"'", '"'} & set(expression):
                raise ValueError("it has text in it")  # which could be made very long
            evaluator = EvalWithCompoundTypes({**DEFAULT_OPERATORS, ast.Pow: _power})
            del evaluator.nodes[ast.Call], evaluator.nodes[ast.Attribute]
            return evaluator.eval(expression)
        except Exception as error:  # simpleeval and arithmetic have many
            raise yaml.constructor.ConstructorError(
                None, None, f"{shorten(expression)} is no arithmetic ({error})", node.start_mark
            ) from error


def _power(base: float, exponent: float) -> float:
    power = math.pow(base, exponent)  # fails where that of integers would go on for ever
    is_whole = isinstance(base, int) and isinstance(exponent, int) and power.is_integer()
    return int(power) if is_whole else power


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _Loader.construct_sequence)
_Loader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _Loader.evaluate)


def _parsed(text: str) -> Any:
    """The content of one YAML config with the keys that :func:`config_text` has
    put into comments."""
    content = yaml.load(text, _Loader)
    lines = [line[len(_COMMENT) :] for line in text.splitlines() if line.startswith(_COMMENT)]
    for key, value in leaves(CfgNode(yaml.load("\n".join(lines), _Loader))):
        *sections, name = key.split(".")
        node = content
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return content


class _ConfigFile(CfgNode):
    """Finds a ``_BASE_`` that is the name of a packaged config, reads with :class:`_Loader`, and a
    file that several others are based on once.

    Attributes:
        texts, merged: what each file holds, and that merged into its bases; each after its bases.
    """

    texts: dict[str, str]
    merged: dict[str, Any]

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str]:
        with super()._open_cfg(filename) as stream:
            text = cls.texts[filename] = stream.read()
        # Most files are plain YAML, which CfgNode parses itself.
        is_plain = "!!python" not in text and _COMMENT not in text
        return io.StringIO(text if is_plain else yaml.safe_dump(_parsed(text)))

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        path = Path(filename)
        named = (CONFIG_ROOT / path.name, CONFIG_ROOT / path.parent.name / path.name)
        packaged = [str(other) for other in named if other.is_file()]
        if packaged and not os.path.exists(filename):
            logger.info("%s does not exist: the packaged one is used.", filename)
            filename = packaged[0]
        if filename not in cls.merged:
            cls.merged[filename] = super().load_yaml_with_base(filename)
        return copy.deepcopy(cls.merged[filename])


@contextmanager
def _merge_errors(cfg: CfgNode, source: str) -> Iterator[None]:
    """Name the source and suggest keys where yacs refuses what is merged into ``cfg``."""
    try:
        yield
    except Exception as error:  # yacs parses values as literals, which can fail in many ways
        message = shorten(str(error.args[0] if error.args else error), quote=False)
        if "Non-existent" not in message:
            raise ConfigError(f"{source}: {message}") from error
        key = message.rpartition(": ")[2]
        near = difflib.get_close_matches(key, [k for k, _ in leaves(cfg)], n=3, cutoff=0.6)
        fix = f"Did you mean {' or '.join(near)}?" if near else "Remove it."
        raise ConfigError(f"{source}: the config has no key {key}. {fix}") from error


def _coerced(cfg: CfgNode, key: str, value: Any) -> Any:
    """A whole number for a fraction, as in "SOLVER.EPOCHS 12", and a dataset's name for a tuple of
    it, which yacs refuses for their type."""
    decoded = CfgNode._decode_cfg_value(value)
    if type(decoded) is int and type(get_key(cfg, key)) is float:
        return float(decoded)
    return (decoded,) if isinstance(decoded, str) and key in DATASET_KEYS else value


def _check(cfg: CfgNode) -> None:
    """Raise ConfigError where a key of this package would be ignored or misread in silence."""
    for key, choices in _CHOICES.items():
        if get_key(cfg, key) not in choices:
            *others, last = (f'"{choice}"' for choice in choices)
            raise ConfigError(
                f"{key} is {shorten(get_key(cfg, key))}. Set it to {', '.join(others)} or {last}."
            )
    for key, least in _LEAST.items():
        if not get_key(cfg, key) >= least:  # NaN is not
            raise ConfigError(f"{key} is {get_key(cfg, key)}. Set it to {least} or more.")
    if cfg.SOLVER.EMA_DECAY >= 1:
        raise ConfigError(
            f"SOLVER.EMA_DECAY is {cfg.SOLVER.EMA_DECAY}, with which the average would keep the "
            "initial weights. Set it to less than 1, such as 0.999."
        )
    if cfg.MODEL.WS.PARTS and cfg.MODEL.META_ARCHITECTURE != META_ARCHITECTURE:
        raise ConfigError(
            f"MODEL.WS.PARTS is {shorten(list(cfg.MODEL.WS.PARTS))}, but MODEL.META_ARCHITECTURE "
            f"is {cfg.MODEL.META_ARCHITECTURE!r}, which does not read it. Set "
            f"MODEL.META_ARCHITECTURE to {META_ARCHITECTURE!r} and MODEL.WS.META_ARCHITECTURE to "
            f"{cfg.MODEL.META_ARCHITECTURE!r}, or MODEL.WS.PARTS to []."
        )


def _with_projects(cfg: CfgNode, named: set[str]) -> CfgNode:
    """``cfg`` with the keys of the projects that ``named`` are of. Only those: a config that is
    saved with a project's keys can be read only with them."""
    for project, function in _PROJECTS.items():
        unknown = named - {key for key, _ in leaves(cfg)} - _REMOVED_KEYS
        if not unknown:
            break
        try:
            module = importlib.import_module(f"detectron2.projects.{project}")
        except ImportError as error:  # Panoptic-DeepLab needs panopticapi
            logger.info("Keys of %s are unknown: it does not import (%s).", project, error)
            continue
        extended = cfg.clone()
        getattr(module, function)(extended)
        if unknown & {key for key, _ in leaves(extended)}:
            cfg = extended
    return cfg


# The functions that have added keys in this process, in order: what they add are defaults.
_add_configs: dict[AddConfig, None] = {add_gnws_config: None}


def portable_config(cfg: CfgNode) -> CfgNode:
    """A copy of ``cfg`` to save, without the keys that have their default value of this package and
    of the ``add_configs`` that :func:`load_config` was called with.

    Detectron2's plain ``get_cfg()`` reads it where no such key is set; :func:`load_config`, and any
    program that adds the same keys, reads it in any case.
    """
    own = {key for key, _ in leaves(get_cfg())}
    defaults, values = all_defaults(), dict(leaves(cfg))
    unused = {k for k, v in defaults.items() if k not in own and k in values and values[k] == v}
    return _without(cfg.clone(), unused)


def config_text(cfg: CfgNode) -> str:
    """:func:`portable_config` as YAML that Detectron2's plain ``get_cfg()`` reads: the keys of this
    package are in comments, which :func:`load_config` understands."""
    cfg = portable_config(cfg)
    named = {key for key, _ in leaves(cfg)}
    own = named & all_defaults("gnws_d2.").keys() - {key for key, _ in leaves(get_cfg())}
    if not own:
        return cfg.dump()
    lines = [f"{_COMMENT}{ln}" for ln in _without(cfg.clone(), named - own).dump().splitlines()]
    head = "# The keys of gnws_d2, for gnws_d2.load_config:"
    return "\n".join([_without(cfg, own).dump(), head, *lines, ""])


def all_defaults(module: str = "") -> dict[str, object]:
    """The default of every key: of Detectron2, this package, and the ``add_configs`` of
    :func:`load_config`, of which only those whose modules begin with ``module``."""
    defaults = get_cfg()
    for add_config in _add_configs:
        if add_config.__module__.startswith(module):
            add_config(defaults)
    return dict(leaves(defaults))


def _without(node: CfgNode, keys: set[str], prefix: str = "") -> CfgNode:
    for name, value in list(node.items()):
        if isinstance(value, CfgNode) and value:
            _without(value, keys, f"{prefix}{name}.")
        if f"{prefix}{name}" in keys or value == CfgNode():
            del node[name]
    return node


def config_names(lazy: bool = False) -> list[str]:
    """The names of all packaged configs that describe a model, relative to ``configs/``.

    Args:
        lazy: LazyConfigs, too.
    """
    files = [*CONFIG_ROOT.glob("*/*.yaml")]
    if lazy:  # lazy_common.py is a part of them
        files += [file for file in CONFIG_ROOT.glob("*/*.py") if not file.name.startswith("lazy")]
    return sorted(file.relative_to(CONFIG_ROOT).as_posix() for file in files)


def get_config_file(config_path: str) -> str:
    """The file of a packaged config.

    Args:
        config_path: a name relative to ``configs/``, such as
            "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml".

    Raises:
        ConfigError: there is no such config; the message suggests some.
    """
    file = CONFIG_ROOT / config_path
    if not os.path.isfile(file):  # unlike Path.is_file, also where no file can have the name
        names = config_names(lazy=True)
        near = [name for name in names if name.endswith(f"/{config_path}")]
        near = near or difflib.get_close_matches(config_path, names, n=3, cutoff=0.5)
        raise ConfigError(
            f"{shorten(config_path)} is neither a file nor a config of gnws_d2. "
            + (f"Did you mean {' or '.join(near)}? " if near else "")
            + "`gnws zoo list` shows all."
        )
    return str(file)


def is_packaged(file: Path) -> bool:
    """Whether ``file`` is a packaged config as it was delivered: in a source tree, users may keep
    configs of their own beside those, or change them."""
    if not file.resolve().is_relative_to(CONFIG_ROOT.resolve()):
        return False
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return digest in CONFIG_ROOT.joinpath("SHA256SUMS").read_text(encoding="utf-8")


def resolve_config_file(file: str) -> str:
    """``file`` if it exists, else the packaged config of that name; "" stays "".

    Raises:
        ConfigError: see :func:`get_config_file`.
    """
    return file if not file or os.path.isfile(file) else get_config_file(file)


def leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every value of a config, such as ("SOLVER.MAX_ITER", 90000)."""
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def get_key(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted key; None where there is no such key."""
    node: Any = cfg
    for word in key.split("."):
        node = node.get(word) if isinstance(node, CfgNode) else None
    return node


def set_key(cfg: CfgNode, key: str, value: object) -> None:
    """Set a dotted key that exists."""
    section, _, name = key.rpartition(".")
    (get_key(cfg, section) if section else cfg)[name] = value


def dataset_names(cfg: CfgNode, keys: Sequence[str] = DATASET_KEYS) -> list[str]:
    """The datasets that ``keys`` of ``cfg`` name, each once."""
    return list(dict.fromkeys(name for key in keys for name in get_key(cfg, key) or ()))


def built_architecture(cfg: CfgNode) -> str:
    """MODEL.META_ARCHITECTURE, seen through this package's wrapper."""
    name = cfg.MODEL.META_ARCHITECTURE
    return cfg.MODEL.WS.META_ARCHITECTURE if name == META_ARCHITECTURE else name
