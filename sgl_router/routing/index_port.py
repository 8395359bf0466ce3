"""What routing needs of a prefix index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sgl_router.kv_events import PromptMatch

if TYPE_CHECKING:
    from sgl_router.kv_events import Expectation, Namespace, Sent
    from sgl_router.placement import Leg
    from sgl_router.prompt import Prompt
    from sgl_router.workers import Target

__all__ = ["NoIndex", "PrefixIndex"]


class PrefixIndex(Protocol):
    """See `kv_events.KvIndex`."""

    def match_now(self, model_id: str, prompt: Prompt, namespace: Namespace) -> PromptMatch | None: ...

    async def match(self, model_id: str, prompt: Prompt, namespace: Namespace) -> PromptMatch: ...

    def expect(self, target: Target, match: PromptMatch) -> Expectation | None: ...

    def sent(self, leg: Leg, match: PromptMatch) -> Sent | None: ...


class NoIndex:
    """Where no event stream is followed: no worker is known to hold anything."""

    def match_now(self, model_id: str, prompt: Prompt, namespace: Namespace) -> PromptMatch:
        return PromptMatch([], prompt, namespace)

    async def match(self, model_id: str, prompt: Prompt, namespace: Namespace) -> PromptMatch:
        return self.match_now(model_id, prompt, namespace)

    def expect(self, target: Target, match: PromptMatch) -> None:
        return None

    def sent(self, leg: Leg, match: PromptMatch) -> None:
        return None
