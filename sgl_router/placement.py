"""Where a request goes, and why: one leg for each worker that takes part in answering it.

Guarantees: whatever shows a decision is derived from these two structs. Every field of a leg is in the operators' view
(`view`) and crosses to other processes as it is; the tables below say what the response header and the log line have of
it, and under which name. So a new field is one edit here.

Why legs: with prefill and decode apart, two workers answer one request. The first leg computes the prompt, the last one
answers; with one leg both are the same.
"""

from __future__ import annotations

from enum import Enum
from operator import attrgetter
from typing import Any

import msgspec

from sgl_router.workers.worker import Target, WorkerMode

__all__ = ["LOG_FIELDS", "LOG_FIRST", "CandidateCost", "DecisionReason", "Leg", "Placement", "Unmatched"]


class DecisionReason(str, Enum):
    """Why a target was chosen: response header, log field and metric label."""

    CACHE_HIT = "cache_hit"
    """The deepest matched prefix was long enough."""
    EXPECTED_HIT = "expected_hit"
    """As cache_hit, counting blocks that requests on their way will make the worker hold."""
    BELOW_THRESHOLD = "below_threshold"
    """Some prefix matched, not enough of it: least load."""
    NO_MATCH = "no_match"
    """No worker holds even the first block: least load."""
    SPREAD = "spread"
    """Others hold a prefix, but this target starts sooner (kv_cost)."""
    IMBALANCED = "imbalanced"
    """Load was too uneven for prefixes to decide: near the least load, whichever of those holds most of it."""
    UNMATCHABLE = "unmatchable"
    """The prompt's blocks cannot be known here (see `Unmatched`): least load."""
    ROUND_ROBIN = "round_robin"
    RANDOM = "random"
    POWER_OF_TWO = "power_of_two"
    ROUTING_UNAVAILABLE = "routing_unavailable"
    """The process that decides could not be asked: least load as far as the data process knows it."""


class Unmatched(str, Enum):
    """Why a prompt was not looked up in the index."""

    MEDIA = "media"
    NO_TEMPLATE = "no_template"
    TEMPLATE_ERROR = "template_error"
    INVALID_MESSAGES = "invalid_messages"
    CODE_ENCODER = "code_encoder"
    TOO_LONG = "too_long"
    """More text than any context has room for."""
    NAMESPACE = "namespace"
    """The request's cache namespace cannot be told from the events (extra_key)."""
    NOT_ASKED = "not_asked"
    """The policy does not look at prefixes."""


class CandidateCost(msgspec.Struct, frozen=True):
    """One candidate's terms; the least `total_ms` wins. Tokens are as the index and the load tracker know them."""

    target: Target
    compute_ms: float
    """Prompt tokens that the target has to compute, at the speed it has shown."""
    load_back_ms: float
    """Cached tokens that it must bring back to the device first."""
    queue_ms: float
    """Prompts ahead."""
    others_ms: float
    """What those who come after will wait for this prompt: computing and loading times the pressure."""
    decode_ms: float
    """Answers under way."""
    eviction_ms: float
    """Cached tokens that this prompt would push out."""
    session_ms: float
    """Below 0 for the target that the session's last request went to."""
    total_ms: float
    """The sum of the above."""
    uncached_tokens: int
    queued_tokens: int


