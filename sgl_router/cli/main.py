"""The `sgl-router` command. Heavy imports wait until a command needs them, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sgl_router import __version__

__all__ = ["main"]

_EPILOG = """examples:
  sgl-router --config config.yaml           route for the workers in config.yaml
  sgl-router --config config.yaml --check   validate it and exit (status 2 if it is wrong)
  sgl-router demo --drive                   mock workers, a router and a short workload, nothing else needed
  sgl-router simulate --trace trace.jsonl   compare policies on recorded traffic, without workers
  sgl-router replay --trace trace.jsonl     send it to a running router, or to another server (--url)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the value is the exit status."""
    parser = _parser()
    from sgl_router.cli.gateway_flags import explain_flags

    foreign = explain_flags(sys.argv[1:] if argv is None else argv)
    if foreign is not None:
        parser.exit(2, f"sgl-router: {foreign}\n")
    options = parser.parse_args(argv)
    if options.command is not None and (options.router_config is not None or options.check):
        parser.error(f"--config and --check before a command: {options.command} takes its flags after its name")
    try:
        return _run(parser, options)
    except KeyboardInterrupt:
        return 130


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.command == "demo":
        from sgl_router.cli.demo import run_demo

        return run_demo(options)
    if options.command == "mock-worker":
        from sgl_router.lab.mock_worker.cli import run

        return run(options)
    if options.command == "simulate":
        from sgl_router.cli.simulate import run_simulate

        return run_simulate(options)
    if options.command == "replay":
        from sgl_router.cli.replay import run_replay_command

        return run_replay_command(options)
    if options.router_config is None:
        parser.error("--config FILE is required (or a command: demo, mock-worker, simulate, replay)")
    from sgl_router.cli.serve import check, serve

    return check(options.router_config) if options.check else serve(options.router_config)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sgl-router",
        description="KV-event-driven, cache-aware router for SGLang workers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # Not `config`: what a command's own --config leaves there would hide that it was given here.
    parser.add_argument(
        "--config", dest="router_config", metavar="FILE", help="configuration, YAML (.yaml, .yml) or TOML (.toml)"
    )
    parser.add_argument("--check", action="store_true", help="validate the configuration and exit")
    parser.add_argument("--version", action="version", version=f"sgl-router {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    demo = commands.add_parser("demo", help="mock workers and a router on this machine, no GPU, no download")
    _add_demo_arguments(demo)
    worker = commands.add_parser("mock-worker", help="one mock SGLang worker that speaks the real protocols")
    from sgl_router.lab.mock_worker.cli import add_arguments

    add_arguments(worker)
    simulation = commands.add_parser("simulate", help="how policies would do on a trace of requests, without workers")
    from sgl_router.cli.simulate import add_arguments as add_simulate_arguments

    add_simulate_arguments(simulation)
    from sgl_router.cli.replay import DESCRIPTION
    from sgl_router.cli.replay import add_arguments as add_replay_arguments

    replay = commands.add_parser(
        "replay",
        help="a trace sent as real requests, to a router or any OpenAI-compatible server",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_replay_arguments(replay)
    return parser


def _add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=_count, default=2, metavar="N", help="mock workers (default 2)")
    parser.add_argument("--port", type=_port, help="the router's port, 0 for any (default 30000, any if that is taken)")
    parser.add_argument("--drive", action="store_true", help="send a short multi-turn workload, report, and exit")
    parser.add_argument("--conversations", type=_count, default=6, metavar="N", help="with --drive (default 6)")
    parser.add_argument("--turns", type=_count, default=4, metavar="N", help="with --drive (default 4)")
    parser.add_argument(
        "--policy",
        choices=("cache_aware_zmq", "kv_cost", "round_robin", "random", "power_of_two"),
        default="cache_aware_zmq",
        help="the router's policy (default cache_aware_zmq)",
    )


def _port(text: str) -> int:
    return _within(text, 0, 65535)


def _count(text: str) -> int:
    return _within(text, 1, 64)


def _within(text: str, least: int, most: int) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {most}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
