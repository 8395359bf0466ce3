"""Valid messages, and edits that make them nearly valid."""

from __future__ import annotations

import random

from tests.conformance.case import ECHO, HOST

__all__ = ["CHUNKED_BODIES", "MESSAGES", "TOKENS", "edited", "random_edits"]

Edit = tuple[str, int, int, bytes]

CHUNKED_BODIES = (
    b"0\r\n\r\n",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
    b'a;x="y z";q\r\n0123456789\r\n000\r\nX-A: b\r\nX-B:\r\n\r\n',
    b"4\r\n\r\n\r\n\r\n0;a=b\r\n\r\n",
)

_CHUNKED_HEAD = b"POST " + ECHO + b" HTTP/1.1\r\n" + HOST + b"\r\nTransfer-Encoding: chunked\r\n\r\n"

MESSAGES = (
    b"POST " + ECHO + b" HTTP/1.1\r\n" + HOST + b"\r\nContent-Length: 5\r\n\r\nhello",
    b"POST " + ECHO + b"?a=b HTTP/1.0\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello",
    b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    b"\r\nPUT http://a.b:80/x?y HTTP/1.1\r\nHost: [::1]:80\r\nX-A: \t b \t\r\nConnection: close, x\r\n"
    b"content-length:3\r\n\r\nabc",
    b"POST " + ECHO + b" HTTP/1.1\r\nhost: a\r\nAccept: */*\r\nX-B:\r\nConnection: keep-alive\r\nConnection: Close\r\n"
    b"Expect: 100-continue\r\nContent-Length: 2\r\nX-C: \xfc\r\n\r\nhi",
    *(_CHUNKED_HEAD + body for body in CHUNKED_BODIES),
)

TOKENS = (
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ", b"\t", b":", b";", b",", b"=", b'"', b"\x00", b"\x7f", b"\x80", b"\xff",
    b"0", b"5", b"a", b"F", b"-", b"+", b"chunked", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n",
    b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Connection: close\r\n", b"Connection: keep-alive\r\n",
    b"Upgrade: x\r\n", b"Host: b\r\n", b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2.0", b"GET ", b"CONNECT ", b"X-Y: z\r\n",
    b"\r\n ", b"0\r\n\r\n", b"1\r\nx\r\n", b"http://", b"/", b"?", b"#", b"*", b"Trailer: x\r\n", b"close", b"upgrade",
)  # fmt: skip


def edited(message: bytes, edits: list[Edit]) -> bytes:
    """`edits`: an operation, a place, a length and a token each; place and length wrap around."""
    for operation, place, length, token in edits:
        at = place % (len(message) + 1)
        end = min(at + length, len(message))
        if operation == "insert":
            message = message[:at] + token + message[at:]
        elif operation == "replace":
            message = message[:at] + token + message[end:]
        elif operation == "delete":
            message = message[:at] + message[end:]
        elif operation == "repeat":
            message = message[:end] + message[at:end] + message[end:]
        else:
            message = message[:at] + message[at:end].swapcase() + message[end:]
    return message


OPERATIONS = ("insert", "replace", "delete", "repeat", "swapcase")


def random_edits(rng: random.Random) -> list[Edit]:
    return [
        (rng.choice(OPERATIONS), rng.randrange(1000), rng.randrange(1, 12), rng.choice(TOKENS))
        for _ in range(rng.choice((1, 1, 1, 2, 3)))
    ]
