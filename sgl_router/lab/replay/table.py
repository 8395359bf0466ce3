"""A replay as text."""

from __future__ import annotations

from sgl_router.lab.replay.measure import Summary
from sgl_router.lab.replay.placement import Cause, compare_placements
from sgl_router.lab.replay.study import Reading, Replay, asked_of
from sgl_router.lab.simulate.measure import Spread
from sgl_router.lab.simulate.table import grid

__all__ = ["describe", "format_comparison", "format_replay"]

_MEASURES = (("ttft", "TTFT"), ("itl", "ITL"), ("end_to_end", "end to end"), ("lag", "sender lag"))
_STATISTICS = ("mean", "p50", "p90", "p99", "longest")
# A sender this late tells more of itself than of the server.
_LATE_SECS = 0.05


def format_replay(replay: Replay) -> str:
    summary = replay.summary
    parts = [describe(replay), _counts(summary), _times(summary), _tokens(summary)]
    if summary.workers:
        parts.append(_placement(summary))
    if summary.lag.p99 > _LATE_SECS:
        parts.append(
            f"warning: the sender was late by {_ms(summary.lag.p99)} ms at p99: this machine is too slow for the rate, "
            "and the times above are partly its own"
        )
    return "\n\n".join(parts)


def describe(replay: Replay) -> str:
    """What was sent where, in a line."""
    scaled = "" if replay.scale == "1" else f", lengths times {replay.scale}"
    end = ", interrupted" if replay.interrupted else ""
    return (
        f"{replay.workload} to {replay.url}, model {replay.model}: rate {replay.rate:g}x, blocks of "
        f"{replay.block_tokens} tokens{scaled}, seed {replay.seed}; {replay.summary.secs:.1f} s{end}"
    )


def _counts(summary: Summary) -> str:
    lines = [f"requests   {summary.requests:,} due, {summary.answered:,} answered"]
    if summary.dropped:
        lines[0] += f", {summary.dropped:,} dropped (--max-in-flight)"
    if summary.unfinished:
        lines[0] += f", {summary.unfinished:,} unfinished"
    if not summary.errors:
        lines[0] += ", no errors"
    for kind, count in summary.errors.items():
        lines.append(f"  {count:,} x {kind.replace('_', ' ')}: {' '.join(summary.first_errors[kind].split())[:160]}")
    return "\n".join(lines)


def _times(summary: Summary) -> str:
    rows = [["milliseconds", *_STATISTICS]]
    for field, name in _MEASURES:
        values: Spread = getattr(summary, field)
        rows.append([name, *(_ms(getattr(values, statistic)) for statistic in _STATISTICS)])
    return grid(rows)


def _tokens(summary: Summary) -> str:
    lines = [f"prompts    {summary.prompt_tokens:,} tokens as the server counts them"]
    lines[0] += f", {summary.trace_prompt_tokens:,} in the trace"
    if summary.counted:
        share = summary.same_prompt_tokens / summary.counted
        lines[0] += f"; as many as meant in {share:.1%} of requests"
        if share < 1:
            lines[0] += f", up to {summary.most_tokens_off:,} off in the others (is --tokenizer the server's?)"
    lines.append(f"answers    {summary.output_tokens:,} tokens of {summary.wanted_output_tokens:,} asked for")
    if summary.hit_rate is None:
        lines.append("hit rate   not reported (SGLang: --enable-cache-report)")
    else:
        lines.append(f"hit rate   {summary.hit_rate:.1%} of prompt tokens were cached")
    if summary.foreseen is not None:
        lines[-1] += f"; exactly as the router foresaw in {summary.foreseen:.1%} of requests"
    return "\n".join(lines)


def _placement(summary: Summary) -> str:
    rows = [["worker", "requests", "prompt tokens", "cached", "TTFT mean, ms"]]
    for worker in summary.workers:
        cached = worker.cached_tokens / worker.prompt_tokens if worker.prompt_tokens else 0.0
        rows.append(
            [worker.id, f"{worker.requests:,}", f"{worker.prompt_tokens:,}", f"{cached:.1%}", _ms(worker.ttft_mean)]
        )
    reasons = ", ".join(f"{name} {count:,}" for name, count in summary.reasons.items())
    return f"{grid(rows)}\n\nreasons    {reasons}"


def format_comparison(replay: Replay, other: Reading) -> str:
    """Both runs, and this one's figures as multiples of the other's."""
    here, there = replay.summary, other.figures
    rows = [["milliseconds", "this", other.name, "this / other"]]
    for field, name in _MEASURES:
        values: Spread = getattr(here, field)
        for statistic in _STATISTICS:
            theirs = (there.get(field) or {}).get(statistic)
            ours = getattr(values, statistic)
            ratio = f"{ours / theirs:.2f}" if theirs else "-"
            rows.append([f"{name} {statistic}", _ms(ours), "-" if theirs is None else _ms(theirs), ratio])
    rows.append(["hit rate", _percent(here.hit_rate), _percent(there.get("hit_rate")), _over(here, there)])
    rows.append(["answered", f"{here.answered:,}", f"{_answered(there):,}", "-"])
    text = grid(rows)
    mine = asked_of(replay)
    differ = [f"{name} {mine[name]} here, {value} there" for name, value in other.asked.items() if mine[name] != value]
    if differ:
        text += f"\n\nnot the same question: {'; '.join(differ)}"
    if other.rows is not None and any(row["worker"] is not None for row in replay.rows):
        text += "\n\n" + _same_worker(replay, other)
    return text


def _over(here: Summary, there: dict[str, object]) -> str:
    theirs = there.get("hit_rate")
    if here.hit_rate is None or not isinstance(theirs, (int, float)) or not theirs:
        return "-"
    return f"{here.hit_rate / theirs:.2f}"


def _answered(there: dict[str, object]) -> int:
    """A simulation tells how many it refused."""
    if "answered" in there:
        return int(str(there["answered"]))
    return int(str(there.get("requests", 0))) - int(str(there.get("refused", 0)))


def _same_worker(replay: Replay, other: Reading) -> str:
    placement = compare_placements(replay.rows, other.rows or [])
    causes = {cause: sum(found.cause is cause for found in placement.disagreements) for cause in Cause}
    told = ", ".join(f"{cause.value} {count}" for cause, count in causes.items() if count)
    return (
        f"same worker for {placement.agreeing:,} of {placement.compared:,} requests ({placement.share:.1%}), workers "
        f"renamed for best agreement{f'; what differed elsewhere: {told}' if told else ''}"
    )


def _ms(secs: float) -> str:
    value = secs * 1e3
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _percent(share: object) -> str:
    return f"{share:.1%}" if isinstance(share, (int, float)) else "-"
