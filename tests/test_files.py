"""Files appear whole or not at all, a lock names its holder, and the cache folder is chosen."""

import os
import socket
import time
from pathlib import Path

import pytest
from iopath.common.file_io import get_cache_dir

from gnws_d2 import files
from gnws_d2.files import atomic_write, locked, restored


def test_it_appears_whole(tmp_path):
    file = tmp_path / "file"
    with atomic_write(file) as partial:
        partial.write_text("whole")
        assert not file.exists() and partial.parent == tmp_path
    assert file.read_text() == "whole" and list(tmp_path.iterdir()) == [file]
    umask = os.umask(0)
    os.umask(umask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask


def test_an_error_leaves_what_was_there(tmp_path):
    file = tmp_path / "file"
    file.write_text("before")
    with pytest.raises(OSError, match="full"), atomic_write(file) as partial:
        partial.write_text("half")
        raise OSError("full")
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]
    for begins, expected in ((True, "after"), (False, "after")):
        with restored(file) as undo:
            file.write_text("after" if begins else "later")
            if begins:
                undo.pop_all()
        assert file.read_text() == expected
    with restored(tmp_path / "new"):
        (tmp_path / "new").touch()
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path):
    names = (".old.gnws.partial", ".new.gnws.partial", ".of another program.partial")
    for name in names:
        (tmp_path / name).touch()
    for name in (names[0], names[2]):
        os.utime(tmp_path / name, (0, time.time() - 100_000))
    with atomic_write(tmp_path / "file") as partial:
        partial.touch()
    assert {path.name for path in tmp_path.iterdir()} == {"file", *names[1:]}


def test_it_is_free_again_and_says_nothing_then(tmp_path):
    for _ in range(2):
        with locked(tmp_path / "lock", 1.0):
            holder = (tmp_path / "lock.holder").read_text()
            assert holder == f"process {os.getpid()} on {socket.gethostname()}"
        assert not (tmp_path / "lock.holder").exists()


@pytest.mark.parametrize("theirs", [None, "theirs"])
def test_default_is_beside_detectron2s_cache(tmp_path, monkeypatch, theirs):
    """By the rule of iopath, which creates its folder."""
    for variable in (files.CACHE_VARIABLE, "FVCORE_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if theirs:
        monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / theirs))
        monkeypatch.setenv(files.CACHE_VARIABLE, "")
    assert files.cache_path() == Path(get_cache_dir()).with_name("gnws_d2_cache")
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "a" / "b"))
    assert files.cache_path() == tmp_path / "a" / "b" and not (tmp_path / "a").exists()
    assert files.cache_dir(files.cache_path()).is_dir()


def test_unusable_folder_is_an_error_with_a_fix(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/below .*Set \$GNWS_D2_CACHE to a folder"):
        files.cache_dir(tmp_path / "file" / "below")

    def refuse(dir):
        raise PermissionError("read-only")

    # Told rather than made read-only: root may write everywhere.
    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    with pytest.raises(OSError, match=r"to \(read-only\)\. Set \$GNWS_D2_CACHE"):
        files.cache_dir(tmp_path)
