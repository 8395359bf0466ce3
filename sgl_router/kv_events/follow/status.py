"""What an index tells about its streams: one by one, and all together since the start."""

from __future__ import annotations

from dataclasses import dataclass, field

from sgl_router.kv_events.follow.repair import RepairOutcome
from sgl_router.kv_events.follow.stream import DistrustReason, EventStream, StreamState
from sgl_router.kv_events.follow.wire import DecodeFailure
from sgl_router.kv_events.index.agreement import Agreement
from sgl_router.kv_events.index.witness import Witness

__all__ = ["IndexTotals", "RankStatus"]


@dataclass(frozen=True)
class RankStatus:
    """One stream, for people and dashboards. `blocks` by tier name."""

    dp_rank: int
    endpoint: str
    connected: bool
    state: StreamState
    complete: bool
    untrusted_for: DistrustReason | None
    next_seq: int | None
    page_size: int
    bigram: bool
    blocks: dict[str, int]
    expected_blocks: int
    lag_secs: float
    witness: Witness
    stream: EventStream

    @property
    def agreement(self) -> Agreement:
        return self.witness.agreement


@dataclass
class IndexTotals:
    """Faults of all streams since the start; they outlive the workers they came from."""

    gaps: int = 0
    missing: int = 0
    restarts: int = 0
    resyncs: int = 0
    repairs: dict[RepairOutcome, int] = field(default_factory=dict)
    failures: dict[DecodeFailure, int] = field(default_factory=dict)
