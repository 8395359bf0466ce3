"""Whether a worker makes the same tokens of a prompt as the router: asked once of each worker that comes.

Another tokenizer, chat template or default for it would show as nothing but a low hit rate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import structlog

from sgl_router.tokenization import ModelTokenizer, TokenizeBadRequest, Unrenderable, tokenize_request
from sgl_router.upstream.control import FetchError, control_session, fetch
from sgl_router.upstream.fault import WorkerFault

if TYPE_CHECKING:
    from sgl_router.observability import Metrics
    from sgl_router.services import Model
    from sgl_router.workers import Worker

__all__ = ["TokenCheck", "TokenOutcome", "token_check"]

log = structlog.get_logger(__name__)

PATH = "/v1/tokenize"
_PROBES: tuple[dict[str, Any], ...] = (
    {"messages": [{"role": "user", "content": "Na\u00efve  caf\u00e9 \u4f60\u597d\n\t1 + 10 = 11"}]},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Name a colour."},
            {"role": "assistant", "content": "Blue."},
            {"role": "user", "content": "Another?"},
        ]
    },
    {"prompt": "Na\u00efve  caf\u00e9 \u4f60\u597d\n\t1 + 10 = 11"},
)
_ATTEMPTS = 4
_PAUSE_SECS = 2.0
_TIMEOUT_SECS = 10.0
_MAX_BODY_BYTES = 1 << 20
_AT_ONCE = 8
_SHOWN = 8


class TokenOutcome(str, Enum):
    """The metric's label."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNKNOWN = "unknown"
    """The worker cannot be asked, or what it does the router cannot do: nothing was compared."""
    UNREACHABLE = "unreachable"
    """No usable answer, asked again and again."""


class _Answer(msgspec.Struct):
    tokens: list[int]


class TokenCheck:
    """A listener of the registry. `count` gets one outcome per worker of a model in `tokenizers`; `differs` whether its
    tokens are not the router's, None once it has gone."""

    def __init__(
        self,
        tokenizers: Mapping[str, ModelTokenizer],
        count: Callable[[TokenOutcome], None],
        *,
        differs: Callable[[Worker, bool | None], None] = lambda worker, found: None,
        api_key: str | None = None,
        pause_secs: float = _PAUSE_SECS,
    ) -> None:
        self._tokenizers = tokenizers
        self._count = count
        self._differs = differs
        self._api_key = api_key
        self._pause_secs = pause_secs
        self._session: aiohttp.ClientSession | None = None
        self._tasks: dict[Worker, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def worker_added(self, worker: Worker) -> None:
        tokenizer = self._tokenizers.get(worker.model_id)
        if tokenizer is None:
            return
        if self._session is None:
            self._session = control_session()
        task = asyncio.create_task(self._run(self._session, worker, tokenizer), name="token check")
        self._tasks[worker] = task
        task.add_done_callback(lambda done: self._tasks.pop(worker) if self._tasks.get(worker) is done else None)

    def worker_removed(self, worker: Worker) -> None:
        task = self._tasks.get(worker)
        if task is not None:
            task.cancel()
        self._differs(worker, None)

    async def stop(self) -> None:
        """Ask nobody any more. After the last `worker_added`."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _run(self, session: aiohttp.ClientSession, worker: Worker, tokenizer: ModelTokenizer) -> None:
        try:
            outcome = await self._check(session, worker, tokenizer)
        except Exception:
            log.exception("token check failed", worker=worker.id)
            outcome = TokenOutcome.UNKNOWN
        self._count(outcome)
        self._differs(worker, outcome is TokenOutcome.DIFFERENT)

    async def _check(self, session: aiohttp.ClientSession, worker: Worker, tokenizer: ModelTokenizer) -> TokenOutcome:
        compared = False
        for probe in _PROBES:
            body = {"model": worker.model_id, **probe}
            try:
                ours = (await tokenize_request(tokenizer, body))["tokens"]
            except (Unrenderable, TokenizeBadRequest):
                continue  # a template without a system role, say, or a model whose chats are encoded in code
            try:
                theirs = await self._ask(session, worker, body)
            except FetchError as error:
                log.warning("worker's tokens could not be compared", worker=worker.id, reason=str(error))
                return TokenOutcome.UNREACHABLE
            if theirs is None:
                continue
            compared = True
            if theirs != ours:
                self._tell(worker, "chat" if "messages" in probe else "text", ours, theirs)
                return TokenOutcome.DIFFERENT
        return TokenOutcome.EQUAL if compared else TokenOutcome.UNKNOWN

    async def _ask(self, session: aiohttp.ClientSession, worker: Worker, body: dict[str, Any]) -> list[int] | None:
        """None where the worker has no such endpoint, or not for this. Raises FetchError after the last attempt."""
        encoded = msgspec.json.encode(body)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with self._turns:
                    reply = await fetch(
                        session,
                        worker.url,
                        PATH,
                        api_key=self._api_key,
                        timeout_secs=_TIMEOUT_SECS,
                        max_bytes=_MAX_BODY_BYTES,
                        body=encoded,
                    )
                if reply.status < 500:
                    return _tokens(reply.body) if reply.status == 200 else None
                problem = FetchError(WorkerFault.of_status(reply.status), f"HTTP {reply.status} from {PATH}")
            except FetchError as error:
                problem = error
            if attempt < _ATTEMPTS:
                await asyncio.sleep(self._pause_secs * attempt)
        raise problem

    def _tell(self, worker: Worker, what: str, ours: list[int], theirs: list[int]) -> None:
        pairs = zip(ours, theirs, strict=False)
        at = next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(ours), len(theirs)))
        settings = "tokenizer_path" if what == "text" else "tokenizer_path, chat_template, default_chat_template_kwargs"
        log.warning(
            "tokenizer mismatch: worker and router produce different token ids, so this worker's cache cannot be "
            "matched",
            of=what,
            worker=worker.id,
            url=worker.url,
            model=worker.model_id,
            position=at,
            worker_tokens=theirs[at : at + _SHOWN],
            router_tokens=ours[at : at + _SHOWN],
            compare=f"models[].{{{settings}}} with the worker's arguments",
        )


def token_check(models: Mapping[str, Model], metrics: Metrics, api_key: str | None) -> TokenCheck:
    """Of the models' tokenizers, counted in the metrics."""
    for outcome in TokenOutcome:
        metrics.token_checks.show(outcome.value)

    def differs(worker: Worker, found: bool | None) -> None:
        if found is None:
            metrics.tokens_differ.drop(worker.url)
        else:
            metrics.tokens_differ.set(found, worker.url)

    return TokenCheck(
        {model_id: model.tokenizer for model_id, model in models.items()},
        lambda outcome: metrics.token_checks.labels(outcome.value).inc(),
        differs=differs,
        api_key=api_key,
    )


def _tokens(body: bytes) -> list[int] | None:
    try:
        return msgspec.json.decode(body, type=_Answer).tokens
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
