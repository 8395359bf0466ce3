"""`sgl-router replay`: a trace sent as real requests, and what its clients saw."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from sgl_router.cli.bar import Bar
from sgl_router.cli.flags import above_zero, add_flag, add_workload_flags, count, duration, read_workload

if TYPE_CHECKING:
    from sgl_router.lab.replay.prompts import PromptMaker
    from sgl_router.lab.replay.run import ReplaySettings
    from sgl_router.lab.replay.sender import Sender
    from sgl_router.lab.replay.study import Reading, Replay

__all__ = ["DESCRIPTION", "add_arguments", "run_replay_command"]

DESCRIPTION = """Sends a trace as streaming chat requests to a router, or to any OpenAI-compatible server.

Requests leave when the trace says so, however slow the answers are. Prompts are words of one token each, chosen by
the trace's hash_ids: the same id at the same position is the same text, and a block has the trace's number of tokens
in the whole prompt, chat template included. Only hash_ids decide what prompts have in common: answers are not fed
back, so a later turn of a conversation repeats the earlier prompt but not what the server answered to it.
"""

_INTERRUPTED = 130
_FILES_BESIDE_CONNECTIONS = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `replay`."""
    source = parser.add_argument_group("workload (one of the two)")
    add_workload_flags(
        source,
        seed_of="of the workload and the words: with another seed the same trace has other texts, so that a fleet "
        "which has seen them starts cold",
    )
    add_flag(source, "--rate", above_zero, 1.0, "X", "arrivals X times as fast")

    server = parser.add_argument_group("server")
    server.add_argument(
        "--url",
        default="http://127.0.0.1:30000",
        help="where /v1/chat/completions is (default http://127.0.0.1:30000)",
    )
    server.add_argument("--model", metavar="NAME", help="model to ask for (default: the only one the server lists)")
    server.add_argument("--api-key-env", metavar="VAR", help="environment variable with the key to send")
    server.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="the server's tokenizer: a directory, a tokenizer.json or a hub id (default: the mock workers')",
    )
    server.add_argument(
        "--no-ignore-eos",
        action="store_true",
        help="leave ignore_eos out, for servers that refuse it; answers may then end early",
    )
    add_flag(server, "--max-in-flight", count, 4096, "N", "requests due beyond so many open ones are dropped, counted")
    add_flag(server, "--timeout", above_zero, 600.0, "SECS", "for one request, to its last token")

    output = parser.add_argument_group("output")
    output.add_argument("--html", metavar="FILE", help="write a report with plots, one file that needs nothing else")
    output.add_argument("--json", metavar="FILE", help="write the numbers")
    output.add_argument(
        "--per-request", action="store_true", help="with --json: every request, in the form simulate has them"
    )
    output.add_argument(
        "--compare",
        metavar="FILE",
        help="print this run beside another: a --json of replay, or of simulate with one policy at one rate",
    )


def run_replay_command(options: argparse.Namespace) -> int:
    """Replay and report. 1 where nothing was answered or a file cannot be written, 2 for a question that makes no
    sense, 130 after Ctrl-C."""
    from sgl_router.lab.replay.study import read_other
    from sgl_router.lab.simulate.trace import TraceError
    from sgl_router.tokenization import TokenizerLoadError

    other: Reading | None = None
    for path in (options.html, options.json):
        if path is not None and not Path(path).absolute().parent.is_dir():
            return _refuse(f"{path}: its folder does not exist")
    try:
        if options.compare is not None:
            other = read_other(options.compare)
        settings = _settings(options)
        maker = _prompt_maker(options, settings.block_tokens)
    except (TraceError, TokenizerLoadError, OSError, ValueError) as error:
        return _refuse(str(error))
    _allow_connections(options.max_in_flight)
    print(f"sgl-router replay: {_announcement(settings)}", file=sys.stderr)
    replay = _run(settings, maker)
    if replay is None:
        return 1
    written = _report(options, replay, other)
    if replay.interrupted:
        return _INTERRUPTED
    return 0 if written and replay.summary.answered else 1


def _settings(options: argparse.Namespace) -> ReplaySettings:
    from sgl_router.lab.replay.client import base_url
    from sgl_router.lab.replay.run import ReplaySettings

    try:
        url = base_url(options.url)
    except ValueError as error:
        raise ValueError(f"--url: {error}") from None
    key = None
    if options.api_key_env is not None:
        key = os.environ.get(options.api_key_env)
        if not key:
            raise ValueError(f"--api-key-env {options.api_key_env}: the variable is not set")
    workload = read_workload(options)
    return ReplaySettings(
        workload=workload.name,
        rows=workload.rows,
        block_tokens=workload.block_tokens,
        scale=options.token_scale,
        rate=options.rate,
        seed=options.seed,
        url=url,
        model=options.model,
        api_key=key,
        max_in_flight=options.max_in_flight,
        timeout_secs=options.timeout,
        ignore_eos=not options.no_ignore_eos,
    )


