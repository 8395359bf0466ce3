"""What clients of every kind look for: liveness, one model, HEAD, and a browser's leave to read it all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from yarl import URL

CHAT = "/v1/chat/completions"
PAGE = "https://chat.example"
BODY: dict[str, Any] = {"model": "mock-model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
LEAVE = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}


async def ask(fleet, method: str, path: str, **request: Any):
    url = URL(fleet.url + path, encoded=True)
    async with fleet.session.request(method, url, **request) as response:
        return response.status, response.headers, await response.read()


def cors_of(headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items() if name.lower().startswith("access-control-")}


@pytest.mark.parametrize("path", ["/health", "/healthz"])
async def test_liveness_has_both_names(rig, path: str) -> None:
    fleet = await rig(wait=False, urls=["http://127.0.0.1:9"])
    assert (await ask(fleet, "GET", path))[0] == 200, "whatever the workers do"


async def test_one_model_is_the_lists_entry(rig) -> None:
    fleet = await rig(worker={"model_id": "Qwen/Qwen3-8B"}, model={"id": "Qwen/Qwen3-8B"})
    listed = (await fleet.get("/v1/models")).json["data"]
    for path in ("Qwen/Qwen3-8B", "Qwen%2FQwen3-8B", "Qwen%2fQwen3%2D8B", "Qwen/Qwen3-8B?x=y"):
        status, headers, body = await ask(fleet, "GET", f"/v1/models/{path}")
        assert (status, headers["content-type"].partition(";")[0]) == (200, "application/json"), path
        assert [json.loads(body)] == listed
        assert {"id", "object", "created", "owned_by"} <= set(listed[0])
    for path in ("gpt-4", "Qwen", "qwen/qwen3-8b", "Qwen%252FQwen3-8B", "%ff%0d", "Qwen/Qwen3-8B/"):
        status, headers, _ = await ask(fleet, "GET", f"/v1/models/{path}")
        assert (status, headers["x-router-error-code"]) == (404, "model_not_found"), path
    answer = await fleet.get("/v1/models/gpt-4")
    assert answer.error["param"] == "model" and "Qwen/Qwen3-8B" in answer.error["message"]
    assert 'route="/v1/models/{id}"' in fleet.services.metrics.render().decode(), "one label, whatever is asked for"


async def test_a_model_that_no_healthy_worker_serves_is_in_neither(rig) -> None:
    fleet = await rig(wait=False, urls=["http://127.0.0.1:9"], workers=0)
    assert (await fleet.get("/v1/models")).json["data"] == []
    assert (await fleet.get("/v1/models/mock-model")).status == 404


GETS = [
    "/health",
    "/healthz",
    "/readyz",
    "/v1/models",
    "/v1/models/mock-model",
    "/v1/models/nope",
    "/workers",
    "/metrics",
    "/internal/decisions",
    "/internal/kv_snapshot",
    "/nope",
]


@pytest.mark.parametrize("path", GETS)
async def test_head_is_get_without_its_body(rig, path: str) -> None:
    fleet = await rig()
    status, headers, body = await ask(fleet, "GET", path)
    head = await ask(fleet, "HEAD", path)
    assert (head[0], head[2]) == (status, b"")
    assert body
    differing = {"date", "x-request-id", "transfer-encoding"} | ({"content-length"} if path == "/metrics" else set())
    ours, theirs = (
        {name.lower(): value for name, value in one.items() if name.lower() not in differing}
        for one in (head[1], headers)
    )
    assert ours == theirs
    assert (await fleet.get("/healthz")).status == 200, "and the connection goes on"


async def test_without_allowed_origins_nothing_is_said_of_them(rig) -> None:
    fleet = await rig()
    for method, path, request in (
        ("POST", CHAT, {"json": BODY}),
        ("GET", "/v1/models", {}),
        ("GET", "/nope", {}),
    ):
        _, headers, _ = await ask(fleet, method, path, headers={"Origin": PAGE}, **request)
        assert not cors_of(headers) and "vary" not in headers
    status, headers, _ = await ask(fleet, "OPTIONS", CHAT, headers=LEAVE)
    assert (status, headers["x-router-error-code"], cors_of(headers)) == (405, "method_not_allowed", {})


@pytest.mark.parametrize("allowed", [[PAGE, "http://localhost:3000"], ["*"]])
async def test_a_preflight_is_answered(rig, allowed: list[str]) -> None:
    fleet = await rig(cors={"allowed_origins": allowed})
    asked = {**LEAVE, "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os"}
    for path in (CHAT, "/v1/tokenize", "/v1/models", "/v1/models/mock-model"):
        status, headers, body = await ask(fleet, "OPTIONS", path, headers=asked)
        assert (status, body) == (204, b""), path
        told = cors_of(headers)
        assert told["access-control-allow-origin"] == ("*" if allowed == ["*"] else PAGE)
        assert {"GET", "POST"} <= set(told["access-control-allow-methods"].split(", "))
        assert told["access-control-allow-headers"] == "authorization,content-type,x-stainless-os"
        assert int(told["access-control-max-age"]) > 0
        assert "access-control-allow-credentials" not in told
    long = {**LEAVE, "Access-Control-Request-Headers": "x" * 4000}
    status, headers, _ = await ask(fleet, "OPTIONS", CHAT, headers=long)
    assert (status, "access-control-allow-headers" in cors_of(headers)) == (204, False), "bounded"
    assert fleet.workers[0].log.total == 0


async def test_a_page_of_another_origin_is_refused_and_an_options_that_is_no_preflight_is_no_method(rig) -> None:
    fleet = await rig(cors={"allowed_origins": [PAGE]})
    status, headers, body = await ask(fleet, "OPTIONS", CHAT, headers={**LEAVE, "Origin": "https://evil.example"})
    assert (status, cors_of(headers)) == (400, {})
    assert b"cors.allowed_origins" in body and b"https://evil.example" in body
    assert (await ask(fleet, "OPTIONS", CHAT))[0] == 405
    # Origins are compared whole: not by their beginning, not by their case.
    for origin in (PAGE + ".evil.example", PAGE + ":8443", PAGE.upper(), "null", ""):
        status, headers, _ = await ask(fleet, "POST", CHAT, json=BODY, headers={"Origin": origin})
        assert (status, cors_of(headers), headers["vary"]) == (200, {}, "Origin"), "served, and kept by the browser"


@pytest.mark.parametrize("allowed", [[PAGE], ["*"]])
async def test_every_response_of_a_client_route_may_be_read(rig, allowed: list[str]) -> None:
    fleet = await rig(cors={"allowed_origins": allowed}, server={"max_body_bytes": 2000})
    requests = {
        200: ("POST", CHAT, {"json": BODY}),
        "a stream": ("POST", CHAT, {"json": {**BODY, "stream": True}}),
        400: ("POST", CHAT, {"data": b"{"}),
        404: ("POST", CHAT, {"json": {**BODY, "model": "nope"}}),
        405: ("GET", CHAT, {}),
        413: ("POST", CHAT, {"data": b"x" * 4000}),
        "tokens": ("POST", "/v1/tokenize", {"json": {"model": "mock-model", "prompt": "x"}}),
        "models": ("GET", "/v1/models", {}),
        "no model": ("GET", "/v1/models/nope", {}),
        "no route": ("GET", "/v1/nope", {}),
    }
    for name, (method, path, request) in requests.items():
        status, headers, _ = await ask(fleet, method, path, headers={"Origin": PAGE}, **request)
        assert not isinstance(name, int) or status == name
        assert headers.getall("access-control-allow-origin") == (["*"] if allowed == ["*"] else [PAGE]), name
        exposed = headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "x-sgl-router-worker", "x-sgl-router-decision", "x-router-error-code"} <= set(exposed)
        assert headers.getall("vary", []) == ([] if allowed == ["*"] else ["Origin"]), name
    for path in ("/workers", "/metrics", "/readyz", "/internal/decisions", "/health"):
        for method in ("GET", "OPTIONS"):
            _, headers, _ = await ask(fleet, method, path, headers=LEAVE)
            assert not cors_of(headers), f"{path} is for no page"
    status, headers, _ = await ask(fleet, "OPTIONS", "/internal/explain", headers=LEAVE)
    assert (status, cors_of(headers)) == (405, {})
    _, headers, _ = await ask(fleet, "POST", "/internal/explain", headers={"Origin": PAGE}, json=BODY)
    assert not cors_of(headers)


async def test_workers_that_have_not_answered_are_counted(rig) -> None:
    fleet = await rig(urls=["http://127.0.0.1:9"])
    text = (await fleet.get("/metrics")).body.decode()
    assert "sgl_router_workers_pending 1.0" in text
    assert len((await fleet.get("/workers")).json["pending"]) == 1
    assert 'sgl_router_workers{mode="plain"} 1.0' in text


async def test_operators_routes_have_a_listener_of_their_own_where_one_is_configured(rig) -> None:
    fleet = await rig(admin={"port": 0})
    admin = f"http://127.0.0.1:{fleet.daemon.admin_port}"
    for path in ("/workers", "/metrics", "/internal/decisions", "/internal/kv_snapshot"):
        assert (await fleet.get(path)).status == 404
        async with fleet.session.get(admin + path) as response:
            assert response.status == 200
    for path in ("/healthz", "/readyz"):
        assert (await fleet.get(path)).status == 200
        async with fleet.session.get(admin + path) as response:
            assert response.status == 200
    body = {"model": "mock-model", "messages": [{"role": "user", "content": "x"}]}
    assert (await fleet.post("/internal/explain", json=body)).status == 404
    async with fleet.session.post(admin + "/internal/explain", json=body) as response:
        assert response.status == 200
    async with fleet.session.post(admin + "/v1/chat/completions", json=body) as response:
        assert response.status == 404
    assert (await fleet.ask("x")).status == 200
