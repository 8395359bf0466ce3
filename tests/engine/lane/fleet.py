"""Two workers and the router in front of them, brought to a known state before each test."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kit.client import Reply
from kit.engine import Engine
from kit.ledger import Ledger
from kit.worker import WorkerClient

from lane.answers import DECISION_HEADER, WORKER_HEADER, Decision, WorkerView, cached_tokens, parse_decision
from lane.prompts import Prompts
from lane.router import Router
from lane.waiting import until


@dataclass(frozen=True)
class Routed:
    """One buffered completion that went through the router."""

    worker: WorkerClient
    decision: Decision
    predicted: int
    cached: int
    answer: Mapping[str, Any]

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return int(self.answer["usage"]["prompt_tokens"])

    @property
    def exact(self) -> bool:
        """The router foretold what the engine found in its cache."""
        return self.predicted == self.cached

    def __str__(self) -> str:
        return f"{self.worker.url} predicted {self.predicted} cached {self.cached} ({self.decision.raw})"


class Fleet:
    """The workers, the router, and a ledger per worker that keeps its own account of the events."""

    def __init__(self, router: Router, workers: Sequence[WorkerClient], page: int) -> None:
        self.router = router
        self.workers = list(workers)
        self.page = page
        self.prompts = Prompts(self.workers[0], router.model)
        self._ledgers = {worker.url: Ledger(worker) for worker in self.workers}
        self._greetings = itertools.count()
        for worker in self.workers:
            self.await_live(worker)

    def close(self) -> None:
        for ledger in self._ledgers.values():
            ledger.close()

    def behind(self, router: Router) -> Fleet:
        """The same workers and ledgers seen through another router. Nothing is flushed, and nothing is to be closed."""
        seen = copy.copy(self)
        seen.router = router
        return seen

    def ledger(self, worker: WorkerClient) -> Ledger:
        return self._ledgers[worker.url]

    def view(self, worker: WorkerClient) -> WorkerView:
        return self.router.workers()[worker.url]

    def held(self, worker: WorkerClient) -> int:
        """Device blocks the router's index holds for the worker."""
        return sum(self.view(worker).blocks())

    def other(self, worker: WorkerClient) -> WorkerClient:
        return next(w for w in self.workers if w is not worker)

    def reset(self) -> None:
        """Every worker up, idle and empty, and the router knowing it."""
        for worker in self.workers:
            if isinstance(worker, Engine) and not worker.alive:  # a test that killed it failed half-way
                worker.kill()
                worker.start()
                self.await_healthy(worker)
                self.await_live(worker)
            self.await_healthy(worker)
            worker.flush()
        self.settle()
        assert not any(map(self.held, self.workers)), "blocks are left in the index after a flush"

    def await_healthy(self, worker: WorkerClient, timeout: float = 30.0) -> WorkerView:
        def healthy() -> WorkerView | None:
            view = self.router.workers().get(worker.url)
            return view if view and view.healthy else None

        view = until(healthy, f"{worker.url} healthy at the router", timeout)
        assert view is not None
        return view

    def await_live(self, worker: WorkerClient) -> None:
        """Flush the worker, and return once a flush and a store of each rank have reached the router and the ledger.

        What is published before a subscription is up is lost to it, hence the tries.
        """
        for rank in range(len(self.view(worker).blocks())):

            def counts(rank: int = rank) -> tuple[int, int]:
                return self.view(worker).blocks()[rank], self.ledger(worker).blocks()[rank]

            def live(rank: int = rank, counts: Callable[[], tuple[int, int]] = counts) -> bool:
                worker.flush()
                if not _soon(lambda: counts() == (0, 0)):
                    return False
                messages = self.prompts.user(("greeting", next(self._greetings)), 4 * self.page)
                worker.chat({"model": self.router.model, "messages": messages, "max_tokens": 1}, rank=rank)
                return _soon(lambda: all(counts()))

            until(live, f"events of rank {rank} of {worker.url} at the router", timeout=20)

    def await_witnessed(self, worker: WorkerClient, timeout: float = 30.0) -> WorkerView:
        """Return once every stream of the worker is live, complete, and as far as the worker has published."""

        def witnessed() -> WorkerView | None:
            view = self.router.workers().get(worker.url)
            if view is None or not view.healthy:
                return None
            pairs = zip(view.streams(), self.ledger(worker).next_seq(), strict=True)
            return view if all(s.witnessed and s.next_seq == seq for s, seq in pairs) else None

        try:
            view = until(witnessed, f"streams of {worker.url} live and complete", timeout)
        except AssertionError as error:
            seen = [dict(stream.raw) for stream in self.view(worker).streams()]
            raise AssertionError(f"{error}; published {self.ledger(worker).next_seq()}, router: {seen}") from None
        assert view is not None
        return view

    def await_idle(self) -> None:
        for worker in self.workers:
            until(lambda w=worker: w.unfinished() == 0, f"{worker.url} idle", timeout=30)

    def _agreed(self, worker: WorkerClient, view: WorkerView, index: list[int], announced: list[int]) -> bool:
        ledger = self.ledger(worker)
        ranks = zip(view.streams(), ledger.next_seq(), ledger.exact(), index, announced, strict=True)
        return all(held == told if exact else stream.next_seq == seq for stream, seq, exact, held, told in ranks)

    def settle(self, quiet: float = 0.2) -> None:
        """Return once the index and the ledgers agree on every rank and nothing has moved for `quiet` seconds.

        A ledger that has lost a frame is only asked how far the worker has published.
        """
        self.await_idle()
        deadline = time.monotonic() + 15.0
        last: object = None
        since = time.monotonic()
        while True:
            views = self.router.workers()
            index = {w.url: views[w.url].blocks() for w in self.workers}
            announced = {w.url: self.ledger(w).blocks() for w in self.workers}
            now = time.monotonic()
            state = (index, announced, [self.ledger(w).frames for w in self.workers])
            agreed = all(self._agreed(w, views[w.url], index[w.url], announced[w.url]) for w in self.workers)
            if state != last:
                last, since = state, now
            elif agreed and now - since >= quiet:
                return
            assert now < deadline, f"the index holds {index}, the workers have announced {announced}"
            time.sleep(0.03)

    def warm(self, worker: WorkerClient, messages: Sequence[Mapping[str, Any]], rank: int | None = None) -> int:
        """Send a prompt past the router and wait until the index knows its blocks, and what was evicted for them.
        Returns its tokens."""
        self.settle(quiet=0.1)
        ledger = self.ledger(worker)
        before = ledger.stored
        body = {"model": self.router.model, "messages": list(messages), "max_tokens": 1, "ignore_eos": True}
        usage = worker.chat(body, rank=rank)["usage"]
        new = usage["prompt_tokens"] // self.page - cached_tokens(usage) // self.page
        until(lambda: ledger.stored >= before + new, f"{new} new blocks announced by {worker.url}")
        self.settle(quiet=0.1)
        return int(usage["prompt_tokens"])

    def ask(self, messages: Sequence[Mapping[str, Any]], max_tokens: int = 4, **fields: Any) -> Routed:
        """A buffered completion through the router that must succeed."""
        reply = self.router.chat(
            {"messages": list(messages), "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, **fields}
        )
        assert reply.status == 200, f"through the router: {reply}"
        return self.read(reply)

    def read(self, reply: Reply) -> Routed:
        answer = reply.json()
        decision = parse_decision(reply.headers[DECISION_HEADER])
        return Routed(
            worker=self.by_id(reply.headers[WORKER_HEADER]),
            decision=decision,
            predicted=decision.tokens(self.page),
            cached=cached_tokens(answer["usage"]),
            answer=answer,
        )

    def by_id(self, worker_id: str | None) -> WorkerClient:
        urls = {view.id: view.url for view in self.router.workers().values()}
        assert worker_id in urls, f"{WORKER_HEADER}: {worker_id!r} is none of {urls}"
        return next(w for w in self.workers if w.url == urls[worker_id])


def _soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 1.0
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
