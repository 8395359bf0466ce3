"""What the data path asks to be routed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgl_router.kv_events import Namespace
    from sgl_router.placement import Unmatched
    from sgl_router.policies import Facts
    from sgl_router.prompt import Prompt

__all__ = ["Ask"]


class Ask:
    """One request for one model. `unmatched` says why the prompt cannot be looked up; else `prompt` and `namespace`
    are there. `facts` are what the first lookup found: a second attempt at the same request uses them again.

    `costed`: whoever decides reckons in tokens, and wants to hear how long answers were. `streamed`: the answer's first
    byte will come with its first token. `priority`: higher goes first where requests have to wait. `session`: what the
    client calls the conversation. `fingerprint`: equal for equal bodies, below 2**64. `held` is called where the
    request has to wait; `held_at` is when that was, where another process said so.
    """

    __slots__ = (
        "costed",
        "facts",
        "fingerprint",
        "held",
        "held_at",
        "model_id",
        "namespace",
        "priority",
        "prompt",
        "request_id",
        "session",
        "streamed",
        "unmatched",
    )

    def __init__(
        self,
        model_id: str,
        request_id: str = "",
        *,
        prompt: Prompt | None = None,
        namespace: Namespace | None = None,
        unmatched: Unmatched | None = None,
        streamed: bool = True,
        priority: int = 0,
        session: str | None = None,
        fingerprint: int | None = None,
    ) -> None:
        self.model_id = model_id
        self.prompt = prompt
        self.namespace = namespace
        self.unmatched = unmatched
        self.request_id = request_id
        self.costed = False
        self.streamed = streamed
        self.priority = priority
        self.session = session
        self.fingerprint = fingerprint
        self.facts: Facts | None = None
        self.held: Callable[[], None] | None = None
        self.held_at: float | None = None
