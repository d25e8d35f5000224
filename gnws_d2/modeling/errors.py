"""Models that cannot be built, as errors of the config."""

from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.config import CfgNode

from ..config import META_ARCHITECTURE, leaves
from ..errors import DEBUG_VARIABLE, ConfigError, GnwsError, shorten
from .norms import BCN_NORMS


@contextmanager
def build_errors(cfg: CfgNode) -> Iterator[None]:
    """Name the config as the cause where Detectron2 or torch fail to build what it describes.

    Raises:
        ConfigError: in place of any other error.
    """
    try:
        yield
    except GnwsError:
        raise
    except Exception as error:
        reason = shorten(f"{type(error).__name__}: {error}", quote=False)
        raise ConfigError(
            f"the {cfg.MODEL.META_ARCHITECTURE} cannot be built from this config ({reason}). "
            f"{_fix(cfg, error)} {DEBUG_VARIABLE}=1 shows where it failed."
        ) from error


def _fix(cfg: CfgNode, error: Exception) -> str:
    # Detectron2 looks up norms and depths in a dict, which raises a KeyError of the value alone.
    value = error.args[0] if isinstance(error, KeyError) and error.args else None
    keys = [f"MODEL.{key}" for key, found in leaves(cfg.MODEL) if found == value]
    if value is None or not keys:
        return "Compare the keys of MODEL that you changed with a packaged config."
    fix = f"A component does not know {shorten(value)}, the value of {', '.join(keys)}."
    if keys[0].endswith(".NORM"):
        fix += (
            f" Use BN, SyncBN, FrozenBN, GN or LN; {', '.join(BCN_NORMS)} need a component of this "
            f"package (WS..., build_ws_...) or MODEL.META_ARCHITECTURE {META_ARCHITECTURE}."
        )
    return fix
