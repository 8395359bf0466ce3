"""What the lane takes for granted of the workers themselves. When this fails, the fault is not the router's."""

from __future__ import annotations

from lane.answers import cached_tokens
from lane.fleet import Fleet
from lane.waiting import until


def test_a_request_announces_its_full_pages_and_is_cached(fleet: Fleet) -> None:
    """Prompt and output less the last sampled token, in full pages; a repeat is capped one token short of its end."""
    page, generated = fleet.page, 3 * fleet.page
    for number, worker in enumerate(fleet.workers):
        ledger = fleet.ledger(worker)
        body = {"model": fleet.router.model, "messages": fleet.prompts.user(("plain", number), 7 * page)}
        wanted = {**body, "max_tokens": generated, "temperature": 0, "ignore_eos": True}
        first, second = (worker.chat(wanted, rank=0)["usage"] for _ in range(2))
        prompt = first["prompt_tokens"]
        pages = (prompt + generated - 1) // page
        until(lambda ledger=ledger, pages=pages: sum(ledger.blocks()) == pages, f"{pages} blocks of {worker.url}")
        assert cached_tokens(first) == 0
        assert cached_tokens(second) == (prompt - 1) // page * page


def test_tokenize_counts_the_prompt_of_chat(fleet: Fleet) -> None:
    worker = fleet.workers[0]
    body = {"model": fleet.router.model, "messages": fleet.prompts.user("counted", 3 * fleet.page)}
    count = worker.tokenize(body).json()["count"]
    assert worker.chat({**body, "max_tokens": 1})["usage"]["prompt_tokens"] == count


def test_an_empty_cache_is_announced(fleet: Fleet) -> None:
    worker = fleet.workers[0]
    fleet.warm(worker, fleet.prompts.user("announced", 4 * fleet.page))
    ledger = fleet.ledger(worker)
    until(lambda: sum(ledger.blocks()) > 0, "blocks announced")
    worker.flush()
    until(lambda: sum(ledger.blocks()) == 0, "the clear announced")
    assert ledger.gaps == 0
