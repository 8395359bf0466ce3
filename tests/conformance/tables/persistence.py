"""How long a connection lives, pipelining, expectations."""

from __future__ import annotations

from tests.conformance.case import CHUNKED, ECHO, HEALTH, STREAM, Case, Outcome, closes, keeps, post, refused, served

OK, CLOSES = served(b"hello"), closes(b"hello")
GET = post(b"", line=b"GET " + HEALTH + b" HTTP/1.1", length=False)


def old(*fields: bytes, target: bytes = ECHO) -> bytes:
    return post(b"hello", *fields, line=b"POST " + target + b" HTTP/1.0")


CASES = [
    Case("close", post(b"hello", b"Connection: close"), CLOSES),
    Case("close in upper case", post(b"hello", b"Connection: CLOSE"), CLOSES),
    Case("close in a list", post(b"hello", b"Connection: x, close"), CLOSES),
    Case("close in a list without spaces", post(b"hello", b"Connection: x,close,y"), CLOSES),
    Case("close on the second of two lines", post(b"hello", b"Connection: keep-alive", b"Connection: close"), CLOSES),
    Case("close and keep-alive", post(b"hello", b"Connection: close, keep-alive"), CLOSES),
    Case("keep-alive", post(b"hello", b"Connection: keep-alive"), OK),
    Case("another token", post(b"hello", b"Connection: closed"), OK),
    Case("a token that contains close", post(b"hello", b"Connection: foreclose"), OK),
    Case("an empty Connection", post(b"hello", b"Connection:"), OK),
    Case("HTTP/1.0", old(), CLOSES),
    Case("HTTP/1.0 close", old(b"Connection: close"), CLOSES),
    Case("HTTP/1.0 keep-alive", old(b"Connection: keep-alive"), OK),
    Case("HTTP/1.0 keep-alive in mixed case", old(b"Connection: Keep-Alive"), OK),
    Case("HTTP/1.0 keep-alive in a list", old(b"Connection: x, keep-alive"), OK),
    Case("HTTP/1.0 keep-alive and close", old(b"Connection: keep-alive, close"), CLOSES),
    Case("HTTP/1.0 keep-alive, streamed", old(b"Connection: keep-alive", target=STREAM), CLOSES),
    Case("HTTP/1.0 streamed", old(target=STREAM), CLOSES),
    Case("streamed", post(target=STREAM), OK),
    Case("streamed, close", post(b"hello", b"Connection: close", target=STREAM), CLOSES),
    Case("streamed, nothing", post(b"", target=STREAM), served(b"")),
    Case("two requests", post(b"one") + post(b"two"), served(b"one", b"two")),
    Case("ten requests", b"".join(post(b"%d" % n) for n in range(10)), served(*(b"%d" % n for n in range(10)))),
    Case("two hundred requests", post(b"x") * 200, served(*(b"x",) * 200)),
    Case("two requests, a blank line between", post(b"one") + b"\r\n" + post(b"two"), served(b"one", b"two")),
    Case("streamed and sent in turn", post(b"one", target=STREAM) + post(b"two") + post(b"three", target=STREAM),
         served(b"one", b"two", b"three")),
    Case("a request behind close", post(b"one", b"Connection: close") + post(b"two"), closes(b"one")),
    Case("a request behind HTTP/1.0", old() + post(b"two"), closes(b"hello")),
    Case("rubbish behind a request", post(b"one") + b"\x00\x01\x02\x03", Outcome((200, 400), (b"one",))),
    Case("a bad request behind a good one", post(b"one") + post(b"two", b"X : y"), Outcome((200, 400), (b"one",))),
    Case("a bad request in the middle", post(b"one") + post(b"two", b"X : y") + post(b"three"),
         Outcome((200, 400), (b"one",))),
    Case("a refused method between requests",
         post(b"one") + post(b"", line=b"GET " + ECHO + b" HTTP/1.1", length=False) + post(b"two"),
         Outcome((200, 405, 200), (b"one", b"two"), True)),
    Case("an unknown path between requests", post(b"one") + post(b"x", target=b"/no") + post(b"two"),
         Outcome((200, 404, 200), (b"one", b"two"), True)),
    Case("an admin route, then a data route", GET + post(b"one"), Outcome((200, 200), (b"one",), True)),
    Case("a data route, then an admin route", post(b"one") + GET, Outcome((200, 200), (b"one",), True)),
    Case("data and admin routes in turn", (post(b"one") + GET) * 3, Outcome((200,) * 6, (b"one",) * 3, True)),
    Case("an admin route with close", post(b"one") + post(b"", b"Connection: close", length=False,
                                                          line=b"GET " + HEALTH + b" HTTP/1.1"),
         Outcome((200, 200), (b"one",))),
    Case("too large behind a good one", post(b"one") + post(b"x" * 5000) + post(b"two"),
         Outcome((200, 413), (b"one",))),
    Case("HEAD, then POST", post(b"", line=b"HEAD " + HEALTH + b" HTTP/1.1", length=False), keeps(200)),
    Case("HEAD on a data route", post(b"", line=b"HEAD " + ECHO + b" HTTP/1.1", length=False), keeps(405)),
    Case("expecting, the body at once", post(b"hello", b"Expect: 100-continue"), OK),
    Case("expecting in upper case", post(b"hello", b"Expect: 100-CONTINUE"), OK),
    Case("expecting something else", post(b"hello", b"Expect: 200-ok"), keeps(417)),
    Case("expecting a list", post(b"hello", b"Expect: 100-continue, x"), keeps(417)),
    Case("expecting nothing", post(b"hello", b"Expect:"), keeps(417)),
    Case("expecting with HTTP/1.0", old(b"Expect: 100-continue"), CLOSES),
    Case("expecting something else with HTTP/1.0", old(b"Expect: x"), CLOSES),
    Case("expecting a refusal of the size", post(b"", b"Content-Length: 5000", b"Expect: 100-continue", length=False),
         refused(413)),
    Case("expecting a refusal of the method",
         post(b"", b"Content-Length: 5", b"Expect: 100-continue", length=False, line=b"PUT " + ECHO + b" HTTP/1.1"),
         refused(405)),
    Case("expecting a refusal of the encoding",
         post(b"", b"Content-Length: 5", b"Expect: 100-continue", b"Content-Encoding: br", length=False), refused(400)),
    Case("expecting without a body", post(b"", b"Expect: 100-continue"), served(b"")),
    Case("expecting, chunks at once", post(b"2\r\nhi\r\n0\r\n\r\n", b"Expect: 100-continue", CHUNKED, length=False),
         served(b"hi")),
]  # fmt: skip
