"""What the strict parser accepts, llhttp accepts too, and both take it to mean the same; and nothing else does."""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass, field

import httptools
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sgl_router.errors import RouterError
from sgl_router.http.chunked import ChunkedDecoder
from sgl_router.http.head import read_head
from tests.conformance.case import HOST
from tests.conformance.mutation import CHUNKED_BODIES, MESSAGES, OPERATIONS, TOKENS, edited, random_edits

EXAMPLES = 6_000
LIMIT = 1 << 20
FRAMING = [b"Content-Length", b"Transfer-Encoding", b"Connection", b"X"]


@dataclass
class Message:
    method: str = ""
    target: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    keep_alive: bool = False


def ours(data: bytes) -> tuple[Message, int] | None:
    """The first message and its length; None if it is refused or not whole."""
    try:
        head = read_head(data)
        if head is None:
            return None
        body, end = data[head.end : head.end + head.content_length], head.end + head.content_length
        if head.chunked:
            decoder = ChunkedDecoder(LIMIT)
            if not decoder.feed(data[head.end :]):
                return None
            body, end = decoder.body, len(data) - len(decoder.rest)
        elif len(data) < end:
            return None
    except RouterError:
        return None
    return Message(head.method, head.target, head.headers, body, head.keep_alive), end


class Llhttp:
    """One message as httptools reads it."""

    def __init__(self) -> None:
        self.message = Message()
        self.complete = 0
        self._parser = httptools.HttpRequestParser(self)

    def feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # nothing is switched here: the message ends where it would without the offer

    def on_url(self, url: bytes) -> None:
        self.message.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.message.method:  # later ones are trailers
            self.message.headers.append((name, value.rstrip(b" \t")))  # which httptools leaves in place

    def on_headers_complete(self) -> None:
        self.message.method = self._parser.get_method().decode()
        self.message.keep_alive = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self.message.body += body

    def on_message_complete(self) -> None:
        self.complete += 1


def check(data: bytes) -> bool:
    """Whether the first message in `data` is accepted, once it is certain that llhttp agrees."""
    accepted = ours(data)
    if accepted is None:
        return False
    message, end = accepted
    theirs = Llhttp()
    theirs.feed(data[: end - 1])
    assert theirs.complete == 0, f"llhttp saw the end sooner: {data!r}"
    theirs.feed(data[end - 1 : end])
    assert theirs.complete == 1, f"llhttp sees no end: {data!r}"
    if theirs.message.keep_alive and not message.keep_alive:
        # HTTP/1.0 with both close and keep-alive: to close is right either way.
        assert b"HTTP/1.0" in data
        theirs.message.keep_alive = False
    assert theirs.message == message, data
    return True


def test_the_messages_are_accepted() -> None:
    for message in MESSAGES:
        assert check(message)
        assert check(message + b"POST /")


def test_nearly_valid_messages_in_bulk() -> None:
    rng = random.Random(4)
    accepted = sum(check(edited(rng.choice(MESSAGES), random_edits(rng))) for _ in range(EXAMPLES))
    assert EXAMPLES * 0.1 < accepted < EXAMPLES * 0.8  # neither trivial


class Aiohttp:
    """A head as aiohttp's server reads it. It uses llhttp too, but decides for itself what the headers mean."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def read(self, data: bytes) -> Message:
        protocol = BaseProtocol(self._loop)
        parser = HttpRequestParser(protocol, self._loop, 1 << 16, max_line_size=1 << 16, max_field_size=1 << 16)
        messages, _, _ = parser.feed_data(data)
        ((head, payload),) = messages
        body = payload.read_nowait()
        assert payload.is_eof(), data
        headers = [(bytes(name), bytes(value).rstrip(b" \t")) for name, value in head.raw_headers]
        return Message(head.method, head.path.encode("utf-8", "surrogateescape"), headers, body, not head.should_close)


def test_aiohttp_reads_the_same_requests() -> None:
    rng = random.Random(5)
    loop = asyncio.new_event_loop()
    theirs = Aiohttp(loop)
    compared = 0
    try:
        while compared < 600:
            data = edited(rng.choice(MESSAGES), random_edits(rng))
            accepted = ours(data)
            if accepted is None or b"pgrade" in data:
                continue
            message, end = accepted
            found = theirs.read(data[:end])
            if b"HTTP/1.0" in data:
                found.keep_alive = message.keep_alive  # it lets keep-alive win over close
            assert found == message, data
            compared += 1
    finally:
        loop.close()


edits = st.lists(
    st.tuples(
        st.sampled_from(OPERATIONS),
        st.integers(0, 400),
        st.integers(1, 20),
        st.one_of(st.sampled_from(TOKENS), st.binary(min_size=1, max_size=4)),
    ),
    max_size=4,
)


@settings(max_examples=400, derandomize=True, deadline=None)
@given(message=st.sampled_from(MESSAGES), changes=edits)
def test_nearly_valid_messages(message: bytes, changes: list[tuple[str, int, int, bytes]]) -> None:
    check(edited(message, changes))


@settings(max_examples=300, derandomize=True, deadline=None)
@given(value=st.binary(max_size=20), name=st.sampled_from(FRAMING))
@example(value=b"\tchunked\t", name=b"Transfer-Encoding")
@example(value=b" 0\t", name=b"Content-Length")
def test_any_value_of_a_header_that_frames(value: bytes, name: bytes) -> None:
    check(b"POST / HTTP/1.1\r\n" + HOST + b"\r\n" + name + b":" + value + b"\r\n\r\n0\r\n\r\n")


@settings(max_examples=300, derandomize=True, deadline=None)
@given(body=st.sampled_from(CHUNKED_BODIES), changes=edits, cuts=st.lists(st.integers(0, 60), max_size=6))
def test_chunks_decode_the_same_however_they_are_cut(
    body: bytes, changes: list[tuple[str, int, int, bytes]], cuts: list[int]
) -> None:
    data = edited(body, changes)

    def decode(pieces: list[bytes]) -> tuple[bytes, bytes] | str | None:
        decoder = ChunkedDecoder(LIMIT)
        try:
            for number, piece in enumerate(pieces):
                if decoder.feed(piece):
                    return decoder.body, decoder.rest + b"".join(pieces[number + 1 :])
        except RouterError:
            return "refused"
        return None

    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    whole = decode([data])
    cut = decode([data[a:b] for a, b in itertools.pairwise(places)])
    byte_by_byte = decode([data[at : at + 1] for at in range(len(data))])
    assert cut == whole
    assert byte_by_byte == whole
