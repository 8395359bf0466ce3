"""What can be wrong with a client's HTTP, and the error it is answered with."""

from __future__ import annotations

from enum import Enum

from sgl_router.errors import ErrorCode, RouterError

__all__ = ["HttpFault", "HttpRefused"]


class HttpFault(Enum):
    """Status and message. Each leaves the place where the next message begins in doubt, or a body unread, so the
    connection is closed after the answer."""

    REQUEST_LINE = (400, "the request line is not valid")
    TARGET = (400, "the request target is not valid")
    TARGET_TOO_LONG = (414, "the request target is too long")
    METHOD = (501, "the request method is not known")
    VERSION = (505, "the HTTP version is not supported; expected HTTP/1.1 or HTTP/1.0")
    LINE_ENDING = (400, "a line of the request head does not end in CR LF")
    FOLDED = (400, "a header continues on a second line, which HTTP no longer allows")
    NAME = (400, "a header name is not valid")
    VALUE = (400, "a header value has a character that is not allowed")
    HEAD_TOO_LARGE = (431, "the request's headers are too large")
    TOO_MANY_HEADERS = (431, "the request has too many headers")
    NO_HOST = (400, "the Host header is missing")
    HOST_TWICE = (400, "the Host header is given more than once")
    HOST = (400, "the Host header is not valid")
    AUTHORIZATION_TWICE = (400, "the Authorization header is given more than once")
    CONTENT_TYPE_TWICE = (400, "the Content-Type header is given more than once")
    LENGTH = (400, "the Content-Length header is not a number of bytes")
    LENGTH_TWICE = (400, "the Content-Length header is given more than once")
    LENGTH_AND_ENCODING = (400, "both Content-Length and Transfer-Encoding are given")
    ENCODING_TWICE = (400, "the Transfer-Encoding header is given more than once")
    ENCODING = (501, "the transfer encoding is not supported; expected chunked")
    ENCODING_IN_1_0 = (400, "HTTP/1.0 has no Transfer-Encoding")
    EXPECTATION = (417, "the expectation is not supported; expected 100-continue")
    CHUNK_SIZE = (400, "the size line of a chunk of the body is not valid")
    CHUNK_END = (400, "a chunk of the body does not end in CR LF")
    CHUNK_EXTENSIONS = (400, "the chunks of the body carry too many extensions")
    CHUNKS_TOO_SMALL = (400, "the body comes in too many chunks of a few bytes; expected 16 bytes each on the average")
    TRAILER = (400, "the trailer of the chunked body is not valid")
    HEAD_TIMEOUT = (408, "the request's headers were not received in time")
    BODY_TIMEOUT = (408, "the request body was not received in time")
    BODY_TOO_SLOW = (408, "the request body came in too slowly")

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = message


class HttpRefused(RouterError):
    """A request refused for its HTTP. `error.code` is `bad_request` for all of them; the status tells them apart."""

    code = ErrorCode.BAD_REQUEST

    def __init__(self, fault: HttpFault) -> None:
        super().__init__(fault.message)
        self.fault = fault
        self.status = fault.status
