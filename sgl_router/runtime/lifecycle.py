"""What every process that serves requests does alike: limits, tokenizers, listening, background jobs, the end."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

import structlog

from sgl_router.descriptors import Descriptors, in_use, raise_limit, remedy
from sgl_router.http.memory import prepare_malloc
from sgl_router.policies import Policy, make_policy
from sgl_router.runtime.listen import BACKLOG, StartupError
from sgl_router.services import Model, Services
from sgl_router.tokenization import ModelTokenizer, TokenizerLoadError

if TYPE_CHECKING:
    from sgl_router.config import Config, ModelConfig
    from sgl_router.http.routes import Routes
    from sgl_router.http.server import HttpServer
    from sgl_router.workers import Target

__all__ = ["Life", "count_prompts", "freeze_start_up", "load_models", "prepare_process"]

log = structlog.get_logger(__name__)

# Below, the limit of open files is told at start: no service manager's default is as low.
_FEW_REQUESTS = 1_000


class Life:
    """The jobs and the HTTP server of one process."""

    def __init__(self) -> None:
        self._server: HttpServer | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def serve(self, server: HttpServer, listeners: Iterable[tuple[socket.socket, Routes]]) -> None:
        """Listen and answer."""
        self._server = server
        for listener, routes in listeners:
            await server.listen(listener, routes, BACKLOG)

    def spawn(self, job: Callable[[], Awaitable[None]], name: str) -> None:
        """Run a job until the end; one that fails is started over."""

        async def supervised() -> None:
            while True:
                try:
                    await job()
                except Exception:
                    log.exception("background job failed, starting over", job=name)
                    await asyncio.sleep(1.0)

        self._tasks.append(asyncio.create_task(supervised(), name=name))

    async def finish_requests(self, services: Services, grace_secs: float) -> None:
        """Accept nothing new, give requests in flight `grace_secs` to end."""
        services.draining = services.closing = True
        if self._server is not None:
            await self._server.stop_listening()
        await services.in_flight.drained(grace_secs)
        if services.in_flight.count:
            log.warning("requests cut off at shutdown", count=services.in_flight.count)

    async def end_jobs(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def end_server(self) -> None:
        """Cut off what is still connected."""
        if self._server is not None:
            await self._server.close()
            self._server = None


async def load_models(
    config: Config, rng: random.Random, held_tokens: Callable[[Target], int]
) -> tuple[dict[str, Model], dict[str, Policy]]:
    """Every model with its tokenizer, and its policy. `held_tokens`: what a target has cached. Raises StartupError."""
    models = {}
    for position, one in enumerate(config.models):
        started = time.monotonic()
        try:
            tokenizer = await asyncio.to_thread(_load_tokenizer, one)  # whose log lines have this one's context
        except TokenizerLoadError as error:
            raise StartupError(f"models[{position}].{error}") from None  # it begins with the field
        models[one.id] = Model(one, tokenizer, make_policy(one, rng, held_tokens=held_tokens))
        log.info(
            "model loaded",
            model=one.id,
            policy=one.policy.value,
            tokenizer=tokenizer.backend,
            secs=round(time.monotonic() - started, 2),
        )
    return models, {model.id: model.policy for model in models.values()}


async def count_prompts(services: Services, period_secs: float = 1.0) -> None:
    """Until cancelled: carry what the conversation caches count into the metrics."""
    metrics = services.metrics
    while True:
        for model in services.models.values():
            counts = model.tokenizer.prompt_counts
            if counts is not None:
                metrics.prompts.labels(model.id, "hit").value = counts.hits
                metrics.prompts.labels(model.id, "miss").value = counts.misses
                metrics.prompt_tokens_reused.labels(model.id).value = counts.tokens_reused
                metrics.prompt_evictions.labels(model.id).value = counts.evictions
        await asyncio.sleep(period_secs)


def prepare_process(config: Config) -> Descriptors:
    """Limits and switches of the interpreter, before anything else; what file descriptors there are."""
    listed = config.discovery.static_urls
    descriptors = Descriptors(raise_limit(), in_use(), workers=len(listed.urls) if listed is not None else 0)
    if descriptors.requests < _FEW_REQUESTS:
        log.warning(
            "few file descriptors: more requests at a time than this are refused with 503",
            requests=descriptors.requests,
            limit=descriptors.limit,
            set=remedy(),
        )
    # Long prompts are rendered in a thread: with the default of 5 ms the loop would wait that long for the GIL.
    sys.setswitchinterval(0.0005)
    prepare_malloc()
    return descriptors


def freeze_start_up() -> None:
    """What start-up made lives as long as the process: the collector need not walk it again.

    A request leaves no cycles behind, so the collector has little to find: looking after every 700 objects, as by
    default, cost 9 to 16 us a request, and more where much is in flight.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 1_000)


def _load_tokenizer(config: ModelConfig) -> ModelTokenizer:
    return ModelTokenizer.load(
        config.tokenizer_path,
        config.chat_template,
        default_chat_template_kwargs=config.default_chat_template_kwargs,
        conversation_cache_bytes=config.conversation_cache_bytes,
    )
