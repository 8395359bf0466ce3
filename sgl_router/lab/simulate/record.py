"""What is kept of every request."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sgl_router.lab.simulate.job import Job

__all__ = ["Record"]


@dataclass
class Record:
    """One request's way. Times are simulated seconds; what did not happen is nan. `worker` is -1 where it was refused.

    `predicted_tokens` is what the index said the worker had cached (None: nobody asked it), `cached_tokens` what it
    turned out to have.
    """

    job: Job
    router: int
    worker: int = -1
    reason: str = ""
    dispatched_at: float = math.nan
    started_at: float = math.nan
    first_token_at: float = math.nan
    finished_at: float = math.nan
    predicted_tokens: int | None = None
    cached_tokens: int = 0
    endings: int = 0

    @property
    def ttft(self) -> float:
        return self.first_token_at - self.job.arrival

    @property
    def queued(self) -> float:
        """From arrival to the start of the prompt's computation, wherever that was spent."""
        return self.started_at - self.job.arrival

    @property
    def held(self) -> float:
        """Of that, in the router."""
        return self.dispatched_at - self.job.arrival
