"""What the data path asks to be routed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgl_router.kv_events import Namespace
    from sgl_router.policies import Facts, Unmatched
    from sgl_router.prompt import Prompt

__all__ = ["Ask"]


class Ask:
    """One request for one model. `unmatched` says why the prompt cannot be looked up; else `prompt` and `namespace`
    are there. `facts` are what the first lookup found: a second attempt at the same request uses them again."""

    __slots__ = ("facts", "model_id", "namespace", "prompt", "unmatched")

    def __init__(
        self,
        model_id: str,
        *,
        prompt: Prompt | None = None,
        namespace: Namespace | None = None,
        unmatched: Unmatched | None = None,
    ) -> None:
        self.model_id = model_id
        self.prompt = prompt
        self.namespace = namespace
        self.unmatched = unmatched
        self.facts: Facts | None = None
