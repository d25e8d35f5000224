"""Ending a connection that is too slow, in whatever it is: headers, TLS or the content.

The timeout of a socket is started again by every byte, so a server that sends one now and then
holds its client for ever.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
import urllib.request
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TimeLimit:
    """``least`` bytes in every ``seconds``, and an end at ``until`` (of ``time.monotonic``)."""

    least: int
    seconds: float
    until: float


class Watchdog:
    """Shuts down what its :meth:`opener` has opened once the limit is exceeded. A context manager,
    whose end raises TimeoutError then, in place of what the shut-down connection raised."""

    def __init__(self, limit: TimeLimit) -> None:
        self._limit = limit
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._is_over = False
        self._received = 0
        self._move_deadline()

    def opener(self) -> urllib.request.OpenerDirector:
        """As that of ``urllib.request.urlopen``: with proxies and redirects."""
        watchdog = self

        class Connection(http.client.HTTPConnection):
            def connect(self) -> None:
                super().connect()
                watchdog._watch(self.sock)

        # Its connect calls Connection's, before the TLS handshake.
        class SecureConnection(http.client.HTTPSConnection, Connection):
            pass

        class Handler(urllib.request.HTTPHandler):
            def http_open(self, request: Any) -> Any:
                return self.do_open(Connection, request)

        class SecureHandler(urllib.request.HTTPSHandler):
            def https_open(self, request: Any) -> Any:
                return self.do_open(SecureConnection, request)

        return urllib.request.build_opener(Handler, SecureHandler)

    def received(self, size: int) -> None:
        """Say that ``size`` bytes of content have come."""
        self._received += size
        if self._received >= self._limit.least:
            self._received = 0
            self._move_deadline()

    def __enter__(self) -> Watchdog:
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._done.set()
        with self._lock:
            for connection in self._sockets:
                connection.close()
        failed = error is None or isinstance(error, (OSError, http.client.HTTPException))
        if self._is_over and failed:
            limit = self._limit
            raise TimeoutError(
                f"it is too slow: fewer than {limit.least} bytes came in {limit.seconds:g} s, or "
                "the time for it is over"
            ) from error

    def _move_deadline(self) -> None:
        self._deadline = min(time.monotonic() + self._limit.seconds, self._limit.until)

    def _watch(self, connection: socket.socket) -> None:
        with self._lock:
            if self._is_over:
                raise TimeoutError("the time for it is over")
            self._sockets.append(connection.dup())  # TLS takes the original away

    def _run(self) -> None:
        while (left := self._deadline - time.monotonic()) > 0:
            if self._done.wait(left):
                return
        with self._lock:
            self._is_over = True
            for connection in self._sockets:
                with contextlib.suppress(OSError):  # closed by the server
                    connection.shutdown(socket.SHUT_RDWR)
