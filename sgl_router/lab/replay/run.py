"""One replay from its settings to its numbers."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from sgl_router.lab.replay.call import Call
from sgl_router.lab.replay.client import ChatClient
from sgl_router.lab.replay.measure import rows_of, summarise
from sgl_router.lab.replay.prompts import PromptMaker
from sgl_router.lab.replay.sender import Sender
from sgl_router.lab.replay.study import Replay
from sgl_router.lab.simulate.trace import TraceRow

__all__ = ["ReplaySettings", "run_replay"]

# Until the first request leaves: time to write its prompt.
_LEAD_SECS = 0.2
_TICK_SECS = 0.1


@dataclass(frozen=True)
class ReplaySettings:
    """What to send and where. `rows` are scaled already, to blocks of `block_tokens`; `model` None: the only one."""

    workload: str
    rows: Sequence[TraceRow]
    block_tokens: int
    scale: Fraction
    rate: float
    seed: int
    url: str
    model: str | None
    api_key: str | None
    max_in_flight: int
    timeout_secs: float
    ignore_eos: bool


async def run_replay(
    settings: ReplaySettings, maker: PromptMaker, *, progress: Callable[[Sender, int], None] | None = None
) -> Replay:
    """Send everything, or until SIGINT. Raises ServerProblem where the server's only model cannot be found out."""
    began = time.perf_counter()  # not the loop's time: uvloop's has milliseconds only

    def clock() -> float:
        return time.perf_counter() - began

    first = settings.rows[0].timestamp_ms
    calls = [
        Call(number, row, (row.timestamp_ms - first) / 1e3 / settings.rate) for number, row in enumerate(settings.rows)
    ]
    client = ChatClient(
        settings.url,
        api_key=settings.api_key,
        timeout_secs=settings.timeout_secs,
        ignore_eos=settings.ignore_eos,
        clock=clock,
    )
    async with client:
        client.model = await client.only_model() if settings.model is None else settings.model
        sender = Sender(client, maker, calls, max_in_flight=settings.max_in_flight)
        began = time.perf_counter() + _LEAD_SECS
        finished = await _until_done_or_interrupted(sender, clock, progress, len(calls))
    sent = sender.sent
    return Replay(
        workload=settings.workload,
        url=settings.url,
        model=client.model,
        rate=settings.rate,
        seed=settings.seed,
        block_tokens=settings.block_tokens,
        scale=str(settings.scale),
        interrupted=not finished,
        summary=summarise(sent, client.gaps, [maker.tokens(call.row) for call in sent]),
        rows=rows_of(sent),
    )


async def _until_done_or_interrupted(
    sender: Sender, clock: Callable[[], float], progress: Callable[[Sender, int], None] | None, total: int
) -> bool:
    loop = asyncio.get_running_loop()
    sending = asyncio.ensure_future(sender.run(clock))
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        interrupted = True
        sending.cancel()

    handles = True
    try:
        loop.add_signal_handler(signal.SIGINT, interrupt)
    except (NotImplementedError, RuntimeError, ValueError):
        handles = False  # not in the main thread: whoever is there sees to signals
    try:
        while not (await asyncio.wait([sending], timeout=_TICK_SECS))[0]:
            if progress is not None:
                progress(sender, total)
        if progress is not None:
            progress(sender, total)
    finally:
        if handles:
            loop.remove_signal_handler(signal.SIGINT)
        sending.cancel()  # no effect on what is done
        with contextlib.suppress(asyncio.CancelledError):
            await sending
    return not interrupted
