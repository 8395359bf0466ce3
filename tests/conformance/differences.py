"""Where aiohttp's server (from version 3.14 on; older ones are laxer) does something else than the native front, and
why that is left as it is."""

from __future__ import annotations

from tests.conformance.case import Outcome, closes, refused, served
from tests.conformance.tables import chunks, framing, headers, request_line

__all__ = ["AIOHTTP"]

OK = served(b"hello")
WAITS = None  # for a body that the native front does not wait for: whether the connection goes on shows later

_TOLERATED = "llhttp tolerates it; there is one reading only, and the boundaries of the message are not in doubt"
_400 = "aiohttp knows one status for what its parser refuses"
_LINGERS = "aiohttp answers, then waits some seconds for the body it does not want"
_CONTINUE = "aiohttp sends 100 before it looks at the request, and also where the body is there already"
_BEHIND = "aiohttp drops what was good in a read whose end is not"
_CODINGS = "llhttp looks at the last coding only"

Differences = dict[tuple[str, str], tuple[Outcome, str]]


def _group(table: str, outcome: Outcome, reason: str, *names: str) -> Differences:
    return {(table, name): (outcome, reason) for name in names}


def _refused_with(table: str, status: int) -> list[str]:
    cases = {"request line": request_line, "headers": headers, "framing": framing, "chunks": chunks}[table].CASES
    return [case.name for case in cases if case.expected == refused(status)]


AIOHTTP: Differences = {
    **_group("request line", refused(400), _400, *_refused_with("request line", 505),
             *_refused_with("request line", 501), *_refused_with("request line", 414)),
    **_group("request line", OK, _TOLERATED, "five empty lines before", "a bare LF before", "a bare CR before",
             "two spaces after the method", "two spaces after the target",
             "absolute form with a user"),
    **_group("request line", Outcome((404,), (), True), "llhttp tolerates it; no route is spelled so", "a fragment",
             "absolute form, another scheme"),
    **_group("request line", closes(b"hello"), "llhttp takes it for HTTP/0.9, or 2.0 without its frames", "no version",
             "version 0.9", "version 2.0"),
    **_group("request line", Outcome((404, 400)), "what follows CONNECT is not read as its body", "CONNECT"),
    **_group("request line", Outcome((404,), (), True), "CONNECT is a method without a route",
             "CONNECT with an authority"),
    **_group("request line", Outcome((405,), (), True), "TRACE is a method like another", "TRACE"),
    **_group("request line", Outcome((405,), (), WAITS), _LINGERS, "GET with a body that is still to come"),
    **_group("headers", OK, "aiohttp does not look at Host, and nothing here depends on it",
             *(case.name for case in headers.CASES if case.name.startswith("Host '") and case.expected != OK)),
    **_group("headers", OK, _TOLERATED, "spaces after the length"),
    **_group("headers", refused(400), _400, *_refused_with("headers", 431)),
    **_group("headers", OK, "aiohttp limits each header and their number, not their sum", "headers too large together"),
    **_group("framing", refused(400), _400, *_refused_with("framing", 501)),
    **_group("framing", OK, _CODINGS, "encoding 'gzip, chunked'", "encoding ',chunked'", "encoding ', chunked'",
             "encoding 'identity, chunked'"),
    **_group("framing", closes(b"hello"), "llhttp reads chunks in HTTP/1.0 too; aiohttp then closes",
             "HTTP/1.0 chunked"),
    **_group("framing", OK, _TOLERATED, "chunked with a space behind"),
    **_group("framing", Outcome((413,), (), WAITS), _LINGERS, "a body too large, announced only",
             "a body far too large, announced only"),
    **_group("framing", refused(400), _BEHIND, "a body without a length"),
    **_group("chunks", OK, _TOLERATED, "size line '5;a='", "size line '00000000000000000000005'",
             f"size line '5;{'a' * 400}'"),
    **_group("chunks", served(b""), _TOLERATED, "a trailer too large"),
    **_group("chunks", served(b"x" * 30), _TOLERATED, "too many extensions"),
    **_group("chunks", Outcome((), (), WAITS), "aiohttp counts bytes when they arrive, not when they are announced",
             "size line 'fffffffff'", "too large in one chunk, announced only"),
    **_group("chunks", Outcome((200,), (b"hello",), WAITS), "aiohttp takes trailers for granted",
             "a trailer with a host"),
    **_group("persistence", OK, "llhttp lets keep-alive win in HTTP/1.0", "HTTP/1.0 keep-alive and close"),
    **_group("persistence", refused(400), "aiohttp refuses a request with anything behind its last message",
             "a request behind close", "a request behind HTTP/1.0"),
    **_group("persistence", refused(400), _BEHIND, "rubbish behind a request", "a bad request behind a good one",
             "a bad request in the middle"),
    **_group("persistence", Outcome((200,), (b"hello",), True, (100,)), _CONTINUE, "expecting, the body at once",
             "expecting in upper case"),
    **_group("persistence", Outcome((200,), (b"",), True, (100,)), _CONTINUE, "expecting without a body"),
    **_group("persistence", Outcome((200,), (b"hi",), True, (100,)), _CONTINUE, "expecting, chunks at once"),
    **_group("persistence", OK, "to aiohttp an empty expectation is none", "expecting nothing"),
    **_group("persistence", Outcome((413,), (), WAITS, (100,)), _CONTINUE, "expecting a refusal of the size"),
    **_group("persistence", Outcome((405,), (), WAITS, (100,)), _CONTINUE, "expecting a refusal of the method"),
    **_group("persistence", Outcome((400,), (), WAITS, (100,)), _CONTINUE, "expecting a refusal of the encoding"),
}  # fmt: skip
