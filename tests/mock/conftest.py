"""Shared pieces of the mock worker's tests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from sgl_router.lab.mock_worker import EMBEDDED_TOKENIZER_PATH, MockWorker, MockWorkerConfig, shared_tokenizer
from sgl_router.tokenization import ModelTokenizer

FIXTURES = Path(__file__).parent.parent / "fixtures" / "kv_events"

StartWorker = Callable[..., Awaitable[MockWorker]]


@pytest.fixture(scope="session")
def tokenizer() -> ModelTokenizer:
    """The embedded tokenizer, loaded once."""
    return shared_tokenizer(EMBEDDED_TOKENIZER_PATH)


@pytest.fixture
def golden() -> Callable[[str], dict[str, Any]]:
    """Captures of real engines, by name."""
    return lambda name: json.loads((FIXTURES / f"{name}.json").read_text())


@pytest.fixture
async def start_worker(tokenizer: ModelTokenizer) -> AsyncIterator[StartWorker]:
    """Start instant workers with the given settings; they are stopped after the test."""
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
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A client that fails rather than waits for ever."""
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        yield session
