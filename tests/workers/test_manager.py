"""The manager and its supervisors against scripted workers on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from sgl_router.config.schema import (
    CircuitBreakerConfig,
    Config,
    DiscoveryConfig,
    HealthConfig,
    ModelConfig,
    StaticUrlsConfig,
)
from sgl_router.discovery import Added, DiscoveryEvent, ModeChanged, Removed, StaticUrls
from sgl_router.upstream.fault import WorkerFault
from sgl_router.workers import HealthState, PendingWorker, Worker, WorkerManager, WorkerMode, WorkerRegistry

HEALTHY, UNHEALTHY, STARTING = HealthState.HEALTHY, HealthState.UNHEALTHY, HealthState.STARTING
VLLM_MODELS = (200, {"data": [{"id": "m", "root": "/models/m"}]})


class ScriptedDiscovery:
    """Says what it is told to say; an exception put in is raised."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[DiscoveryEvent | Exception | None] = asyncio.Queue()
        self.rounds = 0

    def say(self, *events: DiscoveryEvent | Exception | None) -> None:
        for event in events:
            self.said.put_nowait(event)

    async def events(self) -> AsyncIterator[DiscoveryEvent]:
        self.rounds += 1
        while (event := await self.said.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event


class Listener:
    def __init__(self) -> None:
        self.seen: list[tuple[str, Worker]] = []

    def worker_added(self, worker: Worker) -> None:
        self.seen.append(("added", worker))

    def worker_removed(self, worker: Worker) -> None:
        self.seen.append(("removed", worker))


class Fleet:
    """A manager with tiny intervals over a scripted discovery."""

    def __init__(self, **options: Any) -> None:
        health = {"interval_secs": 0.01, "timeout_secs": 1.0, "failure_threshold": 3, "success_threshold": 1}
        health.update(options.pop("health", {}))
        models = [
            ModelConfig(
                id=name, tokenizer_path="t", circuit_breaker=CircuitBreakerConfig(threshold=7, cool_down_secs=5)
            )
            for name in options.pop("models", ["m"])
        ]
        self.config = Config(
            models=models,
            discovery=DiscoveryConfig(
                static_urls=StaticUrlsConfig(urls=["http://unused:1"]), worker_api_key_env="TEST_WORKER_KEY"
            ),
            health=HealthConfig(**health),
        )
        self.registry = WorkerRegistry()
        self.listener = Listener()
        self.registry.add_listener(self.listener)
        self.discovery = options.pop("discovery", None) or ScriptedDiscovery()
        defaults: dict[str, Any] = {
            "rng": random.Random(7),
            "retry_initial_secs": 0.005,
            "retry_max_secs": 0.02,
            "reintrospect_every": 1_000_000,
        }
        self.manager = WorkerManager(self.config, self.registry, self.discovery, **{**defaults, **options})

    def worker(self, url: str) -> Worker:
        worker = self.registry.get(url)
        assert worker is not None
        return worker

    def is_in(self, url: str, health: HealthState) -> Callable[[], bool]:
        return lambda: (worker := self.registry.get(url)) is not None and worker.health is health

    def pending(self, url: str) -> PendingWorker:
        return next(pending for pending in self.manager.status() if pending.url == url)

    def pending_with(self, url: str, fault: WorkerFault) -> Callable[[], bool]:
        return lambda: any(one.url == url and one.fault is fault for one in self.manager.status())


@pytest.fixture
async def make_fleet() -> AsyncIterator[Callable[..., Any]]:
    async with contextlib.AsyncExitStack() as stack:

        async def make(**options: Any) -> Fleet:
            fleet = Fleet(**options)
            await fleet.manager.start()
            stack.push_async_callback(fleet.manager.stop)
            return fleet

        yield make


@pytest.fixture
async def worker(make_worker: Callable[[], Any]) -> Any:
    """A scripted worker that listens."""
    worker = make_worker()
    await worker.listen()
    return worker


async def a_healthy(make_fleet: Any, until: Any, worker: Any, **options: Any) -> tuple[Fleet, Worker]:
    fleet: Fleet = await make_fleet(**options)
    fleet.discovery.say(Added(worker.url))
    await until(fleet.is_in(worker.url, HEALTHY), "a healthy worker")
    return fleet, fleet.worker(worker.url)


# --- coming up ----------------------------------------------------------------------------------------------------


async def test_a_booting_worker_is_waited_for(make_fleet: Any, make_worker: Any, until: Any) -> None:
    booting = make_worker()
    fleet = await make_fleet()
    fleet.discovery.say(Added(booting.url))
    await until(fleet.pending_with(booting.url, WorkerFault.CONNECT_FAILED), "a refused connection")
    pending = fleet.pending(booting.url)
    assert pending.last_error == "connection refused" and pending.attempts >= 1 and pending.id.startswith("w-")
    assert fleet.registry.all() == []

    ok = booting.answers["/server_info"]
    booting.answers["/server_info"] = (503, "")
    await booting.listen()
    await until(fleet.pending_with(booting.url, WorkerFault.NOT_READY), "a 503")
    assert fleet.pending(booting.url).last_error == "HTTP 503 from /server_info"

    booting.answers["/server_info"] = ok
    await until(fleet.is_in(booting.url, HEALTHY), "a healthy worker")
    assert fleet.manager.status() == []
    worker = fleet.worker(booting.url)
    assert worker.model_id == "m" and worker.breaker.threshold == 7 and worker.breaker.cool_down_secs == 5
    assert fleet.registry.candidates("m", 0.0) == list(worker.targets)
    assert booting.calls["/health"] == 0


async def test_a_worker_that_answers_nonsense_is_asked_again(make_fleet: Any, worker: Any, until: Any) -> None:
    worker.info(dp_size="lots")
    fleet = await make_fleet()
    fleet.discovery.say(Added(worker.url))
    await until(fleet.pending_with(worker.url, WorkerFault.INVALID))
    assert "dp_size" in (fleet.pending(worker.url).last_error or "")
    worker.info(dp_size=2)
    await until(fleet.is_in(worker.url, HEALTHY))
    assert len(fleet.worker(worker.url).targets) == 2


async def test_warming_up_is_starting_and_neither_routed_nor_unhealthy(
    make_fleet: Any, worker: Any, until: Any
) -> None:
    worker.answers["/ready"] = (503, "")
    fleet = await make_fleet(health={"failure_threshold": 1, "success_threshold": 1_000_000})
    fleet.discovery.say(Added(worker.url))
    await until(lambda: worker.calls["/ready"] >= 4)
    assert fleet.worker(worker.url).health is STARTING
    assert fleet.registry.candidates("m", 0.0) == [] and fleet.manager.status() == []
    worker.answers["/ready"] = (200, "")
    await until(fleet.is_in(worker.url, HEALTHY), "health on the worker's own word")
    assert [kind for kind, _ in fleet.listener.seen] == ["added"]


async def test_without_ready_the_success_threshold_decides(make_fleet: Any, worker: Any, until: Any) -> None:
    del worker.answers["/ready"]
    worker.answers["/model_info"] = (200, {})
    await a_healthy(make_fleet, until, worker, health={"success_threshold": 3})
    assert worker.calls["/model_info"] >= 3


async def test_a_hanging_worker_delays_no_other(make_fleet: Any, make_worker: Any, worker: Any, until: Any) -> None:
    hanging = make_worker()
    hanging.hang.add("/server_info")
    await hanging.listen()
    fleet = await make_fleet()
    fleet.discovery.say(Added(hanging.url), Added(worker.url))
    await until(fleet.is_in(worker.url, HEALTHY))
    assert [pending.url for pending in fleet.manager.status()] == [hanging.url]
    assert fleet.pending(hanging.url).last_error is None


async def test_a_static_list_is_followed(make_fleet: Any, worker: Any, until: Any) -> None:
    fleet = await make_fleet(discovery=StaticUrls([worker.url.upper() + "/"]))
    await until(fleet.is_in(worker.url, HEALTHY))


# --- health -------------------------------------------------------------------------------------------------------


async def test_an_unhealthy_worker_stays_registered_and_recovers_as_itself(
    make_fleet: Any, worker: Any, until: Any
) -> None:
    fleet, first = await a_healthy(make_fleet, until, worker)
    worker.answers["/ready"] = (500, "")
    await until(fleet.is_in(worker.url, UNHEALTHY))
    assert fleet.registry.get(worker.url) is first and fleet.registry.candidates("m", 0.0) == []
    worker.answers["/ready"] = (200, "")
    await until(fleet.is_in(worker.url, HEALTHY))
    assert fleet.registry.get(worker.url) is first and not first.removed


async def test_a_probe_without_answer_is_excused_by_good_bytes_since_the_last(
    make_fleet: Any, worker: Any, until: Any
) -> None:
    health = {"failure_threshold": 2, "timeout_secs": 0.02}
    fleet, first = await a_healthy(make_fleet, until, worker, health=health)
    worker.hang.add("/ready")
    probes = worker.calls["/ready"]
    with capture_logs() as logs:
        while worker.calls["/ready"] < probes + 8:
            assert first.health is HEALTHY
            first.heard = True  # as each piece of a stream does
            await asyncio.sleep(0)
    assert any("responses go on" in line["event"] for line in logs)
    await until(fleet.is_in(worker.url, UNHEALTHY), "silence is no excuse")
    assert fleet.registry.candidates("m", time.monotonic()) == list(first.targets), "alive not long ago, the only one"
    first.heard = True
    await until(fleet.is_in(worker.url, HEALTHY), "bytes bring it back")
    assert fleet.worker(worker.url) is first


@pytest.mark.parametrize("how", ["refuses", "breaks off", "says not ready"])
async def test_good_bytes_are_no_excuse_for_what_is_no_silence(
    make_fleet: Any, worker: Any, until: Any, how: str
) -> None:
    """A worker that was killed leaves within the threshold, whatever it had sent just before."""
    health = {"failure_threshold": 2, "success_threshold": 1_000}
    fleet, first = await a_healthy(make_fleet, until, worker, health=health)
    if how == "refuses":
        await worker.refuse()
    elif how == "breaks off":
        worker.drop.add("/ready")
    else:
        worker.answers["/ready"] = (503, "")
    while first.health is HEALTHY:
        first.heard = True
        await asyncio.sleep(0.001)
    assert first.health is UNHEALTHY
    assert not first.busy(time.monotonic()) and fleet.registry.candidates("m", time.monotonic()) == []


async def test_a_new_incarnation_is_not_excused_by_what_the_old_one_sent(
    make_fleet: Any, worker: Any, until: Any
) -> None:
    fleet, first = await a_healthy(make_fleet, until, worker, reintrospect_every=1)
    worker.info(random_seed=2, startup_time=2.0, version="0.5.24")
    await until(lambda: fleet.worker(worker.url) is not first, "another incarnation")
    first.heard = True
    second = fleet.worker(worker.url)
    assert not second.heard and second.busy_until < 0


async def test_fewer_failures_than_the_threshold_change_nothing(make_fleet: Any, worker: Any, until: Any) -> None:
    fleet, first = await a_healthy(make_fleet, until, worker, health={"failure_threshold": 1_000})
    infos = worker.calls["/server_info"]
    worker.answers["/ready"] = (500, "")
    probes = worker.calls["/ready"]
    await until(lambda: worker.calls["/ready"] >= probes + 3)
    assert first.health is HEALTHY
    worker.answers["/ready"] = (200, "")
    await until(lambda: worker.calls["/server_info"] > infos, "the check that it is the same server")
    assert fleet.registry.get(worker.url) is first and first.health is HEALTHY


async def test_scattered_failures_do_not_add_up_while_introspection_fails(
    make_fleet: Any, worker: Any, until: Any
) -> None:
    _, first = await a_healthy(make_fleet, until, worker, health={"failure_threshold": 2})
    worker.answers["/server_info"] = (500, "")
    worker.statuses["/ready"] = iter([500, 200] * 5)
    infos = worker.calls["/server_info"]
    await until(lambda: worker.calls["/server_info"] >= infos + 5)
    assert first.health is HEALTHY


async def test_a_worker_that_cannot_say_who_it_is_does_not_come_back(make_fleet: Any, worker: Any, until: Any) -> None:
    fleet, first = await a_healthy(make_fleet, until, worker)
    worker.answers["/ready"] = (500, "")
    await until(fleet.is_in(worker.url, UNHEALTHY))
    known = worker.answers["/server_info"]
    worker.answers["/server_info"] = (500, "")
    worker.answers["/ready"] = (200, "")
    infos = worker.calls["/server_info"]
    await until(lambda: worker.calls["/server_info"] >= infos + 3)
    assert first.health is UNHEALTHY
    worker.answers["/server_info"] = known
    await until(fleet.is_in(worker.url, HEALTHY))
    assert fleet.registry.get(worker.url) is first


async def test_a_slow_server_info_does_not_take_a_healthy_worker_out(make_fleet: Any, worker: Any, until: Any) -> None:
    _, first = await a_healthy(make_fleet, until, worker, reintrospect_every=1, introspect_timeout_secs=0.02)
    worker.hang.add("/server_info")
    infos = worker.calls["/server_info"]
    await until(lambda: worker.calls["/server_info"] >= infos + 5)
    assert first.health is HEALTHY and not first.removed


# --- restarts -----------------------------------------------------------------------------------------------------


async def test_a_restart_after_an_outage_is_a_new_incarnation(make_fleet: Any, worker: Any, until: Any) -> None:
    fleet, first = await a_healthy(make_fleet, until, worker)
    await worker.refuse()
    await until(fleet.is_in(worker.url, UNHEALTHY))
    worker.info(random_seed=2)
    await worker.listen()
    await until(lambda: fleet.registry.get(worker.url) not in (None, first))
    second = fleet.worker(worker.url)
    assert second.generation > first.generation and second.health is HEALTHY and first.removed
    assert fleet.listener.seen == [("added", first), ("removed", first), ("added", second)]


async def test_a_restart_shorter_than_the_threshold_is_noticed(make_fleet: Any, worker: Any, until: Any) -> None:
    fleet, first = await a_healthy(make_fleet, until, worker, health={"failure_threshold": 1_000_000})
    await worker.refuse()
    worker.info(random_seed=2)
    await worker.listen()
    # The outage may have fallen between two probes: make sure that one fails, the HTTP client's own retry included.
    worker.drop.add("/ready")
    probes = worker.calls["/ready"]
    await until(lambda: worker.calls["/ready"] > probes + 2)
    worker.drop.clear()
    await until(lambda: fleet.registry.get(worker.url) not in (None, first))
    assert first.removed and fleet.worker(worker.url).health is HEALTHY


@pytest.mark.parametrize(
    "change",
    [
        {"random_seed": 2},
        {"startup_time": {"scheduler_e2e": 3.5}},
        {"dp_size": 2},
        {"page_size": 64},
        {"disaggregation_mode": "decode"},
        {"kv_events": {"publisher": "zmq", "endpoint_host": "*", "endpoint_port_base": 5557, "block_size": 16}},
    ],
)
async def test_a_restart_between_two_probes_is_noticed(
    make_fleet: Any, worker: Any, until: Any, change: dict[str, Any]
) -> None:
    fleet, first = await a_healthy(make_fleet, until, worker, reintrospect_every=2)
    with capture_logs() as logs:
        worker.info(**change)
        await until(lambda: fleet.registry.get(worker.url) not in (None, first))
    second = fleet.worker(worker.url)
    assert second.generation > first.generation and second.health is HEALTHY
    (told,) = [entry for entry in logs if entry["event"] == "worker restarted or changed"]
    assert told["changed"]


async def test_what_a_running_server_may_change_is_taken_over(make_fleet: Any, worker: Any, until: Any) -> None:
    fleet, first = await a_healthy(make_fleet, until, worker, reintrospect_every=2)
    worker.info(model_path="/models/updated")
    await until(lambda: first.info.model_path == "/models/updated")
    assert fleet.registry.get(worker.url) is first


async def test_servers_taking_turns_on_one_address_are_not_restarts(make_fleet: Any, worker: Any, until: Any) -> None:
    kv = {"publisher": "zmq", "endpoint_host": "*", "endpoint_port_base": 5557, "block_size": 16}
    worker.info(random_seed=1, kv_events=kv)
    fleet, first = await a_healthy(make_fleet, until, worker, reintrospect_every=1)
    assert first.info.kv_source is not None
    with capture_logs() as logs:
        worker.info(random_seed=2, kv_events=kv)
        await until(lambda: fleet.registry.get(worker.url) not in (None, first))
        second = fleet.worker(worker.url)
        worker.info(random_seed=1, kv_events=kv)
        await until(lambda: fleet.registry.get(worker.url) not in (None, second))
        third = fleet.worker(worker.url)
        worker.info(random_seed=2, kv_events=kv)
        infos = worker.calls["/server_info"]
        await until(lambda: worker.calls["/server_info"] >= infos + 3)
    assert fleet.registry.get(worker.url) is third and third.health is HEALTHY
    assert third.info.kv_source is None, "whose cache it would be cannot be told"
    assert [entry["log_level"] for entry in logs if "several servers" in entry["event"]] == ["error"]


# --- discovery ----------------------------------------------------------------------------------------------------


async def test_a_removed_worker_is_left_alone(make_fleet: Any, worker: Any, until: Any) -> None:
    fleet, first = await a_healthy(make_fleet, until, worker)
    fleet.discovery.say(Removed(worker.url))
    await until(lambda: first.removed)
    assert fleet.registry.all() == [] and fleet.manager.status() == []
    await until(lambda: not [task for task in asyncio.all_tasks() if task.get_name().startswith("supervise")])
    fleet.discovery.say(Added(worker.url))
    await until(fleet.is_in(worker.url, HEALTHY))
    assert fleet.worker(worker.url).generation > first.generation


async def test_a_worker_removed_while_it_boots_never_appears(make_fleet: Any, worker: Any, until: Any) -> None:
    worker.hang.add("/server_info")
    fleet = await make_fleet()
    fleet.discovery.say(Added(worker.url))
    await until(lambda: worker.calls["/server_info"])
    fleet.discovery.say(Removed(worker.url))
    await until(lambda: fleet.manager.status() == [])
    await until(lambda: not [task for task in asyncio.all_tasks() if task.get_name().startswith("supervise")])
    assert fleet.listener.seen == []


async def test_repeated_and_unknown_and_unusable_announcements(make_fleet: Any, worker: Any, until: Any) -> None:
    fleet = await make_fleet()
    fleet.discovery.say(
        Removed("http://never-added:1"),
        ModeChanged("http://never-added:1", WorkerMode.DECODE),
        Added("ftp://what"),
        Added(worker.url),
        Added(worker.url + "/"),
        Added(worker.url),
    )
    await until(fleet.is_in(worker.url, HEALTHY))
    assert [kind for kind, _ in fleet.listener.seen] == ["added"] and fleet.manager.status() == []


async def test_a_discovery_that_fails_or_ends_is_started_again(
    make_fleet: Any, worker: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgl_router.workers.manager._DISCOVERY_RETRY_SECS", (0.001, 0.01))
    fleet, first = await a_healthy(make_fleet, until, worker)
    fleet.discovery.say(RuntimeError("watch broke"), None, Added(worker.url))
    await until(lambda: fleet.discovery.rounds == 3)
    await until(fleet.discovery.said.empty)
    assert fleet.registry.all() == [first], "what is already served goes on"


async def test_a_mode_hint_counts_where_the_server_reports_none(make_fleet: Any, worker: Any, until: Any) -> None:
    worker.answers = {"/v1/models": VLLM_MODELS}
    fleet = await make_fleet()
    fleet.discovery.say(Added(worker.url, WorkerMode.PREFILL))
    await until(fleet.is_in(worker.url, HEALTHY))
    first = fleet.worker(worker.url)
    assert first.mode is WorkerMode.PREFILL
    fleet.discovery.say(ModeChanged(worker.url, WorkerMode.DECODE))
    await until(lambda: first.removed)
    second = fleet.worker(worker.url)
    assert second.mode is WorkerMode.DECODE and second.health is HEALTHY
    assert fleet.registry.candidates("m", 0.0, WorkerMode.DECODE) == list(second.targets)


async def test_what_the_server_reports_wins_over_a_hint(make_fleet: Any, worker: Any, until: Any) -> None:
    worker.info(disaggregation_mode="decode")
    fleet = await make_fleet()
    with capture_logs() as logs:
        fleet.discovery.say(Added(worker.url, WorkerMode.PREFILL))
        await until(fleet.is_in(worker.url, HEALTHY))
    assert fleet.worker(worker.url).mode is WorkerMode.DECODE
    (told,) = [entry for entry in logs if "another mode" in entry["event"]]
    assert (told["reported"], told["expected"]) == ("decode", "prefill")


# --- what operators see -------------------------------------------------------------------------------------------


async def test_a_worker_of_another_model_is_kept_out_and_named(make_fleet: Any, worker: Any, until: Any) -> None:
    worker.info(served_model_name="other")
    with capture_logs() as logs:
        fleet, found = await a_healthy(make_fleet, until, worker, models=["m"])
    assert found.model_id == "other" and list(fleet.registry.for_model("m")) == []
    assert list(fleet.registry.for_model("other")) == [found]
    (told,) = [entry for entry in logs if "not configured" in entry["event"]]
    assert told["served"] == "other" and told["configured"] == ["m"] and told["log_level"] == "warning"
    assert told["worker"] == found.id and told["url"] == found.url


async def test_a_circuit_that_opens_and_closes_is_told(make_fleet: Any, worker: Any, until: Any) -> None:
    _, found = await a_healthy(make_fleet, until, worker)
    breaker = found.breaker
    with capture_logs() as logs:
        for _ in range(breaker.threshold):
            breaker.acquire(100.0).failure(100.0)
        breaker.acquire(100.0 + breaker.cool_down_secs).success(100.0)
    told = [(entry["event"].split(":")[0], entry["log_level"], entry["worker"], entry["url"]) for entry in logs]
    assert told == [
        ("circuit opened", "warning", found.id, found.url),
        ("circuit closed", "info", found.id, found.url),
    ]
    assert logs[0]["cool_down_secs"] == breaker.cool_down_secs


async def test_findings_are_told_once_per_incarnation(make_fleet: Any, worker: Any, until: Any) -> None:
    worker.info(version="0.5.12", kv_events_config='{"publisher": "zmq", "endpoint": "tcp://127.0.0.1:5557"}')
    del worker.answers["/server_info"][1]["kv_events"]
    with capture_logs() as logs:
        await a_healthy(make_fleet, until, worker, reintrospect_every=1)
        infos = worker.calls["/server_info"]
        await until(lambda: worker.calls["/server_info"] >= infos + 3)
    (told,) = [entry for entry in logs if entry["event"] == "worker set-up"]
    assert "tcp://*:5557" in told["note"]


async def test_a_worker_that_stays_away_is_logged_ever_more_seldom(
    make_fleet: Any, make_worker: Any, until: Any
) -> None:
    absent = make_worker()
    with capture_logs() as logs:
        fleet = await make_fleet(retry_initial_secs=0.0001, retry_max_secs=0.0001)
        fleet.discovery.say(Added(absent.url))
        await until(lambda: fleet.manager.status() and fleet.pending(absent.url).attempts >= 40)
        attempts = fleet.pending(absent.url).attempts
        told = [entry["attempts"] for entry in logs if entry["event"] == "worker not available yet"]
    assert told == [number for number in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if number <= attempts]


async def test_the_key_comes_from_the_environment_and_is_never_logged(
    make_fleet: Any, worker: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_WORKER_KEY", "k3y-of-the-fleet")
    worker.info(api_key="k3y-of-the-fleet", admin_api_key="adm1n")
    with capture_logs() as logs:
        fleet, found = await a_healthy(make_fleet, until, worker)
    assert set(worker.authorization) == {"Bearer k3y-of-the-fleet"}
    shown = repr(logs) + repr(found.info) + repr(found) + repr(fleet.manager.status())
    assert "k3y-of-the-fleet" not in shown and "adm1n" not in shown


async def test_a_defect_in_supervision_does_not_end_it(
    make_fleet: Any, worker: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = await make_fleet()
    bind, failures = WorkerManager._bind, iter([True, True])

    def fragile(self: WorkerManager, info: Any) -> Any:
        if next(failures, False):
            raise RuntimeError("defect")
        return bind(self, info)

    monkeypatch.setattr(WorkerManager, "_bind", fragile)
    with capture_logs() as logs:
        fleet.discovery.say(Added(worker.url))
        await until(fleet.is_in(worker.url, HEALTHY))
    assert len([entry for entry in logs if "supervision failed" in entry["event"]]) == 2


async def test_stopping_unregisters_and_closes_everything(make_fleet: Any, worker: Any, until: Any) -> None:
    fleet, first = await a_healthy(make_fleet, until, worker)
    session = fleet.manager._session
    await fleet.manager.stop()
    await fleet.manager.stop()
    assert first.removed and fleet.registry.all() == [] and session is not None and session.closed
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith(("supervise", "worker manager"))]
