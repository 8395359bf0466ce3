"""A small tokenizer's vocabulary, mock workers, and a server that answers as it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from sgl_router.lab.mock_worker import EMBEDDED_TOKENIZER_PATH, MockWorker, MockWorkerConfig, shared_tokenizer
from sgl_router.lab.replay.words import Vocabulary, learn_vocabulary
from sgl_router.tokenization import ModelTokenizer

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
StartWorker = Callable[..., Awaitable[MockWorker]]
StartServer = Callable[[Handler], Awaitable[str]]


@pytest.fixture(scope="session")
def tokenizer() -> ModelTokenizer:
    return shared_tokenizer(EMBEDDED_TOKENIZER_PATH)


@pytest.fixture(scope="session")
def vocabulary(tokenizer: ModelTokenizer) -> Vocabulary:
    return learn_vocabulary(tokenizer)


@pytest.fixture
async def start_worker(tokenizer: ModelTokenizer) -> AsyncIterator[StartWorker]:
    """Instant mock workers."""
    workers: list[MockWorker] = []

    async def start(**settings: Any) -> MockWorker:
        worker = MockWorker(MockWorkerConfig.instant(**settings), tokenizer=tokenizer)
        workers.append(worker)
        await worker.start()
        return worker

    yield start
    for worker in workers:
        await worker.stop()


@pytest.fixture
async def start_server() -> AsyncIterator[StartServer]:
    """A server with one handler for chats; the value is its address."""
    runners: list[web.AppRunner] = []

    async def start(handler: Handler) -> str:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()
