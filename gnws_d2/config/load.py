"""Reading a config: defaults, a file with its bases, and overrides."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from ..errors import ConfigError, shorten
from .access import leaves
from .consistency import check_config
from .defaults import remember
from .files import resolve_config_file
from .keys import EPOCH_KEYS, add_gnws_config
from .merge import merge_file, merge_opts
from .values import check_values
from .yaml_files import own_files, read_config

logger = logging.getLogger(__name__)


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
    remember(add_configs)
    path = resolve_config_file(str(file))
    loaded = CfgNode(read_config(path) if path else {})
    named = {key for key, _ in leaves(loaded)} | set(opts[::2])
    cfg = _with_projects(cfg, named)
    defaults = cfg.clone()
    merge_file(cfg, loaded, path)
    merge_opts(cfg, opts)
    if cfg.VERSION != defaults.VERSION:
        raise ConfigError(
            f"VERSION is {shorten(cfg.VERSION)}, a version of Detectron2's configs that is not "
            f"supported. Set it to {defaults.VERSION} and use the keys of that version."
        )
    check_values(cfg, defaults)
    _use_available_device(cfg)
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


def _use_available_device(cfg: CfgNode) -> None:
    """Set MODEL.DEVICE to the CPU, with one log line, if it asks for a GPU and none exists."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        _say_that_the_cpu_is_used()
        cfg.MODEL.DEVICE = "cpu"


@functools.cache  # once is enough
def _say_that_the_cpu_is_used() -> None:
    # A warning, so that it is seen where no one has set up logging yet.
    logger.warning("No GPU found: MODEL.DEVICE is set to cpu.")


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
