"""`sgl-router simulate`: how policies would do on a trace, without a single worker."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgl_router.simulate.simulation import FleetSettings
    from sgl_router.simulate.study import Study
    from sgl_router.simulate.trace import TraceRow

__all__ = ["add_arguments", "run_simulate"]

_DEFAULT_REQUESTS = 2_000
_BAR = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `simulate`. Policies and workloads are checked when it runs, so that `--help` need not load them."""
    source = parser.add_argument_group("workload (one of the two)")
    source.add_argument("--trace", metavar="FILE", help="Mooncake-format JSONL: timestamp, lengths, hash_ids")
    source.add_argument(
        "--workload",
        metavar="NAME",
        help="made up: shared_prompt, chats, unique, hot_prefix, bimodal, bursts",
    )
    _add(source, "--limit", _count, None, "N", f"requests to take (default: all; {_DEFAULT_REQUESTS} made up)")
    _add(source, "--requests-per-sec", _above_zero, 4.0, "R", "with --workload, on average")
    source.add_argument(
        "--rate",
        type=_above_zero,
        action="append",
        metavar="X",
        help="arrivals X times as fast; repeatable (default 1)",
    )
    _add(source, "--seed", int, 0, "N", "of the workload and of every choice by lot")

    fleet = parser.add_argument_group("fleet")
    _add(fleet, "--workers", _count, 8, "N", "workers")
    _add(fleet, "--cache-tokens", _count, 2_000_000, "N", "prefix cache of one worker")
    _add(fleet, "--prefill-tokens-per-sec", _above_zero, 8_000.0, "R", "prefill speed of one worker")
    _add(fleet, "--prefill-overhead-ms", _zero_or_more, 0.0, "MS", "per prefill step")
    _add(fleet, "--chunked-prefill-size", _natural, 0, "N", "tokens of a prefill step; 0: one whole prompt at a time")
    _add(fleet, "--decode-ms-per-token", _zero_or_more, 8.0, "MS", "a decode step")
    _add(fleet, "--decode-ms-per-running", _zero_or_more, 0.1, "MS", "more for every request in it")
    _add(fleet, "--max-running", _count, 256, "N", "requests running at once on a worker")
    _add(fleet, "--block-size", _count, 512, "N", "tokens of one of the trace's blocks")

    routers = parser.add_argument_group("routers")
    routers.add_argument(
        "--policy",
        action="append",
        metavar="NAME",
        help="a policy of the product, or dynamo_like, min_uncached_half_queue, late_shortest_work; repeatable "
        "(default: all)",
    )
    _add(routers, "--routers", _count, 1, "N", "routers, blind to each other's load")
    _add(routers, "--event-delay", _zero_or_more, 0.0, "SECS", "until routers hear of what a cache did")
    _add(routers, "--expect-ttl", _zero_or_more, 10.0, "SECS", "how long a dispatched prefix is expected; 0: never")
    _add(routers, "--load-report-interval", _zero_or_more, 0.0, "SECS", "between workers' load reports; 0: none")

    output = parser.add_argument_group("output")
    output.add_argument("--html", metavar="FILE", help="write a report with plots, one file that needs nothing else")
    output.add_argument("--json", metavar="FILE", help="write the numbers")
    output.add_argument("--per-request", action="store_true", help="with --json: every request's way, too")


def run_simulate(options: argparse.Namespace) -> int:
    """Simulate and report. 2 for a question that makes no sense."""
    from sgl_router.simulate.catalogue import policy_names
    from sgl_router.simulate.study import run_study
    from sgl_router.simulate.table import format_study
    from sgl_router.simulate.trace import TraceError

    policies = options.policy or policy_names()
    unknown = [name for name in policies if name not in policy_names()]
    if unknown:
        return _refuse(f"--policy {unknown[0]}: expected one of {', '.join(policy_names())}")
    settings = _settings(options)
    if settings.cache_tokens < 2 * settings.page_size:
        return _refuse(f"--cache-tokens {settings.cache_tokens}: expected two blocks of {settings.page_size} or more")
    for path in (options.html, options.json):
        if path is not None and not Path(path).absolute().parent.is_dir():
            return _refuse(f"{path}: its folder does not exist")
    try:
        name, rows = _workload(options)
    except (TraceError, OSError, ValueError) as error:
        return _refuse(str(error))
    study = run_study(
        name,
        rows,
        list(dict.fromkeys(policies)),
        list(dict.fromkeys(options.rate or [1.0])),
        settings,
        seed=options.seed,
        progress=_Bar() if sys.stderr.isatty() else lambda done, total, what: None,
    )
    print(format_study(study))
    _write(options, study)
    return 0


def _workload(options: argparse.Namespace) -> tuple[str, list[TraceRow]]:
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
    count = options.limit or _DEFAULT_REQUESTS
    rows = make_workload(options.workload, requests=count, per_sec=options.requests_per_sec, seed=options.seed)
    return options.workload, rows


def _settings(options: argparse.Namespace) -> FleetSettings:
    from sgl_router.simulate.simulation import FleetSettings

    return FleetSettings(
        workers=options.workers,
        cache_tokens=options.cache_tokens,
        page_size=options.block_size,
        prefill_tokens_per_sec=options.prefill_tokens_per_sec,
        prefill_overhead_ms=options.prefill_overhead_ms,
        decode_ms_per_token=options.decode_ms_per_token,
        decode_ms_per_running=options.decode_ms_per_running,
        max_running=options.max_running,
        chunk=options.chunked_prefill_size or None,
        routers=options.routers,
        event_delay=options.event_delay,
        expect_ttl_secs=options.expect_ttl,
        load_report_interval=options.load_report_interval or None,
    )


def _write(options: argparse.Namespace, study: Study) -> None:
    if options.json is not None:
        import msgspec

        from sgl_router.simulate.study import as_json

        encoded = msgspec.json.encode(as_json(study, per_request=options.per_request))
        Path(options.json).write_bytes(msgspec.json.format(encoded, indent=2))
    if options.html is not None:
        from sgl_router.simulate.report import render_report

        Path(options.html).write_text(render_report(study), encoding="utf-8")


class _Bar:
    """A progress bar that is redrawn when there is something to see."""

    def __init__(self) -> None:
        self._shown = ""

    def __call__(self, done: int, total: int, what: str) -> None:
        filled = _BAR * done // total
        line = f"[{'#' * filled}{'.' * (_BAR - filled)}] {100 * done // total:>3}% {what}"
        if line != self._shown:
            padding = " " * (len(self._shown) - len(line))
            self._shown = line
            print(f"\r{line}{padding}", end="", file=sys.stderr, flush=True)
        if done == total:
            print(f"\r{' ' * len(line)}\r", end="", file=sys.stderr, flush=True)


def _refuse(problem: str) -> int:
    print(f"sgl-router simulate: {problem}", file=sys.stderr)
    return 2


def _add(
    group: argparse._ArgumentGroup,
    flag: str,
    kind: Callable[[str], float],
    default: float | None,
    metavar: str,
    help: str,
) -> None:
    shown = "" if default is None else f" (default {default:,g})" if default < 1e6 else f" (default {default:,.0f})"
    group.add_argument(flag, type=kind, default=default, metavar=metavar, help=help + shown)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not finite")
    return value


def _above_zero(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _zero_or_more(text: str) -> float:
    value = _number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _natural(text: str) -> int:
    try:
        value = int(text.replace("_", ""))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _count(text: str) -> int:
    value = _natural(text)
    if not value:
        raise argparse.ArgumentTypeError("0 is not 1 or more")
    return value
