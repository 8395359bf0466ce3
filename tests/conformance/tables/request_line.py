"""The first line: method, target, version."""

from __future__ import annotations

from tests.conformance.case import ECHO, HEALTH, Case, closes, keeps, post, refused, served

OK = served(b"hello")


def line(text: bytes) -> bytes:
    return post(line=text)


CASES = [
    Case("plain", post(), OK),
    Case("one empty line before", b"\r\n" + post(), OK),
    Case("four empty lines before", b"\r\n" * 4 + post(), OK),
    Case("five empty lines before", b"\r\n" * 5 + post(), refused(400)),
    Case("a bare LF before", b"\n" + post(), refused(400)),
    Case("a bare CR before", b"\r" + post(), refused(400)),
    Case("a space before", b" " + post(), refused(400)),
    Case("a query", line(b"POST " + ECHO + b"?a=b&c HTTP/1.1"), OK),
    Case("an empty query", line(b"POST " + ECHO + b"? HTTP/1.1"), OK),
    Case("a query with two question marks", line(b"POST " + ECHO + b"?a?b HTTP/1.1"), OK),
    Case("a query with odd characters", line(b"POST " + ECHO + b"?a=\"<>\\^`{|}' HTTP/1.1"), OK),
    Case("a fragment", line(b"POST " + ECHO + b"#x HTTP/1.1"), refused(400)),
    Case("two spaces after the method", line(b"POST  " + ECHO + b" HTTP/1.1"), refused(400)),
    Case("two spaces after the target", line(b"POST " + ECHO + b"  HTTP/1.1"), refused(400)),
    Case("a space at the end", line(b"POST " + ECHO + b" HTTP/1.1 "), refused(400)),
    Case("a tab after the method", line(b"POST\t" + ECHO + b" HTTP/1.1"), refused(400)),
    Case("a tab after the target", line(b"POST " + ECHO + b"\tHTTP/1.1"), refused(400)),
    Case("no target", line(b"POST HTTP/1.1"), refused(400)),
    Case("an empty target", line(b"POST  HTTP/1.1"), refused(400)),
    Case("no version", line(b"POST " + ECHO), refused(400)),
    Case("only a method", line(b"POST"), refused(400)),
    Case("an empty version", line(b"POST " + ECHO + b" "), refused(400)),
    Case("lower-case method", line(b"post " + ECHO + b" HTTP/1.1"), refused(501)),
    Case("lower-case version", line(b"POST " + ECHO + b" http/1.1"), refused(400)),
    Case("another protocol", line(b"POST " + ECHO + b" HTTPS/1.1"), refused(400)),
    Case("ICE", line(b"POST " + ECHO + b" ICE/1.0"), refused(400)),
    Case("version 0.9", line(b"POST " + ECHO + b" HTTP/0.9"), refused(505)),
    Case("version 1.2", line(b"POST " + ECHO + b" HTTP/1.2"), refused(505)),
    Case("version 2.0", line(b"POST " + ECHO + b" HTTP/2.0"), refused(505)),
    Case("version 3.0", line(b"POST " + ECHO + b" HTTP/3.0"), refused(505)),
    Case("version 1.10", line(b"POST " + ECHO + b" HTTP/1.10"), refused(400)),
    Case("version 01.1", line(b"POST " + ECHO + b" HTTP/01.1"), refused(400)),
    Case("version 1", line(b"POST " + ECHO + b" HTTP/1"), refused(400)),
    Case("version 1.", line(b"POST " + ECHO + b" HTTP/1."), refused(400)),
    Case("version 1.x", line(b"POST " + ECHO + b" HTTP/1.x"), refused(400)),
    Case("version +1.1", line(b"POST " + ECHO + b" HTTP/+1.1"), refused(400)),
    Case("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", refused(505)),
    Case("a TLS handshake", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", refused(400)),
    Case("binary zeros", b"\x00" * 40, refused(400)),
    Case("an unknown method", line(b"BREW " + ECHO + b" HTTP/1.1"), refused(501)),
    Case("a method with a digit", line(b"P0ST " + ECHO + b" HTTP/1.1"), refused(501)),
    Case("a method with a colon", line(b"PO:T " + ECHO + b" HTTP/1.1"), refused(400)),
    Case("a method in two parts", line(b"PO ST " + ECHO + b" HTTP/1.1"), refused(400)),
    Case("no method", line(b" " + ECHO + b" HTTP/1.1"), refused(400)),
    Case("CONNECT", line(b"CONNECT " + ECHO + b" HTTP/1.1"), refused(501)),
    Case("CONNECT with an authority", b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n", refused(501)),
    Case("TRACE", post(b"", line=b"TRACE " + ECHO + b" HTTP/1.1", length=False), refused(501)),
    *[
        Case(f"{method.decode()} on a data route", post(b"", line=method + b" " + ECHO + b" HTTP/1.1", length=False),
             keeps(405))
        for method in (b"GET", b"PUT", b"PATCH", b"DELETE", b"OPTIONS")
    ],
    Case("GET with a body on a data route", line(b"GET " + ECHO + b" HTTP/1.1"), keeps(405)),
    Case("GET with a body that is still to come", line(b"GET " + ECHO + b" HTTP/1.1")[:-1], refused(405)),
    Case("OPTIONS *", post(b"", line=b"OPTIONS * HTTP/1.1", length=False), keeps(404)),
    Case("POST *", line(b"POST * HTTP/1.1"), refused(400)),
    Case("absolute form", line(b"POST http://router.example" + ECHO + b" HTTP/1.1"), OK),
    Case("absolute form with a port and a query", line(b"POST http://a.b:80" + ECHO + b"?x HTTP/1.1"), OK),
    Case("absolute form, https", line(b"POST https://a.b" + ECHO + b" HTTP/1.1"), OK),
    Case("absolute form, upper-case scheme", line(b"POST HTTP://a.b" + ECHO + b" HTTP/1.1"), OK),
    Case("absolute form, IPv6", line(b"POST http://[::1]:80" + ECHO + b" HTTP/1.1"), OK),
    *[
        Case(f"an operator route as {target.decode()!r}",
             post(b"", line=b"GET " + target + b" HTTP/1.1", length=False), keeps(404))
        for target in (b"http://a.b" + HEALTH, b"HTTP://a.b:80" + HEALTH, b"http://a.b" + HEALTH + b"?x=1",
                       b"/%68ealthz", b"/healthz%2F", b"/./healthz", b"/x/../healthz", b"//healthz", b"/healthz/",
                       b"/Healthz", b"/healthz;x", b"/%2Fhealthz", b"/%69nternal/kv_snapshot",
                       b"http://a.b/internal/kv_snapshot", b"//internal/kv_snapshot", b"/internal//kv_snapshot",
                       b"/v1/../internal/kv_snapshot", b"http://a.b/v1/../internal/kv_snapshot",
                       b"/internal/kv%5Fsnapshot")
    ],
    *[
        Case(f"another method for an operator route as {target.decode()!r}",
             post(b"", line=b"DELETE " + target + b" HTTP/1.1", length=False), keeps(404))
        for target in (b"/%68ealthz", b"http://a.b" + HEALTH)
    ],
    Case("an operator route with a query", post(b"", line=b"GET " + HEALTH + b"?x=%69 HTTP/1.1", length=False),
         keeps(200)),
    *[
        Case(f"a data route as {target.decode()!r}", line(b"POST " + target + b" HTTP/1.1"), keeps(404))
        for target in (b"/%761/chat/completions", b"/v1/%63hat/completions", b"/v1/./chat/completions",
                       b"http://a.b/%761/chat/completions", b"/v1/chat/completions;x")
    ],
    Case("absolute form without a path", line(b"POST http://a.b HTTP/1.1"), keeps(404)),
    Case("absolute form, another scheme", line(b"POST ftp://a.b" + ECHO + b" HTTP/1.1"), refused(400)),
    Case("absolute form without a host", line(b"POST http://" + ECHO + b" HTTP/1.1"), refused(400)),
    Case("absolute form with a user", line(b"POST http://u:p@a.b" + ECHO + b" HTTP/1.1"), refused(400)),
    Case("absolute form with an open bracket", line(b"POST http://[::1" + ECHO + b" HTTP/1.1"), refused(400)),
    Case("absolute form with a bad port", line(b"POST http://a.b:x" + ECHO + b" HTTP/1.1"), refused(400)),
    Case("authority form", line(b"POST a.b:80 HTTP/1.1"), refused(400)),
    Case("a target without a slash", line(b"POST v1/chat/completions HTTP/1.1"), refused(400)),
    Case("a target with two slashes", line(b"POST //v1/chat/completions HTTP/1.1"), keeps(404)),
    Case("dots in the target", line(b"POST /x/.." + ECHO + b" HTTP/1.1"), keeps(404)),
    Case("an escaped slash", line(b"POST /v1/chat%2Fcompletions HTTP/1.1"), keeps(404)),
    Case("an escaped zero", line(b"POST /v1/chat/completions%00 HTTP/1.1"), keeps(404)),
    Case("a bad escape", line(b"POST /v1/chat/completions%zz HTTP/1.1"), keeps(404)),
    Case("a slash at the end", line(b"POST " + ECHO + b"/ HTTP/1.1"), keeps(404)),
    Case("upper case", line(b"POST /V1/chat/completions HTTP/1.1"), keeps(404)),
    *[
        Case(f"character {byte:#04x} in the target", line(b"POST " + ECHO + b"?" + bytes((byte,)) + b" HTTP/1.1"),
             refused(400))
        for byte in (0x00, 0x01, 0x08, 0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x1F, 0x7F, 0x80, 0xC3, 0xFF)
    ],
    Case("a target of the greatest length", line(b"POST " + ECHO + b"?" + b"x" * 8000 + b" HTTP/1.1"), OK),
    Case("a target too long", line(b"POST " + ECHO + b"?" + b"x" * 9000 + b" HTTP/1.1"), refused(414)),
    Case("a target that does not end", b"POST /" + b"x" * 20_000, refused(414)),
    Case("HTTP/1.0", post(line=b"POST " + ECHO + b" HTTP/1.0"), closes(b"hello")),
    Case("an unknown path", post(target=b"/nothing"), keeps(404)),
    Case("an admin route", post(b"", line=b"GET /healthz HTTP/1.1", length=False), keeps(200)),
    Case("POST on an admin route", post(target=HEALTH), keeps(405)),
]  # fmt: skip
