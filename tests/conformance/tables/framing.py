"""Where a body ends: Content-Length, Transfer-Encoding, both, and neither."""

from __future__ import annotations

from tests.conformance.case import CHUNKED, ECHO, Case, Outcome, closes, post, refused, served

OK = served(b"hello")
CHUNKS = b"5\r\nhello\r\n0\r\n\r\n"


def framed(*fields: bytes, body: bytes = b"hello", version: bytes = b"1.1") -> bytes:
    return post(body, *fields, length=False, line=b"POST " + ECHO + b" HTTP/" + version)


CASES = [
    Case("no length", framed(body=b""), served(b"")),
    Case("length 0", framed(b"Content-Length: 0", body=b""), served(b"")),
    Case("length with zeros in front", framed(b"Content-Length: 0005"), OK),
    Case("a body with line ends in it", post(b"\r\n\r\n"), served(b"\r\n\r\n")),
    Case("a body that looks like a request", post(post()), served(post())),
    *[
        Case(f"length {value.decode('latin-1')!r}", framed(b"Content-Length: " + value), refused(400))
        for value in (
            b"", b"-5", b"+5", b"5.0", b"0x5", b"5,5", b"5, 5", b"5, 6", b"5 5", b"5;", b"five", b'"5"', b"5e0",
            b"\xb2", b"5_0", b"99999999999999999999", b"18446744073709551621", b"1" * 200,
        )
    ],
    Case("the same length twice", framed(b"Content-Length: 5", b"Content-Length: 5"), refused(400)),
    Case("two lengths", framed(b"Content-Length: 5", b"Content-Length: 6"), refused(400)),
    Case("two lengths, the second empty", framed(b"Content-Length: 5", b"Content-Length:"), refused(400)),
    Case("chunked", framed(CHUNKED, body=CHUNKS), OK),
    Case("chunked in upper case", framed(b"Transfer-Encoding: CHUNKED", body=CHUNKS), OK),
    Case("chunked with white space before", framed(b"Transfer-Encoding:  \tchunked", body=CHUNKS), OK),
    Case("chunked with a space behind", framed(b"Transfer-Encoding: chunked ", body=CHUNKS), refused(501)),
    Case("chunked with a tab behind", framed(b"Transfer-Encoding: chunked\t", body=CHUNKS), refused(501)),
    Case("chunked and a length", framed(CHUNKED, b"Content-Length: 5", body=CHUNKS), refused(400)),
    Case("a length and chunked", framed(b"Content-Length: 5", CHUNKED, body=CHUNKS), refused(400)),
    Case("a length of 0 and chunked", framed(b"Content-Length: 0", CHUNKED, body=CHUNKS), refused(400)),
    Case("a bad length and chunked", framed(b"Content-Length: x", CHUNKED, body=CHUNKS), refused(400)),
    Case("chunked twice", framed(CHUNKED, CHUNKED, body=CHUNKS), refused(400)),
    Case("gzip, then chunked, on two lines", framed(b"Transfer-Encoding: gzip", CHUNKED, body=CHUNKS), refused(501)),
    Case("chunked, then gzip, on two lines", framed(CHUNKED, b"Transfer-Encoding: gzip", body=CHUNKS), refused(400)),
    *[
        Case(f"encoding {value.decode('latin-1')!r}", framed(b"Transfer-Encoding: " + value, body=CHUNKS), refused(501))
        for value in (
            b"", b"identity", b"gzip", b"gzip, chunked", b"chunked, gzip", b"chunked, identity", b"chunked, chunked",
            b"xchunked", b"chunkedx", b"chunke", b'"chunked"', b"chunked;q=1", b"chunked,", b",chunked", b", chunked",
            b"identity, chunked", b"chunked chunked", b"cow", b"\xffchunked",
        )
    ],
    Case("a vertical tab before chunked", framed(b"Transfer-Encoding: \x0bchunked", body=CHUNKS), refused(400)),
    Case("a zero after chunked", framed(b"Transfer-Encoding: chunked\x00", body=CHUNKS), refused(400)),
    Case("an underscore in the name", framed(b"Transfer_Encoding: chunked", b"Content-Length: 5"), OK),
    Case("another name", framed(b"X-Transfer-Encoding: chunked", b"Content-Length: 5"), OK),
    Case("HTTP/1.0 with a length", framed(b"Content-Length: 5", version=b"1.0"), closes(b"hello")),
    Case("HTTP/1.0 without a length", framed(version=b"1.0", body=b""), closes(b"")),
    Case("HTTP/1.0 chunked", framed(CHUNKED, version=b"1.0", body=CHUNKS), refused(400)),
    Case("HTTP/1.0 chunked and a length", framed(CHUNKED, b"Content-Length: 5", version=b"1.0", body=CHUNKS),
         refused(400)),
    Case("a body of the greatest size", post(b"x" * 4096), served(b"x" * 4096)),
    Case("a body too large", post(b"x" * 4097), refused(413)),
    Case("a body too large, announced only", framed(b"Content-Length: 4097", body=b""), refused(413)),
    Case("a body far too large, announced only", framed(b"Content-Length: 999999999999", body=b""), refused(413)),
    Case("a request smuggled behind a length", framed(b"Content-Length: 5", body=b"hello" + post(b"two")),
         served(b"hello", b"two")),
    Case("a body without a length", framed(body=b"\x00"), Outcome((200, 400), (b"",))),
]  # fmt: skip
