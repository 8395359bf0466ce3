"""Does the simulator tell the truth? `python benchmarks/live_check.py [--policy NAME] [--workload NAME]`.

One workload (or a --trace) is simulated, and replayed through a router (its own process) before mock workers (a process
each) with the simulation's timing, page size and cache. Printed: on how many requests both chose the same worker, every
one on which they did not with what each of the two saw, and both times to first token.

The first choices among equal workers are made by lot, so workers are renamed for best agreement first. A disagreement
has one of three causes. "load": other numbers of requests were in flight, as in a burst whose requests reach a worker
within one of its steps or just after. "state": the same load, but caches, events on their way or what the policy has
learned differed. "tie": neither, so that lot or the order of earlier choices decided. Each may follow from one before.

Exit status 1 where mean TTFT differs by more than --ttft-within, or fewer requests than --agree went the same way.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from sgl_router.config import PolicyName
from sgl_router.lab.mock_worker import EMBEDDED_TOKENIZER_PATH, MockWorkerConfig
from sgl_router.lab.replay.measure import Summary
from sgl_router.lab.replay.placement import Placement, compare_placements
from sgl_router.lab.replay.prompts import PromptMaker
from sgl_router.lab.replay.run import ReplaySettings, run_replay
from sgl_router.lab.replay.study import Replay
from sgl_router.lab.replay.words import learn_vocabulary
from sgl_router.lab.simulate import measure as simulated
from sgl_router.lab.simulate.catalogue import policy_names
from sgl_router.lab.simulate.job import jobs_of
from sgl_router.lab.simulate.simulation import FleetSettings, Outcome, simulate
from sgl_router.lab.simulate.table import grid
from sgl_router.lab.simulate.trace import BLOCK_TOKENS, TraceRow, read_trace, scale_rows
from sgl_router.lab.simulate.workload import WORKLOADS, make_workload
from sgl_router.observability import configure_logging
from sgl_router.tokenization import ModelTokenizer

MODEL = "mock-model"
READY_SECS = 60.0
SHOWN = 20


def main() -> int:
    options = _options()
    configure_logging("warning", "text")
    block = BLOCK_TOKENS * options.token_scale
    if block.denominator != 1:
        print(f"--token-scale {options.token_scale}: blocks of {BLOCK_TOKENS} tokens would be {block}", file=sys.stderr)
        return 2
    worker = MockWorkerConfig(
        model_id=MODEL,
        page_size=int(block),
        cache_tokens=options.cache_tokens,
        prefill_tokens_per_sec=options.prefill_tokens_per_sec,
        decode_ms_per_token=options.decode_ms_per_token,
    )
    maker = PromptMaker(_vocabulary(), block_tokens=worker.page_size, seed=options.seed)
    name, rows = _workload(options, maker)
    outcome = _simulated(options, worker, rows)
    span = (rows[-1].timestamp_ms - rows[0].timestamp_ms) / 1e3 / options.rate
    fleet = f"{options.workers} workers, policy {options.policy}"
    print(f"{name}: {len(rows)} requests over {span:.0f} s; {fleet}", flush=True)
    replay = _live(options, worker, maker, name, rows)
    placement = compare_placements(replay.rows, simulated.rows_of(outcome))
    ttft_off = _print(options, replay, outcome, placement)
    if options.json is not None:
        _write(options, replay, outcome, placement)
    return int(abs(ttft_off) > options.ttft_within or placement.share < options.agree or bool(replay.summary.errors))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", choices=_policies(), default="cache_aware_zmq")
    parser.add_argument("--workload", choices=list(WORKLOADS), default="chats")
    parser.add_argument("--trace", help="Mooncake-format JSONL instead")
    parser.add_argument("--limit", type=int, default=200, help="requests (default 200)")
    parser.add_argument("--rate", type=float, default=6.0, help="arrivals so many times as fast (default 6)")
    parser.add_argument("--token-scale", type=Fraction, default=Fraction(1, 16), help="of all lengths (default 1/16)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--cache-tokens", type=int, default=20_000, help="of one worker (default 20000)")
    parser.add_argument("--prefill-tokens-per-sec", type=float, default=500.0, help="of one worker (default 500)")
    parser.add_argument("--decode-ms-per-token", type=float, default=20.0, help="(default 20)")
    parser.add_argument("--event-delay", type=float, default=0.0, help="in the simulation, seconds (default 0)")
    parser.add_argument("--ttft-within", type=float, default=0.15, help="mean TTFT may differ by (default 0.15)")
    parser.add_argument("--agree", type=float, default=0.0, help="least share of agreeing requests (default 0)")
    parser.add_argument("--json", help="write both runs here")
    return parser.parse_args()


def _policies() -> list[str]:
    """What both the simulator and the configuration have: policies, and `policy+queue`."""
    known = {name.value for name in PolicyName}
    return [name for name in policy_names() if name.partition("+")[0] in known]


def _vocabulary() -> Any:
    tokenizer = ModelTokenizer.load(EMBEDDED_TOKENIZER_PATH, conversation_cache_bytes=0)
    try:
        return learn_vocabulary(tokenizer)
    finally:
        tokenizer.close()


def _workload(options: argparse.Namespace, maker: PromptMaker) -> tuple[str, list[TraceRow]]:
    """Rows with the lengths that prompts will really have."""
    if options.trace is not None:
        name, rows = Path(options.trace).name, read_trace(options.trace, limit=options.limit)
    else:
        name = options.workload
        rows = make_workload(name, requests=options.limit, per_sec=4.0, seed=options.seed)
    return name, [replace(row, input_length=maker.tokens(row)) for row in scale_rows(rows, options.token_scale)]


def _simulated(options: argparse.Namespace, worker: MockWorkerConfig, rows: list[TraceRow]) -> Outcome:
    settings = FleetSettings(
        workers=options.workers,
        cache_tokens=worker.cache_tokens,
        page_size=worker.page_size,
        prefill_tokens_per_sec=worker.prefill_tokens_per_sec,
        prefill_overhead_ms=worker.prefill_overhead_ms,
        decode_ms_per_token=worker.decode_ms_per_token,
        decode_ms_per_running=worker.decode_ms_per_running,
        max_running=worker.max_running,
        chunk=worker.chunked_prefill_size,
        event_delay=options.event_delay,
        load_report_interval=1.0,  # as load_reports.interval_secs
    )
    jobs = jobs_of(rows, rate=options.rate, page_size=worker.page_size, answers_return=False)
    return simulate(options.policy, jobs, settings, seed=options.seed)


def _live(
    options: argparse.Namespace, worker: MockWorkerConfig, maker: PromptMaker, name: str, rows: list[TraceRow]
) -> Replay:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        logs = [folder / f"worker-{number}.log" for number in range(options.workers)]
        for log in logs:
            stack.enter_context(_process(log, "mock-worker", *_flags(worker)))
        workers = [_announced(log, r"ready at (http://\S+)") for log in logs]
        config = folder / "router.yaml"
        config.write_text(json.dumps(_router(options, workers)))  # JSON is YAML
        log = stack.enter_context(_process(folder / "router.log", "--config", str(config)))
        router = _announced(log, r"router listening.*url=(http://\S+)")
        _until_live(router, options.workers)
        settings = ReplaySettings(
            workload=name,
            rows=rows,
            block_tokens=worker.page_size,
            scale=options.token_scale,
            rate=options.rate,
            seed=options.seed,
            url=router,
            model=MODEL,
            api_key=None,
            max_in_flight=4096,
            timeout_secs=120.0,
            ignore_eos=True,
        )
        return asyncio.run(run_replay(settings, maker))


def _flags(worker: MockWorkerConfig) -> list[str]:
    names = (
        *("model_id", "page_size", "cache_tokens", "max_running", "chunked_prefill_size"),
        *("prefill_tokens_per_sec", "prefill_overhead_ms", "decode_ms_per_token", "decode_ms_per_running"),
    )
    return [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(worker, name)))]


def _router(options: argparse.Namespace, urls: list[str]) -> dict[str, Any]:
    policy, _, queue = options.policy.partition("+")
    model: dict[str, Any] = {"id": MODEL, "tokenizer_path": EMBEDDED_TOKENIZER_PATH, "policy": policy}
    if queue:
        model["queue"] = {"enabled": True}
    return {
        "server": {"port": 0, "shutdown_drain_secs": 0},
        "models": [model],
        "discovery": {"static_urls": {"urls": urls}},
    }


@contextlib.contextmanager
def _process(log: Path, *arguments: str) -> Iterator[Path]:
    with log.open("w") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "sgl_router", *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"},
        )
        try:
            yield log
        finally:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _announced(log: Path, pattern: str) -> str:
    deadline = time.monotonic() + READY_SECS
    while (found := re.search(pattern, log.read_text())) is None:
        if time.monotonic() > deadline:
            raise SystemExit(f"no {pattern!r} within {READY_SECS:g} s in:\n{log.read_text()}")
        time.sleep(0.05)
    return found[1]


def _until_live(router: str, workers: int) -> None:
    """Every worker healthy, and every event stream followed."""
    deadline = time.monotonic() + READY_SECS
    while True:
        with contextlib.suppress(urllib.error.URLError):
            with urllib.request.urlopen(f"{router}/workers", timeout=5) as reply:
                found = json.load(reply)["workers"]
            streams = [stream for worker in found for stream in _streams(worker)]
            if len(found) == workers == len(streams) and all(stream == "live" for stream in streams):
                return
        if time.monotonic() > deadline:
            raise SystemExit(f"the router was not ready within {READY_SECS:g} s")
        time.sleep(0.05)


def _streams(worker: dict[str, Any]) -> Iterator[str]:
    if worker["health"] == "healthy":
        yield from (rank["stream"]["state"] for rank in worker["ranks"] if rank["stream"] is not None)


def _print(options: argparse.Namespace, replay: Replay, outcome: Outcome, placement: Placement) -> float:
    """Returns by what share the live mean TTFT is longer."""
    live, model = replay.summary, simulated.summarise(outcome)
    rows = [["TTFT, ms", "live", "simulated", "live / simulated"]]
    for statistic in ("mean", "p50", "p90", "p99", "longest"):
        ours, theirs = getattr(live.ttft, statistic), getattr(model.ttft, statistic)
        rows.append([statistic, f"{ours * 1e3:.0f}", f"{theirs * 1e3:.0f}", f"{ours / theirs:.3f}"])
    rows.append(["hit rate", f"{live.hit_rate or 0.0:.1%}", f"{model.hit_rate:.1%}", ""])
    rows.append(["foreseen", f"{live.foreseen or 0.0:.1%}", f"{model.foreseen or 0.0:.1%}", ""])
    print(f"\n{grid(rows)}\n\nreasons    live {_reasons(live)}\n      simulated {_reasons(model)}")
    print(f"sender     late by {live.lag.mean * 1e3:.1f} ms on average, {live.lag.longest * 1e3:.1f} ms at most")
    for kind, count in live.errors.items():
        print(f"errors     {count} x {kind}: {live.first_errors[kind]}")
    print(f"\nsame worker for {placement.agreeing} of {placement.compared} requests ({placement.share:.1%})")
    _print_disagreements(placement)
    return live.ttft.mean / model.ttft.mean - 1


def _reasons(summary: Summary | simulated.Summary) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in summary.reasons.items())


def _print_disagreements(placement: Placement) -> None:
    found = placement.disagreements
    if not found:
        return
    parting = placement.parting
    if parting is not None:
        print(
            f"the same but for names up to request {parting.number} ({parting.after} requests): live "
            f"{parting.reasons[0]} with {list(parting.loads[0])} in flight, simulated {parting.reasons[1]} with "
            f"{list(parting.loads[1])}; {parting.nearest_end_secs * 1e3:.1f} ms from it something else began or ended"
        )
    causes = Counter(one.cause.value for one in found)
    print(f"differ by  {', '.join(f'{cause} {count}' for cause, count in causes.most_common())}")
    rows = [["request", "cause", "live", "", "foresaw", "in flight", "simulated", "", "foresaw", "in flight"]]
    for one in found[:SHOWN]:
        sides = zip((one.here, one.there), one.reasons, one.predicted, one.loads, strict=True)
        cells = [
            cell
            for worker, reason, predicted, loads in sides
            for cell in (f"worker {worker}", reason, "-" if predicted is None else f"{predicted}", f"{list(loads)}")
        ]
        rows.append([str(one.number), one.cause.value, *cells])
    print(f"\n{grid(rows)}")
    if len(found) > SHOWN:
        print(f"... and {len(found) - SHOWN} more")


def _write(options: argparse.Namespace, replay: Replay, outcome: Outcome, placement: Placement) -> None:
    numbers = {
        "agreeing": placement.agreeing,
        "compared": placement.compared,
        "live": replay.rows,
        "simulated": simulated.rows_of(outcome),
    }
    Path(options.json).write_text(json.dumps(numbers))


if __name__ == "__main__":
    sys.exit(main())
