"""Which headers travel, and which belong to one hop only."""

from __future__ import annotations

from collections.abc import Iterable

from .connection import Headers

__all__ = ["RANK_HEADER", "forward_headers", "relay_headers"]

RANK_HEADER = b"x-data-parallel-rank"

# RFC 9110 section 7.6.1, and the framing this hop decides on its own.
_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"content-length",
    )
)
# `expect` is answered here; the rank is the router's to choose; the request id is set anew.
_NOT_FORWARDED = _HOP_BY_HOP | {b"host", b"expect", RANK_HEADER, b"x-request-id"}
_NOT_RELAYED = _HOP_BY_HOP | {
    b"x-request-id",
    b"x-sgl-router-worker",
    b"x-sgl-router-decision",
    b"x-router-error-code",
}


def forward_headers(incoming: Iterable[tuple[bytes, bytes]]) -> Headers:
    """A client's headers as a worker should see them, order and repetition kept, names in lower case."""
    return _drop(incoming, _NOT_FORWARDED)


def relay_headers(answered: Iterable[tuple[bytes, bytes]]) -> Headers:
    """A worker's headers as the client should see them."""
    return _drop(answered, _NOT_RELAYED)


def _drop(headers: Iterable[tuple[bytes, bytes]], dropped: frozenset[bytes]) -> Headers:
    kept: Headers = []
    named: set[bytes] = set()
    for name, value in headers:
        lower = name.lower()
        if lower == b"connection":  # what it names belongs to this hop too
            named.update(token.strip().lower() for token in value.split(b","))
        elif lower not in dropped:
            kept.append((lower, value))
    return [pair for pair in kept if pair[0] not in named] if named else kept
