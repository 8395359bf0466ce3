"""Token ids of conversations' beginnings: a tree of text pieces, bounded by bytes and safe from one-off prompts."""

from __future__ import annotations

import secrets
import sys
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from sgl_router.prompt import SharedPrefix

__all__ = ["ConversationCache", "Node", "Walk"]

# Shorter pieces are joined with what follows them: below this, encoding costs no more than looking up.
MIN_PIECE_CHARS = 512
# Adding a piece takes 3 us: what a prompt brings beyond this is left to its next turns.
MAX_NEW_PIECES = 512
# A node, its dict of children, its shared prefix and the headers of its ids, beside the text and the ids themselves.
_NODE_BYTES = 800
_KEYS_BYTES = 200
# A key, and in which row of the index it was seen.
_KEY_BYTES = 16
# Namespaces come from clients: one prefix remembers the keys of a few.
_MAX_ROOTS = 8
_PROTECTED_SHARE = 0.8
# A single piece larger than this share of the bound is encoded each time rather than kept.
_LARGEST_SHARE = 0.25
_LONG_CHARS = 1_024
# No client can aim for equal names.
_SECRET = secrets.randbits(64)


class Node:
    """One piece of text after its parent's; `ids` are this piece's own, `shared` counts those of the whole path."""

    __slots__ = ("bytes", "children", "ids", "kept", "key_bytes", "name", "parent", "piece", "protected", "shared")

    def __init__(self, parent: Node | None, piece: str, ids: bytes) -> None:
        self.parent = parent
        self.piece = piece
        self.name = _name(piece)
        self.ids = ids
        self.children: dict[str | int, Node] | None = None
        self.shared: SharedPrefix = SharedPrefix((0 if parent is None else parent.shared.tokens) + len(ids) // 4)
        self.bytes = _NODE_BYTES + sys.getsizeof(piece) + len(ids)
        self.key_bytes = 0
        self.protected = False
        self.kept = True


def _name(piece: str) -> str | int:
    """What a piece is looked up by. Python's hash of a long text takes ten times as long as this one."""
    return piece if len(piece) < _LONG_CHARS else xxh3_64_intdigest(piece.encode("utf-8", "surrogatepass"), _SECRET)


def _child(node: Node, piece: str) -> Node | None:
    child = None if node.children is None else node.children.get(_name(piece))
    return child if child is not None and child.piece == piece else None


class Walk(NamedTuple):
    """`path`: the pieces found, from the first; `new`: those that follow and are worth keeping; `rest`: the rest."""

    path: list[Node]
    new: list[str]
    rest: str


class ConversationCache:
    """Exact: a piece is found only under the very same pieces, compared as text. For one thread.

    Segmented LRU: what has been met twice is protected from what has been met once. Using a node refreshes its
    ancestors after it, so that leaves go first; evicting a node takes its descendants along. `bytes` never exceeds
    `max_bytes`; block keys that a prompt's user adds to its `shared` are counted when the node is next used.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self.tokens_reused = 0
        self._root = Node(None, "", b"")
        self._protected_bytes = 0
        self._probation: OrderedDict[Node, None] = OrderedDict()
        self._protected: OrderedDict[Node, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._probation) + len(self._protected)

    def walk(self, head: Sequence[str], tail: str) -> Walk:
        """Find how much of a text is known. `head`: its pieces that may come again; `tail`: what follows them."""
        node, path, pending = self._root, [], ""
        new: list[str] = []
        over: list[str] = []
        searching = True
        for piece in head:
            if pending:
                piece = pending + piece
            if len(piece) < MIN_PIECE_CHARS:
                pending = piece
                continue
            pending = ""
            if searching:
                child = _child(node, piece)
                if child is not None:
                    node = child
                    path.append(child)
                    continue
                searching = False
            (new if len(new) < MAX_NEW_PIECES else over).append(piece)
        return Walk(path, new, "".join([*over, pending, tail]) if over or pending else tail)

    def keep(self, walk: Walk, encoded: Sequence[bytes]) -> SharedPrefix | None:
        """Refresh a walk's path and add its new pieces with their ids; the deepest node's prefix, if there is one.

        The tree may have changed since the walk: pieces whose parent is gone are not added.
        """
        path = walk.path
        if path:
            self.hits += 1
            self.tokens_reused += path[-1].shared.tokens
        else:
            self.misses += 1
        while path and not path[-1].kept:
            # A walk whose end was evicted meanwhile: whatever is still there of it is kept up.
            path = path[:-1]
        self._use(path)
        if len(path) < len(walk.path):
            return path[-1].shared if path and path[-1].kept else None
        parent = path[-1] if path else self._root
        found = parent
        added: list[Node] = []
        for piece, ids in zip(walk.new, encoded, strict=True):
            if not parent.kept:
                break
            child = _child(parent, piece)
            if child is None:
                child = self._add(parent, piece, ids)
                if child is None:
                    break
                added.append(child)
            parent = child
        for node in reversed(added):
            if node.kept and not node.protected:
                self._probation.move_to_end(node)
        if added and parent.kept and found is not self._root:
            self._hand_on(found, parent)
        return parent.shared if parent is not self._root and parent.kept else None

    def _use(self, path: list[Node]) -> None:
        protected = self._protected
        for node in reversed(path):
            if node.protected:
                protected.move_to_end(node)
            else:
                del self._probation[node]
                protected[node] = None
                node.protected = True
                self._protected_bytes += node.bytes
        if path:
            self._recount(path[-1])
        limit = self.max_bytes * _PROTECTED_SHARE
        while self._protected_bytes > limit:
            oldest, _ = protected.popitem(last=False)
            oldest.protected = False
            self._protected_bytes -= oldest.bytes
            self._probation[oldest] = None
        while self.bytes > self.max_bytes:
            self._evict(self._oldest())

    def _add(self, parent: Node, piece: str, ids: bytes) -> Node | None:
        """The new child; None where there is no room for it."""
        node = Node(parent, piece, ids)
        if node.bytes > self.max_bytes * _LARGEST_SHARE:
            return None
        while self.bytes + node.bytes > self.max_bytes:
            oldest = self._oldest()
            if oldest is parent:
                return None
            self._evict(oldest)
            if not parent.kept:
                return None
        if parent.children is None:
            parent.children = {}
        if node.name in parent.children:
            return None  # another text has this name: once in 2**64
        parent.children[node.name] = node
        self._probation[node] = None
        self.bytes += node.bytes
        return node

    def _oldest(self) -> Node:
        return next(iter(self._probation or self._protected))

    def _evict(self, node: Node) -> None:
        parent = node.parent
        if parent is not None and parent.children is not None:
            del parent.children[node.name]
            if not parent.children:
                parent.children = None
        pending = [node]
        while pending:
            gone = pending.pop()
            if gone.children:
                pending.extend(gone.children.values())
            gone.kept = False
            gone.children = None
            gone.parent = None
            if gone.protected:
                del self._protected[gone]
                self._protected_bytes -= gone.bytes
            else:
                del self._probation[gone]
            self.bytes -= gone.bytes
            self.evictions += 1

    def _hand_on(self, found: Node, deepest: Node) -> None:
        """Block keys follow a conversation as it grows; where others branch off the same place, it keeps its own."""
        keys = found.shared.keys
        if keys and not deepest.shared.keys:
            if found.children is not None and len(found.children) == 1:
                deepest.shared.keys, found.shared.keys = keys, {}
                self._recount(found)
            else:
                deepest.shared.keys = {root: array("Q", known) for root, known in keys.items()}
            self._recount(deepest)
            while self.bytes > self.max_bytes:
                self._evict(self._oldest())

    def _recount(self, node: Node) -> None:
        keys = node.shared.keys
        while len(keys) > _MAX_ROOTS:
            del keys[next(iter(keys))]
        counted = sum([_KEYS_BYTES + _KEY_BYTES * len(known) for known in keys.values()]) if keys else 0
        grown = counted - node.key_bytes
        if grown:
            node.key_bytes = counted
            node.bytes += grown
            self.bytes += grown
            if node.protected:
                self._protected_bytes += grown
