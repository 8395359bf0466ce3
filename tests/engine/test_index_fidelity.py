"""After a workload that overflows the cache, what the router believes is what the engine holds."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kit.engine import Engine
from lane.fleet import Fleet, Routed

CONVERSATIONS = 40
CLIENTS = 4
PROBES = 24

Messages = list[dict[str, Any]]


def test_index_equals_engine_after_evictions(fleet: Fleet, numbers: list[str]) -> None:
    rng = random.Random(11)
    system = fleet.prompts.text("system", 5 * fleet.page)
    plans = [(n, rng.choice(("one", "turns", "dropped")), rng.randint(6, 22)) for n in range(CONVERSATIONS)]
    evicted = -sum(fleet.ledger(w).removed for w in fleet.workers)
    gaps = -sum(fleet.ledger(w).gaps for w in fleet.workers)
    with ThreadPoolExecutor(CLIENTS) as clients:
        histories = list(clients.map(lambda plan: _converse(fleet, system, *plan), plans))
    fleet.settle()  # which also asserts: per worker and rank as many blocks in the index as were announced
    evicted += sum(fleet.ledger(w).removed for w in fleet.workers)
    gaps += sum(fleet.ledger(w).gaps for w in fleet.workers)
    assert gaps == 0
    if isinstance(fleet.workers[0], Engine):  # an operator's cache is too large to overflow here
        assert evicted > 0, "the workload was to overflow the caches"

    probes: list[Routed] = []
    for history in reversed(histories[-PROBES:]):  # the newest are whole; each probe pushes older ones out
        # Whole, cut back, or grown by a turn: ends that lie inside, at, and beyond what was stored.
        kind = rng.choice(("whole", "first", "grown"))
        messages = {
            "whole": history,
            "first": history[:2],
            "grown": [*history, *fleet.prompts.user(("grown", len(probes)), 2 * fleet.page)],
        }[kind]
        probes.append(fleet.ask(messages, max_tokens=1))
        fleet.settle(quiet=0.1)
    wrong = [str(probe) for probe in probes if not probe.exact]
    assert not wrong, "\n".join(wrong)
    hits = sum(probe.cached > 5 * fleet.page for probe in probes)
    assert hits, "no probe met anything cached: this shows nothing"
    numbers.append(
        f"index against engine: {len(probes)} of {len(probes)} probes equal ({hits} beyond the shared prefix), "
        f"{evicted} blocks evicted meanwhile"
    )


def _converse(fleet: Fleet, system: str, number: int, kind: str, pages: int) -> Messages:
    """One client's part; the messages it ended with. A dropped stream leaves generated pages that nobody saw."""
    opening = fleet.prompts.text(("conversation", number), pages * fleet.page)
    messages: Messages = [{"role": "system", "content": system}, {"role": "user", "content": opening}]
    if kind == "dropped":
        with fleet.router.stream({"messages": messages, "max_tokens": 100, "ignore_eos": True}) as stream:
            assert stream.status == 200
            for _, _event in zip(range(10), stream.events(), strict=False):
                pass
        return messages
    for turn in range(2 if kind == "turns" else 1):
        if turn:
            messages = [*messages, *fleet.prompts.user((number, turn), fleet.page)]
        routed = fleet.ask(messages, max_tokens=20 + number)
        answer = routed.answer["choices"][0]["message"]["content"]
        messages = [*messages, {"role": "assistant", "content": answer}]
    return messages
