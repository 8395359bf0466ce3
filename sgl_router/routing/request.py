"""What the data path asks to be routed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from sgl_router.kv_events import Namespace
    from sgl_router.placement import Unmatched
    from sgl_router.prompt import Prompt

__all__ = ["RouteRequest"]


class RouteRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request for one model. `unmatched` says why the prompt cannot be looked up; else `prompt` and `namespace`
    are there."""

    model_id: str
    request_id: str = ""
    prompt: Prompt | None = None
    namespace: Namespace | None = None
    unmatched: Unmatched | None = None
    streamed: bool = True
    """Whether the response's first byte comes with its first token."""
    priority: int = 0
    """Higher goes first where requests have to wait."""
    session: str | None = None
    """What the client calls the conversation."""
    fingerprint: int | None = None
    """Equal for equal bodies, below 2**64."""
    wants_usage: bool = False
    """The policy tracks load in tokens, so `Lease.end` should be given the completion's length."""
