"""The block keys of one prompt: hashed once per request, front to back, only as far as somebody asks; what an earlier
prompt with the same beginning had hashed is not hashed again."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from sgl_router.kv_events.index.hashing import BlockHasher, Namespace
from sgl_router.prompt import BlockKeys, Prompt, SharedKeys

if TYPE_CHECKING:
    from sgl_router.prompt import Seen

__all__ = ["PromptKeys"]

_MAX_SHARED_ROOTS = 4


class PromptKeys:
    """Keys of the blocks a cache hit could cover. Several of one prompt and root work on the same memory."""

    __slots__ = ("_prompt", "_root", "blocks", "hasher", "memo")

    def __init__(self, prompt: Prompt, hasher: BlockHasher, namespace: Namespace) -> None:
        self._prompt = prompt
        self.hasher = hasher
        self._root = root = hasher.root(namespace)
        self.blocks = blocks = hasher.prompt_blocks(len(prompt.ids))
        memo = prompt.keys.get(root)
        if memo is None:
            shared = prompt.shared
            known = shared.keys.get(root) if shared is not None else None
            memo = prompt.keys[root] = BlockKeys(known[:blocks] if known is not None else array("Q"))
            if isinstance(known, SharedKeys):
                memo.seen = known.seen
        self.memo = memo

    @property
    def known(self) -> int:
        """Leading blocks whose keys need no hashing."""
        return len(self.memo.computed)

    def slice(self, start: int, stop: int) -> array[int]:
        """Keys of blocks `start` to `stop`, at most `blocks`."""
        computed = self.memo.computed
        known = len(computed)
        missing = (stop if stop < self.blocks else self.blocks) - known
        if missing > 0:
            parent = computed[-1] if known else self._root
            computed.extend(self.hasher.chain(parent, self._prompt.ids, known, missing))
        return computed[start:stop]

    def share(self, seen: Seen | None = None) -> None:
        """Leave what was computed from the shared tokens alone to the next prompt that begins with them, and in which
        rows of the index it was `seen`."""
        shared = self._prompt.shared
        if shared is None:
            return
        computed, known = self.memo.computed, shared.keys.get(self._root)
        whole = min(self.hasher.whole_blocks(shared.tokens), len(computed))
        if whole > (0 if known is None else len(known)):
            if known is None and len(shared.keys) >= _MAX_SHARED_ROOTS:
                del shared.keys[next(iter(shared.keys))]
            made = shared.keys[self._root] = SharedKeys("Q", computed[:whole])
            made.seen = self.memo.seen if seen is None else seen.first(whole)
        elif seen is not None and isinstance(known, SharedKeys):
            known.seen = seen.first(len(known))
