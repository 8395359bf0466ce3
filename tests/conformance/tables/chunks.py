"""The chunks of a chunked body, and its trailer."""

from __future__ import annotations

from tests.conformance.case import CHUNKED, Case, post, refused, served

LAST = b"0\r\n\r\n"
OK = served(b"hello")


def chunked(body: bytes) -> bytes:
    return post(body, CHUNKED, length=False)


CASES = [
    Case("nothing but the last chunk", chunked(LAST), served(b"")),
    Case("one chunk", chunked(b"5\r\nhello\r\n" + LAST), OK),
    Case("two chunks", chunked(b"2\r\nhe\r\n3\r\nllo\r\n" + LAST), OK),
    Case("a chunk per byte", chunked(b"".join(b"1\r\n%c\r\n" % byte for byte in b"hello") + LAST), OK),
    Case("a size with zeros in front", chunked(b"0005\r\nhello\r\n" + LAST), OK),
    Case("a last chunk of many zeros", chunked(b"5\r\nhello\r\n0000\r\n\r\n"), OK),
    Case("a size in lower case", chunked(b"a\r\n0123456789\r\n" + LAST), served(b"0123456789")),
    Case("a size in upper case", chunked(b"A\r\n0123456789\r\n" + LAST), served(b"0123456789")),
    Case("line ends as data", chunked(b"4\r\n\r\n\r\n\r\n" + LAST), served(b"\r\n\r\n")),
    Case("a last chunk as data", chunked(b"5\r\n" + LAST + b"\r\n" + LAST), served(LAST)),
    Case("an extension", chunked(b"5;a\r\nhello\r\n" + LAST), OK),
    Case("an extension with a value", chunked(b"5;a=b\r\nhello\r\n" + LAST), OK),
    Case("an extension with a quoted value", chunked(b'5;a="b c"\r\nhello\r\n' + LAST), OK),
    Case("two extensions", chunked(b"5;a=b;c\r\nhello\r\n" + LAST), OK),
    Case("an extension of the last chunk", chunked(b"5\r\nhello\r\n0;a\r\n\r\n"), OK),
    Case("a trailer", chunked(b"5\r\nhello\r\n0\r\nX-A: b\r\n\r\n"), OK),
    Case("two trailers", chunked(b"5\r\nhello\r\n0\r\nX-A: b\r\nX-B:\r\n\r\n"), OK),
    *[
        Case(f"size line {line.decode('latin-1')!r}", chunked(line + b"\r\nhello\r\n" + LAST), refused(400))
        for line in (
            b"", b" ", b"g", b"-5", b"+5", b"0x5", b"5 ", b" 5", b"\t5", b"5\t", b"5 ;a", b"5.", b"5,", b"5h", b"5;",
            b"5;;", b"5;a=", b'5;a="b', b"5;a b", b"5;\x00", b"5;a\x7f", b"5\x00", b"5_0", b"0_5", b"\xb5", b"5;a=\xff",
            b"fffffffff", b"10000000000000005", b"00000000000000000000005", b"5;" + b"a" * 400,
        )
    ],
    Case("a bare LF after the size", chunked(b"5\nhello\r\n" + LAST), refused(400)),
    Case("a bare CR after the size", chunked(b"5\rhello\r\n" + LAST), refused(400)),
    Case("a bare LF after the data", chunked(b"5\r\nhello\n" + LAST), refused(400)),
    Case("a bare CR after the data", chunked(b"5\r\nhello\r" + LAST), refused(400)),
    Case("nothing after the data", chunked(b"5\r\nhello" + LAST), refused(400)),
    Case("more data than the size says", chunked(b"4\r\nhello\r\n" + LAST), refused(400)),
    Case("less data than the size says", chunked(b"6\r\nhello\r\n" + LAST), refused(400)),
    Case("two line ends after the data", chunked(b"5\r\nhello\r\n\r\n" + LAST), refused(400)),
    Case("a bare LF in an extension", chunked(b"5;a\nb\r\nhello\r\n" + LAST), refused(400)),
    Case("a bare CR in an extension", chunked(b"5;a\rb\r\nhello\r\n" + LAST), refused(400)),
    Case("too many extensions", chunked((b"1;" + b"a" * 200 + b"\r\nx\r\n") * 30 + LAST), refused(400)),
    Case("a bare LF after the last size", chunked(b"5\r\nhello\r\n0\n\r\n"), refused(400)),
    Case("a bare LF at the very end", chunked(b"5\r\nhello\r\n0\r\n\n"), refused(400)),
    Case("a trailer without a colon", chunked(b"5\r\nhello\r\n0\r\nX-A\r\n\r\n"), refused(400)),
    Case("a trailer with a space before the colon", chunked(b"5\r\nhello\r\n0\r\nX-A : b\r\n\r\n"), refused(400)),
    Case("a folded trailer", chunked(b"5\r\nhello\r\n0\r\nX-A: b\r\n c\r\n\r\n"), refused(400)),
    Case("a trailer with a zero", chunked(b"5\r\nhello\r\n0\r\nX-A: \x00\r\n\r\n"), refused(400)),
    Case("a trailer with a bare LF", chunked(b"5\r\nhello\r\n0\r\nX-A: b\nX-B: c\r\n\r\n"), refused(400)),
    Case("a trailer with a length", chunked(b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n"), refused(400)),
    Case("a trailer with an encoding", chunked(b"5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"), refused(400)),
    Case("a trailer with a host", chunked(b"5\r\nhello\r\n0\r\nhost: a\r\n\r\n"), refused(400)),
    Case("a trailer too large", chunked(b"0\r\n" + b"X-A: %b\r\n" % (b"b" * 900) * 20 + b"\r\n"), refused(400)),
    Case("a trailer that does not end", chunked(b"5\r\nhello\r\n0\r\nX-A: " + b"b" * 70_000), refused(400)),
    Case("too large in one chunk", chunked(b"1001\r\n" + b"x" * 4097 + b"\r\n" + LAST), refused(413)),
    Case("too large in one chunk, announced only", chunked(b"1001\r\n"), refused(413)),
    Case("too large in many chunks", chunked((b"100\r\n" + b"x" * 256 + b"\r\n") * 17 + LAST), refused(413)),
    Case("the greatest size in many chunks", chunked((b"100\r\n" + b"x" * 256 + b"\r\n") * 16 + LAST),
         served(b"x" * 4096)),
    Case("another request behind", chunked(b"5\r\nhello\r\n" + LAST) + post(b"two"), served(b"hello", b"two")),
    Case("another chunked one behind a trailer",
         chunked(b"2\r\nhi\r\n0\r\nX-A: b\r\n\r\n") + chunked(b"1\r\nx\r\n" + LAST),
         served(b"hi", b"x")),
]  # fmt: skip
