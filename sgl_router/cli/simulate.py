"""`sgl-router simulate`: how policies would do on a trace, without a single worker."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sgl_router.cli.bar import Bar
from sgl_router.cli.flags import above_zero, add_flag, add_workload_flags, count, natural, read_workload, zero_or_more

if TYPE_CHECKING:
    from sgl_router.config import ModelConfig
    from sgl_router.lab.simulate.simulation import FleetSettings
    from sgl_router.lab.simulate.study import Study

__all__ = ["add_arguments", "run_simulate"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `simulate`. Policies and workloads are checked when it runs, so that `--help` need not load them."""
    source = parser.add_argument_group("workload (one of the two)")
    add_workload_flags(source, seed_of="of the workload and of every choice by lot")
    source.add_argument(
        "--rate",
        type=above_zero,
        action="append",
        metavar="X",
        help="arrivals X times as fast; repeatable (default 1)",
    )

    fleet = parser.add_argument_group("fleet")
    add_flag(fleet, "--workers", count, 8, "N", "workers")
    add_flag(fleet, "--cache-tokens", count, 2_000_000, "N", "prefix cache of one worker")
    add_flag(fleet, "--prefill-tokens-per-sec", above_zero, 8_000.0, "R", "prefill speed of one worker")
    add_flag(fleet, "--prefill-overhead-ms", zero_or_more, 0.0, "MS", "per prefill step")
    add_flag(fleet, "--chunked-prefill-size", natural, 0, "N", "tokens of a prefill step; 0: a whole prompt each")
    add_flag(fleet, "--decode-ms-per-token", zero_or_more, 8.0, "MS", "a decode step")
    add_flag(fleet, "--decode-ms-per-running", zero_or_more, 0.1, "MS", "more for every request in it")
    add_flag(fleet, "--max-running", count, 256, "N", "requests running at once on a worker")

    routers = parser.add_argument_group("routers")
    routers.add_argument(
        "--policy",
        action="append",
        metavar="NAME",
        help="of the product: round_robin, random, power_of_two, cache_aware_zmq, kv_cost, kv_cost+queue (kv_cost, and "
        "requests held in the router while every worker is busy); for reference: dynamo_like, "
        "min_uncached_half_queue, late_shortest_work; repeatable (default: all)",
    )
    routers.add_argument(
        "--config",
        metavar="FILE",
        help="a router's configuration: the product's policies have its model's cache_aware, kv_cost and queue "
        "settings (default: the product's)",
    )
    routers.add_argument("--model", metavar="NAME", help="with --config: which model, where there are several")
    routers.add_argument(
        "--unbounded-queue",
        action="store_true",
        help="kv_cost+queue refuses nobody: any number may wait for any time, max_waiting and max_wait_secs or not",
    )
    add_flag(routers, "--routers", count, 1, "N", "routers; of each other's load they know what load reports say")
    add_flag(routers, "--event-delay", zero_or_more, 0.0, "SECS", "until routers hear of what a cache did")
    add_flag(routers, "--expect-ttl", zero_or_more, 10.0, "SECS", "how long a dispatched prefix is expected; 0: never")
    add_flag(routers, "--load-report-interval", zero_or_more, 0.0, "SECS", "between workers' load reports; 0: none")

    output = parser.add_argument_group("output")
    output.add_argument("--html", metavar="FILE", help="write a report with plots, one file that needs nothing else")
    output.add_argument("--json", metavar="FILE", help="write the numbers")
    output.add_argument("--per-request", action="store_true", help="with --json: every request's way, too")


def run_simulate(options: argparse.Namespace) -> int:
    """Simulate and report. 1 where a file cannot be written, 2 for a question that makes no sense."""
    from sgl_router.config import ConfigError
    from sgl_router.lab.simulate.catalogue import policy_names
    from sgl_router.lab.simulate.study import run_study
    from sgl_router.lab.simulate.table import format_study
    from sgl_router.lab.simulate.trace import TraceError

    policies = options.policy or policy_names()
    unknown = [name for name in policies if name not in policy_names()]
    if unknown:
        return _refuse(f"--policy {unknown[0]}: expected one of {', '.join(policy_names())}")
    for path in (options.html, options.json):
        if path is not None and not Path(path).absolute().parent.is_dir():
            return _refuse(f"{path}: its folder does not exist")
    try:
        workload, model = read_workload(options), _model(options)
    except ConfigError as error:
        return _refuse("\n  ".join((f"{options.config} is not a valid configuration:", *str(error).splitlines())))
    except (TraceError, OSError, ValueError) as error:
        return _refuse(str(error))
    settings = _settings(options, workload.block_tokens)
    if settings.cache_tokens < 2 * settings.page_size:
        return _refuse(f"--cache-tokens {settings.cache_tokens}: expected two blocks of {settings.page_size} or more")
    bar = Bar() if sys.stderr.isatty() else None

    def tell(done: int, total: int, what: str) -> None:
        if bar is not None:
            bar.show(done, total, f"{100 * done // total:>3}% {what}")

    try:
        study = run_study(
            workload.name,
            workload.rows,
            list(dict.fromkeys(policies)),
            list(dict.fromkeys(options.rate or [1.0])),
            settings,
            seed=options.seed,
            model=model,
            progress=tell,
        )
    finally:
        if bar is not None:
            bar.wipe()
    status = 0
    try:
        _write(options, study)  # before the table, whose reader (`head`, say) may leave
    except OSError as error:
        print(f"sgl-router simulate: {error}", file=sys.stderr)
        status = 1
    print(format_study(study))
    return status


def _model(options: argparse.Namespace) -> ModelConfig | None:
    """Whose settings the product's policies have. Raises ConfigError, ValueError."""
    from sgl_router.config import load_config
    from sgl_router.lab.simulate.catalogue import without_bounds

    model: ModelConfig | None = None
    if options.config is not None:
        models = load_config(options.config).config.models
        named = [one for one in models if options.model in (None, one.id)]
        if len(named) != 1:
            has = ", ".join(one.id for one in models)
            raise ValueError(f"--model {options.model or 'NAME'}: {options.config} has {has}; name one of them")
        model = named[0]
    elif options.model is not None:
        raise ValueError("--model is for --config FILE")
    return without_bounds(model) if options.unbounded_queue else model


def _settings(options: argparse.Namespace, block_tokens: int) -> FleetSettings:
    from sgl_router.lab.simulate.simulation import FleetSettings

    return FleetSettings(
        workers=options.workers,
        cache_tokens=options.cache_tokens,
        page_size=block_tokens,
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

        from sgl_router.lab.simulate.study import as_json

        encoded = msgspec.json.encode(as_json(study, per_request=options.per_request))
        Path(options.json).write_bytes(msgspec.json.format(encoded, indent=2))
    if options.html is not None:
        from sgl_router.lab.simulate.report import render_report

        Path(options.html).write_text(render_report(study), encoding="utf-8")


def _refuse(problem: str) -> int:
    print(f"sgl-router simulate: {problem}", file=sys.stderr)
    return 2
