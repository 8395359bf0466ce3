"""Each new worker is asked for the tokens of a few prompts, and somebody is told where they are not the router's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestServer

from sgl_router.lab.mock_worker import EMBEDDED_TOKENIZER_PATH
from sgl_router.runtime.tokenizer_parity import TokenCheck, TokenOutcome
from sgl_router.tokenization import ModelTokenizer
from sgl_router.workers import Worker, WorkerInfo

EVENT = "tokenizer mismatch: worker and router produce different token ids, so this worker's cache cannot be matched"


async def checked(fleet: Any, **expected: int) -> None:
    """Until these are the outcomes, in the metrics."""

    def counted() -> dict[str, int]:
        counter = fleet.services.metrics.token_checks
        return {one.value: count for one in TokenOutcome if (count := counter.labels(one.value).value)}

    await fleet.until(lambda: sum(counted().values()) == sum(expected.values()), "every worker checked")
    assert counted() == expected


async def test_workers_like_the_router(rig) -> None:
    with structlog.testing.capture_logs() as logs:
        fleet = await rig(workers=2, worker={"api_key": "key"}, discovery={"worker_api_key_env": "KEY_OF_WORKERS"})
        await checked(fleet, equal=2)
    assert not [entry for entry in logs if entry["event"] == EVENT]
    text = (await fleet.get("/metrics")).body.decode()
    assert 'sgl_router_worker_token_checks_total{outcome="equal"} 2.0' in text
    assert 'sgl_router_worker_token_checks_total{outcome="different"} 0.0' in text
    for worker in fleet.workers:
        assert f'sgl_router_worker_tokens_differ{{worker_url="{worker.url}"}} 0.0' in text
    fleet.services.registry.remove(fleet.workers[0].url)
    text = (await fleet.get("/metrics")).body.decode()
    assert text.count("sgl_router_worker_tokens_differ{") == 1, "a worker takes its series with it"


@pytest.fixture(autouse=True)
def key(monkeypatch) -> None:
    monkeypatch.setenv("KEY_OF_WORKERS", "key")


async def test_another_template_is_told_of_and_requests_are_served(rig, tmp_path: Path) -> None:
    template = tmp_path / "other.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}> {{ m.content }}\n{% endfor %}> ")
    with structlog.testing.capture_logs() as logs:
        fleet = await rig(model={"chat_template": str(template)})
        await checked(fleet, different=1)
    (told,) = (entry for entry in logs if entry["event"] == EVENT)
    assert (told["log_level"], told["of"], told["worker"]) == ("warning", "chat", fleet.worker(0).id)
    assert told["worker_tokens"] != told["router_tokens"]
    assert "chat_template" in told["compare"]
    text = (await fleet.get("/metrics")).body.decode()
    assert f'sgl_router_worker_tokens_differ{{worker_url="{fleet.workers[0].url}"}} 1.0' in text
    assert (await fleet.ask("hello")).status == 200


THINKS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}{{ style }}"
)
DEFAULTS = {"enable_thinking": False, "style": "terse"}


async def test_the_workers_defaults_for_the_template_are_told_of_until_they_are_given(rig, tmp_path: Path) -> None:
    template = tmp_path / "thinks.jinja"
    template.write_text(THINKS)
    engine = ModelTokenizer.load(EMBEDDED_TOKENIZER_PATH, str(template), default_chat_template_kwargs=DEFAULTS)
    model: dict[str, Any] = {"chat_template": str(template)}
    with structlog.testing.capture_logs() as logs:
        without = await rig(tokenizer=engine, model=model)
        await checked(without, different=1)
    assert [entry["compare"] for entry in logs if entry["event"] == EVENT] == [
        "models[].{tokenizer_path, chat_template, default_chat_template_kwargs} with the worker's arguments"
    ]

    fleet = await rig(workers=2, tokenizer=engine, model={**model, "default_chat_template_kwargs": DEFAULTS})
    await checked(fleet, equal=2)
    prompt = "a question that fills several pages of the cache, and the same each time it is asked " * 4
    asked: tuple[dict[str, Any], ...] = (
        {},
        {"chat_template_kwargs": {"style": "wordy"}},  # the request's own wins, and only for its key
        {"chat_template_kwargs": {"enable_thinking": True, "style": None}},
    )
    for extra in asked:
        body = {"model": "mock-model", "messages": [{"role": "user", "content": prompt}], **extra}
        tokens = [(await fleet.post("/v1/tokenize", json=body)).json["tokens"]]
        async with fleet.session.post(fleet.workers[0].url + "/v1/tokenize", json=body) as answer:
            tokens.append((await answer.json())["tokens"])
        assert tokens[0] == tokens[1]
        await fleet.ask(prompt, **extra)
        await fleet.settled()
        again = await fleet.ask(prompt, **extra)
        assert again.decision["reason"] == "cache_hit"
        predicted = int(again.decision["matched"].partition("/")[0]) * 16
        assert 0 < predicted == again.json["usage"]["prompt_tokens_details"]["cached_tokens"]


async def test_a_worker_too_old_for_chats_is_compared_by_text(rig, tmp_path: Path) -> None:
    template = tmp_path / "other.jinja"
    template.write_text("nothing like it")
    fleet = await rig(worker={"dialect": "legacy"}, model={"chat_template": str(template)})
    await checked(fleet, equal=1)


async def test_nobody_is_asked_where_it_is_switched_off(rig) -> None:
    fleet = await rig(health={"check_tokens": False})
    await fleet.ask("hello")
    text = (await fleet.get("/metrics")).body.decode()
    assert "sgl_router_worker_token_checks_total{" not in text


class Answering:
    """A worker that has nothing but the one route."""

    def __init__(self) -> None:
        self.answers: list[web.Response] = []
        self.asked = 0
        self.hold = asyncio.Event()
        self.hold.set()

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        await self.hold.wait()
        answer = self.answers.pop(0)
        return web.Response(status=answer.status, body=answer.body)


@pytest.fixture
async def answering() -> AsyncIterator[tuple[Answering, Callable[[], Worker]]]:
    route, app = Answering(), web.Application()
    app.router.add_post("/v1/tokenize", route.answer)
    async with TestServer(app) as server:
        yield route, lambda: Worker(str(server.make_url("")).rstrip("/"), WorkerInfo(served_model_name="m"))


TOKENIZER: Any = object()


@pytest.fixture
def ours(monkeypatch) -> None:
    """Every prompt is [1, 2, 3]."""

    async def tokens(tokenizer: object, body: object) -> dict[str, Any]:
        return {"tokens": [1, 2, 3]}

    monkeypatch.setattr("sgl_router.runtime.tokenizer_parity.tokenize_request", tokens)


def json(value: str, status: int = 200) -> web.Response:
    return web.Response(status=status, body=value.encode())


SAME = '{"tokens": [1, 2, 3], "count": 3}'


@pytest.mark.parametrize(
    ("answers", "outcome", "asked"),
    [
        ([json(SAME)] * 3, TokenOutcome.EQUAL, 3),
        ([json("", 503), json(SAME), json("", 500), json(SAME), json(SAME)], TokenOutcome.EQUAL, 5),
        ([json(SAME), json('{"tokens": [1, 2]}')], TokenOutcome.DIFFERENT, 2),
        ([json("", 404)] * 3, TokenOutcome.UNKNOWN, 3),
        ([json("", 401)] * 3, TokenOutcome.UNKNOWN, 3),
        ([json("", 422), json("", 422), json(SAME)], TokenOutcome.EQUAL, 3),
        ([json("{}"), json('{"tokens": [[1]]}'), json("\udcff".encode("utf-8", "surrogatepass").decode("latin-1"))],
         TokenOutcome.UNKNOWN, 3),
        ([json("", 500)] * 4, TokenOutcome.UNREACHABLE, 4),
        ([json(SAME + " " * (1 << 20))] * 4, TokenOutcome.UNREACHABLE, 4),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("ours")
async def test_each_answer(answering, answers: list[web.Response], outcome: TokenOutcome, asked: int) -> None:
    route, worker = answering
    route.answers = list(answers)
    counted: asyncio.Queue[TokenOutcome] = asyncio.Queue()
    check = TokenCheck({"m": TOKENIZER}, counted.put_nowait, pause_secs=0)
    check.worker_added(worker())
    assert await asyncio.wait_for(counted.get(), 120) is outcome
    assert route.asked == asked
    await check.stop()


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("leaves", [True, False])
async def test_a_worker_that_leaves_and_the_end_of_the_router_count_nothing(answering, leaves: bool) -> None:
    route, make = answering
    route.hold.clear()
    counted: list[TokenOutcome] = []
    check = TokenCheck({"m": TOKENIZER}, counted.append, pause_secs=0)
    worker = make()
    check.worker_added(worker)
    while not route.asked:
        await asyncio.sleep(0.005)
    tasks = list(check._tasks.values())
    if leaves:
        check.worker_removed(worker)
        await asyncio.wait(tasks, timeout=120)
    await check.stop()
    route.answers = [json(SAME)] * 3
    route.hold.set()
    assert all(task.cancelled() for task in tasks)
    assert not check._tasks
    assert not counted


async def test_models_that_nobody_configured_are_not_asked_about(answering) -> None:
    route, make = answering
    check = TokenCheck({}, lambda outcome: None)
    check.worker_added(make())
    check.worker_removed(make())
    await check.stop()
    assert route.asked == 0
