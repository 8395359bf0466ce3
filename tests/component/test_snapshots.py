"""A router that stops and comes back, or begins beside another: warm where that is proven, cold where it is not."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from sgl_router.config import Config
from sgl_router.kv_events import DistrustReason, Namespace, decode_snapshot
from sgl_router.runtime import snapshot_keeper
from sgl_router.runtime.daemon import Daemon
from sgl_router.runtime.snapshot_keeper import SnapshotKeeper

PROMPT = "a prefix worth remembering, long enough for several pages of the cache " * 4


def stream(fleet: Any, rank: int = 0, number: int = 0) -> Any:
    return fleet.services.index.status(fleet.worker(number))[rank].stream


def truth(fleet: Any, rank: int = 0) -> set[tuple[int, str]]:
    """What the mock's cache holds, under the router's keys."""
    hasher = stream(fleet, rank).hasher
    keys: dict[Any, int] = {}
    found = set()
    for block in fleet.workers[0].caches[rank].blocks():
        salt = block.namespace.cache_salt
        parent = hasher.root(Namespace(cache_salt=salt)) if block.parent is None else keys[salt, block.parent]
        (key,) = hasher.extend(parent, list(block.units), 1)
        keys[salt, block.hash] = key
        found |= {(key, tier.value) for tier in block.tiers}
    return found


def held(fleet: Any, rank: int = 0) -> set[tuple[int, str]]:
    return {(key, tier.value) for key, tier in fleet.services.index.tree.holdings(stream(fleet, rank).slot)}


def outcomes(fleet: Any) -> dict[str, int]:
    return {outcome.value: count for outcome, count in fleet.services.index.warm.outcomes.items() if count}


async def equal(fleet: Any, *, ranks: int = 1) -> None:
    await fleet.workers[0].idle()
    for rank in range(ranks):
        await fleet.until(
            lambda rank=rank: stream(fleet, rank).state.value == "live" and held(fleet, rank) == truth(fleet, rank),
            "the index equals the cache",
        )


async def settled(fleet: Any, **expected: int) -> None:
    await fleet.until(lambda: outcomes(fleet) == expected, f"{expected} are the outcomes")


async def publish(fleet: Any, *prompts: str) -> None:
    """Without any router."""
    for prompt in prompts:
        body = {"model": "mock-model", "messages": [{"role": "user", "content": prompt}], "max_tokens": 2}
        async with fleet.session.post(fleet.workers[0].url + "/v1/chat/completions", json=body) as response:
            assert response.status == 200
    await fleet.workers[0].idle()


def changed(config: Config, **snapshot: Any) -> Config:
    replace = msgspec.structs.replace
    return replace(config, kv_events=replace(config.kv_events, snapshot=replace(config.kv_events.snapshot, **snapshot)))


@pytest.fixture
async def again():
    """`await again(fleet, path=...)`: another router over the same workers, by default with the same file."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(fleet: Any, *, wait: bool = True, **snapshot: Any) -> Any:
            daemon = Daemon(changed(fleet.daemon.config, **snapshot))
            await daemon.start()
            stack.push_async_callback(daemon.stop)
            made = type(fleet)(daemon, fleet.workers, fleet.session)
            if wait:
                await made.ready()
            return made

        yield make


@pytest.fixture
def kept(tmp_path: Path) -> dict[str, Any]:
    return {"snapshot": {"path": str(tmp_path / "index.kv")}}


@pytest.mark.parametrize("settings", [{}, {"page_size": 1}, {"bigram": True, "page_size": 4}, {"dialect": "array17"}])
async def test_a_restarted_router_is_warm_though_the_buffer_is_small(rig, again, kept, settings: Any) -> None:
    fleet = await rig(kv_events=kept, worker={"buffer_steps": 2, **settings})
    for number in range(6):
        await fleet.ask(f"{number} {PROMPT}")
    await equal(fleet)
    known = held(fleet)
    await fleet.daemon.stop()
    fleet = await again(fleet)
    await settled(fleet, warm=1)
    assert held(fleet) == known == truth(fleet)
    assert stream(fleet).complete
    assert stream(fleet).counters.stored == 0
    answer = await fleet.ask(f"3 {PROMPT}")
    assert answer.decision["reason"] == "cache_hit"
    await equal(fleet)
    text = (await fleet.get("/metrics")).body.decode()
    assert 'sgl_router_kv_snapshot_ranks_total{outcome="warm"} 1.0' in text
    assert 'sgl_router_kv_snapshot_ranks_total{outcome="gap"} 0.0' in text


