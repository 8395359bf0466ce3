"""What requests show of a rank's event stream: how prompts were predicted, what their answers report, what is stored.

One `Witness` per rank draws the conclusions: claims that do not come true are given up, an index that misses what the
worker has is refilled once, a rank that stores nothing is told of.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import structlog

from sgl_router.kv_events.follow.stream import DistrustReason, EventStream, StreamState
from sgl_router.kv_events.index.agreement import Agreement, Prefix, Verdict
from sgl_router.kv_events.index.coverage import Coverage, CoverageChange
from sgl_router.kv_events.index.silence import Silence
from sgl_router.kv_events.index.tree import BlockTree

if TYPE_CHECKING:
    from sgl_router.kv_events.index.matched import PromptMatch
    from sgl_router.kv_events.index.withheld import WithheldNamespaces
    from sgl_router.placement import Leg
    from sgl_router.workers import Target

__all__ = ["Sent", "Witness"]

log = structlog.get_logger(__name__)

# A report is more than was known where it is so by more than a page, and by this part of the prompt.
_MUCH = 1 / 8
_MOST_KEYS = 1_024
# So many prompts without a store, and it may be that there is none.
_FEW_PROMPTS = 4
_MOST_DOUBTFUL = 64
# In which what an engine stored at an answer's end has been applied here.
_SETTLE_SECS = 1.0
_REFILL_SECS = 3_600.0
_CHECK = "the worker's --kv-events-config (publisher zmq, endpoint, topic), and its log for a publisher that failed"
_CHECK_PORT = "nothing answers on the endpoint: the worker's --kv-events-config, its port (base + dp_rank), firewalls"
_CHECK_MEDIUM = "the worker's stores name a medium, or blocks, that this version cannot index (unindexed): its dialect"


class Sent:
    """One dispatched prompt, as the index saw it then. It keeps a few numbers, not the prompt's keys; of a prefix that
    is in doubt, at most 1,024 of them."""

    __slots__ = ("blocks", "claimed", "end", "keys", "last", "leg", "prefix", "root", "stride", "witness")

    def __init__(self, witness: Witness, leg: Leg, keys: Sequence[int], root: int) -> None:
        self.witness = witness
        self.leg = leg
        self.root = root
        self.blocks = blocks = len(keys)
        """How many of the prompt's leading blocks have keys, the last of them `last`."""
        self.last = keys[-1]
        self.claimed = claimed = min(leg.matched_blocks, blocks)
        """How many of them the index claimed, the last of them `end`."""
        self.prefix: Prefix | None = None
        self.keys: array[int] | None = None
        if not claimed:
            return
        self.end = keys[claimed - 1]
        prefix = self.prefix = witness.agreement.prefix_of(root, keys, claimed)
        if prefix is not None and prefix.misses:
            self.stride = claimed // _MOST_KEYS + 1
            self.keys = array("Q", keys[self.stride - 1 : claimed : self.stride])

    def missed(self, reported: int) -> int | None:
        """The key of the first claimed block that the worker did not have, or of one soon after it; None where the
        prefix was not in doubt. `reported`: tokens it had, fewer than claimed."""
        if self.keys is None:
            return None
        place = reported // self.leg.page_size // self.stride
        return self.keys[place] if place < len(self.keys) else self.end

    def completed(self, cached_tokens: int | None) -> None:
        """The answer is complete; `cached_tokens`: how much of the prompt the worker says it had cached, if it does."""
        self.witness.completed(self, cached_tokens)