class Leg(msgspec.Struct, frozen=True):
    """One worker's part, and why it was chosen. Blocks count pages of the chosen target; loads are requests in flight;
    costs are milliseconds."""

    target: Target
    reason: DecisionReason
    candidates: int
    min_load: int
    max_load: int
    matched_blocks: int = 0
    total_blocks: int = 0
    page_size: int = 0
    prompt_tokens: int | None = None
    unmatched: Unmatched | None = None
    epoch: int | None = None
    """Of the stream that the match was found in: what is reported later of another epoch says nothing of it."""
    expected_blocks: int = 0
    """Leading blocks held or about to be; at least `matched_blocks` wherever the prompt was matched."""
    cost_ms: float | None = None
    costs: tuple[CandidateCost, ...] | None = None

    @property
    def role(self) -> WorkerMode:
        return self.target.worker.mode

    @property
    def matched_tokens(self) -> int:
        return self.matched_blocks * self.page_size

    @property
    def uncached_tokens(self) -> int:
        """Prompt tokens that the target will have to compute, as far as that is known."""
        held = max(self.matched_blocks, self.expected_blocks) * self.page_size
        return max((self.prompt_tokens or 0) - held, 0)

    @property
    def prompt_blocks(self) -> int:
        """Pages of the whole prompt."""
        return -(-(self.prompt_tokens or 0) // max(self.page_size, 1))

    @property
    def match_rate(self) -> float:
        """Share of the reusable blocks that the target holds, 0..1."""
        return self.matched_blocks / self.total_blocks if self.total_blocks else 0.0


# What the header and the log line have of a leg: the name there, and where it stands. Strings among them are the
# router's own words and need no quoting.
_HEADER = (
    ("reason", "reason._value_"),
    ("matched", "matched_blocks"),
    ("total", "total_blocks"),
    ("page", "page_size"),
)
LOG_FIRST = (("worker", "target.worker.id"), ("reason", "reason._value_"))
LOG_FIELDS = (
    ("dp_rank", "target.dp_rank"),
    ("matched_blocks", "matched_blocks"),
    ("total_blocks", "total_blocks"),
    ("page", "page_size"),
    ("prompt_tokens", "prompt_tokens"),
    ("candidates", "candidates"),
    ("load_min", "min_load"),
    ("load_max", "max_load"),
)

_header_values = attrgetter(*(place for _, place in _HEADER))
_HEADER_FORMAT = "\r\nx-sgl-router-worker: %s\r\nx-sgl-router-decision: " + "; ".join(
    f"{name}=%s" for name, _ in _HEADER
)


class Placement(msgspec.Struct, frozen=True):
    """All legs of one request, at least one."""

    legs: tuple[Leg, ...]

    @property
    def prefill(self) -> Leg:
        """Where the prompt is computed."""
        return self.legs[0]

    @property
    def decode(self) -> Leg:
        """Where the response comes from."""
        return self.legs[-1]

    def header_lines(self) -> bytes:
        """Which worker answers (an opaque id), and why the prompt went where it did: blocks of it that were held, of
        how many a hit could cover."""
        leg, worker = self.legs[0], self.legs[-1].target.worker
        text = _HEADER_FORMAT % (worker.id, *_header_values(leg))
        if leg.expected_blocks > leg.matched_blocks:
            text += f"; expected={leg.expected_blocks}"
        if leg.unmatched is not None:
            text += f"; unmatched={leg.unmatched._value_}"
        if leg.target.worker.dp_size > 1:
            text += f"; dp_rank={leg.target.dp_rank}"
        return text.encode("ascii")

    def log_fields(self, which: tuple[tuple[str, str], ...]) -> dict[str, object]:
        """Of the first leg under their own names, of further ones with the role in front."""
        found: dict[str, object] = {}
        for number, leg in enumerate(self.legs):
            prefix = f"{leg.role.value}_" if number else ""
            found |= {prefix + name: attrgetter(place)(leg) for name, place in which}
        return found

    def view(self) -> dict[str, Any]:
        """For operators: every field, of the first leg at the top, of all of them under `legs` where there are more."""
        found = leg_view(self.legs[0])
        if len(self.legs) > 1:
            found["legs"] = [leg_view(leg) for leg in self.legs]
        return found


_HIDDEN = ("target", "epoch", "costs")


def leg_view(leg: Leg) -> dict[str, Any]:
    found: dict[str, Any] = {"worker": leg.target.worker.id, "dp_rank": leg.target.dp_rank}
    for name in leg.__struct_fields__:
        if name not in _HIDDEN:
            value = getattr(leg, name)
            if isinstance(value, Enum):
                value = value.value
            elif isinstance(value, float):
                value = round(value, 3)
            found[name] = value
    return found