def _announcement(settings: ReplaySettings) -> str:
    """How long it is going to take, as far as that can be known."""
    rows = settings.rows
    sending = (rows[-1].timestamp_ms - rows[0].timestamp_ms) / 1e3 / settings.rate
    return (
        f"{len(rows):,} requests to {settings.url}, sent over {duration(sending)}; ends with the last response, "
        f"at most {duration(settings.timeout_secs)} after that (Ctrl-C ends it and reports what there is)"
    )


def _prompt_maker(options: argparse.Namespace, block_tokens: int) -> PromptMaker:
    from sgl_router.lab.mock_worker import EMBEDDED_TOKENIZER_PATH
    from sgl_router.lab.replay.prompts import PromptMaker
    from sgl_router.lab.replay.words import learn_vocabulary
    from sgl_router.observability import configure_logging
    from sgl_router.tokenization import ModelTokenizer

    configure_logging("warning", "text")
    tokenizer = ModelTokenizer.load(options.tokenizer or EMBEDDED_TOKENIZER_PATH, conversation_cache_bytes=0)
    try:
        vocabulary = learn_vocabulary(tokenizer)
    except ValueError as error:
        raise ValueError(f"--tokenizer: {error}") from None
    finally:
        tokenizer.close()
    if block_tokens <= vocabulary.head and (works := _scale_that_works(options.block_size, vocabulary.head)):
        raise ValueError(
            f"--token-scale {options.token_scale}: blocks of {block_tokens} tokens, and the chat template begins with "
            f"{vocabulary.head}: first blocks could not differ; {works} makes them {int(options.block_size * works)}"
        )
    if vocabulary.note:
        print(f"sgl-router replay: warning: {vocabulary.note}", file=sys.stderr)
    return PromptMaker(vocabulary, block_tokens=block_tokens, seed=options.seed)


def _scale_that_works(block_size: int, head: int) -> Fraction | None:
    """The smallest 1/n that leaves whole blocks of more than `head` tokens; None where `--block-size` is too small."""
    divisors = (part for part in range(block_size, 0, -1) if block_size % part == 0)
    return next((Fraction(1, part) for part in divisors if block_size // part > head), None)


def _run(settings: ReplaySettings, maker: PromptMaker) -> Replay | None:
    from sgl_router.cli.serve import new_event_loop
    from sgl_router.lab.replay.client import ServerProblem
    from sgl_router.lab.replay.run import run_replay

    bar = Bar() if sys.stderr.isatty() else None

    def tell(sender: Sender, total: int) -> None:
        if bar is not None:
            bar.show(sender.ended, total, f"{sender.ended:,}/{total:,} ended, {sender.in_flight:,} in flight")

    loop = new_event_loop()
    try:
        return loop.run_until_complete(run_replay(settings, maker, progress=tell))
    except ServerProblem as error:
        print(f"sgl-router replay: {error}", file=sys.stderr)
        return None
    finally:
        if bar is not None:
            bar.wipe()
        loop.close()


def _report(options: argparse.Namespace, replay: Replay, other: Reading | None) -> bool:
    """Whether every file could be written."""
    from sgl_router.lab.replay.table import format_comparison, format_replay

    written = True
    try:
        _write(options, replay, other)  # before the table, whose reader (`head`, say) may leave
    except OSError as error:
        print(f"sgl-router replay: {error}", file=sys.stderr)
        written = False
    print(format_replay(replay))
    if other is not None:
        print(f"\n{format_comparison(replay, other)}")
    return written


def _write(options: argparse.Namespace, replay: Replay, other: Reading | None) -> None:
    if options.json is not None:
        import msgspec

        from sgl_router.lab.replay.study import as_json

        encoded = msgspec.json.encode(as_json(replay, per_request=options.per_request))
        Path(options.json).write_bytes(msgspec.json.format(encoded, indent=2))
    if options.html is not None:
        from sgl_router.lab.replay.report import render_report

        Path(options.html).write_text(render_report(replay, other), encoding="utf-8")


def _allow_connections(wanted: int) -> None:
    """Shells allow 1,024 open files where the system allows many more."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _FILES_BESIDE_CONNECTIONS
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _refuse(problem: str) -> int:
    print(f"sgl-router replay: {problem}", file=sys.stderr)
    return 2
