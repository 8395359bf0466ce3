"""Where every task and thread of a process stands, for the log."""

from __future__ import annotations

import asyncio
import sys
import threading
from types import FrameType
from typing import Any, NamedTuple

import structlog

__all__ = ["Stand", "log_standing", "task_stands", "thread_stands"]

log = structlog.get_logger(__name__)

MAX_TASKS = 4_000
MAX_LINES = 64
MAX_THREADS = 32
MAX_FRAMES = 12
_NAMES = 3


class Stand(NamedTuple):
    """What so many tasks have in common: the innermost frame last, each as `module:line function`. `names`: some."""

    tasks: int
    names: list[str]
    stack: str


def log_standing(loop: asyncio.AbstractEventLoop, frame: FrameType | None = None) -> None:
    """Write it all, a line for each place where tasks stand: the most crowded places first, bounded in number.

    `frame`: where the main thread was interrupted. No values of variables are shown: among those are prompts and keys.
    """
    tasks = [task for task in asyncio.all_tasks(loop) if not task.done()]
    stands = task_stands(tasks[:MAX_TASKS])
    threads = thread_stands(frame)
    log.warning(
        "SIGUSR1: where tasks and threads stand",
        tasks=len(tasks),
        looked_at=min(len(tasks), MAX_TASKS),
        places=len(stands),
        threads=threading.active_count(),
    )
    for stand in stands[:MAX_LINES]:
        log.warning("where the tasks are", tasks=stand.tasks, names=stand.names, stack=stand.stack)
    for stand in threads:
        log.warning("where a thread is", name=stand.names[0], stack=stand.stack)


def task_stands(tasks: list[asyncio.Task[Any]]) -> list[Stand]:
    """Tasks that stand at the same place together."""
    places: dict[str, list[str]] = {}
    for task in tasks:
        places.setdefault(_waiting_for(task.get_coro()), []).append(task.get_name())
    stands = [Stand(len(names), names[:_NAMES], stack) for stack, names in places.items()]
    return sorted(stands, key=lambda stand: -stand.tasks)


def thread_stands(interrupted: FrameType | None = None) -> list[Stand]:
    """`interrupted`: the frame of this thread, in place of the one that asks."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()
    if interrupted is not None:
        frames[threading.get_ident()] = interrupted
    return [
        Stand(1, [names.get(ident) or f"thread {ident}"], _called_from(frame))
        for ident, frame in list(frames.items())[:MAX_THREADS]
    ]


def _waiting_for(awaited: Any) -> str:
    """The chain of what a suspended coroutine awaits, outermost first."""
    steps: list[str] = []
    while awaited is not None and len(steps) < 100:
        for kind in ("cr", "gi", "ag"):
            frame = getattr(awaited, f"{kind}_frame", None)
            if frame is not None:
                steps.append(_place(frame))
                awaited = getattr(awaited, f"{kind}_yieldfrom" if kind == "gi" else f"{kind}_await", None)
                break
        else:
            steps += [] if steps else [type(awaited).__name__]  # a future, at the end of the chain
            break
    return _joined(steps)


def _called_from(frame: FrameType | None) -> str:
    steps: list[str] = []
    while frame is not None and len(steps) < 100:
        steps.append(_place(frame))
        frame = frame.f_back
    return _joined(steps[::-1])


def _joined(steps: list[str]) -> str:
    if len(steps) > MAX_FRAMES:
        steps = [steps[0], "...", *steps[len(steps) - MAX_FRAMES + 1 :]]
    return " > ".join(steps)


def _place(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__', '?')}:{frame.f_lineno} {frame.f_code.co_name}"
