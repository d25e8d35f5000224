"""Values of a config that cannot work together."""

from __future__ import annotations

from collections.abc import Iterator

from detectron2.config import CfgNode

from ..errors import ConfigError, shorten
from ..norms import BCN_NORMS
from .access import get_key
from .components import check_components
from .keys import EPOCH_KEYS, META_ARCHITECTURE

# Those of detectron2.layers.get_norm, which raises a bare KeyError for any other, and ours.
NORMS = (
    *("", "BN", "SyncBN", "FrozenBN", "GN", "LN"),
    *("nnSyncBN", "naiveSyncBN", "naiveSyncBN_N"),
    *BCN_NORMS,
)

LONGEST_TIMEOUT = 7 * 24 * 3600  # seconds


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
