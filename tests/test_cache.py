"""Where the cache folder is, and what happens when it cannot be used."""

from pathlib import Path

import pytest

from gnws_d2 import cache


def test_variable_chooses_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "a" / "b"))
    assert cache.cache_path() == tmp_path / "a" / "b"
    assert not (tmp_path / "a").exists()
    assert cache.cache_dir().is_dir()


@pytest.mark.parametrize("value", [None, ""])
def test_default_is_beside_detectron2s_cache(tmp_path, monkeypatch, value):
    if value is None:
        monkeypatch.delenv(cache.CACHE_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(cache.CACHE_VARIABLE, value)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "theirs"))
    assert cache.cache_path() == tmp_path / "gnws_d2_cache"
    monkeypatch.delenv("FVCORE_CACHE")
    assert cache.cache_path() == Path.home() / ".torch" / "gnws_d2_cache"


def test_default_follows_the_rule_of_iopath(tmp_path, monkeypatch):
    from iopath.common.file_io import get_cache_dir

    monkeypatch.delenv(cache.CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "theirs"))
    assert cache.cache_path().parent == Path(get_cache_dir()).parent


def test_unusable_folder_is_an_error_with_a_cure(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "file" / "below"))
    with pytest.raises(OSError, match=r"file/below .*Set \$GNWS_D2_CACHE to a folder"):
        cache.cache_dir()


def test_read_only_folder_is_an_error_with_a_cure(tmp_path, monkeypatch):
    # Told rather than made read-only: root may write everywhere.
    monkeypatch.setattr(cache.os, "access", lambda *_: False)
    with pytest.raises(OSError, match=r"not writable\. Set \$GNWS_D2_CACHE"):
        cache.ensure_writable(tmp_path)
