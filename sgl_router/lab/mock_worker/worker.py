"""A mock SGLang worker in this process: real ports, real frames, a real prefix cache, a made-up model."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from functools import lru_cache
from types import TracebackType

import structlog
import zmq.asyncio

from sgl_router.lab.mock_worker.answers import AnswerBook, Tokenizer
from sgl_router.lab.mock_worker.config import MockWorkerConfig, Role
from sgl_router.lab.mock_worker.faults import Faults
from sgl_router.lab.mock_worker.gate import Gate
from sgl_router.lab.mock_worker.generation import Generation, GenerationParser
from sgl_router.lab.mock_worker.hashing import hasher_for
from sgl_router.lab.mock_worker.http_admin import AdminRoutes
from sgl_router.lab.mock_worker.http_app import build_app
from sgl_router.lab.mock_worker.http_generate import rank_for
from sgl_router.lab.mock_worker.listener import HttpListener
from sgl_router.lab.mock_worker.load_publisher import LoadPublisher, open_load_publishers
from sgl_router.lab.mock_worker.ops import CacheCleared, CacheOp
from sgl_router.lab.mock_worker.pd import BootstrapServer, DecodeLink
from sgl_router.lab.mock_worker.profile import EngineProfile
from sgl_router.lab.mock_worker.publisher import EventPublisher, open_publishers
from sgl_router.lab.mock_worker.radix import RadixCache
from sgl_router.lab.mock_worker.rank import Clock, RankEngine
from sgl_router.lab.mock_worker.record import RequestLog
from sgl_router.lab.mock_worker.scheduler import EngineModel
from sgl_router.lab.mock_worker.timing import TimingModel
from sgl_router.tokenization import ModelTokenizer

log = structlog.get_logger(__name__)

_DEFAULT_BOOTSTRAP_PORT = 8998


@lru_cache(maxsize=8)
def shared_tokenizer(tokenizer_path: str) -> ModelTokenizer:
    """One tokenizer per path for all workers of the process; blocks while it loads."""
    return ModelTokenizer.load(tokenizer_path)


class MockWorker:
    """Use as an async context manager, or `start` and `stop`. Ports stay the same over restarts.

    Each start is an incarnation of its own: empty caches, sequence numbers from 0, a new startup_time.
    """

    def __init__(
        self,
        config: MockWorkerConfig | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.config = config or MockWorkerConfig()
        self.profile = EngineProfile.of(self.config)
        self.faults = Faults()
        self.gate = Gate()
        self.stream_gate = Gate()
        self.log = RequestLog()
        self.incarnation = 0
        self.port = self.config.port
        self.kv_port = self.config.kv_port
        self.replay_port: int | None = self.config.replay_port if self.config.replay else None
        self.load_port = self.config.load_port
        self.bootstrap_port = self.config.bootstrap_port or _DEFAULT_BOOTSTRAP_PORT
        self.engines: list[RankEngine] = []
        self.publishers: list[EventPublisher] = []
        self.load_publishers: list[LoadPublisher] = []
        self.bootstrap_server: BootstrapServer | None = None
        self.decode_link: DecodeLink | None = None
        self.ready = False
        self.started_at = 0.0
        self.startup_time: dict[str, object] = {}
        self.random_seed = 0
        self._given_tokenizer = tokenizer
        self._clock = clock
        self._turn = 0
        self._context: zmq.asyncio.Context | None = None
        self._listener: HttpListener | None = None
        self._admin: AdminRoutes | None = None

    # -- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bind the event ports, then serve; when this returns the worker is ready."""
        if self._listener is not None:
            raise RuntimeError("the worker runs already")
        self.tokenizer = await self._load_tokenizer()
        self.answers = AnswerBook(self.tokenizer)
        app, self._admin = build_app(self)
        self._listener = HttpListener(app, self.config.host, self.port, keep_alive_secs=self.config.keep_alive_secs)
        try:
            await self._begin_incarnation()
            await self._listener.start()
        except BaseException:
            await self.stop()
            raise
        self.port = self._listener.port
        log.info("Mock worker started", url=self.url, dialect=self.config.dialect.value)

    async def stop(self) -> None:
        """Reset every connection and release every port."""
        if self._admin is not None:
            self._admin.cancel()
        if self._listener is not None:
            await self._listener.stop()
            self._listener = None
        await self._end_incarnation()
        self.faults.clear()
        self.gate.open()
        self.stream_gate.open()

    async def restart_in_place(self) -> None:
        """Die and come back at once on the same ports: requests are lost, caches are empty."""
        if self._listener is None:
            raise RuntimeError("the worker does not run")
        self._listener.refuse()
        await self._end_incarnation()
        await self._begin_incarnation()
        await self._listener.reopen()

    async def __aenter__(self) -> MockWorker:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    # -- looking ----------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where the worker serves."""
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"http://{host}:{self.port}"

    @property
    def caches(self) -> list[RadixCache]:
        """Each rank's prefix cache."""
        return [engine.cache for engine in self.engines]

    @property
    def cache(self) -> RadixCache:
        """The first rank's prefix cache."""
        return self.engines[0].cache

    async def idle(self, *, timeout: float = 5.0) -> None:
        """Wait until no rank has work left and all events are published."""
        await asyncio.wait_for(asyncio.gather(*(engine.idle() for engine in self.engines)), timeout)

    async def subscribed(self, *, rank: int = 0, count: int = 1, timeout: float = 5.0) -> None:
        """Wait until `count` subscriptions reached a rank's publisher, so that nothing sent later is missed."""
        await self.publishers[rank].subscribed(count, timeout=timeout)

    # -- doing ------------------------------------------------------------------------------------

    def refuse(self) -> None:
        """Close the HTTP port and reset its connections; events go on. `accept` undoes it."""
        if self._listener is not None:
            self._listener.refuse()

    async def accept(self) -> None:
        """Listen again after `refuse`."""
        if self._listener is not None:
            await self._listener.reopen()

    def reset_connections(self) -> None:
        """Reset every open HTTP connection and keep listening."""
        if self._listener is not None:
            self._listener.reset_all()

    def flush_cache(self) -> bool:
        """Clear every rank's cache; False, and nothing done, while any is busy."""
        if not all(engine.model.idle for engine in self.engines):
            return False
        for engine in self.engines:
            engine.flush()
        return True

    def engine_for(self, generation: Generation) -> RankEngine:
        """The rank that serves a generation; raises Refusal."""
        engine = rank_for(generation, self.config.role, self.engines, self._turn)
        if generation.rank is None:
            self._turn += 1
        return engine

    async def _load_tokenizer(self) -> Tokenizer:
        if self._given_tokenizer is not None:
            return self._given_tokenizer
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, shared_tokenizer, self.config.tokenizer_path)

    # -- incarnations -----------------------------------------------------------------------------

    async def _begin_incarnation(self) -> None:
        begun = time.perf_counter()
        self.incarnation += 1
        self.started_at = time.time()
        self.random_seed = random.SystemRandom().randrange(2**30)
        self._turn = 0
        self.parser = GenerationParser(self.config, self.profile, self.tokenizer, uuid.uuid4().hex)
        if self.config.kv_events:
            await self._open_publishers()
        self.engines = [self._build_rank(rank) for rank in range(self.config.dp_size)]
        if self.config.role is Role.PREFILL:
            self.bootstrap_server = BootstrapServer(
                self.config, self.bootstrap_port if self.incarnation > 1 else self.config.bootstrap_port
            )
            await self.bootstrap_server.start()
            self.bootstrap_port = self.bootstrap_server.port
        elif self.config.role is Role.DECODE:
            self.decode_link = DecodeLink(self.bootstrap_port)
        taken = time.perf_counter() - begun
        self.startup_time = {
            "load_weight": 0.0,
            "kv_cache_allocation": 0.0,
            "scheduler_e2e": taken,
            "cuda_graph": {},
            "tokenizer_e2e": taken,
        }
        self.ready = True

    async def _end_incarnation(self) -> None:
        self.ready = False
        for engine in self.engines:
            await engine.close()
        for publisher in self.publishers:
            await publisher.close()
        for load_publisher in self.load_publishers:
            load_publisher.close()
        self.engines, self.publishers, self.load_publishers = [], [], []
        if self.bootstrap_server is not None:
            await self.bootstrap_server.stop()
            self.bootstrap_server = None
        if self.decode_link is not None:
            await self.decode_link.close()
            self.decode_link = None
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None

    async def _open_publishers(self) -> None:
        self._context = zmq.asyncio.Context()
        self.publishers, self.kv_port, self.replay_port = await open_publishers(
            self._context,
            ranks=self.config.dp_size,
            host=self.config.host,
            kv_port=self.kv_port,
            replay_port=self.replay_port,
            replay_send_high_water_mark=self.config.replay_send_high_water_mark,
            profile=self.profile,
            topic=self.config.topic,
            buffer_steps=self.config.buffer_steps,
        )
        if self.config.publish_load and self.profile.has_load_channel:
            self.load_publishers, self.load_port = await open_load_publishers(
                self._context,
                ranks=self.config.dp_size,
                host=self.config.host,
                port=self.load_port,
                tells_queue=self.profile.load_channel_tells_queue,
            )

    def _build_rank(self, rank: int) -> RankEngine:
        config = self.config
        publisher = self.publishers[rank] if config.publishes_events and self.publishers else None
        ops: list[CacheOp] = []
        cache = RadixCache(
            page_size=config.page_size,
            capacity=config.cache_tokens // config.page_size * config.page_size,
            host_capacity=config.host_cache_tokens,
            bigram=config.bigram,
            enabled=config.caches_prefixes,
            removes_on_split=self.profile.removes_on_split,
            hasher=hasher_for(self.profile),
            listener=ops.append,
        )
        if not self.profile.clears_at_start:
            ops[:] = [op for op in ops if not isinstance(op, CacheCleared)]
        model = EngineModel(
            cache,
            TimingModel.of(config),
            max_running=config.max_running,
            chunked_prefill_size=config.chunked_prefill_size,
            queue_limit=config.queue_limit,
            decode_log_interval=config.decode_log_interval,
        )
        load_publisher = self.load_publishers[rank] if self.load_publishers else None
        return RankEngine(rank, model, ops, publisher, self._clock, load_publisher)
