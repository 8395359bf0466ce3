"""What workers say of their own load reaches the cost policy."""

from __future__ import annotations

import asyncio

import pytest

COST = {"policy": "kv_cost"}


@pytest.mark.parametrize("channel", [True, False])
async def test_reports_arrive_by_channel_or_by_asking(rig, channel: bool) -> None:
    fleet = await rig(worker={"publish_load": channel}, model=COST, load_reports={"interval_secs": 0.05})
    (target,) = fleet.worker(0).targets
    await fleet.until(lambda: target.forecast.report is not None, "a report is here")
    assert target.forecast.report.waiting == 0
    source = "channel" if channel else "poll"
    metrics = (await fleet.get("/metrics")).body.decode()
    assert f'sgl_router_load_reports_total{{outcome="ok",source="{source}"}}' in metrics
    for name in ("sgl_router_prefill_backlog_tokens", "sgl_router_prefill_tokens_per_second"):
        assert f'{name}{{dp_rank="0",model_id="mock-model",worker="{fleet.worker(0).id}"}}' in metrics


async def test_load_that_others_brought_counts(rig) -> None:
    fleet = await rig(
        worker={"publish_load": True, "max_running": 1, "speed": 1.0}, model=COST, load_reports={"interval_secs": 0.05}
    )
    (target,) = fleet.worker(0).targets
    url = fleet.workers[0].url + "/v1/chat/completions"
    body = {"model": "mock-model", "messages": [{"role": "user", "content": "x " * 400}], "max_tokens": 200}

    async def behind_the_routers_back() -> None:
        async with fleet.session.post(url, json=body) as response:
            await response.read()

    tasks = [asyncio.create_task(behind_the_routers_back()) for _ in range(4)]
    await fleet.until(lambda: target.forecast.prompts.length(asyncio.get_running_loop().time()) > 1, "it is noticed")
    assert target.inflight == 0
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_nobody_is_asked_where_no_policy_wants_to_know(rig) -> None:
    fleet = await rig(worker={"publish_load": True})
    assert fleet.worker(0).targets[0].forecast is None
    assert "sgl_router_load_reports_total{" not in (await fleet.get("/metrics")).body.decode()
    fleet = await rig(model=COST, load_reports={"enabled": False, "interval_secs": 0.05})
    assert (await fleet.ask("a")).status == 200
    assert fleet.worker(0).targets[0].forecast.report is None


async def test_streams_teach_how_fast_answers_grow(rig) -> None:
    fleet = await rig(worker={"speed": 1.0, "decode_ms_per_token": 10.0, "decode_ms_per_running": 0.0}, model=COST)
    (target,) = fleet.worker(0).targets
    answers = target.forecast.answers
    before = answers.tokens_per_sec
    usage = {"stream_options": {"include_usage": True}}
    assert (await fleet.ask("a", stream=True, max_tokens=40, ignore_eos=True, **usage)).status == 200
    await fleet.until(lambda: answers.tokens_per_sec != before, "it has been learned from")
    assert answers.tokens_per_sec > before, "100 tokens a second are more than was thought"
    assert answers.count == 0
    known = answers.tokens_per_sec
    assert (await fleet.ask("b", max_tokens=40)).status == 200
    assert answers.tokens_per_sec == known, "an answer that came whole does not tell"