async def test_what_was_published_meanwhile_is_added(rig, again, kept) -> None:
    worker = {"buffer_steps": 8, "dp_size": 2, "cache_tokens": 4096, "host_cache_tokens": 2048}
    fleet = await rig(kv_events=kept, worker=worker)
    for number in range(16):
        await fleet.ask(f"{number} {PROMPT}", cache_salt=f"salt {number % 3}")
    await equal(fleet, ranks=2)
    await fleet.daemon.stop()
    cursors = [publisher.next_sequence for publisher in fleet.workers[0].publishers]
    await publish(fleet, *(f"later {number} {PROMPT}" for number in range(4)))
    assert [publisher.next_sequence for publisher in fleet.workers[0].publishers] > cursors
    fleet = await again(fleet)
    await settled(fleet, warm=2)
    await equal(fleet, ranks=2)
    assert stream(fleet, 0).complete and stream(fleet, 1).complete
    assert stream(fleet).counters.gaps == 0
    for number in range(12):
        await fleet.ask(f"new {number} {PROMPT}")
    await equal(fleet, ranks=2)


async def test_what_the_buffer_no_longer_covers_is_not_claimed(rig, again, kept) -> None:
    fleet = await rig(kv_events=kept, worker={"buffer_steps": 2})
    await fleet.ask(PROMPT)
    await equal(fleet)
    await fleet.daemon.stop()
    fleet.workers[0].flush_cache()
    await publish(fleet, *(f"later {number} {PROMPT}" for number in range(6)))
    fleet = await again(fleet)
    await settled(fleet, gap=1)
    await fleet.until(lambda: stream(fleet).state.value == "live", "the stream is live")
    assert not stream(fleet).complete
    assert held(fleet) < truth(fleet)
    assert (await fleet.ask(PROMPT)).decision["reason"] == "no_match"


async def test_without_a_replay_endpoint_the_next_event_decides(rig, again, kept) -> None:
    fleet = await rig(kv_events=kept, worker={"replay": False})
    await fleet.ask(PROMPT)
    await fleet.settled()
    known = held(fleet)
    await fleet.daemon.stop()
    second = await again(fleet)
    await second.until(lambda: held(second) == known, "the blocks are in place")
    await second.until(lambda: stream(second)._confirmed, "the process is known to be the same")
    assert (await second.ask(PROMPT)).decision["reason"] == "no_match"  # nothing is claimed yet
    await second.ask("something new to publish " * 8)
    await settled(second, warm=1)
    await equal(second)
    await second.daemon.stop()

    await publish(fleet, "lost " * 60)
    third = await again(fleet)
    await third.until(lambda: held(third) >= known, "the blocks are in place")
    await third.ask("something else to publish " * 8)
    await settled(third, gap=1)
    await third.until(lambda: stream(third).state.value == "live", "the stream is live")
    assert held(third) < truth(third)
    assert held(third).isdisjoint(known)


async def test_another_process_is_not_given_the_old_ones_blocks(rig, again, kept) -> None:
    fleet = await rig(kv_events=kept)
    for number in range(3):
        await fleet.ask(f"{number} {PROMPT}")
    await equal(fleet)
    await fleet.daemon.stop()
    await fleet.workers[0].restart_in_place()
    await publish(fleet, "other " * 60, "and other " * 60, "and more " * 60, "and still more " * 60)
    fleet = await again(fleet)
    assert outcomes(fleet) == {"abandoned": 1}
    await equal(fleet)
    assert (await fleet.ask(f"1 {PROMPT}")).decision["reason"] == "no_match"


async def test_a_rank_without_a_snapshot_is_uncovered(rig, again, kept) -> None:
    fleet = await rig(workers=2, kv_events=kept)
    await publish(fleet, PROMPT)
    await equal(fleet)
    stream(fleet, number=1).distrust(DistrustReason.GAP)
    await fleet.daemon.stop()
    fleet = await again(fleet)
    await settled(fleet, warm=1, uncovered=1)
    await equal(fleet)


async def test_a_peers_snapshot_comes_over_http(rig, again, tmp_path: Path) -> None:
    fleet = await rig(worker={"buffer_steps": 1})
    for number in range(5):
        await fleet.ask(f"{number} {PROMPT}")
    await equal(fleet)
    dead = "http://127.0.0.1:9"
    path = tmp_path / "second.kv"
    path.write_bytes(b"")
    peers = [dead, fleet.workers[0].url, fleet.url]  # one that is not there, one that is no router, and the right one
    with structlog.testing.capture_logs() as logs:
        second = await again(fleet, peers=peers, path=str(path))
    assert [entry["peer"] for entry in logs if entry["event"] == "no kv snapshot from peer"] == peers[:2]
    assert [entry["path"] for entry in logs if entry["event"] == "kv snapshot not usable"] == [str(path)]
    await settled(second, warm=1)
    await equal(second)
    assert second.services.index.secret == fleet.services.index.secret
    assert (await second.ask(f"3 {PROMPT}")).decision["reason"] == "cache_hit"


