"""A web server on loopback that answers as each test needs it."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range")))
        answers = self.server.answers[self.path]
        # The last answer is repeated.
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, *arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """``answers``: for each path, what to do at the first request, the second, ...

    ``requests``: (path, Range header) of each request so far.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[Callable[[Handler], None]]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # the client has hung up
            super().handle_error(request, client_address)


def send(
    content: bytes,
    *,
    cut: int | None = None,
    ranges: bool = True,
    kind: str = "",
    slow=0.0,
    length: str | None = None,
    content_range: str | None = None,
):
    """Send ``content`` from where the client asks on; all of it, or ``cut`` bytes and hang up.

    ``length`` and ``content_range`` stand in the headers in place of the right ones; "" sends none.
    """

    def answer(handler: Handler) -> None:
        asked = handler.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and ranges else 0
        if start >= len(content) > 0:
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            whole = len(content)
            right = f"bytes {start}-{whole - 1}/{whole}"
            handler.send_header("Content-Range", right if content_range is None else content_range)
        if length != "":
            handler.send_header("Content-Length", length or str(len(content) - start))
        handler.send_header("Content-Type", kind or "application/octet-stream")
        handler.end_headers()
        body = content[start:] if cut is None else content[start : start + cut]
        for i in range(0, len(body), 1 << 16):
            time.sleep(slow)
            handler.wfile.write(body[i : i + (1 << 16)])
        handler.close_connection = True

    return answer


def say(*parts: bytes, pause: float = 0.0, forever: bool = False):
    """Send ``parts`` as they are, headers and all; the last one again and again if ``forever``."""

    def answer(handler: Handler) -> None:
        handler.close_connection = True
        with contextlib.suppress(OSError):  # the client has enough
            for part in itertools.chain(parts, itertools.repeat(parts[-1] if forever else b"")):
                if not part:
                    break
                handler.wfile.write(part)
                time.sleep(pause)

    return answer


def fail(code: int):
    return lambda handler: handler.send_error(code)


def redirect(path: str):
    def answer(handler: Handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", path)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


@contextmanager
def running() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()
