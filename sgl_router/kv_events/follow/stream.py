"""One (worker, rank) event stream: its sequence, whether its claims can be trusted, and what it holds.

Invariant: run cold, never run wrong. A stream that may have missed an event holds nothing in the tree until the
engine says its cache is empty; everything it claims after that is witnessed event by event. Pure: no sockets, no clock.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from sgl_router.kv_events.follow.groups import CacheGroups
from sgl_router.kv_events.follow.names import Names
from sgl_router.kv_events.follow.wire import (
    BlockRemoved,
    BlocksCleared,
    BlockStored,
    DecodeFailure,
    EngineHash,
    Event,
    Frame,
    Tier,
    WireError,
)
from sgl_router.kv_events.index.hashing import BlockHasher, Namespace
from sgl_router.kv_events.index.tree import BlockTree

__all__ = ["DistrustReason", "EventStream", "FrameOutcome", "Holdings", "Remark", "StreamCounters", "StreamState"]

_RECENT_FRAMES = 1024
_GHOSTS = 32_768


class StreamState(str, Enum):
    """`waiting`: nothing heard yet. `live`: every claim is witnessed. `repairing`: missing frames are being replayed.
    `suspended`: the connection broke, and it is not shown yet that nothing was missed and nobody else answers.
    `untrusted`: frames are lost for good; cold until the cache is cleared, the publisher starts anew, or a resync.

    Only `live` streams are matched."""

    WAITING = "waiting"
    LIVE = "live"
    REPAIRING = "repairing"
    SUSPENDED = "suspended"
    UNTRUSTED = "untrusted"


class DistrustReason(str, Enum):
    """Why a stream is untrusted."""

    GAP = "gap"
    DECODE = "decode"
    DISAGREEMENT = "disagreement"
    """The worker's own reports contradict what its events say."""
    SHARED = "shared_endpoint"
    """Another worker names the same event endpoint: whose blocks these are is not known."""


class Remark(str, Enum):
    """What an operator should know of what a stream carries: the log line, once for each publisher."""

    OTHER_PAGE = "kv event blocks have another size than the worker announced, not indexed"
    GROUPS_UNTOLD = "kv events of several cache groups do not say which is full attention, none is indexed"


class FrameOutcome(str, Enum):
    """What a frame's sequence number says."""

    NEXT = "next"
    DUPLICATE = "duplicate"
    GAP = "gap"
    RESTART = "restart"


class Holdings(NamedTuple):
    """Some of what a stream knows. `tiers[i]` has bit j set where block i is held in the j-th Tier; it is empty where
    these are removed blocks kept for the split bug (see `_resurrect`). `parents` is None where none are kept."""

    hashes: Sequence[EngineHash]
    keys: Sequence[int]
    tiers: bytes
    parents: Sequence[EngineHash | None] | None


@dataclass
class StreamCounters:
    """Totals since the stream was made; they outlive restarts of the publisher."""

    frames: int = 0
    stored: int = 0
    removed: int = 0
    cleared: int = 0
    duplicates: int = 0
    gaps: int = 0
    missing: int = 0
    restarts: int = 0
    replayed: int = 0
    """Frames that came from the replay endpoint."""
    history_lost: int = 0
    """Times the replay buffer no longer reached back far enough."""
    orphans: int = 0
    """Blocks whose parent is unknown: their prefix cannot be named, so they are not indexed."""
    unindexed: int = 0
    """Blocks in a tier this version cannot name, or of the other kind of units (tokens, pairs)."""
    other_page: int = 0
    """Blocks of another size than the rank's page."""
    other_group: int = 0
    """Blocks stored and removed by cache groups of a hybrid model that no prefix can be told from."""
    left_out: int = 0
    """Blocks whose namespace the event does not tell (media, an adapter without its name)."""
    forgotten: int = 0
    """Blocks given up to keep the index within its bound."""
    skipped: int = 0
    """Blocks of events not applied because the stream was untrusted."""
    failures: dict[DecodeFailure, int] = field(default_factory=dict)


