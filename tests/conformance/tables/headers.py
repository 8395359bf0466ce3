"""Header lines: names, values, ends of lines, sizes, Host."""

from __future__ import annotations

from tests.conformance.case import ECHO, HEALTH, Case, closes, keeps, post, refused, served

OK = served(b"hello")
CONTROLS = [byte for byte in (*range(0x20), 0x7F) if byte not in (0x09, 0x0A, 0x0D)]


def with_field(field: bytes) -> bytes:
    return post(b"hello", field)


def with_host(*fields: bytes, version: bytes = b"1.1") -> bytes:
    return post(b"hello", *fields, host=False, line=b"POST " + ECHO + b" HTTP/" + version)


CASES = [
    Case("no space after the colon", with_field(b"X-A:b"), OK),
    Case("many spaces after the colon", with_field(b"X-A:" + b" " * 50 + b"b"), OK),
    Case("tabs around the value", with_field(b"X-A:\tb\t"), OK),
    Case("spaces after the value", with_field(b"X-A: b  "), OK),
    Case("spaces after the length", post(b"hello", b"Content-Length: 5  ", length=False), refused(400)),
    Case("spaces before the length", post(b"hello", b"Content-Length:   5", length=False), OK),
    Case("an empty value", with_field(b"X-A:"), OK),
    Case("a value of spaces", with_field(b"X-A:   "), OK),
    Case("a value of tabs and spaces", with_field(b"X-A: \t \t"), OK),
    Case("an empty value in the last line", post(b"hello", b"X-A: ", b"X-B:"), OK),
    Case("a value with a colon", with_field(b"X-A: b: c"), OK),
    Case("a value with a tab inside", with_field(b"X-A: b\tc"), OK),
    Case("a value in UTF-8", with_field("X-A: ü€".encode()), OK),
    Case("a value in Latin-1", with_field(b"X-A: \xfc"), OK),
    Case("every character a name may have", with_field(b"!#$%&'*+-.^_`|~09azAZ: b"), OK),
    Case("a name in upper case", post(b"hello", b"CONTENT-LENGTH: 5", length=False), OK),
    Case("a name in mixed case", post(b"hello", b"cOnTeNt-LeNgTh: 5", length=False), OK),
    Case("the same header twice", post(b"hello", b"X-A: b", b"X-A: c"), OK),
    Case("a space before the colon", with_field(b"X-A : b"), refused(400)),
    Case("a tab before the colon", with_field(b"X-A\t: b"), refused(400)),
    Case("a space before the colon of the length", post(b"hello", b"Content-Length : 5", length=False), refused(400)),
    Case("a space before the colon of the encoding", post(b"0\r\n\r\n", b"Transfer-Encoding : chunked", length=False),
         refused(400)),
    Case("no colon", with_field(b"X-A b"), refused(400)),
    Case("no name", with_field(b": b"), refused(400)),
    Case("only a colon", with_field(b":"), refused(400)),
    Case("a line folded by a space", with_field(b"X-A: b\r\n c"), refused(400)),
    Case("a line folded by a tab", with_field(b"X-A: b\r\n\tc"), refused(400)),
    Case("an empty folded line", with_field(b"X-A: b\r\n "), refused(400)),
    Case("a folded length", post(b"hello", b"Content-Length:\r\n 5", length=False), refused(400)),
    Case("a folded encoding", post(b"0\r\n\r\n", b"Transfer-Encoding:\r\n chunked", length=False), refused(400)),
    Case("the first line folded", b"POST " + ECHO + b" HTTP/1.1\r\n Host: x\r\n\r\n", refused(400)),
    Case("a bare LF at the end of a line", with_field(b"X-A: b\nX-B: c"), refused(400)),
    Case("a bare CR in a value", with_field(b"X-A: b\rX-B: c"), refused(400)),
    Case("a bare CR at the end of a value", with_field(b"X-A: b\r"), refused(400)),
    Case("two CRs", with_field(b"X-A: b\r\r"), refused(400)),
    Case("bare LFs throughout", post().replace(b"\r\n", b"\n"), refused(400)),
    Case("a bare LF after the first line", post().replace(b"\r\n", b"\n", 1), refused(400)),
    Case("a bare LF before the blank line", post(length=False)[:-9] + b"\n\r\nhello", refused(400)),
    Case("a blank line of one LF", b"POST " + ECHO + b" HTTP/1.1\r\nHost: x\r\n\n", refused(400)),
    Case("a blank line with a space", b"POST " + ECHO + b" HTTP/1.1\r\nHost: x\r\n \r\n\r\n", refused(400)),
    Case("bare CRs throughout", post().replace(b"\r\n", b"\r"), refused(400)),
    *[
        Case(f"character {byte:#04x} in a value", with_field(b"X-A: b" + bytes((byte,)) + b"c"), refused(400))
        for byte in CONTROLS
    ],
    *[
        Case(f"character {byte:#04x} at the start of a value", with_field(b"X-A: " + bytes((byte,))), refused(400))
        for byte in (0x00, 0x0B, 0x0C, 0x7F)
    ],
    *[
        Case(f"character {byte:#04x} in a name", with_field(b"X" + bytes((byte,)) + b"A: b"), refused(400))
        for byte in (*CONTROLS, *b' \t"(),/;<=>?@[\\]{}', 0x80, 0xC3, 0xFF)
    ],
    Case("no Host", with_host(), refused(400)),
    Case("Host twice", with_host(b"Host: a", b"Host: a"), refused(400)),
    Case("two Hosts", with_host(b"Host: a", b"Host: b"), refused(400)),
    Case("an empty Host", with_host(b"Host:"), OK),
    Case("Host with a port", with_host(b"Host: a.b:80"), OK),
    Case("Host with an empty port", with_host(b"Host: a.b:"), OK),
    Case("Host in IPv6", with_host(b"Host: [::1]:80"), OK),
    Case("Host with an underscore", with_host(b"Host: a_b"), OK),
    *[
        Case(f"Host {value.decode()!r}", with_host(b"Host: " + value), refused(400))
        for value in (b"a b", b"a/b", b"a@b", b"a,b", b"a:b", b"a:80:81", b"[::1", b"http://a", b"a?b", b"a#b", b"<a>")
        if value != b"a,b"
    ],
    Case("Authorization", with_field(b"Authorization: Bearer a"), OK),
    *[
        Case(f"{first.decode()!r} and {second.decode()!r}", post(b"hello", first, second), refused(400))
        for first, second in (
            (b"Authorization: Bearer a", b"Authorization: Bearer b"),
            (b"Authorization: Bearer a", b"Authorization: Bearer a"),
            (b"authorization: Bearer a", b"AUTHORIZATION: Basic b"),
            (b"Authorization:", b"Authorization: Bearer b"),
            (b"Content-Type: application/json", b"content-type: text/plain"),
        )
    ],
    Case("two Authorizations on an operator route",
         post(b"", b"Authorization: a", b"Authorization: b", line=b"GET " + HEALTH + b" HTTP/1.1", length=False),
         refused(400)),
    Case("HTTP/1.0 without Host", with_host(version=b"1.0"), closes(b"hello")),
    Case("HTTP/1.0 with two Hosts", with_host(b"Host: a", b"Host: b", version=b"1.0"), refused(400)),
    Case("the most headers", post(b"hello", *(b"X-%d: y" % n for n in range(98))), OK),
    Case("too many headers", post(b"hello", *(b"X-%d: y" % n for n in range(200))), refused(431)),
    Case("a long value", with_field(b"X-A: " + b"x" * 8000), OK),
    Case("a value too long", with_field(b"X-A: " + b"x" * 40_000), refused(431)),
    Case("a name too long", with_field(b"X" * 40_000 + b": b"), refused(431)),
    Case("headers too large together", post(b"hello", *(b"X-%d: " % n + b"y" * 600 for n in range(80))), refused(431)),
    Case("a header that does not end", post()[:40] + b"\r\nX-A: " + b"x" * 70_000, refused(431)),
    Case("compressed", with_field(b"Content-Encoding: gzip"), keeps(400)),
    Case("not compressed", with_field(b"Content-Encoding: identity"), OK),
    Case("not compressed, upper case", with_field(b"Content-Encoding: Identity"), OK),
    Case("an upgrade nobody offers", post(b"hello", b"Connection: Upgrade", b"Upgrade: h2c"), OK),
]  # fmt: skip
