"""``gnws://NAME`` in Detectron2's path manager, as in MODEL.WEIGHTS."""

from __future__ import annotations

from typing import IO, Any

from detectron2.utils.file_io import PathHandler, PathManager

from .fetch import fetch
from .published import PREFIX, find


class PublishedCheckpointHandler(PathHandler):
    """Resolves the name of a published checkpoint to a local file in Detectron2's form."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(fetch(find(path)))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO:
        if mode not in ("r", "rb"):
            raise OSError(f"{path} is published and cannot be opened with mode {mode!r}.")
        return open(self._get_local_path(path), "rb")

    def _exists(self, path: str, **kwargs: Any) -> bool:
        try:
            find(path)
        except LookupError:
            return False
        return True

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return self._exists(path)


def register() -> None:
    """Make Detectron2's path manager understand ``gnws://``."""
    PathManager.register_handler(PublishedCheckpointHandler(), allow_override=True)
