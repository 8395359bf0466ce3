"""The demo's workload: several multi-turn conversations, interleaved, and a table of what went where and why."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

__all__ = ["Row", "Workload", "drive", "format_table"]

_TEXT = (
    "the cache keeps what a prompt has in common with an earlier one and the router sends it where that prefix lies "
    "so the worker computes only what is new while load still decides when a queue grows too long for the detour"
)
_WORDS = _TEXT.split()


@dataclass(frozen=True)
class Workload:
    """`conversations` dialogues of `turns` turns each; turns of different dialogues alternate."""

    conversations: int
    turns: int
    seed: int

    @property
    def requests(self) -> int:
        return self.conversations * self.turns


@dataclass
class Row:
    """One request, as the client saw it."""

    conversation: int
    turn: int
    worker: str = ""
    reason: str = ""
    matched: int = 0
    total: int = 0
    page: int = 0
    cached_tokens: int | None = None
    prompt_tokens: int | None = None
    ttft_ms: float = 0.0
    status: int = 0
    answer: list[str] = field(default_factory=list)

    @property
    def predicted_tokens(self) -> int:
        return self.matched * self.page


async def drive(url: str, model: str, workload: Workload, names: Mapping[str, str]) -> int:
    """Send the workload to a router, print the table. 0 where every request succeeded, else 1."""
    rng = random.Random(workload.seed)
    rows: list[Row] = []
    started = time.perf_counter()
    async with aiohttp.ClientSession() as session:
        dialogues = [_opening(rng, number) for number in range(workload.conversations)]
        for turn in range(workload.turns):
            order = list(range(workload.conversations))
            rng.shuffle(order)
            for number in order:
                row = Row(conversation=number, turn=turn)
                messages = dialogues[number]
                messages.append({"role": "user", "content": _sentence(rng, 40)})
                await _ask(session, url, model, messages, row)
                messages.append({"role": "assistant", "content": "".join(row.answer)})
                row.worker = names.get(row.worker, row.worker)
                rows.append(row)
                _progress(len(rows), workload.requests)
    print(format_table(rows))
    print(_summary(rows, time.perf_counter() - started))
    return 0 if all(row.status == 200 for row in rows) else 1


def _opening(rng: random.Random, number: int) -> list[dict[str, str]]:
    return [{"role": "system", "content": f"You are assistant number {number}. {_sentence(rng, 120)}"}]


def _sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(words)) + "."


async def _ask(session: aiohttp.ClientSession, url: str, model: str, messages: list[dict[str, str]], row: Row) -> None:
    body = {
        "model": model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 24,
    }
    started = time.perf_counter()
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        row.status = response.status
        row.worker = response.headers.get("x-sgl-router-worker", "")
        decision = _fields(response.headers.get("x-sgl-router-decision", ""))
        row.reason = decision.get("reason", "")
        row.matched, row.total, row.page = (int(decision.get(name, 0)) for name in ("matched", "total", "page"))
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = msgspec.json.decode(line[6:])
            if not row.ttft_ms:
                row.ttft_ms = (time.perf_counter() - started) * 1e3
            row.answer += _contents(event)
            usage = event.get("usage")
            if usage:
                row.prompt_tokens = usage.get("prompt_tokens")
                row.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    await asyncio.sleep(0)


def _contents(event: dict[str, Any]) -> Iterator[str]:
    for choice in event.get("choices", ()):
        text = (choice.get("delta") or {}).get("content")
        if text:
            yield text


def _fields(header: str) -> dict[str, str]:
    """`a=1; b=2` as a dict."""
    return dict(part.strip().split("=", 1) for part in header.split(";") if "=" in part)


def _progress(done: int, total: int) -> None:
    if not sys.stderr.isatty():
        return
    width = 32
    filled = width * done // total
    end = "\n" if done == total else ""
    print(f"\r[{'#' * filled}{'.' * (width - filled)}] {done}/{total} requests", end=end, file=sys.stderr, flush=True)


def format_table(rows: list[Row]) -> str:
    """One line per request: who got it, why, what the router predicted and what the worker reported."""
    lines = [
        "  chat turn  worker     why              blocks held/of  predicted  cached by worker  of prompt    TTFT",
        "  ---- ----  ---------  ---------------  --------------  ---------  ----------------  ---------  -------",
    ]
    for row in rows:
        cached = "-" if row.cached_tokens is None else str(row.cached_tokens)
        prompt = "-" if row.prompt_tokens is None else str(row.prompt_tokens)
        held = f"{row.matched}/{row.total}"
        lines.append(
            f"  {row.conversation:>4} {row.turn:>4}  {row.worker:<9}  {row.reason:<15}  {held:>14}  "
            f"{row.predicted_tokens:>9}  {cached:>16}  {prompt:>9}  {row.ttft_ms:>4.0f} ms"
        )
    return "\n".join(lines)


def _summary(rows: list[Row], seconds: float) -> str:
    later = [row for row in rows if row.turn > 0]
    homes: dict[int, set[str]] = {}
    for row in rows:
        homes.setdefault(row.conversation, set()).add(row.worker)
    stayed = sum(len(workers) == 1 for workers in homes.values())
    exact = sum(row.predicted_tokens == row.cached_tokens for row in rows)
    cached = sum(row.cached_tokens or 0 for row in rows)
    prompt = sum(row.prompt_tokens or 0 for row in rows) or 1
    failed = sum(row.status != 200 for row in rows)
    hits = sum(row.reason == "cache_hit" for row in later)
    return (
        f"\n{len(rows)} requests in {seconds:.1f} s, {failed} failed. {stayed} of {len(homes)} conversations stayed on "
        f"one worker; {hits} of {len(later)} later turns went to the worker that held their prefix.\n"
        f"Prediction equal to the worker's own count: {exact} of {len(rows)}. "
        f"Prompt tokens served from cache: {cached / prompt:.0%}."
    )
