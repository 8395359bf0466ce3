"""Live events in, the right worker chosen."""

from __future__ import annotations

import aiohttp
import pytest

LONG = "the prefix that every one of these prompts has in common, long enough to fill several pages of cache " * 4


async def test_requests_with_one_prefix_converge_and_the_prediction_is_exact(rig) -> None:
    fleet = await rig(workers=3)
    first = await fleet.ask(LONG + "0")
    assert first.decision["reason"] == "no_match"
    for number in range(1, 8):
        await fleet.settled()
        answer = await fleet.ask(f"{LONG}{number}")
        assert answer.worker == first.worker
        assert answer.decision["reason"] == "cache_hit"
        predicted = int(answer.decision["matched"]) * int(answer.decision["page"])
        assert predicted == answer.json["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


async def test_a_prefix_warmed_elsewhere_is_found(rig) -> None:
    fleet = await rig(workers=2)
    for number in (1, 0):
        body = {"model": "mock-model", "messages": [{"role": "user", "content": f"{number} {LONG}"}], "max_tokens": 2}
        async with fleet.session.post(fleet.workers[number].url + "/v1/chat/completions", json=body) as response:
            assert response.status == 200
        await fleet.settled()
        answer = await fleet.ask(f"{number} {LONG}")
        assert answer.worker == fleet.worker(number).id
        assert answer.decision["reason"] == "cache_hit"


async def test_a_flushed_worker_is_forgotten(rig) -> None:
    fleet = await rig()
    await fleet.ask(LONG)
    await fleet.settled()
    assert (await fleet.ask(LONG)).decision["reason"] == "cache_hit"
    await fleet.workers[0].idle()
    assert fleet.workers[0].flush_cache()
    await fleet.settled()
    (rank,) = (await fleet.get("/workers")).json["workers"][0]["ranks"]
    assert rank["blocks"] == {}
    assert (await fleet.ask(LONG)).decision["reason"] == "no_match"


async def test_unlike_prompts_spread(rig) -> None:
    fleet = await rig(workers=3)
    for number in range(9):
        await fleet.ask(f"{number} {LONG}")
    assert sorted(worker.log.total for worker in fleet.workers) == [3, 3, 3]


async def test_every_rank_of_a_worker_is_a_target_of_its_own(rig) -> None:
    fleet = await rig(worker={"dp_size": 2})
    homes = {}
    for number in range(4):
        homes[number] = (await fleet.ask(f"{number} {LONG}")).decision["dp_rank"]
        await fleet.settled()
    assert set(homes.values()) == {"0", "1"}
    for number, rank in homes.items():
        answer = await fleet.ask(f"{number} {LONG}")
        assert answer.decision["dp_rank"] == rank
        assert answer.decision["reason"] == "cache_hit"
        assert fleet.workers[0].log.last.dp_rank == int(rank)
        assert fleet.workers[0].log.last.headers["x-data-parallel-rank"] == rank


async def test_the_clients_rank_header_does_not_override_the_decision(rig) -> None:
    fleet = await rig()
    answer = await fleet.ask(headers={"X-Data-Parallel-Rank": "7"})
    assert answer.status == 200
    assert "x-data-parallel-rank" not in fleet.workers[0].log.last.headers


@pytest.mark.parametrize("dialect", ["legacy", "medium", "array17", "salt_array", "map", "map_lora"])
async def test_every_dialect_of_the_engine_predicts_exactly(rig, dialect: str) -> None:
    fleet = await rig(worker={"dialect": dialect})
    await fleet.ask(LONG + "a")
    await fleet.settled()
    answer = await fleet.ask(LONG + "b")
    predicted = int(answer.decision["matched"]) * int(answer.decision["page"])
    assert predicted == answer.json["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


@pytest.mark.parametrize(("page", "bigram"), [(1, False), (64, False), (128, False), (16, True), (1, True)])
async def test_page_sizes_and_eagle_pairs_predict_exactly(rig, page: int, bigram: bool) -> None:
    fleet = await rig(worker={"page_size": page, "bigram": bigram})
    await fleet.ask(LONG * 3 + "a")
    await fleet.settled()
    answer = await fleet.ask(LONG * 3 + "b")
    predicted = int(answer.decision["matched"]) * int(answer.decision["page"])
    assert predicted == answer.json["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


async def test_salted_requests_match_only_their_salt(rig) -> None:
    fleet = await rig()
    await fleet.ask(LONG, cache_salt="a")
    await fleet.settled()
    assert (await fleet.ask(LONG)).decision["reason"] == "no_match"
    assert (await fleet.ask(LONG, cache_salt="b")).decision["reason"] == "no_match"
    assert (await fleet.ask(LONG, cache_salt="a")).decision["reason"] == "cache_hit"


async def test_a_namespace_the_events_do_not_tell_goes_by_load(rig) -> None:
    fleet = await rig()
    await fleet.ask(LONG)
    await fleet.settled()
    answer = await fleet.ask(LONG, extra_key="tenant")
    assert answer.decision["reason"] == "unmatchable"
    assert answer.decision["unmatched"] == "namespace"


async def test_media_goes_by_load_and_says_so(rig) -> None:
    fleet = await rig()
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    body = {"model": "mock-model", "messages": [{"role": "user", "content": [image]}]}
    answer = await fleet.post("/v1/chat/completions", json=body)
    assert answer.decision["unmatched"] == "media"


async def test_a_worker_without_events_is_routed_by_load(rig) -> None:
    fleet = await rig(worker={"kv_events": False})
    await fleet.ask(LONG)
    answer = await fleet.ask(LONG)
    assert answer.status == 200
    assert answer.decision["reason"] == "no_match"
    assert fleet.services.index.status(fleet.worker(0)) == []


@pytest.mark.parametrize("policy", ["round_robin", "random", "power_of_two"])
async def test_other_policies_do_not_tokenize(rig, policy: str, monkeypatch) -> None:
    fleet = await rig(workers=2, models=[{"id": "mock-model", "tokenizer_path": _tokenizer(), "policy": policy}])
    tokenizer = fleet.services.models["mock-model"].tokenizer
    monkeypatch.setattr(tokenizer, "prompt", None)
    answer = await fleet.ask(LONG)
    assert answer.status == 200
    assert answer.decision["reason"] == policy
    assert answer.decision["unmatched"] == "not_asked"


async def test_an_imbalance_overrules_affinity(rig) -> None:
    over = {"id": "mock-model", "tokenizer_path": _tokenizer(), "cache_aware": {"balance_abs_threshold": 2}}
    fleet = await rig(workers=2, models=[over])
    warm = await fleet.ask(LONG)
    await fleet.settled()
    home = next(worker for worker in fleet.workers if fleet.worker(fleet.workers.index(worker)).id == warm.worker)
    home.gate.close()
    import asyncio

    held = [asyncio.create_task(fleet.ask(LONG)) for _ in range(3)]
    await home.gate.arrived(3)
    answer = await fleet.ask(LONG)
    assert answer.decision["reason"] == "imbalanced"
    assert answer.worker != warm.worker
    home.gate.open()
    assert {task.status for task in await asyncio.gather(*held)} == {200}


async def test_the_official_client_streams(rig) -> None:
    import openai

    fleet = await rig()
    async with openai.AsyncOpenAI(base_url=fleet.url + "/v1", api_key="unused") as client:
        stream = await client.chat.completions.create(
            model="mock-model",
            messages=[{"role": "user", "content": "hello"}],
            stream=True,
            stream_options={"include_usage": True},
            max_tokens=5,
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert chunks[-1].usage.completion_tokens == 5


def _tokenizer() -> str:
    from sgl_router.lab.mock_worker import EMBEDDED_TOKENIZER_PATH

    return EMBEDDED_TOKENIZER_PATH


async def test_concurrent_requests_all_complete_and_leave_no_load(rig) -> None:
    import asyncio

    fleet = await rig(workers=2)
    async with aiohttp.ClientSession() as session:
        fleet.session = session
        answers = await asyncio.gather(*(fleet.ask(f"{n % 5} {LONG}", stream=bool(n % 2)) for n in range(60)))
    assert {answer.status for answer in answers} == {200}
    assert fleet.idle_load()
