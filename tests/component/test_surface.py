"""The HTTP surface: what clients and operators see when nothing is wrong, and when requests are."""

from __future__ import annotations

import asyncio
import json

import pytest

from sgl_router.lab.mock_worker import EMBEDDED_TOKENIZER_PATH

CHAT = "/v1/chat/completions"


async def direct(fleet, body: dict[str, object]):
    async with fleet.session.post(fleet.workers[0].url + CHAT, json=body) as response:
        return response.status, dict(response.headers), await response.read()


async def test_a_buffered_answer_is_the_workers(rig) -> None:
    fleet = await rig()
    body = {"model": "mock-model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "rid": "fixed"}
    status, headers, content = await direct(fleet, body)
    answer = await fleet.post(CHAT, json=body)
    assert answer.status == status
    theirs, ours = json.loads(content), answer.json
    for reply in (theirs, ours):
        reply.pop("created")
        reply["usage"].pop("prompt_tokens_details")
    assert ours == theirs
    assert answer.headers["content-type"] == headers["Content-Type"]
    assert answer.headers["content-length"] == str(len(answer.body))
    assert "transfer-encoding" not in answer.headers


async def test_a_streamed_answer_is_the_workers_byte_for_byte(rig) -> None:
    fleet = await rig()
    body = {
        "model": "mock-model",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 12,
        "stream": True,
        "stream_options": {"include_usage": True},
        "rid": "fixed",
    }
    _, _, theirs = await direct(fleet, body)
    answer = await fleet.post(CHAT, json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")

    def stable(stream: bytes) -> list[object]:
        found = []
        for line in stream.decode().split("\n\n"):
            event = json.loads(line[6:]) if line.startswith("data: {") else line
            if isinstance(event, dict):
                event.pop("created", None)
                if event.get("usage"):
                    event["usage"].pop("prompt_tokens_details", None)
            found.append(event)
        return found

    assert stable(answer.body) == stable(theirs)
    assert answer.body.endswith(b"data: [DONE]\n\n")


async def test_the_body_reaches_the_worker_unchanged(rig) -> None:
    fleet = await rig()
    body = {
        "model": "mock-model",
        "messages": [{"role": "user", "content": "ü\u2028"}],
        "max_tokens": 2,
        "custom": [1.50, None],
    }
    await fleet.post(CHAT, json=body, headers={"X-Custom": "kept", "Authorization": "Bearer mine"})
    seen = fleet.workers[0].log.last
    assert seen.body == body
    assert seen.headers["x-custom"] == "kept"
    assert seen.headers["authorization"] == "Bearer mine"


async def test_request_ids_are_kept_or_made(rig) -> None:
    fleet = await rig()
    given = await fleet.ask(headers={"X-Request-Id": "abc-1"})
    assert given.headers["x-request-id"] == "abc-1"
    assert fleet.workers[0].log.last.headers["x-request-id"] == "abc-1"
    made = [(await fleet.ask()).headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    assert all(name.startswith("req-") for name in made)
    unusable = await fleet.ask(headers={"X-Request-Id": "x" * 500})
    assert unusable.headers["x-request-id"].startswith("req-")
    error = await fleet.post(CHAT, data=b"", headers={"X-Request-Id": "abc-2"})
    assert (error.status, error.headers["x-request-id"]) == (400, "abc-2")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "empty"),
        (b"{", "truncated"),
        (b'{"model": "mock-model", "messages": []', "truncated"),
        (b"[]", "an array; expected a JSON object"),
        (b'{"model": "\xff\xfe"}', "not UTF-8"),
        (b'{"model": 5, "messages": []}', "'model' is a number; expected a string"),
        (b'{"model": "mock-model", "messages": {}}', "'messages' is an object; expected an array"),
        (b'{"model": "mock-model", "messages": [], "stream": "x"}', "'stream' is a string; expected a boolean"),
        (b'{"model": "a", "model": "b", "messages": []}', "'model' is given more than once"),
    ],
)
async def test_malformed_bodies_are_400(rig, body: bytes, message: str) -> None:
    fleet = await rig()
    answer = await fleet.post(CHAT, data=body, headers={"content-type": "application/json"})
    assert answer.status == 400
    assert answer.headers["x-router-error-code"] == "bad_request"
    assert answer.headers["content-type"] == "application/json"
    assert message in answer.error["message"]
    assert set(answer.error) == {"message", "type", "code", "param"}
    assert answer.error["type"] == "invalid_request_error"
    assert fleet.workers[0].log.total == 0


