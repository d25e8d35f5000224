"""Downloads from a real server that behaves badly in the ways that servers do."""

import functools
import hashlib
import os
import shutil

import pytest
from server import fail, redirect, say, send

from gnws_d2.errors import FileError
from gnws_d2.model_zoo.download import download

CONTENT = os.urandom(3 << 20)
SHA = hashlib.sha256(CONTENT).hexdigest()[:8]
OK = b"HTTP/1.1 200 OK\r\n\r\n"
MOVED = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: %s\r\n\r\n"

download = functools.partial(download, sha256=SHA, pause=0.01)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder" / "model.pth"


def left(file):
    return sorted(f.name for f in file.parent.iterdir())


FIRST = send(CONTENT, cut=1 << 20)
ARRIVES = {
    "good": ([send(CONTENT)], [None]),
    "moved": ([redirect("/model.pth"), send(CONTENT)], [None, None]),
    "errors": ([fail(500), fail(503), send(CONTENT)], [None, None, None]),
    "cut": ([FIRST, FIRST, send(CONTENT)], [None, "bytes=1048576-", "bytes=2097152-"]),
    # A server that knows no ranges sends all of it again.
    "no ranges": ([FIRST, send(CONTENT, ranges=False)], [None, "bytes=1048576-"]),
    "stops sending": ([send(CONTENT, slow=1.0), send(CONTENT)], [None, None]),
    "slow": ([send(CONTENT, slow=0.01)], [None]),
    "as a page": ([send(CONTENT, kind="text/html")], [None]),
    "no length": ([send(CONTENT, length="")], [None]),
}


@pytest.mark.parametrize(("answers", "ranges"), ARRIVES.values(), ids=ARRIVES)
def test_it_arrives_whole(server, file, answers, ranges):
    server.answers["/model.pth"] = list(answers)
    download(f"{server.url}/model.pth", file, timeout=0.5)
    assert file.read_bytes() == CONTENT and left(file) == ["model.pth"]
    assert [asked for _, asked in server.requests] == ranges


@pytest.mark.parametrize(
    ("part", "ranges"),
    [
        (CONTENT[:100], ["bytes=100-"]),
        (CONTENT, ["bytes=3145728-"]),
        (b"of another version", ["bytes=18-", None]),
    ],
    ids=["a part", "all of it", "another file"],
)
def test_what_an_earlier_call_left_is_continued(server, file, part, ranges):
    file.with_name("model.pth.part").write_bytes(part)
    server.answers["/model.pth"] = [send(CONTENT)]
    download(f"{server.url}/model.pth", file)
    assert file.read_bytes() == CONTENT and left(file) == ["model.pth"]
    assert [asked for _, asked in server.requests] == ranges


# The answer, a part of the message, and the number of requests.
FAILS = {
    "no file": (fail(404), "404", 1),
    "an error": (fail(500), "500", 4),
    "a page": (send(b"<html>", kind="text/html; charset=utf-8"), "sent a page instead", 1),
    "wrong hash": (send(CONTENT[:-1] + b"x"), f"not {SHA}", 1),
    "too short": (send(CONTENT[:1000], length="1000"), f"not {SHA}", 1),
    "too long": (send(CONTENT, length=str(1 << 60)), "MB are free", 1),
    "endless": (say(OK, CONTENT[: 1 << 16], forever=True), "does not end after", 1),
    "cut": (send(CONTENT, cut=0), "IncompleteRead", 4),
    "stops sending": (send(CONTENT, slow=1.0), "timed out", 4),
    "hangs up": (say(b""), "closed connection without response", 4),
    "to a local file": (say(MOVED % b"file:///etc/passwd"), "not allowed", 1),
    "in a circle": (redirect("/model.pth"), "infinite loop", 5),
}


@pytest.mark.parametrize(("answer", "reason", "attempts"), FAILS.values(), ids=FAILS)
def test_a_failure_is_one_line_and_costs_nothing(server, file, answer, reason, attempts):
    file.write_bytes(b"what was there before")
    server.answers["/model.pth"] = [answer]
    url = f"{server.url}/model.pth"
    with pytest.raises(FileError) as error:
        download(url, file, timeout=0.2, largest=4 << 20)
    message = str(error.value)
    assert "\n" not in message
    for part in (reason, "model.pth", url, str(file.parent), "GNWS_D2_MIRROR"):
        assert part in message
    assert file.read_bytes() == b"what was there before"
    assert len(server.requests) == attempts


def test_without_a_network(file):
    with pytest.raises(FileError, match=r"model\.pth cannot be downloaded from .*refused"):
        download("http://127.0.0.1:9/model.pth", file)
    assert left(file) == []


def test_too_little_room_is_seen_before_anything_is_written(server, file, monkeypatch):
    usage = shutil.disk_usage(file.parent)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    server.answers["/model.pth"] = [send(CONTENT)]
    with pytest.raises(FileError, match=r"needs 3 MB and 0 MB are free.*GNWS_D2_CACHE"):
        download(f"{server.url}/model.pth", file)
    assert left(file) == []
