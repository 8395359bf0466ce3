"""Every raw-byte case on a real socket."""

from __future__ import annotations

import asyncio

import pytest
import structlog

from tests.conformance.case import Case, Outcome, post
from tests.conformance.rig import Rig, read_reply
from tests.conformance.tables import chunks, framing, headers, persistence, request_line

TABLES = {
    "request line": request_line,
    "headers": headers,
    "framing": framing,
    "chunks": chunks,
    "persistence": persistence,
}
ALL = [pytest.param(name, case, id=f"{name}: {case.name}") for name, table in TABLES.items() for case in table.CASES]
WITHIN = 120.0


def test_there_are_hundreds_and_none_is_there_twice() -> None:
    cases = [case for table in TABLES.values() for case in table.CASES]
    assert len(cases) >= 300
    for table in TABLES.values():
        names = [case.name for case in table.CASES]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(("table", "case"), ALL)
async def test_case(rig: Rig, table: str, case: Case) -> None:
    expected = case.expected
    reader, writer = await rig.open()
    try:
        with structlog.testing.capture_logs() as logs:
            await asyncio.wait_for(_exchange(rig, case, expected, reader, writer), WITHIN)
    finally:
        writer.close()
    lines = [line for line in logs if line["event"] == "request"]
    refusals = [status for status in expected.statuses if status >= 400]
    assert [line["status"] for line in lines] == refusals
    for line in lines:
        assert line["path"].isascii() and line["path"].isprintable() and "?" not in line["path"]


async def _exchange(
    rig: Rig, case: Case, expected: Outcome, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    writer.write(case.raw)
    statuses, interim = [], []
    for _ in expected.statuses:
        head_only = case.raw.startswith(b"HEAD ")
        reply = await read_reply(reader, head_only=head_only)
        if reply is None:
            break
        statuses.append(reply.status)
        interim += reply.interim
        if reply.status >= 400 and not head_only:
            assert reply.json["error"]["code"] == reply.headers[b"x-router-error-code"].decode()
            assert reply.headers[b"x-request-id"]
    assert tuple(statuses) == expected.statuses
    assert tuple(interim) == expected.interim
    reached = expected.reached
    if expected.stays_open:
        writer.write(post(b"probe"))
        reply = await read_reply(reader)
        assert reply is not None, "the connection was closed"
        assert (reply.status, reply.body) == (200, b"probe")
        reached = (*reached, b"probe")
    elif expected.stays_open is False:
        try:
            assert await reader.read() == b"", "more than the expected answers"
        except ConnectionError:
            pytest.fail("the connection was reset: the answer may not have been read")
    if not expected.statuses:
        await asyncio.sleep(0.02)
    assert tuple(inbound.body for inbound in rig.seen) == reached
    if expected.stays_open is False:
        assert rig.services.in_flight.count == 0
