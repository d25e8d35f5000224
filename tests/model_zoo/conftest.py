"""What the tests of downloads share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from server import Server, running


@pytest.fixture
def server() -> Iterator[Server]:
    """A web server on loopback."""
    with running() as server:
        yield server


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    """The package's cache folder, which does not exist yet; no mirror is set."""
    monkeypatch.setenv("GNWS_D2_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GNWS_D2_MIRROR", raising=False)
    return tmp_path / "cache"
