"""Plain HTTP for tests: one JSON call, or one event stream that can be dropped at any moment. Standard library."""

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
    connection, response = _send(url, body, headers, timeout)
    with contextlib.closing(connection):
        return Reply(response.status, response.headers, response.read())


class Stream:
    """An open response, read event by event. `drop()` closes the socket at once, as a client that goes away does."""

    def __init__(self, url: str, body: Any, *, headers: Mapping[str, str] | None = None, timeout: float = 60.0) -> None:
        self._connection, self._response = _send(url, body, headers, timeout)
        self.status = self._response.status
        self.headers = self._response.headers

    def events(self) -> Iterator[str]:
        """The data of each server-sent event, "[DONE]" included. Raises what a broken connection raises."""
        while line := self._response.readline():
            if line.startswith(b"data:"):
                yield line[5:].strip().decode()

    def drop(self) -> None:
        with contextlib.suppress(OSError):
            if self._connection.sock is not None:
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._response.close()
        self._connection.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.drop()


def _send(
    url: str, body: Any, headers: Mapping[str, str] | None, timeout: float
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request(
            "GET" if data is None else "POST",
            target,
            body=data,
            headers={"Content-Type": "application/json", **(headers or {})},
        )
        return connection, connection.getresponse()
    except BaseException:
        connection.close()
        raise
