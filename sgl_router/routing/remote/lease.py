"""A lease that two processes hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from sgl_router.routing.remote.messages import Declare, End, FirstByte

if TYPE_CHECKING:
    from sgl_router.outcome import Outcome
    from sgl_router.routing import RouteRequest
    from sgl_router.routing.local_lease import LocalLease

__all__ = ["RemoteLease"]


class _Owner(Protocol):
    def tell(self, message: End | FirstByte) -> None: ...
    def forget(self, seq: int) -> None: ...


class RemoteLease:
    """See `routing.Lease`. `local` is this process's own account; the routing process hears the same."""

    __slots__ = (
        "_expired",
        "_fingerprint",
        "_local",
        "_model_id",
        "_on_expire",
        "_owner",
        "_prefilled",
        "_seq",
        "_streamed",
        "placement",
        "waited_secs",
    )

    def __init__(self, owner: _Owner, seq: int, request: RouteRequest, local: LocalLease) -> None:
        self._owner: _Owner | None = owner
        self._seq = seq
        self._model_id = request.model_id
        self._streamed = request.streamed
        self._fingerprint = request.fingerprint
        self._local = local
        self.placement = local.placement
        self.waited_secs = 0.0
        self._prefilled = False
        self._expired = False
        self._on_expire: Callable[[], None] | None = None

    @property
    def on_expire(self) -> Callable[[], None] | None:
        return self._on_expire

    @on_expire.setter
    def on_expire(self, callback: Callable[[], None] | None) -> None:
        self._on_expire = callback
        self._local.on_expire = self.expire

    def expire(self) -> None:
        """The janitor of either process has found it overdue."""
        if not self._expired and self._owner is not None:
            self._expired = True
            if self._on_expire is not None:
                self._on_expire()

    def first_byte(self, status: int) -> None:
        if self._owner is not None:
            self._prefilled = True
            self._local.first_byte(status)
            self._owner.tell(FirstByte(self._seq, status))

    def end(
        self,
        outcome: Outcome,
        cached_tokens: int | None = None,
        output_tokens: int | None = None,
        *,
        status: int = 0,
        retry_after_secs: float | None = None,
        unrenderable: bool = False,
    ) -> None:
        owner, self._owner = self._owner, None
        if owner is None:
            return
        self._on_expire = None
        # The counts are for the index and the forecasts, which are over there.
        self._local.end(outcome, status=status, retry_after_secs=retry_after_secs, unrenderable=unrenderable)
        owner.forget(self._seq)
        owner.tell(End(self._seq, outcome, cached_tokens, output_tokens, status, retry_after_secs, unrenderable))

    def declaration(self) -> Declare:
        """What a routing process that does not know this lease must be told."""
        leg = self.placement.prefill
        return Declare(
            self._seq,
            leg.target.worker.url,
            self._model_id,
            leg.target.dp_rank,
            0 if self._prefilled else leg.uncached_tokens,
            leg.prompt_blocks,
            self._streamed,
            self._prefilled,
            self._fingerprint,
        )
