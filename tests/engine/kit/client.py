"""Plain HTTP for tests: one JSON call, a request whose answer nobody has waited for yet, or one event stream; both can
be dropped at any moment. Standard library."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def __str__(self) -> str:
        return f"{self.status} {self.body[:500].decode(errors='replace')}"


def call(url: str, body: Any = None, *, headers: Mapping[str, str] | None = None, timeout: float = 60.0) -> Reply:
    """GET, or POST where there is a body (bytes go out as they are). OSError or HTTPException without an answer."""
    return Pending(url, body, headers=headers, timeout=timeout).answer()


class Pending:
    """A request that is sent. `drop()` closes the socket at once, as a client that goes away does."""

    def __init__(
        self, url: str, body: Any = None, *, headers: Mapping[str, str] | None = None, timeout: float = 60.0
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=timeout)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            self._connection.request(
                "GET" if data is None else "POST",
                target,
                body=data,
                headers={"Content-Type": "application/json", **(headers or {})},
            )
        except BaseException:
            self._connection.close()
            raise

    def answer(self) -> Reply:
        """All of it. May be asked for once."""
        with contextlib.closing(self._connection):
            response = self.begun()
            return Reply(response.status, response.headers, response.read())

    def begun(self) -> http.client.HTTPResponse:
        """The answer's head; its body is still to be read."""
        try:
            return self._connection.getresponse()
        except BaseException:
            self._connection.close()
            raise

    def drop(self) -> None:
        with contextlib.suppress(OSError):
            if self._connection.sock is not None:
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._connection.close()


class Stream:
    """An open response, read event by event. `drop()` closes the socket at once, as a client that goes away does."""

    def __init__(self, url: str, body: Any, *, headers: Mapping[str, str] | None = None, timeout: float = 60.0) -> None:
        self._pending = Pending(url, body, headers=headers, timeout=timeout)
        self._response = self._pending.begun()
        self.status = self._response.status
        self.headers = self._response.headers

    def events(self) -> Iterator[str]:
        """The data of each server-sent event, "[DONE]" included. Raises what a broken connection raises."""
        while line := self._response.readline():
            if line.startswith(b"data:"):
                yield line[5:].strip().decode()

    def drop(self) -> None:
        self._pending.drop()
        self._response.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.drop()
