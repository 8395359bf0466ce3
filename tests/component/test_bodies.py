"""Large bodies through the whole router, the budget, what is not read, one spelling of each route."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.component.conftest import MODEL

CHAT = "/v1/chat/completions"
MIB = 1 << 20


async def raw(url: str, *lines: str) -> bytes:
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write("\r\n".join((*lines, "Host: a", "Connection: close", "", "")).encode())
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    "target",
    [
        "/%69nternal/kv_snapshot",
        "/internal%2Fkv_snapshot",
        "//internal/kv_snapshot",
        "/internal/./kv_snapshot",
        "/v1/../internal/kv_snapshot",
        "/INTERNAL/kv_snapshot",
        "/internal/kv_snapshot/",
        "/internal/kv_snapshot;x",
        "http://a/internal/kv_snapshot",
        "http://a/%69nternal/kv_snapshot",
        "HTTP://a/v1/../internal/kv_snapshot",
        "http://a/internal/decisions",
        "/internal/%64ecisions",
        "http://a/metrics",
        "/workers%3F",
    ],
)
async def test_an_operator_route_answers_one_spelling(rig, target: str) -> None:
    fleet = await rig()
    answer = await raw(fleet.url, f"GET {target} HTTP/1.1")
    assert answer.startswith(b"HTTP/1.1 404 "), answer[:100]
    assert b"route_not_found" in answer
    for path in ("/internal/kv_snapshot", "/internal/decisions?limit=3", "/metrics", "/workers"):
        assert (await fleet.get(path)).status == 200


async def test_two_authorization_lines_are_a_400(rig) -> None:
    fleet = await rig()
    for path in ("/workers", CHAT):
        answer = await raw(fleet.url, f"GET {path} HTTP/1.1", "Authorization: Bearer a", "authorization: Bearer b")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"more than once" in answer


async def test_text_that_no_context_takes_is_routed_by_load(rig) -> None:
    """And the client reads what its worker says to it."""
    fleet = await rig()
    for content in ("a " * (5 * MIB), "a " * (2 * MIB)):
        answer = await fleet.ask(content)
        assert "unmatched=too_long" in answer.headers["x-sgl-router-decision"]
        assert "x-router-error-code" not in answer.headers
    assert (await fleet.ask("short")).status == 200


async def test_many_token_ids_reach_the_worker(rig) -> None:
    fleet = await rig()
    answer = await fleet.ask(input_ids=[7] * 300_000)
    assert "unmatched" not in answer.headers["x-sgl-router-decision"]


async def test_bodies_beyond_the_budget_are_503(rig) -> None:
    fleet = await rig(server={"max_body_bytes": MIB, "max_buffered_bytes": MIB})
    gate = asyncio.Event()

    async def slowly() -> Any:
        yield b"x" * 1000
        await gate.wait()

    head = {"content-length": str(MIB)}
    upload = asyncio.ensure_future(fleet.post(CHAT, data=slowly(), headers=head))
    await fleet.until(lambda: fleet.services.in_flight.count == 1, "the upload has begun")
    answer = await fleet.ask("x" * 100_000)
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "overloaded", "1")
    assert 'sgl_router_errors_total{code="overloaded"} 1.0' in (await fleet.get("/metrics")).body.decode()
    upload.cancel()
    await fleet.until(lambda: fleet.services.in_flight.count == 0, "the upload has ended")
    assert (await fleet.ask("x" * 20_000)).status == 200


async def test_a_large_response_of_tokens_is_whole(rig) -> None:
    fleet = await rig()
    answer = await fleet.post("/v1/tokenize", json={"prompt": "word " * 200_000})
    assert answer.status == 200
    tokens = answer.json["tokens"]
    assert len(tokens) == answer.json["count"]
    back = await fleet.post("/v1/detokenize", json={"tokens": tokens})
    assert back.json == {"text": "word " * 200_000}
    refused = await fleet.post("/v1/tokenize", json={"prompt": "a " * (5 * MIB)})
    assert (refused.status, refused.error["param"]) == (400, "prompt")


async def test_a_body_is_let_go_when_its_response_begins(rig) -> None:
    fleet = await rig(worker={"speed": 1.0})
    server = fleet.daemon._life._server
    async with fleet.session.post(
        fleet.url + CHAT,
        json={"model": MODEL, "messages": [{"role": "user", "content": "x" * 3000}], "stream": True, "max_tokens": 500},
    ) as response:
        await response.content.readany()
        assert server.bodies.held == 0
        assert fleet.services.in_flight.count == 1
