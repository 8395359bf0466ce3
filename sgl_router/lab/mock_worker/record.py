"""What a mock worker remembers of the requests it got, for assertions and for tables."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

_KEPT = 1000


class Outcome(str, Enum):
    """How a request ended at the worker."""

    PENDING = "pending"
    COMPLETED = "completed"
    ABORTED = "aborted"
    REFUSED = "refused"
    FAULTED = "faulted"


@dataclass(eq=False)
class RequestRecord:
    """One generating request. `headers` have lower-case names; `body` is the decoded JSON."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any] = field(default_factory=dict)
    rid: str | None = None
    dp_rank: int | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    outcome: Outcome = Outcome.PENDING


class RequestLog:
    """The last generating requests, oldest first."""

    def __init__(self) -> None:
        self._records: deque[RequestRecord] = deque(maxlen=_KEPT)
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self.total = 0

    @property
    def records(self) -> list[RequestRecord]:
        """Everything remembered."""
        return list(self._records)

    @property
    def last(self) -> RequestRecord:
        """The latest request."""
        return self._records[-1]

    def count(self, outcome: Outcome) -> int:
        """How many remembered requests ended so."""
        return sum(record.outcome is outcome for record in self._records)

    def start(self, path: str, headers: dict[str, str]) -> RequestRecord:
        """Remember a request that just arrived."""
        record = RequestRecord(path, headers)
        self._records.append(record)
        self.total += 1
        self._tell()
        return record

    def accept(self, record: RequestRecord, *, rid: str, dp_rank: int, prompt_tokens: int) -> None:
        """Note what a request was understood as."""
        record.rid, record.dp_rank, record.prompt_tokens = rid, dp_rank, prompt_tokens
        self._tell()

    def end(self, record: RequestRecord, outcome: Outcome) -> None:
        """Note how a request ended; the first note stands."""
        if record.outcome is Outcome.PENDING:
            record.outcome = outcome
            self._tell()

    async def wait_for(self, condition: Callable[[RequestLog], bool], *, timeout: float = 5.0) -> None:
        """Wait until a condition on the log holds."""
        if condition(self):
            return
        met = asyncio.get_running_loop().create_future()
        self._waiters.append((lambda: condition(self), met))
        await asyncio.wait_for(met, timeout)

    def _tell(self) -> None:
        for holds, met in self._waiters:
            if not met.done() and holds():
                met.set_result(None)
        self._waiters = [waiter for waiter in self._waiters if not waiter[1].done()]