class Witness:
    """Of one rank. `refill` repairs its stream from the replay buffer, `connected` says whether its events could come,
    `behind` whether some have come that are not applied. `stores`: False for an engine that keeps no prefixes, and so
    has nothing to publish. `clock`: monotonic seconds."""

    def __init__(
        self,
        target: Target,
        stream: EventStream,
        tree: BlockTree,
        withheld: WithheldNamespaces,
        *,
        clock: Callable[[], float],
        refill: Callable[[], bool],
        connected: Callable[[], bool],
        behind: Callable[[], bool],
        stores: bool,
    ) -> None:
        self.agreement = Agreement()
        self.coverage = Coverage()
        self.silence = Silence()
        self._target = target
        self._stream = stream
        self._tree = tree
        self._withheld = withheld
        self._refill = refill
        self._connected = connected
        self._behind = behind
        self._stores = stores
        self._clock = clock
        self._refilled_at: float | None = None
        # When the answer came, the prompt's last key, its namespace's, the stream's epoch.
        self._doubtful: deque[tuple[float, int, int, int]] = deque()

    @property
    def silent(self) -> bool:
        """Whether prompts are computed and nothing is stored; tells the log where that is over."""
        if self.silence.silent:
            self._listen()
        return self.silence.silent

    @property
    def withheld(self) -> int:
        """Namespaces that are not matched on this rank for now."""
        return self._withheld.count(self._stream, self._clock()) if self._withheld else 0

    def sent(self, leg: Leg, match: PromptMatch) -> Sent | None:
        """A prompt goes to this rank. None where there is nothing to learn from it: it has no whole block, or was not
        looked up with this stream's kind of keys."""
        root = self._stream.hasher.root(match.namespace)
        memo = match.prompt.keys.get(root)
        return Sent(self, leg, memo.computed, root) if memo is not None and memo.computed else None

    def completed(self, sent: Sent, cached_tokens: int | None) -> None:
        """See `Sent.completed`."""
        stream = self._stream
        if stream.state is StreamState.LIVE:
            if cached_tokens is not None and sent.leg.epoch in (None, stream.epoch):
                self._compare(sent, cached_tokens)
        elif stream.state is not StreamState.WAITING:
            return
        if self._stores and sent.blocks > max(sent.claimed, sent.leg.expected_blocks):
            self._count(sent, cached_tokens)

    # --- reports ------------------------------------------------------------------------------------------------

    def _compare(self, sent: Sent, reported: int) -> None:
        now, claimed, page = self._clock(), sent.claimed, sent.leg.page_size
        verdict = Verdict.NONE
        if claimed:
            verdict = self.agreement.report(
                claimed * page, reported, namespace=sent.root, depth=claimed, end=sent.end, prefix=sent.prefix, now=now
            )
            if verdict is not Verdict.NONE:
                self._give_up(verdict, sent, reported, now)
        else:
            self.agreement.report(0, reported)
        if reported >= page and verdict is not Verdict.RANK:
            self._cover(sent, reported, now)

    def _give_up(self, verdict: Verdict, sent: Sent, reported: int, now: float) -> None:
        stream, agreement = self._stream, self.agreement
        about = {**self._about, "agreement": round(agreement.score, 3), "blocks": stream.blocks_held}
        if verdict is Verdict.RANK:
            log.warning("kv index contradicted by the worker's reports", **about)
            agreement.forgive()
            stream.distrust(DistrustReason.DISAGREEMENT)
        elif verdict is Verdict.NAMESPACE:
            first = self._withheld.add(sent.root, stream, now)
            say = log.warning if first else log.debug
            say(
                "kv claims of one cache namespace contradicted by the worker's reports, it is not matched for a time",
                hint="requests with one cache_salt, adapter or none, whose cache the events do not tell apart",
                **about,
            )
        elif (key := sent.missed(reported)) is not None:
            stream.disclaim(key)
            say = log.info if agreement.given_up[verdict] == 1 else log.debug
            say("kv claims of one prefix contradicted by the worker's reports, they are given up", **about)

    def _cover(self, sent: Sent, reported: int, now: float) -> None:
        """The worker had something cached: did the index know? What was on its way, and this prompt below it, is stored
        a moment later."""
        doubtful, stream = self._doubtful, self._stream
        while doubtful and now - doubtful[0][0] >= _SETTLE_SECS:
            _, last, root, epoch = doubtful.popleft()
            if epoch == stream.epoch:
                self._covered(self._tree.holds(stream.slot, last), root, now)
        page, tokens = sent.leg.page_size, sent.leg.prompt_tokens or 0
        more = reported - sent.claimed * page
        if more <= page or more <= _MUCH * tokens:
            self._covered(True, sent.root, now)
        elif reported <= sent.blocks * page and len(doubtful) < _MOST_DOUBTFUL:  # else its keys do not go that far
            doubtful.append((now, sent.last, sent.root, stream.epoch))

    def _covered(self, known: bool, root: int, now: float) -> None:
        change = self.coverage.report(known, root)
        if change is CoverageChange.ROSE:
            log.info("kv index covers the worker's cache again", **self._about)
        elif change is CoverageChange.FELL and self.silence.prompts >= _FEW_PROMPTS:
            self.coverage.untold()  # nothing is published, it seems: that will be told
        elif change is CoverageChange.FELL:
            counters = self._stream.counters
            partial = self.coverage.partial
            refilling = not partial and self._may_refill(now) and self._refill()
            if refilling:
                self._refilled_at = now
            log.warning(
                "kv index misses blocks that the worker has cached",
                coverage=round(self.coverage.score, 3),
                complete=self._stream.complete,
                some_namespaces_only=partial,
                forgotten=counters.forgotten,
                orphans=counters.orphans,
                unindexed=counters.unindexed,
                refilling=refilling,
                **self._about,
            )

    def _may_refill(self, now: float) -> bool:
        """Once, and not where the index gave the blocks up itself to stay within its bound."""
        lately = self._refilled_at is not None and now - self._refilled_at < _REFILL_SECS
        return not lately and not self._stream.counters.forgotten

    # --- silence ------------------------------------------------------------------------------------------------

    @property
    def _published(self) -> int:
        """Grows with every store that names blocks of a known medium, also below a parent that is not known."""
        counters = self._stream.counters
        return counters.stored + counters.orphans

    def _listen(self) -> None:
        was = self.silence.silent
        if self.silence.heard(self._published) and was:
            log.info("worker publishes cache events again", **self._about)

    def _count(self, sent: Sent, cached_tokens: int | None) -> None:
        """A prompt with pages that the index did not know of has been computed."""
        stream = self._stream
        if self._behind():
            return
        page = sent.leg.page_size
        if cached_tokens is not None and sent.blocks * page - cached_tokens < page:
            return  # the worker had all of it: it stores nothing new
        self._listen()
        # An incomplete index may not know what the engine has, and publishes once only.
        doubtful = cached_tokens is None and not stream.complete and stream.state is StreamState.LIVE
        if not self.silence.completed(sent.last, self._published, self._clock(), doubtful=doubtful):
            return
        counters, connected = stream.counters, self._connected()
        check = _CHECK_MEDIUM if counters.unindexed else _CHECK if connected else _CHECK_PORT
        log.warning(
            "worker serves prompts and publishes no cache events",
            prompts=self.silence.prompts,
            state=stream.state.value,
            connected=connected,
            frames=counters.frames,
            unindexed=counters.unindexed,
            check=check,
            **self._about,
        )

    @property
    def _about(self) -> dict[str, object]:
        return {"worker": self._target.worker.id, "dp_rank": self._target.dp_rank}
