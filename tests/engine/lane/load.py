"""Traffic past the router, made to publish many events in little time, and what can be asked about it afterwards."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from kit.worker import WorkerClient

from lane.fleet import Fleet, Routed

Messages = list[dict[str, Any]]

# Generations of 1, 2, ... tokens side by side: one batch of events for their prefill, and one for each that ends.
_SIDE_BY_SIDE = 8
# Ids that are words in any vocabulary worth the name, and none of its special tokens.
_FIRST_ID, _LAST_ID = 300, 3900


def churn(fleet: Fleet, worker: WorkerClient, frames: int, *, seed: object, tokens: int = 0) -> list[Messages]:
    """Have the worker publish `frames` more batches of events, as its ledger counts them: chats with a common beginning
    among prompts of random tokens (`tokens` each, at least) that push them out again. Returns the chats, oldest first.
    """
    ledger, page = fleet.ledger(worker), fleet.page
    rng = random.Random(repr(seed))
    length = max(2 * page, tokens) // page * page + page - 1  # the second generated token completes a page
    system = fleet.prompts.text((seed, "system"), 2 * page + 8)
    chats: list[Messages] = []
    wanted = ledger.frames + frames
    while ledger.frames < wanted:
        assert len(chats) < frames, f"{worker.url} publishes {ledger.frames} batches for {9 * len(chats)} requests"
        reply = worker.call(
            "/generate",
            {
                "input_ids": [[rng.randint(_FIRST_ID, _LAST_ID) for _ in range(length)] for _ in range(_SIDE_BY_SIDE)],
                "sampling_params": [
                    {"max_new_tokens": count, "temperature": 0, "ignore_eos": True}
                    for count in range(1, _SIDE_BY_SIDE + 1)
                ],
            },
        )
        assert reply.status == 200, f"{worker.url}/generate: {reply}"
        question = fleet.prompts.text((seed, len(chats)), 3 * page + 16)
        chats.append([{"role": "system", "content": system}, {"role": "user", "content": question}])
        worker.chat({"model": fleet.router.model, "messages": chats[-1], "max_tokens": 1})
    return chats


def probe(fleet: Fleet, chats: Sequence[Messages], count: int = 16) -> list[Routed]:
    """Ask the router for `count` of the chats, newest first: whole, cut short, and grown. Every prediction must be what
    the engine then finds in its cache, and after each the index must count what the ledger counts."""
    probes: list[Routed] = []
    fleet.settle()
    for number, chat in enumerate(list(reversed(chats))[:count]):
        *opening, last = chat
        text = last["content"]
        if number % 3 == 1:
            chat = [*opening, {**last, "content": text[: len(text) // 2]}]
        elif number % 3 == 2:
            chat = [*opening, {**last, "content": f"{text} {fleet.prompts.text(('grown', text), 2 * fleet.page)}"}]
        probes.append(fleet.ask(chat, max_tokens=1))
        fleet.settle(quiet=0.05)
    wrong = [str(one) for one in probes if not one.exact]
    assert not wrong, "\n".join(wrong)
    return probes
