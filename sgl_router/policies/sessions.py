"""Where the last request of a session went."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgl_router.workers import Target

__all__ = ["Sessions"]

_MAX_SESSIONS = 65_536


class Sessions:
    """At most `limit` sessions, those not seen for longest forgotten first. Names are kept as hashes: clients choose
    them, as long as they like."""

    def __init__(self, limit: int = _MAX_SESSIONS) -> None:
        self._limit = limit
        self._targets: OrderedDict[int, Target] = OrderedDict()

    def __len__(self) -> int:
        return len(self._targets)

    def target(self, session: str) -> Target | None:
        """None for a session not known. A target may have gone meanwhile: it is then no candidate."""
        return self._targets.get(hash(session))

    def went(self, session: str, target: Target) -> None:
        name = hash(session)
        self._targets[name] = target
        self._targets.move_to_end(name)
        if len(self._targets) > self._limit:
            self._targets.popitem(last=False)
