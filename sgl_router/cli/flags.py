"""Numbers on the command line, and the workload that `replay` shares with `simulate`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgl_router.lab.simulate.trace import TraceRow

__all__ = [
    "Workload",
    "above_zero",
    "add_flag",
    "add_workload_flags",
    "count",
    "duration",
    "natural",
    "read_workload",
    "zero_or_more",
]

_DEFAULT_REQUESTS = 2_000


def add_flag(
    group: argparse._ArgumentGroup,
    flag: str,
    kind: Callable[[str], float],
    default: float | None,
    metavar: str,
    help: str,
) -> None:
    """A flag with a value, and its default in its help."""
    shown = "" if default is None else f" (default {default:,g})" if default < 1e6 else f" (default {default:,.0f})"
    group.add_argument(flag, type=kind, default=default, metavar=metavar, help=help + shown)


def above_zero(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def zero_or_more(text: str) -> float:
    value = _number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not finite")
    return value


def count(text: str) -> int:
    value = natural(text)
    if not value:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def natural(text: str) -> int:
    try:
        value = int(text.replace("_", ""))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def duration(secs: float) -> str:
    """For people: `2.5 s`, `40 s`, `8 min 20 s`, `3 h 12 min`."""
    if secs < 10:
        return f"{secs:.2g} s"
    whole = round(secs)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _fraction(text: str) -> Fraction:
    """`1/16` or `0.25`: above 0, at most 1."""
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction like 1/16") from None
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1, like 1/16")
    return value


def add_workload_flags(group: argparse._ArgumentGroup, *, seed_of: str) -> None:
    """`--trace` or `--workload`, and what goes with them: what `read_workload` reads."""
    group.add_argument("--trace", metavar="FILE", help="Mooncake-format JSONL: timestamp, lengths, hash_ids")
    group.add_argument(
        "--workload", metavar="NAME", help="made up: shared_prompt, chats, unique, hot_prefix, bimodal, bursts"
    )
    add_flag(group, "--limit", count, None, "N", f"requests to take (default: all; {_DEFAULT_REQUESTS:,} made up)")
    add_flag(group, "--requests-per-sec", above_zero, 4.0, "R", "with --workload, on average")
    add_flag(group, "--block-size", count, 512, "N", "tokens of one of the trace's blocks")
    group.add_argument(
        "--token-scale",
        type=_fraction,
        default=Fraction(1),
        metavar="F",
        help="all lengths times F, for slow workers or short contexts: 1/16 makes blocks of 512 tokens 32 (default 1)",
    )
    add_flag(group, "--seed", int, 0, "N", seed_of)


@dataclass(frozen=True)
class Workload:
    """`rows` are scaled, to blocks of `block_tokens`."""

    name: str
    rows: list[TraceRow]
    block_tokens: int


def read_workload(options: argparse.Namespace) -> Workload:
    """What `--trace` or `--workload` names. Raises TraceError, ValueError, OSError."""
    from sgl_router.lab.simulate.trace import scale_rows

    block = options.block_size * options.token_scale
    if block.denominator != 1:
        tokens = max(1, round(block))
        works = Fraction(tokens, options.block_size)
        raise ValueError(
            f"--token-scale {options.token_scale}: blocks of {options.block_size} tokens would be {block}; "
            f"{works} makes them {tokens}"
        )
    name, rows = _rows(options)
    return Workload(name, scale_rows(rows, options.token_scale), int(block))


def _rows(options: argparse.Namespace) -> tuple[str, list[TraceRow]]:
    from sgl_router.lab.simulate.trace import BLOCK_TOKENS, read_trace
    from sgl_router.lab.simulate.workload import WORKLOADS, make_workload

    if (options.trace is None) == (options.workload is None):
        raise ValueError("--trace FILE or --workload NAME is required, and only one of them")
    if options.trace is not None:
        rows = read_trace(options.trace, limit=options.limit, block_tokens=options.block_size)
        return Path(options.trace).name, rows
    if options.workload not in WORKLOADS:
        raise ValueError(f"--workload {options.workload}: expected one of {', '.join(WORKLOADS)}")
    if options.block_size != BLOCK_TOKENS:
        raise ValueError(f"--block-size {options.block_size}: made-up workloads have blocks of {BLOCK_TOKENS}")
    requests = options.limit or _DEFAULT_REQUESTS
    rows = make_workload(options.workload, requests=requests, per_sec=options.requests_per_sec, seed=options.seed)
    return options.workload, rows
