"""How the router's answers are read. Every test goes through here, so a change of format is a change of this file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WORKER_HEADER = "x-sgl-router-worker"
DECISION_HEADER = "x-sgl-router-decision"
ERROR_HEADER = "x-router-error-code"
HIT = "cache_hit"


@dataclass(frozen=True)
class Decision:
    """The decision header: why, how many of the prompt's blocks the chosen target was believed to hold, and where."""

    reason: str
    matched: int
    total: int | None
    page: int | None
    rank: int | None
    raw: str

    @property
    def hit(self) -> bool:
        return self.reason == HIT

    def tokens(self, page: int) -> int:
        """Tokens predicted to be cached; `page` counts where the header does not say."""
        return self.matched * (self.page or page)


def parse_decision(header: str | None) -> Decision:
    """`reason=cache_hit; matched=8; total=9; page=16`; also `matched=8/9`, commas, and further keys."""
    assert header, f"no {DECISION_HEADER} header"
    fields: dict[str, str] = {}
    for part in re.split(r"[;,]", header):
        key, _, value = part.partition("=")
        fields[key.strip().lower().replace("-", "_")] = value.strip().strip('"')
    assert "reason" in fields, f"no reason in {DECISION_HEADER}: {header!r}"
    matched, _, total = fields.get("matched", "0").partition("/")
    return Decision(
        reason=fields["reason"],
        matched=int(matched),
        total=_number(total or fields.get("total")),
        page=_number(fields.get("page")),
        rank=_number(fields.get("rank", fields.get("dp_rank"))),
        raw=header,
    )


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


@dataclass(frozen=True)
class StreamView:
    """What the router says of one rank's event stream."""

    raw: Mapping[str, Any]

    @property
    def witnessed(self) -> bool:
        """Its claims are in use, and they are all that the engine holds."""
        return self.raw["state"] == "live" and bool(self.raw["complete"])

    @property
    def next_seq(self) -> int | None:
        number = self.raw["next_seq"]
        return None if number is None else int(number)

    def count(self, what: str) -> int:
        """`frames`, `gaps`, `missing`, `replayed`, `restarts`."""
        return int(self.raw[what])


@dataclass(frozen=True)
class WorkerView:
    """One entry of GET /workers."""

    raw: Mapping[str, Any]

    @property
    def id(self) -> str:
        return str(self.raw["id"])

    @property
    def url(self) -> str:
        return str(self.raw["url"]).rstrip("/")

    @property
    def healthy(self) -> bool:
        return self.raw["health"] == "healthy"

    @property
    def generation(self) -> int:
        return int(self.raw["generation"])

    @property
    def inflight(self) -> int:
        return int(self.raw["inflight"])

    def blocks(self) -> list[int]:
        """Device blocks the index holds, per rank."""
        return [int(rank["blocks"].get("GPU", 0)) for rank in self._ranks()]

    def streams(self) -> list[StreamView]:
        """The event stream of each rank."""
        return [StreamView(rank["stream"]) for rank in self._ranks()]

    def _ranks(self) -> list[Mapping[str, Any]]:
        return sorted(self.raw["ranks"], key=lambda rank: int(rank["dp_rank"]))


def cached_tokens(usage: Mapping[str, Any]) -> int:
    """What the engine says it took from its cache. It says nothing unless started with --enable-cache-report."""
    details = usage.get("prompt_tokens_details")
    assert details is not None, "no prompt_tokens_details in the usage: is --enable-cache-report on?"
    return int(details["cached_tokens"] or 0)