async def test_unknown_models_routes_and_methods(rig) -> None:
    fleet = await rig()
    answer = await fleet.ask(model="gpt-9")
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    assert "mock-model" in answer.error["message"]
    answer = await fleet.get("/v2/nothing")
    assert (answer.status, answer.error["code"]) == (404, "route_not_found")
    answer = await fleet.get(CHAT)
    assert (answer.status, answer.error["code"], answer.headers["allow"]) == (405, "method_not_allowed", "POST")


async def test_bodies_over_the_limit_are_413(rig) -> None:
    fleet = await rig(server={"max_body_bytes": 2048})
    answer = await fleet.ask("x" * 4000)
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")

    async def pieces():
        for _ in range(40):
            yield b"x" * 100

    answer = await fleet.post(CHAT, data=pieces())
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    assert (await fleet.ask("x" * 500)).status == 200


async def test_a_compressed_body_is_refused_with_a_reason(rig) -> None:
    fleet = await rig()
    answer = await fleet.post(CHAT, data=b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert answer.status == 400
    assert "uncompressed" in answer.error["message"]


async def test_probes(rig) -> None:
    fleet = await rig()
    assert (await fleet.get("/healthz")).json == {"status": "ok"}
    assert (await fleet.get("/readyz")).json == {"status": "ready"}
    fleet.services.draining = True
    answer = await fleet.get("/readyz")
    assert answer.status == 503
    assert "shutting down" in answer.json["reasons"][0]
    assert (await fleet.ask()).status == 200
    fleet.services.draining = False


async def test_readiness_needs_a_worker_of_every_model(rig) -> None:
    models = [{"id": name, "tokenizer_path": EMBEDDED_TOKENIZER_PATH} for name in ("mock-model", "other")]
    fleet = await rig(models=models, wait=False)
    await fleet.until(lambda: fleet.worker(0) is not None, "the worker is registered")
    answer = await fleet.get("/readyz")
    assert answer.status == 503
    assert "'other'" in str(answer.json["reasons"])


async def test_models_lists_what_live_workers_serve(rig) -> None:
    models = [{"id": name, "tokenizer_path": EMBEDDED_TOKENIZER_PATH} for name in ("mock-model", "other")]
    fleet = await rig(models=models, wait=False)
    await fleet.until(lambda: bool(fleet.services.registry.candidates("mock-model", 0.0)), "the worker is healthy")
    listing = (await fleet.get("/v1/models")).json
    assert listing["object"] == "list"
    assert [entry["id"] for entry in listing["data"]] == ["mock-model"]


async def test_workers_view_shows_state_and_no_secret(rig, monkeypatch) -> None:
    monkeypatch.setenv("WORKER_KEY", "s3cret")
    fleet = await rig(worker={"api_key": "s3cret"}, discovery={"worker_api_key_env": "WORKER_KEY"})
    assert (await fleet.ask("hello " * 60)).status == 200
    await fleet.settled()
    answer = await fleet.get("/workers")
    assert b"s3cret" not in answer.body
    assert b"api_key" not in answer.body
    (worker,) = answer.json["workers"]
    assert worker["url"] == fleet.workers[0].url
    assert (worker["model_id"], worker["mode"], worker["health"]) == ("mock-model", "plain", "healthy")
    assert worker["breaker"]["state"] == "closed"
    (rank,) = worker["ranks"]
    assert rank["stream"]["state"] == "live"
    assert rank["stream"]["connected"]
    assert rank["blocks"]["GPU"] > 0
    assert b"s3cret" not in (await fleet.get("/metrics")).body


async def test_a_clients_own_key_is_not_replaced(rig, monkeypatch) -> None:
    monkeypatch.setenv("WORKER_KEY", "s3cret")
    fleet = await rig(worker={"api_key": "s3cret"}, discovery={"worker_api_key_env": "WORKER_KEY"})
    assert (await fleet.ask(headers={"Authorization": "Bearer wrong"})).status == 401


async def test_tokenize_and_detokenize(rig) -> None:
    fleet = await rig()
    reply = (await fleet.post("/v1/tokenize", json={"prompt": "hello there"})).json
    assert set(reply) == {"tokens", "count", "max_model_len"}
    assert reply["count"] == len(reply["tokens"])
    back = (await fleet.post("/v1/detokenize", json={"model": "mock-model", "tokens": reply["tokens"]})).json
    assert back["text"] == "hello there"
    messages = [{"role": "user", "content": "hello"}]
    ours = (await fleet.post("/v1/tokenize", json={"messages": messages})).json["tokens"]
    async with fleet.session.post(fleet.workers[0].url + "/v1/tokenize", json={"messages": messages}) as response:
        assert ours == (await response.json())["tokens"]
    answer = await fleet.post("/v1/tokenize", json={"model": "nope", "prompt": "x"})
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    answer = await fleet.post("/v1/tokenize", json={"prompt": 5})
    assert (answer.status, answer.error["param"]) == (400, "prompt")


async def test_metrics_have_the_names_dashboards_know(rig) -> None:
    fleet = await rig()
    for stream in (False, True):
        answer = await fleet.ask("hello " * 60, stream=stream)
        await fleet.settled()
    held = int(answer.decision["matched"]) * int(answer.decision["page"])
    prompt = next(iter(fleet.daemon.routing.decisions.last(1))).placement.prefill.prompt_tokens
    await fleet.post(CHAT, data=b"")
    text = (await fleet.get("/metrics")).body.decode()
    url = fleet.workers[0].url
    for line in (
        'sgl_router_requests_total{method="POST",route="/v1/chat/completions"} 3.0',
        'sgl_router_responses_total{method="POST",route="/v1/chat/completions",status_code="200"} 2.0',
        'sgl_router_responses_total{method="POST",route="/v1/chat/completions",status_code="400"} 1.0',
        'sgl_router_worker_requests_total{mode="plain",model_id="mock-model",outcome="completed",'
        f'worker_url="{url}"}} 2.0',
        'sgl_router_request_duration_seconds_count{model_id="mock-model"} 2.0',
        'sgl_router_ttft_seconds_count{model_id="mock-model"} 1.0',
        f'sgl_router_active_load{{kind="requests",worker_url="{url}"}} 0.0',
        'sgl_router_workers{mode="plain"} 1.0',
        f'sgl_router_worker_health{{worker_url="{url}"}} 1.0',
        f'sgl_router_worker_cb_state{{worker_url="{url}"}} 0.0',
        f'sgl_router_worker_inflight_requests{{worker_url="{url}"}} 0.0',
        'sgl_router_overlap_blocks_count{model_id="mock-model"} 2.0',
        'sgl_router_cache_aware_decisions_total{decision="cache_hit",model_id="mock-model"} 1.0',
        f'sgl_router_kv_event_stream_untrusted{{dp_rank="0",worker_url="{url}"}} 0.0',
        "sgl_router_kv_event_sequence_gaps_total 0.0",
        f'sgl_router_prompt_tokens_total{{model_id="mock-model"}} {2 * prompt}.0',
        f'sgl_router_matched_tokens_total{{model_id="mock-model"}} {held}.0',
    ):
        name, _, value = line.rpartition(" ")
        assert any(_same_series(found, name) and found.endswith(f" {value}") for found in text.splitlines()), line
    for name in (
        "sgl_router_kv_events_total",
        "sgl_router_kv_tree_blocks",
        "sgl_router_event_loop_lag_seconds_count",
        "sgl_router_stale_requests_total",
        "sgl_router_kv_event_decode_failures_total",
        "sgl_router_kv_event_quiet_checks_total",
    ):
        assert name in text


def _same_series(line: str, series: str) -> bool:
    def parts(text: str) -> tuple[str, frozenset[str]]:
        name, _, labels = text.partition("{")
        return name, frozenset(labels.rstrip("}").split(","))

    return parts(line.rpartition(" ")[0]) == parts(series)


async def test_a_removed_workers_series_disappear(rig) -> None:
    fleet = await rig()
    await fleet.ask("hello " * 60)
    await fleet.settled()
    url = fleet.workers[0].url
    assert url in (await fleet.get("/metrics")).body.decode()
    fleet.services.manager._remove(url)
    await fleet.until(lambda: fleet.worker(0) is None, "the worker is removed")
    text = (await fleet.get("/metrics")).body.decode()
    assert url not in text
    assert 'sgl_router_workers{mode="plain"} 0.0' in text
    await fleet.until(lambda: fleet.services.index.pump.idle, "its blocks are swept")
    assert sum(1 for _ in fleet.services.index.tree.holdings(0)) == 0


async def test_requests_in_flight_finish_when_the_router_stops(rig) -> None:
    fleet = await rig()
    worker = fleet.workers[0]
    worker.gate.close()
    task = asyncio.create_task(fleet.ask())
    await worker.gate.arrived(1)
    stopping = asyncio.create_task(fleet.daemon.stop(grace_secs=20))
    await fleet.until(lambda: fleet.services.closing, "the router is closing")
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", fleet.daemon.port)
    worker.gate.open()
    answer = await task
    await stopping
    assert answer.status == 200
    assert answer.headers["connection"] == "close"


async def test_requests_that_outlast_the_grace_are_cut_off(rig) -> None:
    fleet = await rig()
    worker = fleet.workers[0]
    worker.gate.close()
    task = asyncio.create_task(fleet.ask())
    await worker.gate.arrived(1)
    await fleet.daemon.stop(grace_secs=0.05)
    (result,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(result, Exception)
    worker.gate.open()
