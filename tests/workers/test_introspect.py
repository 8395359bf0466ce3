"""Introspection over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest

from sgl_router.upstream.control import control_session
from sgl_router.upstream.fault import WorkerFault
from sgl_router.workers import IntrospectionError, WorkerMode, introspect

MODELS = (200, {"object": "list", "data": [{"id": "served", "root": "/models/x", "max_model_len": 2048}]})


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with control_session() as session:
        yield session


@pytest.fixture
async def worker(make_worker: Callable[[], Any]) -> Any:
    worker = make_worker()
    await worker.listen()
    return worker


async def fault_of(session: aiohttp.ClientSession, url: str, **options: Any) -> tuple[WorkerFault, str]:
    with pytest.raises(IntrospectionError) as caught:
        await introspect(session, url, **options)
    message = str(caught.value)
    assert "127.0.0.1" not in message and url not in message, "status pages must not show where workers are"
    return caught.value.fault, message


async def test_server_info(session: aiohttp.ClientSession, worker: Any) -> None:
    info = await introspect(session, worker.url)
    assert info.served_model_name == "m" and info.block_size == 16
    assert worker.authorization == [None]


async def test_the_key_is_sent_as_a_bearer(session: aiohttp.ClientSession, worker: Any) -> None:
    await introspect(session, worker.url, "k3y")
    assert worker.authorization == ["Bearer k3y"]


async def test_the_older_name(session: aiohttp.ClientSession, worker: Any) -> None:
    worker.answers["/get_server_info"] = worker.answers.pop("/server_info")
    assert (await introspect(session, worker.url)).served_model_name == "m"


async def test_the_name_comes_from_the_model_list_where_the_server_gives_none(
    session: aiohttp.ClientSession, worker: Any
) -> None:
    worker.info(served_model_name=None)
    worker.answers["/v1/models"] = MODELS
    info = await introspect(session, worker.url)
    assert info.served_model_name == "served" and info.version == "0.5.23" and info.mode_reported
    del worker.answers["/v1/models"]
    assert (await introspect(session, worker.url)).served_model_name == "/models/m"


@pytest.mark.parametrize("dev_mode", [False, True])
async def test_vllm_is_a_plain_worker_without_events(
    session: aiohttp.ClientSession, worker: Any, dev_mode: bool
) -> None:
    worker.answers = {"/v1/models": MODELS}
    if dev_mode:
        worker.answers["/server_info"] = (200, {"vllm_config": {}})
    info = await introspect(session, worker.url)
    assert (info.served_model_name, info.mode, info.kv_source, info.dp_size) == ("served", WorkerMode.PLAIN, None, 1)
    assert not info.mode_reported and info.started_at is None and len(info.notes) == 1


async def test_something_else_entirely(session: aiohttp.ClientSession, worker: Any) -> None:
    worker.answers = {}
    assert (await fault_of(session, worker.url))[0] is WorkerFault.NOT_A_WORKER
    worker.answers = {"/server_info": (200, b"<html>hello</html>")}
    assert (await fault_of(session, worker.url))[0] is WorkerFault.MALFORMED


@pytest.mark.parametrize(
    ("status", "fault"),
    [(503, WorkerFault.NOT_READY), (500, WorkerFault.BAD_STATUS), (307, WorkerFault.BAD_STATUS)],
)
async def test_statuses(session: aiohttp.ClientSession, worker: Any, status: int, fault: WorkerFault) -> None:
    worker.answers["/server_info"] = (status, "")
    assert await fault_of(session, worker.url) == (fault, f"HTTP {status} from /server_info")


async def test_the_key_does_not_follow_a_redirect(
    session: aiohttp.ClientSession, worker: Any, make_worker: Callable[[], Any]
) -> None:
    elsewhere = make_worker()
    await elsewhere.listen()
    worker.redirect = elsewhere.url
    fault, _ = await fault_of(session, worker.url, api_key="k3y")
    assert fault is WorkerFault.BAD_STATUS and not elsewhere.calls


async def test_a_missing_and_a_wrong_key_read_differently(session: aiohttp.ClientSession, worker: Any) -> None:
    worker.answers["/server_info"] = (401, {"error": "Unauthorized"})
    fault, missing = await fault_of(session, worker.url)
    assert fault is WorkerFault.UNAUTHORIZED and "worker_api_key_env" in missing
    _, wrong = await fault_of(session, worker.url, api_key="k3y")
    assert wrong != missing and "k3y" not in wrong


async def test_an_endless_answer_is_cut_off(session: aiohttp.ClientSession, worker: Any) -> None:
    worker.info(padding="x" * 5000)
    assert (await fault_of(session, worker.url, max_bytes=4096))[0] is WorkerFault.TOO_LARGE


async def test_silence_times_out(session: aiohttp.ClientSession, worker: Any) -> None:
    worker.hang.add("/server_info")
    fault, message = await fault_of(session, worker.url, timeout_secs=0.05)
    assert fault is WorkerFault.TIMED_OUT and "0.05 s" in message


async def test_broken_connections(session: aiohttp.ClientSession, worker: Any, make_worker: Callable[[], Any]) -> None:
    worker.drop.add("/server_info")
    assert (await fault_of(session, worker.url))[0] is WorkerFault.CONNECTION_LOST
    assert await fault_of(session, make_worker().url) == (WorkerFault.CONNECT_FAILED, "connection refused")


async def test_hosts_that_cannot_be_dialled(session: aiohttp.ClientSession) -> None:
    for host in ("no-such-host.invalid", "a" * 70 + ".invalid"):
        assert (await fault_of(session, f"http://{host}:1", timeout_secs=3))[0] in (
            WorkerFault.CONNECT_FAILED,
            WorkerFault.TIMED_OUT,
        )
