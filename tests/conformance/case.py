"""One raw-byte case: what is sent, and what has to come of it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CHUNKED",
    "ECHO",
    "HEALTH",
    "HOST",
    "STREAM",
    "Case",
    "Outcome",
    "closes",
    "keeps",
    "post",
    "refused",
    "served",
]

ECHO, STREAM, HEALTH = b"/v1/chat/completions", b"/v1/tokenize", b"/healthz"
HOST = b"Host: router.example:30000"
CHUNKED = b"Transfer-Encoding: chunked"


@dataclass(frozen=True)
class Outcome:
    """Statuses of the answers in order; the bodies that reached the handler; whether another request may
    follow (None: it is not looked at)."""

    statuses: tuple[int, ...]
    reached: tuple[bytes, ...] = ()
    stays_open: bool | None = False
    interim: tuple[int, ...] = ()


@dataclass(frozen=True)
class Case:
    name: str
    raw: bytes
    expected: Outcome


def post(body: bytes = b"hello", *fields: bytes, target: bytes = ECHO, line: bytes | None = None,
         length: bool = True, host: bool = True) -> bytes:  # fmt: skip
    """A request, as valid as its arguments are."""
    head = [line if line is not None else b"POST " + target + b" HTTP/1.1"]
    if host:
        head.append(HOST)
    if length:
        head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join((*head, *fields)) + b"\r\n\r\n" + body


def served(*bodies: bytes) -> Outcome:
    """Each answered with 200, and the connection goes on."""
    return Outcome((200,) * len(bodies), bodies, True)


def closes(*bodies: bytes) -> Outcome:
    return Outcome((200,) * len(bodies), bodies, False)


def refused(status: int) -> Outcome:
    """Answered without the handler, and the connection closed."""
    return Outcome((status,))


def keeps(status: int) -> Outcome:
    """Answered without the handler, and the connection goes on."""
    return Outcome((status,), (), True)
