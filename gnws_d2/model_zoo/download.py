"""Download a file whose SHA-256 is known in part: resumed, retried, and verified before use."""

from __future__ import annotations

import hashlib
import http.client
import logging
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from ..errors import GnwsError, shorten
from .watchdog import TimeLimit, Watchdog

logger = logging.getLogger(__name__)

ATTEMPTS = 4
BACKOFF = 1.0  # seconds before the second attempt; doubled for each further one
TIMEOUT = 30.0  # seconds without a byte
STALL = 60.0  # seconds in which at least LEAST bytes must come
LEAST = 64 << 10
TOTAL = 3600.0  # seconds for all attempts; the next call goes on where they ended
LARGEST = 2 << 30  # bytes: several times the largest published file
_CHUNK = 1 << 20
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP status codes of temporary errors


class DownloadError(GnwsError, OSError):
    """A file that could not be downloaded; the message names it, its address and the fix."""


class _Refused(Exception):
    """A response of the server that another attempt would not change."""


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def download(url: str, file: Path, sha256: str) -> None:
    """Download ``url`` to ``file``.

    What arrives is kept as ``file``.part, which a later call continues, and replaces ``file`` once
    it is complete and verified. One process at a time may do this for a file. What the server says
    of the file is not believed, apart from its length: the hash decides.

    Args:
        url: http or https.
        sha256: the SHA-256 that the file must have in hexadecimal, or its first digits.

    Raises:
        DownloadError: it cannot be downloaded within TOTAL seconds, or is another file; ``file``
            stays as it was.
    """
    part = file.with_name(f"{file.name}.part")
    until = time.monotonic() + TOTAL
    reason: object = None
    for attempt in range(ATTEMPTS):
        if attempt:
            pause = BACKOFF * 2 ** (attempt - 1)
            logger.warning("%s: %s; trying again in %g s", url, reason, pause)
            time.sleep(pause)
        resumed = part.exists()
        try:
            _receive(url, part, until)
        except (_Refused, ValueError) as error:  # ValueError: an address to go to that is none
            reason = error
            break
        except (http.client.HTTPException, OSError) as error:
            reason = error
            if time.monotonic() > until:
                reason = f"not complete after {TOTAL:g} s; the next call continues it"
                break
            continue
        found = sha256_of(part)
        if found.startswith(sha256):
            part.replace(file)
            return
        with part.open("rb") as stream:
            is_page = stream.read(100).lstrip().startswith(b"<")
        part.unlink()
        reason = f"its SHA-256 begins with {found[: len(sha256)]}, not {sha256}"
        if is_page:
            reason = f"the server sent a page instead of the file: {reason}"
        if not resumed:  # else the beginning may have been another file's
            break
    raise DownloadError(
        f"{file.name} cannot be downloaded from {url} ({shorten(str(reason), quote=False)}). Get "
        f"it by other means and put it in {file.parent}, or set $GNWS_D2_MIRROR to a folder or an "
        "address that has it."
    )


def _receive(url: str, part: Path, until: float) -> None:
    """Append to ``part`` what is missing of ``url``."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "gnws_d2", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers)
    with Watchdog(TimeLimit(LEAST, STALL, until)) as watchdog:
        try:
            response = watchdog.opener().open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code == 416 and have:
                return  # nothing is missing; the hash will tell
            if error.code in _PASSING:
                raise
            raise _Refused(str(error)) from error
        with response:
            if have and response.status != 206:  # it sends the whole
                have = 0
            length = response.headers.get("Content-Length", "")
            total = have + int(length) if length.isascii() and length.isdigit() else None
            _check_room(have, total, part)
            with (
                part.open("ab" if have else "wb", buffering=0) as stream,
                tqdm(
                    total=total,
                    initial=have,
                    desc=part.stem,
                    unit="B",
                    unit_scale=True,
                    disable=None,
                ) as bar,
            ):
                # read1 returns what has come; read would wait for a whole chunk.
                while chunk := response.read1(_CHUNK):
                    try:
                        stream.write(chunk)
                    except OSError as error:
                        raise _Refused(f"{part} cannot be written: {error.strerror}") from error
                    bar.update(len(chunk))
                    watchdog.received(len(chunk))
                    have += len(chunk)
                    if have > LARGEST:
                        stream.truncate(0)
                        raise _Refused(f"it does not end after {have} bytes")
            if total is not None and have < total:
                raise http.client.IncompleteRead(b"", total - have)


def _check_room(have: int, total: int | None, part: Path) -> None:
    if total is None:
        return
    if total > LARGEST:
        raise _Refused(f"the server says that it has {total} bytes, more than {LARGEST}")
    free = shutil.disk_usage(part.parent).free
    if total - have > free:
        raise _Refused(
            f"it needs {(total - have) / 1e6:.0f} MB and {free / 1e6:.0f} MB are free in "
            f"{part.parent}; make room there or set $GNWS_D2_CACHE to another folder"
        )
