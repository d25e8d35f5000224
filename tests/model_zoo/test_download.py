"""Downloads from a real server that behaves badly in all the ways that servers do."""

import hashlib
import os
import shutil
import time

import pytest
from processes import run
from server import fail, redirect, say, send

from gnws_d2.model_zoo import download as module
from gnws_d2.model_zoo.download import DownloadError, download

CONTENT = os.urandom(3 << 20)
SHA = hashlib.sha256(CONTENT).hexdigest()[:8]
OK = b"HTTP/1.1 200 OK\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
MOVED = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: %s\r\n\r\n"


@pytest.fixture
def file(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder / "model.pth"


def left(file):
    return sorted(f.name for f in file.parent.iterdir())


@pytest.mark.parametrize(
    ("answers", "ranges"),
    [
        ([send(CONTENT)], [None]),
        ([fail(500), fail(503), send(CONTENT)], [None, None, None]),
        ([send(CONTENT, cut=1 << 20), send(CONTENT)], [None, "bytes=1048576-"]),
        (
            [send(CONTENT, cut=1 << 20), send(CONTENT, cut=1 << 20), send(CONTENT)],
            [None, "bytes=1048576-", "bytes=2097152-"],
        ),
        # A server that knows no ranges sends all of it again.
        ([send(CONTENT, cut=1 << 20), send(CONTENT, ranges=False)], [None, "bytes=1048576-"]),
        ([send(CONTENT, slow=0.01)], [None]),
        ([send(CONTENT, kind="text/html")], [None]),
        ([send(CONTENT, length="")], [None]),
        ([send(CONTENT, length="many")], [None]),
        ([send(CONTENT, length="-5")], [None]),
        (
            [send(CONTENT, cut=1 << 20), send(CONTENT, content_range="bytes x-y/z")],
            [None, "bytes=1048576-"],
        ),
        ([say(OK + CONTENT)], [None]),
    ],
    ids=[
        *("good", "500 then good", "cut", "cut twice", "cut, no ranges", "slow", "as a page"),
        *("no length", "length no number", "length below 0", "range no numbers", "old protocol"),
    ],
)
def test_it_arrives_whole(server, file, answers, ranges):
    server.answers["/model.pth"] = answers
    download(f"{server.url}/model.pth", file, SHA)
    assert file.read_bytes() == CONTENT and left(file) == ["model.pth"]
    assert [asked for _, asked in server.requests] == ranges


def test_a_redirect_is_followed(server, file):
    server.answers = {"/old": [redirect("/new")], "/new": [send(CONTENT)]}
    download(f"{server.url}/old", file, SHA)
    assert file.read_bytes() == CONTENT


def test_a_later_call_goes_on_where_an_earlier_one_stopped(server, file):
    file.with_name("model.pth.part").write_bytes(CONTENT[:100])
    server.answers["/model.pth"] = [send(CONTENT)]
    download(f"{server.url}/model.pth", file, SHA)
    assert file.read_bytes() == CONTENT
    assert server.requests == [("/model.pth", "bytes=100-")]


def test_a_download_that_was_complete_but_not_renamed_is_used(server, file):
    file.with_name("model.pth.part").write_bytes(CONTENT)
    server.answers["/model.pth"] = [send(CONTENT)]
    download(f"{server.url}/model.pth", file, SHA)
    assert file.read_bytes() == CONTENT


def test_a_beginning_of_another_file_is_thrown_away(server, file):
    file.with_name("model.pth.part").write_bytes(b"of another version")
    server.answers["/model.pth"] = [send(CONTENT)]
    download(f"{server.url}/model.pth", file, SHA)
    assert file.read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == ["bytes=18-", None]


@pytest.mark.parametrize(
    ("answers", "reason", "attempts"),
    [
        ([fail(404)], "404", 1),
        ([fail(403)], "403", 1),
        ([fail(500)], "500", module.ATTEMPTS),
        ([send(b"<html>", kind="text/html; charset=utf-8")], "sent a page instead", 1),
        ([send(CONTENT[:-1] + b"x")], f"not {SHA}", 1),
        ([send(CONTENT, cut=0)], "IncompleteRead", module.ATTEMPTS),
        ([send(CONTENT[:1000], length="1000")], f"not {SHA}", 1),
        ([send(CONTENT, length=str(1 << 40))], "1099511627776 bytes, more than", 1),
        ([say(b"")], "closed connection without response", module.ATTEMPTS),
        ([say(b"\0" * 1000)], r"\x00", module.ATTEMPTS),
        ([say(b"HTTP/1.1 -1 x\r\n\r\n")], "HTTP/1.1 -1 x", module.ATTEMPTS),
        ([say(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200)], "more than 100", module.ATTEMPTS),
        ([say(b"HTTP/1.1 200 OK\r\n" + b"A" * 70_000)], "more than 65536", module.ATTEMPTS),
        ([say(CHUNKED + b"zz\r\n")], "IncompleteRead", module.ATTEMPTS),
        ([say(MOVED % b"http://[::1")], "Invalid IPv6", 1),
        ([say(MOVED % b"http://x:y/")], "nonnumeric port", module.ATTEMPTS),
        ([say(MOVED % b"file:///etc/passwd")], "not allowed", 1),
        ([redirect("/model.pth")], "infinite loop", 1),
    ],
    ids=[
        *("404", "403", "500", "a page", "wrong hash", "nothing comes", "too short", "too long"),
        *("hangs up", "not HTTP", "no status", "many headers", "a long header", "no chunk"),
        *("no address", "no port", "a local file", "in a circle"),
    ],
)
def test_what_cannot_be_had_is_said_in_a_line_and_costs_nothing(
    server, file, answers, reason, attempts
):
    file.write_bytes(b"what was there before")
    server.answers["/model.pth"] = answers
    url = f"{server.url}/model.pth"
    with pytest.raises(DownloadError) as error:
        download(url, file, SHA)
    message = str(error.value)
    assert reason in message and "\n" not in message
    for part in ("model.pth", url, str(file.parent), "GNWS_D2_MIRROR"):
        assert part in message
    assert file.read_bytes() == b"what was there before"
    assert len(server.requests) == attempts or reason == "infinite loop"


SLOW = {
    "one byte after the other": say(OK, b"x", pause=0.05, forever=True),
    "one header after the other": say(OK[:-2], b"A: b\r\n", pause=0.1, forever=True),
    "bytes of a header": say(OK[:-2], b"A", pause=0.05, forever=True),
    "bytes of a chunk's length": say(CHUNKED, b"0", pause=0.05, forever=True),
    "wait, always": say(b"HTTP/1.1 100 Continue\r\n\r\n", pause=0.05, forever=True),
}


@pytest.mark.parametrize("answer", SLOW.values(), ids=SLOW)
def test_a_server_that_sends_now_and_then_is_given_up(server, file, monkeypatch, answer):
    monkeypatch.setattr(module, "STALL", 0.3)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    server.answers["/model.pth"] = [answer]
    started = time.monotonic()
    with pytest.raises(DownloadError, match=r"fewer than 65536 bytes came in 0\.3 s"):
        download(f"{server.url}/model.pth", file, SHA)
    assert time.monotonic() - started < 3 and len(server.requests) == 2


def test_all_attempts_together_have_a_limit_and_the_next_call_goes_on(server, file, monkeypatch):
    server.answers["/model.pth"] = [send(CONTENT, slow=0.05)]
    with monkeypatch.context() as patch, pytest.raises(DownloadError, match=r"after 0\.3 s"):
        patch.setattr(module, "TOTAL", 0.3)
        download(f"{server.url}/model.pth", file, SHA)
    assert len(server.requests) == 1
    have = file.with_name("model.pth.part").stat().st_size
    assert 0 < have < len(CONTENT)
    server.answers["/model.pth"] = [send(CONTENT)]
    download(f"{server.url}/model.pth", file, SHA)
    assert file.read_bytes() == CONTENT and server.requests[1] == ("/model.pth", f"bytes={have}-")


@pytest.mark.parametrize("head", [OK, CHUNKED], ids=["no length", "chunks"])
def test_content_without_an_end_is_given_up(server, file, monkeypatch, head):
    monkeypatch.setattr(module, "LARGEST", 1 << 20)
    part = b"10000\r\n%s\r\n" % CONTENT[: 1 << 16]
    server.answers["/model.pth"] = [say(head, part, forever=True)]
    with pytest.raises(DownloadError, match="does not end after"):
        download(f"{server.url}/model.pth", file, SHA)
    assert len(server.requests) == 1
    assert file.with_name("model.pth.part").stat().st_size == 0


def test_content_beyond_its_length_is_not_read(server, file):
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(CONTENT)
    server.answers["/model.pth"] = [say(head, CONTENT, b"x" * 65536, forever=True)]
    download(f"{server.url}/model.pth", file, SHA)
    assert file.read_bytes() == CONTENT


def test_a_server_that_stops_sending_is_given_up(server, file, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    server.answers["/model.pth"] = [send(CONTENT, slow=1.0), send(CONTENT)]
    download(f"{server.url}/model.pth", file, SHA)
    assert file.read_bytes() == CONTENT and len(server.requests) == 2


def test_without_a_network(file, monkeypatch):
    monkeypatch.setattr(module, "BACKOFF", 0.01)
    with pytest.raises(DownloadError, match=r"model\.pth cannot be downloaded from .*refused"):
        download("http://127.0.0.1:9/model.pth", file, SHA)
    assert left(file) == []


def test_too_little_room_is_seen_before_anything_is_written(server, file, monkeypatch):
    usage = shutil.disk_usage(file.parent)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    server.answers["/model.pth"] = [send(CONTENT)]
    with pytest.raises(DownloadError, match=r"needs 3 MB and 0 MB are free.*GNWS_D2_CACHE"):
        download(f"{server.url}/model.pth", file, SHA)
    assert left(file) == []


LIMITED = """
import resource, shutil, sys, signal
from pathlib import Path
from gnws_d2.model_zoo.download import DownloadError, download
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    download(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
except DownloadError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_quota_that_is_met_in_the_middle(server, file, tmp_path):
    """The limit of a file's size stands for a quota: writing fails once it is reached."""
    file.write_bytes(b"what was there before")
    server.answers["/model.pth"] = [send(CONTENT)]
    program = tmp_path / "limited.py"
    program.write_text(LIMITED)
    done = run(program, f"{server.url}/model.pth", file, SHA)
    assert done.returncode == 0, done.stderr
    assert "model.pth.part cannot be written: File too large" in done.stdout
    assert file.read_bytes() == b"what was there before" and len(server.requests) == 1
