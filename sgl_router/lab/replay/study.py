"""A replay with what it was asked for, and its form on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from sgl_router.lab.replay.measure import Summary

__all__ = ["Reading", "Replay", "as_json", "asked_of", "read_other"]


@dataclass(frozen=True)
class Replay:
    """`rows` are `rows_of` the calls."""

    workload: str
    url: str
    model: str
    rate: float
    seed: int
    block_tokens: int
    scale: str
    interrupted: bool
    summary: Summary
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Reading:
    """What another run wrote: a replay's summary, or a simulated policy's with the few figures both have. `asked`: what
    must be equal for the figures to compare."""

    name: str
    asked: dict[str, Any]
    figures: dict[str, Any]
    rows: list[dict[str, Any]] | None


def asked_of(replay: Replay) -> dict[str, Any]:
    return {name: value for name, value in as_json(replay, per_request=False).items() if name in _ASKED}


_ASKED = ("workload", "rate", "seed", "block_tokens", "token_scale")


def as_json(replay: Replay, *, per_request: bool) -> dict[str, Any]:
    """For machines. Times are in seconds."""
    return {
        "workload": replay.workload,
        "url": replay.url,
        "model": replay.model,
        "rate": replay.rate,
        "seed": replay.seed,
        "block_tokens": replay.block_tokens,
        "token_scale": replay.scale,
        "interrupted": replay.interrupted,
        "summary": msgspec.to_builtins(replay.summary),
        **({"requests": replay.rows} if per_request else {}),
    }


def read_other(path: str) -> Reading:
    """A file that `replay --json` or `simulate --json` wrote. Raises ValueError, OSError."""
    try:
        found = msgspec.json.decode(Path(path).read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    name = Path(path).stem
    try:
        if "rates" in found:
            rate, run = _only([(at["rate"], policy) for at in found["rates"] for policy in at["policies"]], path)
            asked = {"workload": found["workload"], "rate": rate, "block_tokens": found["fleet"]["page_size"]}
            return Reading(f"{name} (simulated)", asked, run["summary"], run.get("requests"))
        asked = {field: found[field] for field in _ASKED}
        return Reading(name, asked, found["summary"], found.get("requests"))
    except (KeyError, TypeError):
        raise ValueError(f"{path}: neither replay's --json nor simulate's") from None


def _only(runs: list[Any], path: str) -> Any:
    if len(runs) != 1:
        raise ValueError(f"{path}: {len(runs)} simulations; simulate one --policy at one --rate to compare with")
    return runs[0]
