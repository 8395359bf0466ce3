"""Every request that is refused has one log line, whatever it was refused for."""

from __future__ import annotations

import re
from typing import Any

import pytest
import structlog

from sgl_router.http.limits import HttpLimits
from tests.conformance.case import ECHO, HEALTH, post
from tests.conformance.rig import Rig, read_reply, running

QUICK = HttpLimits(sweep_secs=0.02, head_secs=0.1, body_secs=0.1, linger_secs=0.1)
MANY = [b"x-%d: 1" % number for number in range(120)]

# What is sent, and the line's method, path, status and code.
CASES: list[tuple[str, bytes, tuple[str, str, int, str]]] = [
    ("unknown route", post(b"", line=b"GET /nope?key=secret HTTP/1.1", length=False),
     ("GET", "/nope", 404, "route_not_found")),
    ("wrong method", post(b"", line=b"GET " + ECHO + b"?a=b HTTP/1.1", length=False),
     ("GET", ECHO.decode(), 405, "method_not_allowed")),
    ("wrong method of an operator route", post(line=b"POST " + HEALTH + b" HTTP/1.1"),
     ("POST", HEALTH.decode(), 405, "method_not_allowed")),
    ("too large", post(b"x" * 5000), ("POST", ECHO.decode(), 413, "body_too_large")),
    ("compressed", post(b"x", b"Content-Encoding: gzip"), ("POST", ECHO.decode(), 400, "bad_request")),
]  # fmt: skip
# Refused before they are read as requests: of the server.
UNREAD: list[tuple[str, bytes, tuple[str, str, int, str]]] = [
    ("too many headers", post(b"x", *MANY), ("POST", ECHO.decode(), 431, "bad_request")),
    ("no host", post(host=False), ("POST", ECHO.decode(), 400, "bad_request")),
    ("another version", post(line=b"POST /v1/x?key=secret HTTP/1.7"), ("POST", "/v1/x", 505, "bad_request")),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\xfc\r\n", ("other", r"\x16\x03\x01\x02\x00\x01\xfc", 400, "bad_request")),
    ("escapes", b"GET /\x1b[31mred\x07 HTTP/1.1\r\n\r\n", ("GET", r"/\x1b[31mred\x07", 400, "bad_request")),
    ("half a head", b"POST /v1/chat/completions HTTP/1.1\r\nHost: ", ("POST", ECHO.decode(), 408, "bad_request")),
    ("half a body", post(b"hello")[:-2], ("POST", ECHO.decode(), 408, "bad_request")),
]  # fmt: skip


async def line_of(rig: Rig, raw: bytes) -> dict[str, Any]:
    with structlog.testing.capture_logs() as logs:
        reader, writer = await rig.open()
        try:
            writer.write(raw)
            reply = await read_reply(reader)
        finally:
            writer.close()
    assert reply is not None
    (line,) = [line for line in logs if line["event"] == "request"]
    assert line["status"] == reply.status
    assert (line["outcome"], line["log_level"]) == ("rejected", "info")
    assert line["error"] == reply.json["error"]["message"]
    assert line["request_id"] == reply.headers[b"x-request-id"].decode()
    return line


@pytest.mark.parametrize(("raw", "expected"), [pytest.param(*rest, id=name) for name, *rest in CASES])
async def test_a_refused_request_has_a_line(raw: bytes, expected: tuple[str, str, int, str]) -> None:
    async with running() as rig:
        line = await line_of(rig, raw)
    assert (line["method"], line["path"], line["status"], line["code"]) == expected
    assert list(line)[:4] == ["method", "path", "status", "code"], "what is looked at first stands first"


@pytest.mark.parametrize(("raw", "expected"), [pytest.param(*rest, id=name) for name, *rest in UNREAD])
async def test_so_has_what_could_not_be_read_as_one(raw: bytes, expected: tuple[str, str, int, str]) -> None:
    async with running(limits=QUICK) as rig:
        line = await line_of(rig, raw)
    assert (line["method"], line["path"], line["status"], line["code"]) == expected


async def test_the_second_request_of_a_connection_has_one_too() -> None:
    async with running() as rig:
        with structlog.testing.capture_logs() as logs:
            reader, writer = await rig.open()
            writer.write(post(b"", line=b"GET /healthz HTTP/1.1", length=False))
            first = await read_reply(reader)
            writer.write(b"GE T /x HTTP/1.1\r\n\r\n")
            second = await read_reply(reader)
            writer.close()
    assert first is not None and second is not None
    assert (first.status, second.status) == (200, 400)
    (line,) = [line for line in logs if line["event"] == "request"]
    assert (line["status"], line["outcome"]) == (400, "rejected")


async def test_a_path_is_cut_and_holds_nothing_that_a_terminal_obeys() -> None:
    async with running() as rig:
        line = await line_of(rig, post(b"", line=b"GET /" + b"p" * 3000 + b" HTTP/1.1", length=False))
        assert line["path"] == "/" + "p" * 99
        line = await line_of(rig, post(b"", line=b"GET /%0d%0a%1b[31m HTTP/1.1", length=False))
    assert re.fullmatch(r"[\x20-\x7e]+", line["path"])


async def test_a_failure_of_the_router_is_a_warning() -> None:
    async def fails(services: Any, inbound: Any, out: Any) -> None:
        raise ZeroDivisionError

    async with running(routes={ECHO.decode(): fails}) as rig:
        with structlog.testing.capture_logs() as logs:
            reader, writer = await rig.open()
            writer.write(post(b"{}"))
            reply = await read_reply(reader)
            writer.close()
    assert reply is not None and reply.status == 500
    (line,) = [line for line in logs if line["event"] == "request"]
    assert (line["outcome"], line["log_level"], line["status"]) == ("internal_error", "warning", 500)


async def test_what_was_served_has_no_such_line() -> None:
    async with running() as rig:
        with structlog.testing.capture_logs() as logs:
            reader, writer = await rig.open()
            writer.write(post(b"fine"))
            reply = await read_reply(reader)
            writer.close()
    assert reply is not None and reply.status == 200
    assert [line for line in logs if line["event"] == "request"] == []
