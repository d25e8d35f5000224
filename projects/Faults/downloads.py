"""Servers and mirrors that misbehave."""

import hashlib
import os
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))  # whose server this is
from server import fail, redirect, running, say, send
from trials import Wrong, accepted, trials

from gnws_d2.errors import FileError
from gnws_d2.model_zoo.download import download
from gnws_d2.model_zoo.fetch import fetch
from gnws_d2.model_zoo.published import published

OK = b"HTTP/1.1 200 OK\r\n"
CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NUMBERS = ("", "x", "-1", "0", "1", "300001", "1e3", "9" * 14, "9" * 30, "0x10", " 5 ", "\xb2")
CODES = (400, 401, 403, 404, 410, 416, 418, 429, 500, 502, 503, 511)
REDIRECTS = ("/file", "/none", "file:///etc/passwd", "http://[", "ftp://x", "//")
HEADERS = (b"Content-Length", b"Content-Range", b"Location", b"Transfer-Encoding", b"A")
VALUES = (b"", b"x", b"-5", b"chunked", b"\xff", b"5, 6", b"A" * 70_000)


def good(rng: random.Random) -> Callable[[Any], None]:
    """Answers with which the file arrives in the end."""
    answers = (
        *(send(CONTENT), send(CONTENT, content_range=rng.choice(NUMBERS))),
        send(CONTENT, ranges=False, kind=rng.choice(("text/html", "", "x"))),
        send(CONTENT, length=rng.choice(("", "x", "-1", "0x10")), slow=0.01),
    )
    return rng.choice(answers)


def bad(rng: random.Random) -> Callable[[Any], None]:
    half = CONTENT[: rng.randrange(len(CONTENT))]
    other = bytearray(CONTENT)
    other[rng.randrange(len(other))] ^= 1
    status = rng.choice((b"200", b"-1", b"999999", b"abc", b""))
    header = rng.choice(HEADERS) + b": " + rng.choice(VALUES)
    answers = (
        *(fail(rng.choice(CODES)), redirect(rng.choice(REDIRECTS))),
        *(send(CONTENT, cut=len(half)), send(b"<html>", kind="text/html")),
        send(CONTENT, cut=len(half), length=rng.choice(NUMBERS)),
        send(bytes(other), ranges=rng.random() < 0.5),
        send(CONTENT, content_range=rng.choice(NUMBERS), length=rng.choice(NUMBERS)),
        *(say(b"HTTP/1.1 " + status + b"\r\n\r\n", half), say(OK + header + b"\r\n\r\n", half)),
        say(OK + rng.choice((b"A: b\r\n", b"\r", b"\xff")) * 200 + b"\r\n", CONTENT),
        say(rng.randbytes(rng.choice((0, 1, 1000)))),
        say(OK + b"\r\n", bytes(65536), forever=True),
        say(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"10\r\n" + bytes(16), forever=True),
        say(OK + b"Content-Length: 300000\r\n\r\n", CONTENT, bytes(65536), forever=True),
    )
    return rng.choice(answers)


@trials(150, "servers")
def servers(rng: random.Random, folder: Path) -> str:
    """One to four bad answers, and sometimes a good one at the end."""
    answers = [bad(rng) for _ in range(rng.randint(1, 4))]
    return _download(rng, folder, [*answers, good(rng)] if rng.random() < 0.3 else answers)


@trials(60, "tolerable servers")
def tolerable(rng: random.Random, folder: Path) -> str:
    """Interruptions and headers with which the file has to arrive."""
    answers = [fail(503), send(CONTENT, cut=rng.randrange(1, len(CONTENT)))]
    answers = [*rng.sample(answers, rng.randint(0, 2)), good(rng)]
    with accepted():
        return _download(rng, folder, answers)


def _download(rng: random.Random, folder: Path, answers: list[Callable[[Any], None]]) -> str:
    file = folder / "model.pth"
    before = rng.choice((None, b"before"))
    if before:
        file.write_bytes(before)
    if rng.random() < 0.3:
        part = rng.choice((CONTENT[:1000], b"other", CONTENT, CONTENT + b"x"))
        file.with_name("model.pth.part").write_bytes(part)
    with running() as server:
        server.answers = {"/file": answers, "/none": [fail(404)]}
        try:
            sha256 = SHA256[: rng.choice((8, 64))]
            download(f"{server.url}/file", file, sha256, pause=0.01, timeout=0.3, largest=1 << 20)
        except FileError:
            if (file.read_bytes() if file.exists() else None) != before:
                return "a failed download changed the file"
            raise
    return "" if file.read_bytes() == CONTENT else "another file was accepted"


@trials(60, "mirrors")
def mirrors(rng: random.Random, folder: Path) -> str:
    """A mirror that is not usable: nothing may come from the official address instead."""
    entry = rng.choice(published())
    (folder / "file").write_text("")
    (folder / "other").mkdir()
    (folder / "other" / entry.file_name).write_bytes(rng.randbytes(rng.choice((0, 10, 1000))))
    folders = (str(folder / "none"), str(folder / "file"), str(folder), str(folder / "other"))
    addresses = (
        *("ftp://x/y", "s3://bucket", "HTTP", "http:/one", "https:one", "file:///x", "x://", " "),
        *("http://", "http://[", "http://x:y/", "http://127.0.0.1:9", "~nobody/x", "\x01"),
    )
    os.environ["GNWS_D2_MIRROR"] = rng.choice(folders + addresses)
    with running() as official:
        try:
            fetch(replace(entry, url=f"{official.url}/{entry.file_name}"))
        finally:
            if official.requests:
                raise Wrong("the official address was asked")
    return "something was fetched"