async def test_the_endpoint_sends_one_at_a_time(rig) -> None:
    fleet = await rig()
    await fleet.ask(PROMPT)
    await equal(fleet)
    index = fleet.services.index
    async with index.copying:  # the first cannot get on
        waiting = asyncio.ensure_future(fleet.get("/internal/kv_snapshot"))
        await fleet.until(lambda: index.copying._waiters, "the first waits")
        refused = await fleet.get("/internal/kv_snapshot")
    assert refused.status == 429
    assert refused.error["code"] == "snapshot_busy"
    answer = await waiting
    assert (answer.status, answer.headers["content-type"]) == (200, "application/octet-stream")
    snapshot = decode_snapshot([answer.body])
    assert snapshot.secret == index.secret
    assert snapshot.blocks == len(held(fleet))
    assert (await fleet.get("/internal/kv_snapshot")).status == 200


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x78\x01\x00"])
async def test_a_file_that_is_broken_means_a_cold_start(rig, kept, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "index.kv"
    path.write_bytes(content)
    with structlog.testing.capture_logs() as logs:
        fleet = await rig(kv_events=kept, started=[PROMPT])
    assert [entry["log_level"] for entry in logs if entry["event"] == "kv snapshot not usable"] == ["warning"]
    assert outcomes(fleet) == {}
    await equal(fleet)
    await fleet.daemon.stop()
    assert decode_snapshot([path.read_bytes()]).blocks == len(list(fleet.workers[0].cache.blocks()))


async def test_the_file_is_written_now_and_then_and_never_in_part(rig, kept, tmp_path: Path) -> None:
    path = tmp_path / "index.kv"
    fleet = await rig(kv_events={"snapshot": {**kept["snapshot"], "interval_secs": 0.02}})
    await fleet.ask(PROMPT)
    await equal(fleet)
    await fleet.until(path.exists, "the file is there")
    for number in range(5):
        await fleet.ask(f"{number} {PROMPT}")
        decode_snapshot([path.read_bytes()])
    await equal(fleet)
    count = len(held(fleet))
    await fleet.until(lambda: decode_snapshot([path.read_bytes()]).blocks == count, "the file follows")
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    path.mkdir()
    with structlog.testing.capture_logs() as logs:
        await fleet.until(
            lambda: any(entry["event"] == "kv snapshot not written" for entry in logs), "the failure is told"
        )
    await fleet.daemon.stop()
    assert sorted(path.parent.iterdir()) == [path]


async def test_a_save_cut_short_at_its_beginning_leaves_nothing(rig, kept, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "index.kv"
    fleet = await rig(kv_events={"snapshot": {**kept["snapshot"], "interval_secs": 3600}})
    await fleet.ask(PROMPT)
    await equal(fleet)
    keeper = SnapshotKeeper(fleet.daemon.config.kv_events.snapshot, fleet.services.index)
    creating, go_on, create = threading.Event(), threading.Event(), snapshot_keeper._create

    def slowly(temporary: Path) -> Any:
        creating.set()
        go_on.wait(120)
        return create(temporary)

    monkeypatch.setattr(snapshot_keeper, "_create", slowly)
    saving = asyncio.create_task(keeper.save())
    await fleet.until(creating.is_set, "the file is being created")
    saving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await saving
    monkeypatch.setattr(keeper, "_worth_saving", lambda: False)
    go_on.set()
    await keeper.close()
    keeper._files.shutdown(wait=True)
    assert saving.cancelled()
    assert list(path.parent.iterdir()) == []


async def test_a_router_that_has_nothing_keeps_the_file(rig, again, kept) -> None:
    """Also one that stopped before its workers came: what it was given is not lost."""
    fleet = await rig(kv_events=kept, worker={"buffer_steps": 1})
    for number in range(3):
        await fleet.ask(f"{number} {PROMPT}")
    await equal(fleet)
    await fleet.daemon.stop()
    fleet.workers[0].refuse()
    second = await again(fleet, wait=False)
    await second.daemon.stop()
    await fleet.workers[0].accept()
    third = await again(fleet)
    await settled(third, warm=1)
    await equal(third)
