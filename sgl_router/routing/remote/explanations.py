"""Explanations that the routing process has been asked for, on the data process's side."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from sgl_router.errors import RouterError, RoutingUnavailable
from sgl_router.routing.remote.fallback import UNAVAILABLE

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Explanations"]


class Explanations:
    """One that is overdue says nothing about decisions: those have a patience of their own."""

    def __init__(self, answer_secs: float) -> None:
        self._answer_secs = answer_secs
        self._waited_for: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def wait(self, seq: int) -> dict[str, Any]:
        """Raises RoutingUnavailable where there is none in time, or never will be, and what it was refused with."""
        future = self._waited_for[seq] = asyncio.get_running_loop().create_future()
        try:
            return await asyncio.wait_for(future, self._answer_secs)
        except asyncio.TimeoutError:
            message = f"the routing process of this router did not answer within {self._answer_secs:g} s"
            raise RoutingUnavailable(message) from None
        finally:
            del self._waited_for[seq]

    def answered(self, seq: int, view: dict[str, Any]) -> None:
        self._settle(seq, lambda future: future.set_result(view))

    def refused(self, seq: int, error: RouterError) -> None:
        self._settle(seq, lambda future: future.set_exception(error))

    def lost(self) -> None:
        """Nobody is left to answer."""
        for seq in self._waited_for:
            self.refused(seq, RoutingUnavailable(UNAVAILABLE))

    def _settle(self, seq: int, settle: Callable[[asyncio.Future[dict[str, Any]]], None]) -> None:
        future = self._waited_for.get(seq)
        if future is not None and not future.done():
            settle(future)
