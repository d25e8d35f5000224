"""Download a file whose SHA-256 is known in part: resumed, retried, and verified before use.

``pooch`` needs the full hash and does not resume; ``torch.hub.download_url_to_file`` compares the
first digits but does not resume either.
"""

import hashlib
import http.client
import logging
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from ..errors import FileError, shorten

logger = logging.getLogger(__name__)

_ATTEMPTS = 4
_CHUNK = 1 << 20  # bytes
_LARGEST = 2 << 30  # bytes: several times the largest published file
_HEADERS = {"User-Agent": "gnws_d2"}
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)  # HTTP status codes


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def download(
    url: str,
    file: Path,
    sha256: str,
    *,
    pause: float = 1.0,
    timeout: float = 30.0,
    largest: int = _LARGEST,
) -> None:
    """Download ``url`` to ``file``.

    What arrives is kept as ``file``.part, which a later call continues, and replaces ``file`` once
    it is complete and verified. Only one process at a time may do this for a file.

    Args:
        url: http or https.
        sha256: the SHA-256 that the file must have in hexadecimal, or its first digits.
        pause: seconds before the second attempt; doubled for each further one.
        timeout: seconds without a byte that end an attempt.
        largest: bytes that the file may have.

    Raises:
        FileError: it cannot be downloaded, or is another file; ``file`` stays as it was.
    """
    part = file.with_name(f"{file.name}.part")
    reason = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            logger.warning("%s: %s; trying again in %g s", url, reason, pause)
            time.sleep(pause)
            pause *= 2
        have = part.stat().st_size if part.exists() else 0
        try:
            _receive(url, part, have, timeout, largest)
        except (FileError, ValueError) as error:  # ValueError: a redirect to no address
            reason = str(error)
            break
        except (http.client.HTTPException, OSError) as error:
            reason = str(error)
            continue
        found = sha256_of(part)
        if found.startswith(sha256):
            part.replace(file)
            return
        reason = f"its SHA-256 begins with {found[: len(sha256)]}, not {sha256}"
        with part.open("rb") as stream:
            if stream.read(100).lstrip().startswith(b"<"):
                reason = f"the server sent a page instead of the file: {reason}"
        part.unlink()
        if not have:  # otherwise the beginning may have been another file's
            break
    raise FileError(
        f"{file.name} cannot be downloaded from {url} ({shorten(reason, quote=False)}). Get it by "
        f"other means and put it in {file.parent}, or set $GNWS_D2_MIRROR to a folder or an "
        "address that has it."
    )


def answers(url: str, timeout: float = 5.0) -> bool:
    """Whether a server has ``url``, by its answer within ``timeout`` seconds."""
    request = urllib.request.Request(url, headers=_HEADERS)
    try:
        with urllib.request.urlopen(request, timeout=timeout):
            return True
    except (http.client.HTTPException, OSError, ValueError):
        return False


def _receive(url: str, part: Path, have: int, timeout: float, largest: int) -> None:
    """Append to ``part``, which has ``have`` bytes, what is missing of ``url``.

    Raises:
        FileError, ValueError: another attempt would end in the same error.
        HTTPException, OSError: it may not.
    """
    request = urllib.request.Request(url, headers=_HEADERS)
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            return  # nothing is missing; the hash will tell
        if error.code not in _TEMPORARY:
            raise FileError(str(error)) from error
        raise
    with response:
        if response.status != 206:  # the server sends the whole file
            have = 0
        total = None if response.length is None else have + response.length
        missing, free = response.length or 0, shutil.disk_usage(part.parent).free
        if missing > free:
            raise FileError(
                f"it needs {missing / 1e6:.0f} MB and {free / 1e6:.0f} MB are free in "
                f"{part.parent}; make room there or set $GNWS_D2_CACHE to another folder"
            )
        bar = tqdm(
            desc=part.stem, total=total, initial=have, unit="B", unit_scale=True, disable=None
        )
        with part.open("ab" if have else "wb", buffering=0) as stream, bar:
            # read1 returns what has come; read would wait for a whole chunk.
            while chunk := response.read1(_CHUNK):
                have += stream.write(chunk)
                bar.update(len(chunk))
                if have > largest:
                    part.unlink()
                    raise FileError(f"it does not end after {have} bytes")
        if total is not None and have < total:
            raise http.client.IncompleteRead(b"", total - have)
