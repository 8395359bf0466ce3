"""Bytes to request head, strictly: what this accepts, llhttp accepts too and takes to mean the same."""

from __future__ import annotations

import re
from typing import NoReturn

from sgl_router.http import Headers, forward_headers, header_lines
from sgl_router.http.faults import HttpFault, HttpRefused

__all__ = ["BARE", "FIELD", "RequestHead", "read_head"]

MAX_HEAD_BYTES = 32 << 10
MAX_TARGET_BYTES = 8 << 10
MAX_FIELDS = 100
MAX_EMPTY_LINES = 4
METHODS = {name.encode("ascii"): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_TARGET = rb"[\x21\x22\x24-\x7e]+"
_LINE = re.compile(rb"([A-Z]+) (" + _TARGET + rb") HTTP/1\.([01])\r\n")
# Each match is one whole line: from the LF before it to its CR, with neither in between. As many matches as LFs: every
# line is valid. A value begins with what is not white space, so that there is one way only to match: no backtracking.
FIELD = re.compile(rb"\n(" + _TOKEN + rb"):[ \t]*([\x21-\x7e\x80-\xff][\t\x20-\x7e\x80-\xff]*|)\r(?=\n)")
_HOST = re.compile(rb"(?:[0-9A-Za-z._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(rb"(?i:https?)://(?:[0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(/[^?]*)?(\?.*)?")
_LENGTH = re.compile(rb"[0-9]{1,18}")
BARE = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_SPECIAL = frozenset(
    (
        b"host",
        b"authorization",
        b"connection",
        b"content-length",
        b"content-type",
        b"transfer-encoding",
        b"expect",
        b"content-encoding",
        b"x-request-id",
    )
)


class RequestHead:
    """`path` is the target without query; `end` the offset of what follows. A body of unknown length is `chunked`.
    `named`: there is an `x-request-id`. `forwarded`: the lines for a worker, which have no length in them."""

    __slots__ = (
        "chunked",
        "content_encoding",
        "content_length",
        "end",
        "expects_continue",
        "forwarded",
        "headers",
        "http_1_0",
        "keep_alive",
        "method",
        "named",
        "path",
        "target",
        "unmet_expectation",
    )

    def __init__(self, method: str, target: bytes, path: bytes, http_1_0: bool, headers: Headers, end: int) -> None:
        self.method = method
        self.target = target
        self.path = path
        self.http_1_0 = http_1_0
        self.headers = headers
        self.end = end
        self.keep_alive = not http_1_0
        self.content_length = 0
        self.chunked = False
        self.expects_continue = False
        self.unmet_expectation = False
        self.content_encoding = b""
        self.named = False
        self.forwarded: bytes | None = None

    def forward(self) -> bytes:
        """Make `forwarded`."""
        self.forwarded = lines = header_lines(forward_headers(self.headers))
        return lines


def read_head(data: bytes, start: int = 0) -> RequestHead | None:
    """The head that begins at `start`; None while it is not whole. Raises HttpRefused."""
    if data.startswith(b"\r\n", start):  # some clients end a body with an empty line of their own
        start = _skip_empty_lines(data, start)
    stop = data.find(b"\r\n\r\n", start)
    if stop < 0:
        _check_partial(data, start)
        return None
    stop += 2  # the CRLF of the last header is part of it
    if stop - start > MAX_HEAD_BYTES:
        raise HttpRefused(HttpFault.HEAD_TOO_LARGE)
    line = _LINE.match(data, start, stop)
    if line is None:
        _explain_line(data[start : data.index(b"\r\n", start)])
    verb, target, minor = line.groups()
    method = METHODS.get(verb)
    if method is None:
        raise HttpRefused(HttpFault.METHOD)
    if len(target) > MAX_TARGET_BYTES:
        raise HttpRefused(HttpFault.TARGET_TOO_LONG)
    first = line.end() - 1
    headers: Headers = FIELD.findall(data, first, stop)
    if len(headers) != data.count(b"\n", first, stop) - 1:
        _explain_fields(data[first + 1 : stop - 2])
    if len(headers) > MAX_FIELDS:
        raise HttpRefused(HttpFault.TOO_MANY_HEADERS)
    if data.find(b" \r", first, stop) >= 0 or data.find(b"\t\r", first, stop) >= 0:
        headers = [_stripped(name, value) for name, value in headers]
    path = _path(method, target) if target[0] != 0x2F or b"?" in target else target
    head = RequestHead(method, target, path, minor == b"0", headers, stop + 2)
    _interpret(head)
    return head


def _interpret(head: RequestHead) -> None:
    """Framing and persistence, from the few headers that decide them."""
    host: bytes | None = None
    length: bytes | None = None
    connection: bytes | None = None
    credentials = typed = False
    for name, value in head.headers:
        lower = name.lower()
        if lower not in _SPECIAL:
            continue
        if lower == b"host":
            if host is not None:
                raise HttpRefused(HttpFault.HOST_TWICE)
            host = value
        elif lower == b"content-length":
            if length is not None:
                raise HttpRefused(HttpFault.LENGTH_TWICE)
            if _LENGTH.fullmatch(value) is None:
                raise HttpRefused(HttpFault.LENGTH)
            length = value
        elif lower == b"connection":
            connection = value if connection is None else connection + b"," + value
        elif lower == b"transfer-encoding":
            if head.chunked:
                raise HttpRefused(HttpFault.ENCODING_TWICE)
            if value.lower() != b"chunked":
                raise HttpRefused(HttpFault.ENCODING)
            head.chunked = True
        elif lower == b"x-request-id":
            head.named = True
        elif lower == b"authorization":
            if credentials:  # which of them counts, each reader decides for itself
                raise HttpRefused(HttpFault.AUTHORIZATION_TWICE)
            credentials = True
        elif lower == b"content-type":
            if typed:
                raise HttpRefused(HttpFault.CONTENT_TYPE_TWICE)
            typed = True
        elif lower == b"content-encoding":
            head.content_encoding += b"," + value if head.content_encoding else value
        elif value.lower() == b"100-continue":
            head.expects_continue = not head.http_1_0
        else:
            head.unmet_expectation = not head.http_1_0
    if host is None:
        if not head.http_1_0:
            raise HttpRefused(HttpFault.NO_HOST)
    elif _HOST.fullmatch(host) is None:
        raise HttpRefused(HttpFault.HOST)
    if length is not None:
        if head.chunked:
            raise HttpRefused(HttpFault.LENGTH_AND_ENCODING)
        head.content_length = int(length)
    elif head.chunked and head.http_1_0:
        raise HttpRefused(HttpFault.ENCODING_IN_1_0)
    if connection is not None:
        tokens = [token.strip(b" \t") for token in connection.lower().split(b",")]
        head.keep_alive = b"close" not in tokens and (not head.http_1_0 or b"keep-alive" in tokens)


def _stripped(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """White space behind a length or a coding is legal, but parsers disagree on it, and so on where the body ends."""
    stripped = value.rstrip(b" \t")
    if stripped != value:
        lower = name.lower()
        if lower == b"content-length":
            raise HttpRefused(HttpFault.LENGTH)
        if lower == b"transfer-encoding":
            raise HttpRefused(HttpFault.ENCODING)
    return name, stripped


def _path(method: str, target: bytes) -> bytes:
    """The path of an origin-form or absolute-form target. `*` stays as it is, and so does an absolute form that names
    an operator route: a proxy in front that keeps clients from those looks at paths."""
    if target[0] == 0x2F:
        return target[: target.index(b"?")]
    if target == b"*" and method == "OPTIONS":
        return target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise HttpRefused(HttpFault.TARGET)
    path: bytes = absolute.group(1) or b"/"
    return path if path.startswith(b"/v1/") else target


def _skip_empty_lines(data: bytes, start: int) -> int:
    limit = start + 2 * MAX_EMPTY_LINES
    while data.startswith(b"\r\n", start):
        start += 2
        if start > limit:
            raise HttpRefused(HttpFault.REQUEST_LINE)
    return start


def _check_partial(data: bytes, start: int) -> None:
    """Refuse early what can no longer become a head; the size limits hold for what never ends, too."""
    size = len(data) - start
    if size > MAX_TARGET_BYTES and data.find(b"\r\n", start, start + MAX_TARGET_BYTES + 32) < 0:
        raise HttpRefused(HttpFault.TARGET_TOO_LONG)
    if size > MAX_HEAD_BYTES:
        raise HttpRefused(HttpFault.HEAD_TOO_LARGE)
    if size and not (data[start : start + 1].isalpha() or data[start] == 0x0D):
        raise HttpRefused(HttpFault.REQUEST_LINE)  # a TLS handshake, say
    if BARE.search(data, start) is not None:
        raise HttpRefused(HttpFault.LINE_ENDING)


def _explain_line(line: bytes) -> NoReturn:
    if b"\n" in line or b"\r" in line:
        raise HttpRefused(HttpFault.LINE_ENDING)
    method, _, rest = line.partition(b" ")
    target, _, version = rest.rpartition(b" ")
    if not re.fullmatch(_TOKEN, method) or not target or not re.fullmatch(rb"HTTP/[0-9]\.[0-9]", version):
        raise HttpRefused(HttpFault.REQUEST_LINE)
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise HttpRefused(HttpFault.VERSION)
    if not re.fullmatch(_TARGET, target):
        raise HttpRefused(HttpFault.TARGET)
    raise HttpRefused(HttpFault.METHOD)


def _explain_fields(block: bytes) -> NoReturn:
    for line in block.split(b"\r\n"):
        if b"\n" in line or b"\r" in line:
            raise HttpRefused(HttpFault.LINE_ENDING)
        if line[:1] in (b" ", b"\t"):
            raise HttpRefused(HttpFault.FOLDED)
        if not re.match(_TOKEN + b":", line):
            raise HttpRefused(HttpFault.NAME)
        if FIELD.match(b"\n" + line + b"\r\n") is None:
            break
    raise HttpRefused(HttpFault.VALUE)
