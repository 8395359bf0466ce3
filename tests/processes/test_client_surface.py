"""What clients see of several processes is what they see of one: liveness, models, HEAD, browsers, refusals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

from yarl import URL

from .test_supervisor import CHAT, MODEL, Router, Start, settles, start, workers

__all__ = ["start", "workers"]

DIFFERS = "sgl_router_worker_tokens_differ{"
PAGE = "https://chat.example"
LEAVE = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}


async def ask(router: Router, method: str, path: str, **request: Any) -> tuple[int, Any, bytes]:
    url = URL(router.url + path, encoded=True)
    async with router._session.request(method, url, **request) as response:
        return response.status, response.headers, await response.read()


async def differing(router: Router) -> list[str]:
    """Who compares tokens is a data process, who shows it the routing process."""
    text = (await router.get("/metrics"))[1].decode()
    return sorted(line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(DIFFERS))


async def test_the_surface_is_one(start: Start) -> None:
    router = await start(sections={"cors": {"allowed_origins": [PAGE]}})
    await router.listening()
    for path in ("/health", f"/v1/models/{MODEL}", "/readyz", "/metrics"):
        status, headers, body = await ask(router, "GET", path, headers={"Origin": PAGE})
        assert status == 200 and body
        assert headers.get("access-control-allow-origin") == (PAGE if path.startswith("/v1/") else None)
        status, head, nothing = await ask(router, "HEAD", path)
        assert (status, nothing, head["content-type"]) == (200, b"", headers["content-type"])
    assert (await ask(router, "GET", "/v1/models/nope"))[0] == 404
    for path in (CHAT, "/v1/models"):
        status, headers, _ = await ask(router, "OPTIONS", path, headers=LEAVE)
        assert (status, headers["access-control-allow-origin"]) == (204, PAGE)
    status, headers, _ = await ask(router, "OPTIONS", "/metrics", headers=LEAVE)
    assert (status, "access-control-allow-origin" in headers) == (405, False)

    # Each refusal has one line, whichever process refused.
    await ask(router, "GET", "/nope?key=secret")
    await ask(router, "GET", CHAT + "?key=secret")
    body = {"model": "other", "messages": []}
    await ask(router, "POST", CHAT, json=body)
    for path, status in (("/nope", 404), (CHAT, 405)):
        await router.until(lambda path=path: router.said("request", path=path, method="GET"), f"a line for {path}")
        (line,) = router.said("request", path=path, method="GET")
        assert (line["status"], line["outcome"]) == (status, "rejected")
    await router.until(lambda: router.said("request", status=404, code="model_not_found", method="POST"), "a line")
    assert "secret" not in router.text


async def test_without_the_routing_process(start: Start) -> None:
    """Alive, and HEAD is a head only, whoever gives it; the next one is told again what it cannot know."""
    router = await start()
    routing, *_ = await router.listening()
    await settles(lambda: differing(router), ["0.0", "0.0"])
    assert b"sgl_router_workers_pending 0.0" in (await router.get("/metrics"))[1]
    os.kill(routing, signal.SIGKILL)
    await router.until(
        lambda: router.said("routing process unavailable: this process decides by least load"), "away is noticed"
    )
    for method, expected in (("GET", b'{"status":"ok"}'), ("HEAD", b"")):
        told = await asyncio.gather(*(ask(router, method, "/health") for _ in range(8)))
        assert {(status, body) for status, _, body in told} == {(200, expected)}
        assert {headers["content-length"] for _, headers, _ in told} == {"15"}
    await router.until(lambda: len(router.said("routing process ready")) == 2, "a routing process again")
    await settles(lambda: ready(router), 200)
    await settles(lambda: differing(router), ["0.0", "0.0"])


async def ready(router: Router) -> int:
    return (await router.get("/readyz"))[0]


async def test_operators_routes_are_answered_by_the_routing_process_through_any_data_process(start: Start) -> None:
    """Status, headers and body are its own, and so are its refusals; the client's request is counted once."""
    router = await start()
    await router.listening()
    for _ in range(8):  # new connections: each data process gets some
        status, headers, body = await ask(router, "GET", "/workers", headers={"Connection": "close"})
        assert (status, headers["content-type"]) == (200, "application/json")
        assert {worker["health"] for worker in json.loads(body)["workers"]} == {"healthy"}
    status, headers, body = await ask(router, "GET", "/internal/decisions?limit=0", headers={"X-Request-Id": "mine-1"})
    assert (status, headers["x-router-error-code"], headers["x-request-id"]) == (400, "bad_request", "mine-1")
    assert json.loads(body)["error"]["param"] == "limit"
    assert (await ask(router, "GET", "/internal/decisions?limit=1"))[0] == 200
    status, headers, _ = await ask(router, "POST", "/workers", data=b"{}")
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    counted = 'sgl_router_requests_total{method="GET",route="/workers"}'
    await settles(lambda: figure(router, counted), 8.0)
    assert len(router.said("request", path="/internal/decisions", status=400)) == 1


async def figure(router: Router, name: str) -> float:
    text = (await router.get("/metrics"))[1].decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


async def test_a_listener_of_their_own_for_operators(start: Start) -> None:
    router = await start(sections={"admin": {"port": 0}})
    await router.listening()
    (line,) = router.said("router listening")
    admin = URL(router.url).with_port(line["admin_port"])
    for path in ("/workers", "/metrics", "/internal/decisions", "/internal/explain"):
        assert (await ask(router, "GET", path))[0] == 404
        async with router._session.get(admin.with_path(path)) as response:
            assert response.status == (405 if path.endswith("explain") else 200)
    for path in ("/healthz", "/readyz"):
        assert (await ask(router, "GET", path))[0] == 200
        async with router._session.get(admin.with_path(path)) as response:
            assert response.status == 200
    async with router._session.post(admin.with_path(CHAT), json={}) as response:
        assert response.status == 404
    assert (await ask(router, "GET", "/v1/models"))[0] == 200


async def test_models_and_liveness_go_on_without_the_routing_process(start: Start) -> None:
    """What a data process knows it answers; what it does not, it says so; afterwards all is as it was."""
    router = await start()
    routing, *_ = await router.listening()
    before = (await router.get("/v1/models"))[1]
    os.kill(routing, signal.SIGKILL)
    await router.until(
        lambda: router.said("routing process unavailable: this process decides by least load"), "away is noticed"
    )
    status, _, body = await ask(router, "GET", "/v1/models")
    assert status == 200
    assert [model["id"] for model in json.loads(body)["data"]] == [MODEL]
    await router.until(lambda: len(router.said("routing process ready")) == 2, "a routing process again")
    await settles(lambda: ready(router), 200)
    after = json.loads((await router.get("/v1/models"))[1])
    assert after["data"][0]["max_model_len"] == json.loads(before)["data"][0]["max_model_len"]
