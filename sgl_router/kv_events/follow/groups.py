"""The cache groups of a hybrid model, and which of them says what a prompt can hit.

vLLM keeps a cache for each kind of layers and publishes for each. Only layers of full attention need a prompt's whole
prefix, so only what they hold is a prefix that can be hit: a sliding window keeps the last blocks and gives up the
others, under the same hashes. Pure.
"""

from __future__ import annotations

__all__ = ["CacheGroups"]

# vLLM's names for layers that keep every block of a prefix.
FULL_ATTENTION = frozenset({"full_attention", "mla_attention", "sink_full_attention"})
_MOST_GROUPS = 256


class CacheGroups:
    """What one publisher's stores have told of its groups."""

    __slots__ = ("_full", "claiming")

    def __init__(self) -> None:
        # In the order they were met. None: versions that do not tell a group's kind.
        self._full: dict[int, bool | None] = {}
        self.claiming: int | None = None
        """The group whose events are applied: the first of full attention, or the only one there is. None before one
        is known, and where several do not tell which is which."""

    @property
    def untold(self) -> bool:
        """Whether there are several groups, and none is known to be of full attention."""
        return len(self._full) > 1 and self.claiming is None and None in self._full.values()

    def stored(self, group: int, kind: str | None) -> bool:
        """A store of this group was met. True where another group than before claims now, or none: what is held came
        from the wrong one."""
        full = self._full.get(group) if kind is None else kind in FULL_ATTENTION
        if group in self._full:
            if self._full[group] is full:
                return False
        elif len(self._full) >= _MOST_GROUPS:
            return False
        self._full[group] = full
        before = self.claiming
        self.claiming = next((one for one, whole in self._full.items() if whole), None)
        if self.claiming is None and len(self._full) == 1 and full is None:
            self.claiming = group
        return before is not None and before != self.claiming

    def concerns(self, group: int) -> bool:
        """Whether a removal by this group may be of claimed blocks. In doubt it is: a claim too few does no harm."""
        return group == self.claiming if self.claiming is not None else group not in self._full
