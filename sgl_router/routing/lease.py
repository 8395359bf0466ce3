"""The seam between the data path and whoever decides, which may be another process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from sgl_router.outcome import Outcome
    from sgl_router.placement import Placement
    from sgl_router.routing.request import RouteRequest
    from sgl_router.workers import Worker

__all__ = ["Lease", "Routing"]


class Lease(Protocol):
    """Where one request goes, and its share of the load there. `end` must be called, once or more."""

    placement: Placement
    waited_secs: float
    """How long the request was held back until a worker had room."""
    on_expire: Callable[[], None] | None
    """Called where the request has outlived `active_load.stale_request_timeout_secs`: it must then end."""

    def first_byte(self, status: int) -> None:
        """The answer's body begins: the prompt has been computed."""

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
        """The request is over: load, breaker, expectation and statistics learn how. Later calls do nothing.

        `cached_tokens`: how much of the prompt the worker says it had cached, where it says so. `output_tokens`: the
        completion's length, wanted only of streams, and where the request `wants_usage`. `status`: of the worker's
        response, 0 where there was none. `retry_after_secs`: what a refusal says of when to come back.
        `unrenderable`: the router could not have rendered this request either: a 5xx is then no news of the worker.
        """


class Routing(Protocol):
    """Decides where requests go. One per process that carries data."""

    async def choose(self, request: RouteRequest, tried: set[Worker]) -> Lease | None:
        """A worker that is not in `tried`, None where none is left. Never raises for what a request contains."""

    async def explain(self, request: RouteRequest) -> dict[str, Any]:
        """What would be decided now, and why, as `explanation_view` has it; nothing is charged or remembered. Raises
        RoutingUnavailable where only another process could say, and does not."""
