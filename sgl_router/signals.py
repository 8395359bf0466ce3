"""What signals do in every process of the router. No heavy imports: it comes first."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["LEAVING", "dump_on_request", "handle", "held_back", "hold", "ignore_all", "leave_before_start"]

LEAVING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
"""Drain, then stop; the second one exits at once."""
_UNUSED = (signal.SIGHUP, signal.SIGUSR2)
_HARMLESS = (*_UNUSED, signal.SIGUSR1)


def hold() -> None:
    """To be called first of all: until `handle`, nothing that is meant for a running router ends a starting one.
    SIGTERM does, cleanly, also where this is process 1 of a container, whom it would not reach."""
    for number in _HARMLESS:
        signal.signal(number, signal.SIG_IGN)
    for number in LEAVING:
        signal.signal(number, _leave)


def handle(loop: asyncio.AbstractEventLoop, forward: Callable[[signal.Signals], None] | None = None) -> None:
    """From the main thread, once there are a loop and a log: SIGUSR1 as `dump_on_request` has it, SIGHUP and SIGUSR2
    are logged and do nothing."""
    import structlog

    log = structlog.get_logger(__name__)

    def ignore(number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        log.warning("signal ignored: the configuration is read once, a change needs a restart", signal=name)

    dump_on_request(loop, forward)
    for number in _UNUSED:
        signal.signal(number, ignore)


def dump_on_request(loop: asyncio.AbstractEventLoop, forward: Callable[[signal.Signals], None] | None = None) -> None:
    """SIGUSR1 writes where every task of `loop` stands into the log. `forward` is called with it first."""
    from sgl_router.observability.standing import log_standing

    context = contextvars.copy_context()  # with what the log says of this process

    def dump(number: int, frame: Any) -> None:
        if forward is not None:
            forward(signal.SIGUSR1)
        context.copy().run(log_standing, loop, frame)

    # Not by the loop: a handler of the interpreter's runs where the loop is held by Python code, too.
    signal.signal(signal.SIGUSR1, dump)


def leave_before_start(loop: asyncio.AbstractEventLoop) -> None:
    """These signals end the process at once, whatever it waits for, as `hold` has it, and the log says so: there is
    nothing to drain yet."""

    def leave(number: signal.Signals) -> None:
        import structlog

        from sgl_router.observability import flush_logs

        structlog.get_logger(__name__).info("signal received before the router had started", signal=number.name)
        flush_logs()
        _leave(number, None)

    for number in LEAVING:
        loop.add_signal_handler(number, leave, number)


@contextmanager
def held_back() -> Iterator[None]:
    """A process that is started meanwhile gets none of these signals until it calls `ignore_all`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*LEAVING, *_HARMLESS))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_all() -> None:
    """For a child: when to go is its parent's to say, and what was held back for it until now is forgotten."""
    for number in (*LEAVING, *_HARMLESS):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*LEAVING, *_HARMLESS))


def _leave(number: int, frame: Any) -> None:
    """At once: an exception might be caught by whatever is imported just now."""
    os._exit(130 if number == signal.SIGINT else 0)
