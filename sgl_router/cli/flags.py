"""Numbers on the command line, and the workload that `replay` shares with `simulate`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgl_router.simulate.trace import TraceRow

__all__ = ["above_zero", "add_flag", "count", "fraction", "read_workload"]

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
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not finite")
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def count(text: str) -> int:
    try:
        value = int(text.replace("_", ""))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def fraction(text: str) -> Fraction:
    """`1/16` or `0.25`: above 0, at most 1."""
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction like 1/16") from None
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


def read_workload(options: argparse.Namespace) -> tuple[str, list[TraceRow]]:
    """Name and rows of `--trace` or `--workload`. Raises TraceError, ValueError, OSError."""
    from sgl_router.simulate.trace import BLOCK_TOKENS, read_trace
    from sgl_router.simulate.workload import WORKLOADS, make_workload

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
