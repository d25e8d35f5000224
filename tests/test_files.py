"""Files appear whole or not at all, on the disk before they have their name."""

import os
import signal
from contextlib import nullcontext
from pathlib import Path

import pytest
from processes import start

from gnws_d2 import files
from gnws_d2.files import atomic_write


@pytest.fixture(autouse=True)
def first_call():
    """Each test stands for a new process."""
    files._remove_stale.cache_clear()


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


def test_it_is_on_the_disk_before_it_has_the_name_and_the_name_is_too(tmp_path, monkeypatch):
    file, done = tmp_path / "file", []
    synced = os.fsync

    def fsync(descriptor):
        done.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}"), file.exists()))
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_write(file) as partial:
        partial.write_text("whole")
    assert done == [("sync", str(partial), False), ("sync", str(tmp_path), True)]


WRITE = """
import sys, time
from pathlib import Path
from gnws_d2.files import atomic_write, temporary_folder
file = Path(sys.argv[1])
with atomic_write(file) as partial, temporary_folder(file.parent) as folder:
    partial.write_text("half")
    (folder / file.name).write_text("half")
    print("written", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    (tmp_path / "write.py").write_text(WRITE)
    processes = []
    for name in ("killed", "living"):
        out = tmp_path / f"{name}.out"
        processes.append(start(tmp_path / "write.py", tmp_path / name, stdout=str(out)))
        while not out.exists() or "written" not in out.read_text():
            processes[-1].join(0.02)
    os.kill(processes[0].pid, signal.SIGKILL)
    processes[0].join()
    other = tmp_path / ".of another program.partial"
    other.touch()
    try:
        with atomic_write(tmp_path / "file") as partial:
            partial.touch()
        folder, file = sorted(tmp_path.glob(".*.gnws.partial"), key=Path.is_file)
        assert file.name.startswith(".living.") and other.exists()
        assert [part.name for part in folder.iterdir()] == ["living"]
    finally:
        os.kill(processes[1].pid, signal.SIGKILL)
        processes[1].join()


@pytest.mark.parametrize("fails", [False, True])
def test_a_temporary_folder_ends_with_its_block(tmp_path, fails):
    expected = pytest.raises(OSError, match="full") if fails else nullcontext()
    with expected, files.temporary_folder(tmp_path) as folder:
        (folder / "file").touch()
        files.publish(folder / "file", tmp_path / "published")
        assert folder.parent == tmp_path
        if fails:
            raise OSError("full")
    assert list(tmp_path.iterdir()) == [tmp_path / "published"]


def test_a_file_taken_for_stale_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    made, flock = [], files.fcntl.flock

    def slow(descriptor, operation):
        made.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        if len(made) == 1:  # the moment in which another process looks
            made[0].unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(files.fcntl, "flock", slow)
    with atomic_write(tmp_path / "file") as partial:
        partial.write_text("whole")
    assert len(made) == 2 and (tmp_path / "file").read_text() == "whole"
