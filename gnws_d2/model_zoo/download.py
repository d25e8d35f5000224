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

from ..errors import GnwsError

logger = logging.getLogger(__name__)

ATTEMPTS = 4
BACKOFF = 1.0  # seconds before the second attempt; doubled for each further one
TIMEOUT = 30.0  # seconds without a byte
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
    it is complete and verified. One process at a time may do this for a file.

    Args:
        url: http or https.
        sha256: the first hexadecimal digits of the SHA-256 that the file must have.

    Raises:
        DownloadError: it cannot be downloaded, or is another file; ``file`` stays as it was.
    """
    part = file.with_name(f"{file.name}.part")
    reason: object = None
    for attempt in range(ATTEMPTS):
        if attempt:
            pause = BACKOFF * 2 ** (attempt - 1)
            logger.warning("%s: %s; trying again in %g s", url, reason, pause)
            time.sleep(pause)
        resumed = part.exists()
        try:
            _receive(url, part)
        except _Refused as error:
            reason = error
            break
        except (http.client.HTTPException, OSError) as error:
            reason = error
            continue
        found = sha256_of(part)
        if found.startswith(sha256):
            part.replace(file)
            return
        part.unlink()
        reason = f"its SHA-256 begins with {found[: len(sha256)]}, not {sha256}"
        if not resumed:  # else the beginning may have been another file's
            break
    raise DownloadError(
        f"{file.name} cannot be downloaded from {url} ({reason}). Get it by other means and put it "
        f"in {file.parent}, or set $GNWS_D2_MIRROR to a folder or an address that has it."
    )


def _receive(url: str, part: Path) -> None:
    """Append to ``part`` what is missing of ``url``."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "gnws_d2", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            return  # nothing is missing; the hash will tell
        if error.code in _PASSING:
            raise
        raise _Refused(str(error)) from error
    with response:
        kind = response.headers.get_content_type()
        if kind.startswith("text/"):
            raise _Refused(f"the server sent {kind}, a page instead of the file")
        if have and response.status != 206:  # it sends the whole
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - have > free:
            raise _Refused(
                f"it needs {(total - have) / 1e6:.0f} MB and {free / 1e6:.0f} MB are free in "
                f"{part.parent}; make room there or set $GNWS_D2_CACHE to another folder"
            )
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
            while chunk := response.read(_CHUNK):
                try:
                    stream.write(chunk)
                except OSError as error:
                    raise _Refused(f"{part} cannot be written: {error.strerror}") from error
                bar.update(len(chunk))
                have += len(chunk)
        if total is not None and have < total:
            raise http.client.IncompleteRead(b"", total - have)
