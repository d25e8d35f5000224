"""Models that cannot be built, as errors of the config."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.config import CfgNode

from ..errors import DEBUG_VARIABLE, ConfigError, GnwsError, shorten


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
            "Compare the keys of MODEL that you changed with a packaged config; "
            f"{DEBUG_VARIABLE}=1 shows where it failed."
        ) from error
