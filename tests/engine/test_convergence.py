"""Requests that share a prefix go to the worker that holds it, and the router knows how much of it is held."""

from __future__ import annotations

from lane.fleet import Fleet

REQUESTS = 10


def test_requests_sharing_a_prefix_converge(fleet: Fleet, numbers: list[str]) -> None:
    prefix = fleet.prompts.text("shared prefix", 20 * fleet.page + 200)
    routed = []
    for number in range(REQUESTS):
        question = fleet.prompts.text(("question", number), 20)
        routed.append(fleet.ask([{"role": "user", "content": f"{prefix}\n{question}"}]))
    seen = "\n".join(map(str, routed))

    assert len({r.worker.url for r in routed}) == 1, seen
    exact = sum(r.exact for r in routed)
    assert exact >= REQUESTS - 1, seen
    assert all(r.decision.hit for r in routed[1:]), seen
    assert all(r.cached >= 20 * fleet.page for r in routed[1:]), seen
    cached, total = (sum(values) for values in zip(*((r.cached, r.prompt) for r in routed), strict=True))
    numbers.append(
        f"shared prefix: {exact} of {REQUESTS} predictions equal the engine's cached_tokens, "
        f"{cached} of {total} prompt tokens from cache"
    )


def test_prefix_warmed_past_the_router_is_found(fleet: Fleet) -> None:
    """On each worker in turn: where it was warmed is where it goes, whatever the tie-break would prefer."""
    for worker in fleet.workers:
        messages = fleet.prompts.user(("warmed on", fleet.workers.index(worker)), 20 * fleet.page)
        fleet.warm(worker, messages)
        routed = fleet.ask(messages)
        assert routed.worker is worker, str(routed)
        assert routed.decision.hit, str(routed)
        assert routed.exact, str(routed)
        assert routed.cached == (routed.prompt - 1) // fleet.page * fleet.page, str(routed)


def test_conversation_stays_where_it_began(fleet: Fleet) -> None:
    """Each turn carries the last answer: generated tokens are cached and indexed like those of the prompt."""
    messages = fleet.prompts.user("first turn", 10 * fleet.page)
    first = fleet.ask(messages, max_tokens=3 * fleet.page)
    turns = [first]
    for number in range(3):
        answer = turns[-1].answer["choices"][0]["message"]["content"]
        messages = [
            *messages,
            {"role": "assistant", "content": answer},
            *fleet.prompts.user(("turn", number), fleet.page),
        ]
        fleet.settle()
        turns.append(fleet.ask(messages, max_tokens=3 * fleet.page))
    seen = "\n".join(map(str, turns))
    assert {turn.worker.url for turn in turns} == {first.worker.url}, seen
    assert all(turn.exact for turn in turns), seen
    assert all(turn.cached >= 9 * fleet.page for turn in turns[1:]), seen
