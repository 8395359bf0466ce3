"""Which headers travel, and which belong to one hop only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = [
    "CODING",
    "CONNECTION",
    "CONTENT_TYPE",
    "LENGTH",
    "PLACE",
    "RANK_HEADER",
    "RELAYED",
    "TRAVELS",
    "Headers",
    "connection_options",
    "forward_headers",
    "header_lines",
    "header_pairs",
    "names_a_host",
]

Headers = list[tuple[bytes, bytes]]
"""Names and values. What is sent many times is kept as the lines they make (`header_lines`), which are bytes."""

RANK_HEADER = b"x-data-parallel-rank"

# What to do with a header of a given name. Zero is the common case, so that a truth test is enough for it.
TRAVELS, STAYS, CONNECTION, LENGTH, CODING, CONTENT_TYPE, PLACE = range(7)

_SPECIAL = {
    b"connection": CONNECTION,
    b"content-length": LENGTH,
    b"transfer-encoding": CODING,
    b"content-type": CONTENT_TYPE,
}
# RFC 9110 section 7.6.1; `connection` and the framing, which each hop decides on its own, are special.
_HOP_BY_HOP = frozenset(
    (b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer", b"upgrade")
)
_LONGEST_REMEMBERED = 64
_MOST_REMEMBERED = 512


class HeaderNames(dict[bytes, tuple[bytes, int]]):
    """Name as received -> name in lower case, what to do with it. Remembers the names it has met, up to a bound."""

    def __init__(self, stays: Iterable[bytes], special: Mapping[bytes, int] | None = None) -> None:
        super().__init__()
        self._stays = _HOP_BY_HOP | frozenset(stays)
        self._special = {**_SPECIAL, **(special or {})}

    def __missing__(self, name: bytes) -> tuple[bytes, int]:
        lower = name.lower()
        found = lower, STAYS if lower in self._stays else self._special.get(lower, TRAVELS)
        if len(name) <= _LONGEST_REMEMBERED:
            if len(self) >= _MOST_REMEMBERED:
                self.clear()
            self[name] = found
        return found


# `expect` is answered here; the rank is the router's to choose; the request id is set anew.
_FORWARDED = HeaderNames((b"host", b"expect", RANK_HEADER, b"x-request-id"))
_CORS = (b"allow-origin", b"allow-credentials", b"allow-methods", b"allow-headers", b"expose-headers", b"max-age")
# What the router itself says of a response; which web pages may read it is not for a worker to say, and `alt-svc`
# offers other ports of a worker, which clients do not reach.
RELAYED = HeaderNames(
    (
        b"x-request-id",
        b"x-sgl-router-worker",
        b"x-sgl-router-decision",
        b"x-router-error-code",
        b"alt-svc",
        *(b"access-control-" + name for name in _CORS),
    ),
    dict.fromkeys((b"location", b"content-location", b"refresh", b"link"), PLACE),
)


def forward_headers(incoming: Iterable[tuple[bytes, bytes]]) -> Headers:
    """A client's headers as a worker should see them, order and repetition kept, names in lower case."""
    kept: Headers = []
    named: set[bytes] = set()
    for name, value in incoming:
        lower, kind = _FORWARDED[name]
        if not kind or kind == CONTENT_TYPE:
            kept.append((lower, value))
        elif kind == CONNECTION and value != b"keep-alive":
            named |= connection_options(value)
    return [pair for pair in kept if pair[0] not in named] if named else kept


def header_lines(headers: Headers) -> bytes:
    """As they stand in a head, each with its CRLF in front. ValueError where one would break out of its line."""
    lines = b"".join([b"\r\n%b: %b" % pair for pair in headers])
    if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers):
        raise ValueError("a header contains a line break")
    return lines


def header_pairs(lines: bytes) -> Headers:
    """What `header_lines` was made of."""
    pairs = [line.partition(b": ") for line in lines.split(b"\r\n")[1:]]
    return [(name, value) for name, _, value in pairs]


def names_a_host(value: bytes) -> bool:
    """Whether a header that says where something is may say on which host; a path alone does not. Workers have more
    names than the router knows, so any host is taken to be one."""
    return b":" in value or b"//" in value or b"\\" in value


def connection_options(value: bytes) -> set[bytes]:
    """The names in a `Connection` header: the headers they stand for belong to this hop too."""
    return {token.strip().lower() for token in value.split(b",")}