class EventStream:
    """State of one stream. Feed it frames with `observe`, then each event of the frame with `apply`.

    `hashers(page_size, bigram)` gives the shared hasher of a key kind; `changed(stream)` is called whenever `state`,
    `slot` or `hasher` changed, before anything else can be matched. `page_size` is what the worker announced; where it
    is only a guess (not `announced`), the first store tells. `remarks` is called for what an operator should know.
    """

    def __init__(
        self,
        tree: BlockTree,
        hashers: Callable[[int, bool], BlockHasher],
        *,
        page_size: int,
        bigram: bool = False,
        announced: bool = True,
        changed: Callable[[EventStream], None] = lambda stream: None,
        remarks: Callable[[EventStream, Remark, int], None] = lambda stream, remark, number: None,
    ) -> None:
        self._tree = tree
        self._hashers = hashers
        self._changed = changed
        self._announced = announced
        self._remarks = remarks
        self._remarked: set[Remark] = set()
        self._groups = CacheGroups()
        self.hasher = hashers(page_size, bigram)
        self.slot = tree.acquire()
        self.state = StreamState.WAITING
        self.untrusted_for: DistrustReason | None = None
        self.complete = False
        """Whether the stream was followed from an empty cache, so that it holds all the engine does."""
        self.expected: int | None = None
        """The next sequence number, None before the first frame."""
        self.last_ts = 0.0
        self.held: dict[Tier, int] = dict.fromkeys(Tier, 0)
        self.counters = StreamCounters()
        self._blocks: Names[int] = Names()
        self._spared = 0
        self._recent: OrderedDict[int, int] = OrderedDict()
        self._repairing = self._suspended = False
        self._linked = True
        self.epoch = 0
        """Changes whenever earlier claims end, also where state and slot look the same afterwards."""
        self._confirmed = self._contiguous = False
        self._settled: Callable[[bool], None] | None = None
        # Only dialects up to 0.5.8 fill these two; see _resurrect.
        self._parents: Names[EngineHash | None] = Names()
        self._ghosts: OrderedDict[EngineHash, tuple[int, EngineHash | None]] = OrderedDict()

    def memory_bytes(self) -> int:
        """Bytes of the maps with their 64-bit keys and hashes."""
        integer = sys.getsizeof(1 << 63)
        maps = self._blocks.memory_bytes() + self._parents.memory_bytes()
        maps += sys.getsizeof(self._ghosts) + sys.getsizeof(self._recent)
        return maps + integer * 2 * (len(self._blocks) + len(self._ghosts))

    @property
    def blocks_held(self) -> int:
        """Distinct blocks held in any tier."""
        return len(self._blocks)

    # --- sequence -----------------------------------------------------------------------------------------------

    def observe(self, frame: Frame, *, repairable: bool = False, counted: bool = False) -> FrameOutcome:
        """Account for a frame's sequence number. On DUPLICATE its events must not be applied.

        With `repairable`, a GAP or a RESTART leaves the frame unaccounted for and the claims in place but withheld: the
        caller holds the frame back, replays from `expected` (None: from the start), and observes it again, `counted`.
        """
        seq, expected = frame.seq, self.expected
        digest = xxh3_64_intdigest(frame.payload)
        outcome = FrameOutcome.NEXT
        if expected is None:
            self._drop_holdings()
            self.expected = seq + 1
            self._begin(complete=seq == 0)
        elif seq > expected and self.grafted and not repairable:
            self.resync()  # the snapshot is too old to go on from: this is where a new stream begins
            self.expected = seq + 1
            self._begin(complete=False)
        elif seq > expected:
            if not counted:
                self.counters.gaps += 1
                self.counters.missing += seq - expected
            if repairable:
                return FrameOutcome.GAP
            outcome = FrameOutcome.GAP
            self.expected = seq + 1
            self.distrust(DistrustReason.GAP)
        elif seq < expected:
            if self._recent.get(seq) == digest:
                self.counters.duplicates += 1
                return FrameOutcome.DUPLICATE
            # The numbers begin again at 0 in a new engine process; a frame from before our subscription may be lost.
            self.restarted()
            if repairable:
                return FrameOutcome.RESTART
            outcome = FrameOutcome.RESTART
            self.expected = seq + 1
            self._begin(complete=seq == 0)
        else:
            self.expected = seq + 1
            self._contiguous = True
            self._refresh()
        self.counters.frames += 1
        self._recent[seq] = digest
        # While live frames that were replayed already may still be waiting in the socket, all must stay known.
        if not self._repairing and len(self._recent) > _RECENT_FRAMES and outcome is FrameOutcome.NEXT:
            self._trim()
        return outcome

    def suspend(self) -> None:
        """The connection broke; frames from before may still be queued. Every claim is withheld until the connection
        is back (`reconnected`), the same process is known to publish (`confirm`; a new one could by chance be at the
        very number we expect), and the next frame, or the replay buffer, shows that nothing was missed."""
        self._linked = False
        self._suspended = True
        self._confirmed = self._contiguous = False
        self._refresh()

    def seen(self, frame: Frame) -> bool:
        """Whether this very frame was observed, not long ago."""
        return self._recent.get(frame.seq) == xxh3_64_intdigest(frame.payload)

    def unread(self, seq: int | None = None) -> None:
        """A frame was refused: it is not counted as missing as well. One whose number could not be read (None) is taken
        for the next one."""
        if seq is not None:
            self.expected = max(self.expected or 0, seq + 1)
        elif self.expected is not None:
            self.expected += 1

    def reconnected(self) -> None:
        """The connection is back, and every frame from before the break has been observed: what those showed proves
        nothing about what was published meanwhile."""
        self._linked = True
        self._contiguous = False
        if self.expected is None and not self._blocks:
            self._suspended = False  # nothing is claimed, so nothing has to be proven
        self._refresh()

    def confirm(self, *, same_process: bool) -> None:
        """The publisher's identity after a reconnect is known. Before the reconnect it says nothing."""
        if not self._suspended or not self._linked:
            return
        if same_process:
            self._confirmed = True
            self._refresh()
        else:
            self._suspended = False
            self.restarted()

    def last_before_break(self) -> int | None:
        """While it is not shown what happened when the connection broke: the number of the last frame from before. None
        where nothing is claimed that it could prove; that frame may then be the very one that broke the connection."""
        return self.expected - 1 if self._suspended and self.expected and self.untrusted_for is None else None

    def may_have_sent(self, frame: Frame) -> bool:
        """False where the frame that was observed under this number had other bytes."""
        return self._recent.get(frame.seq) in (None, xxh3_64_intdigest(frame.payload))

    def repair(self) -> None:
        """Frames are about to be replayed: withhold every claim until `repaired`."""
        self._repairing = True
        self._refresh()

    def repaired(self, *, contiguous: bool) -> None:
        """The replay is over. `contiguous`: it ended with nothing missing, so that claims are witnessed again."""
        self._repairing = False
        if contiguous:
            self._contiguous = True
        self._refresh()

    def nothing_published(self) -> None:
        """The replay buffer is empty: the first frame will be number 0, and if it is not, frames are missing."""
        self.expected = 0
        self._begin(complete=True)

    def history_lost(self, first: int) -> None:
        """The replay begins at `first`, later than what was asked for: start over there, from nothing."""
        self.counters.history_lost += 1
        self._settle(kept=False)
        self._drop_holdings()
        self.expected = first
        self._begin(complete=False)

    def resync(self) -> None:
        """Forget everything, claims and history; what is observed next is a new beginning."""
        self._settle(kept=False)
        self._drop_holdings()
        self._recent.clear()
        self._contiguous = False
        self.expected = None
        self.complete = False
        self.untrusted_for = None
        self._refresh()

    def restarted(self) -> None:
        """Another process publishes here now: nothing of the old one holds."""
        self.counters.restarts += 1
        self._groups = CacheGroups()
        self._remarked.clear()
        self.resync()

    def distrust(self, why: DistrustReason) -> None:
        """Forget every claim; hold nothing until the engine's cache is known to be empty."""
        self._settle(kept=False)
        self._drop_holdings()
        self.complete = False
        self.untrusted_for = why
        self._refresh()

    def failed(self, error: WireError) -> None:
        """A frame could not be used: what it said is lost."""
        self.count(error)
        self.lost(error)

    def count(self, error: WireError) -> None:
        """A frame could not be used, and what it said may not be lost: it is asked for again, or was known."""
        self.counters.failures[error.reason] = self.counters.failures.get(error.reason, 0) + 1

    def lost(self, error: WireError) -> None:
        """What the frame said, whose failure was counted, is lost."""
        self.distrust(DistrustReason.DECODE)

    def close(self) -> None:
        """Give the slot back. The stream must not be used afterwards."""
        self.epoch += 1
        self._tree.retire(self.slot, self._blocks, self._parents)
        self._blocks, self._parents = Names(), Names()

    def _begin(self, *, complete: bool) -> None:
        self.complete = complete
        self.untrusted_for = None
        self._contiguous = True
        self._refresh()

    def _refresh(self) -> None:
        """Recompute the state from what is known; tell the owner when it changed."""
        if self._suspended and self._linked and self._confirmed and self._contiguous:
            self._suspended = False
        if self.untrusted_for is not None:
            state = StreamState.UNTRUSTED
        elif self._repairing:
            state = StreamState.REPAIRING
        elif self.expected is None:
            state = StreamState.WAITING
        elif self._suspended:
            state = StreamState.SUSPENDED
        else:
            state = StreamState.LIVE
            self._settle(kept=True)
        if state is not self.state:
            self.state = state
            self._changed(self)

    def _trim(self) -> None:
        while len(self._recent) > _RECENT_FRAMES:
            self._recent.popitem(last=False)

    def _drop_holdings(self) -> None:
        """Hold nothing, in constant time: the slot is abandoned and swept in the background."""
        if self._blocks:
            self.epoch += 1
            self._tree.retire(self.slot, self._blocks, self._parents)
            self._blocks = Names()
            self.slot = self._tree.acquire()
            self._changed(self)
        self.held = dict.fromkeys(Tier, 0)
        self._parents = Names()
        self._ghosts.clear()

    # --- snapshots ----------------------------------------------------------------------------------------------

    @property
    def grafted(self) -> bool:
        """Whether the holdings came from a snapshot and it is not settled yet whether they can be kept."""
        return self._settled is not None

    def export(self, piece: int) -> Iterator[Holdings]:
        """All that is held, `piece` blocks at a time. The stream must not change until the last one is taken."""
        parents = self._parents
        blocks = self._blocks.items()
        while pairs := list(islice(blocks, piece)):
            batch, names = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            tiers = self._tree.tier_masks(self.slot, names)
            if 0 in tiers:  # two engine hashes named one block, and one of them was removed
                kept = [i for i, mask in enumerate(tiers) if mask]
                batch, names = [batch[i] for i in kept], [names[i] for i in kept]
                tiers = bytes(tiers[i] for i in kept)
            if batch:
                yield Holdings(batch, names, tiers, [parents.get(one) for one in batch] if parents else None)
        ghosts = iter(self._ghosts.items())
        while removed := list(islice(ghosts, piece)):
            yield Holdings([one for one, _ in removed], [g[0] for _, g in removed], b"", [g[1] for _, g in removed])

    def graft(self, cursor: int, *, complete: bool, settled: Callable[[bool], None]) -> None:
        """A new stream takes over what a snapshot says was held before frame `cursor`: `graft_more` adds it, all of
        it before any frame is observed.

        Withheld as after a broken connection: until the same process (`confirm`) is seen to go on at `cursor`. Then
        `settled(True)` is called; or, once it is known that it cannot be shown, everything is dropped, the stream is
        as if new, and `settled(False)` is called.
        """
        if self.expected is not None or self._blocks:
            raise ValueError("only a stream that has heard nothing can take over a snapshot")
        self.expected = cursor
        self.complete = complete
        self._settled = settled
        self.suspend()

    def graft_more(self, piece: Holdings) -> bool:
        """Add blocks of the snapshot. False where it was dropped meanwhile: nothing more is taken."""
        if self._settled is None:
            return False
        hashes, keys, tiers, parents = piece
        if not tiers:
            self._ghosts.update(zip(hashes, zip(keys, parents or (), strict=True), strict=True))
            return True
        self._map(hashes, keys)
        if parents is not None:
            self._parents.put(hashes, parents)
        for position, tier in enumerate(Tier):
            flag = 1 << position
            held = [key for key, mask in zip(keys, tiers, strict=True) if mask & flag]
            if held:
                self.held[tier] += self._tree.store(self.slot, tier, held)
        return True

    def _settle(self, *, kept: bool) -> None:
        settled, self._settled = self._settled, None
        if settled is not None:
            settled(kept)

    # --- events -------------------------------------------------------------------------------------------------

    def apply(self, event: Event) -> None:
        """Apply one event of an observed frame. Raises WireError for token ids that are none."""
        if isinstance(event, BlocksCleared):
            self.counters.cleared += 1
            self._drop_holdings()
            self._begin(complete=True)
        elif self.state is StreamState.UNTRUSTED:
            self.counters.skipped += len(event.block_hashes)
        elif isinstance(event, BlockStored):
            self._store(event)
        else:
            self._remove(event)

    def _store(self, event: BlockStored) -> None:
        hashes = event.block_hashes
        if event.group is not None and not self._claims(event.group, event.kind):
            self.counters.other_group += len(hashes) + event.left_out
            return
        self.counters.left_out += event.left_out
        if not hashes:
            return
        bigram = event.bigram
        if (event.block_size, bigram) != (self.hasher.page_size, self.hasher.bigram) and not self._fits(event, bigram):
            return
        if event.tier is None:
            self.counters.unindexed += len(hashes)
            return
        parent = event.parent_hash
        if parent is None:
            key: int | None = self.hasher.root(Namespace(event.cache_salt, event.lora_name))
        else:
            key = self._blocks.get(parent)
            if key is None:
                key = self._resurrect(parent, event.tier)
        if key is None and event.merged:
            self._store_each(event)
            return
        if key is None:
            self.counters.orphans += len(hashes)
            return
        try:
            keys = self.hasher.extend(key, event.token_ids, len(hashes))
        except (TypeError, ValueError, OverflowError) as error:
            raise WireError(DecodeFailure.TOKEN_IDS, str(error)) from error
        if event.merged and self._renames(hashes, keys):
            self._store_each(event)
            return
        # Held before mapped: a hash that names two blocks of one event gives the first up again.
        self.held[event.tier] += self._tree.store(self.slot, event.tier, keys)
        self._map(hashes, keys)
        self.counters.stored += len(hashes)
        if not event.medium_given:
            self._parents.put(hashes, (parent, *hashes[:-1]))
            if self._ghosts:
                for block_hash in hashes:
                    self._ghosts.pop(block_hash, None)

    def _claims(self, group: int, kind: str | None) -> bool:
        """Whether a store by this cache group says what can be hit."""
        if self._groups.stored(group, kind):
            self._drop_holdings()
        if self._groups.untold:
            self._remark(Remark.GROUPS_UNTOLD, group)
        return self._groups.claiming == group

    def _fits(self, event: BlockStored, bigram: bool) -> bool:
        """Whether blocks of another kind than the rank's so far can be indexed. One cache has one page size: what the
        worker announced, else what it stored first."""
        if event.block_size != self.hasher.page_size and (self._announced or self._blocks):
            self.counters.other_page += len(event.block_hashes)
            self._remark(Remark.OTHER_PAGE, event.block_size)
            return False
        if self._blocks:
            self.counters.unindexed += len(event.block_hashes)
            return False
        self.hasher = self._hashers(event.block_size, bigram)
        self._changed(self)
        return True

    def _remark(self, remark: Remark, number: int) -> None:
        if remark not in self._remarked:
            self._remarked.add(remark)
            self._remarks(self, remark, number)

    def _store_each(self, event: BlockStored) -> None:
        """The events a merged one was made of."""
        for index in range(len(event.block_hashes)):
            self._store(event.piece(index, index + 1)._replace(merged=False))

    def _renames(self, hashes: Sequence[EngineHash], keys: Sequence[int]) -> bool:
        """Whether some hash names another block so far."""
        blocks = self._blocks
        if blocks.plain is not None and blocks.plain.keys().isdisjoint(hashes):
            return False
        return any(blocks.get(block_hash, key) != key for block_hash, key in zip(hashes, keys, strict=True))

    def _map(self, hashes: Sequence[EngineHash], keys: Sequence[int]) -> None:
        for key in self._blocks.put(hashes, keys):
            self._unhold(key)  # the engine's 64-bit hash now names another block: the first claim is gone

    def _unhold(self, key: int) -> None:
        for tier, count in self.held.items():
            if count and self._tree.remove(self.slot, tier, key):
                self.held[tier] = count - 1

    def _remove(self, event: BlockRemoved) -> None:
        if event.group is not None and not self._groups.concerns(event.group):
            self.counters.other_group += len(event.block_hashes)
            return
        held, blocks, tree, slot = self.held, self._blocks, self._tree, self.slot
        legacy = bool(self._parents)
        tiers = tuple(Tier) if event.tier is None else (event.tier,)
        others = [tier for tier in Tier if held[tier] and tier not in tiers]
        find = blocks.plain.get if blocks.plain is not None else blocks.get
        known = {one: key for one in event.block_hashes if (key := find(one)) is not None}
        keys = list(set(known.values())) if len(known) > 1 else list(known.values())
        for tier in tiers:
            if held[tier]:
                held[tier] -= tree.remove_many(slot, tier, keys)
        self.counters.removed += len(known)
        for block_hash, key in known.items():
            if not others or not any(tree.holds(slot, key, tier) for tier in others):
                blocks.pop(block_hash)
                if legacy:
                    self._remember_ghost(block_hash, key)

    def disclaim(self, key: int) -> None:
        """Stop claiming one block, and so all that is below it, until the engine stores it again."""
        self._unhold(key)
        self.complete = False

    def forget(self, count: int, looks: int, recent: Callable[[int], bool]) -> int:
        """Stop claiming up to `count` blocks, the longest stored first; those that `recent(key)` says were matched
        lately go round once more. Looks at `looks` blocks at most. Returns how many were forgotten."""
        blocks = self._blocks
        doomed: list[tuple[EngineHash, int]] = []
        spared: list[tuple[EngineHash, int]] = []
        for block_hash, key in blocks.oldest(looks):
            (spared if recent(key) else doomed).append((block_hash, key))
            if len(doomed) == count:
                break
        self._spared = 0 if doomed else self._spared + len(spared)
        if self._spared >= len(blocks):  # all were matched lately, and the bound holds all the same
            doomed, spared = spared[:count], spared[count:]
            self._spared = 0
        for block_hash, _ in doomed:
            blocks.pop(block_hash)
            self._parents.pop(block_hash, None)
        keys = list({key for _, key in doomed})
        for tier, held in self.held.items():
            if held:
                self.held[tier] = held - self._tree.remove_many(self.slot, tier, keys)
        for block_hash, key in spared:
            blocks.pop(block_hash)
            blocks[block_hash] = key
        if doomed:
            self.complete = False
        self.counters.forgotten += len(doomed)
        return len(doomed)

    # --- the split bug of 0.5.6 and 0.5.7 -----------------------------------------------------------------------
    # Splitting a radix node there reports its blocks as removed though they stay cached, then stores a branch whose
    # parent is one of them. A cached child proves its whole prefix cached, so that store brings its ancestors back;
    # the blocks behind the split stay forgotten (under-reported, never wrong).

    def _remember_ghost(self, block_hash: EngineHash, key: int) -> None:
        if block_hash not in self._parents:
            return
        self._ghosts[block_hash] = (key, self._parents.pop(block_hash))
        if len(self._ghosts) > _GHOSTS:
            self._ghosts.popitem(last=False)

    def _resurrect(self, block_hash: EngineHash, tier: Tier) -> int | None:
        """The key of a removed block that a new store names as its parent, its prefix held again; None if unknown."""
        path: list[EngineHash] = []
        cursor: EngineHash | None = block_hash
        while cursor is not None and cursor not in self._blocks:
            if cursor not in self._ghosts or len(path) >= len(self._ghosts):
                return None  # unknown, or a chain of ghosts that leads back to itself
            path.append(cursor)
            cursor = self._ghosts[cursor][1]
        for ghost in path:
            key, parent = self._ghosts.pop(ghost)
            self._blocks[ghost] = key
            self._parents[ghost] = parent
            self.held[tier] += self._tree.store(self.slot, tier, (key,))
        return self._blocks[block_hash]
