"""One request that goes to a worker: what the pipeline's steps know of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from sgl_router.observability import RequestRecord
from sgl_router.upstream import Relayed

if TYPE_CHECKING:
    from sgl_router.api.body import JsonObject
    from sgl_router.http import ResponseWriter
    from sgl_router.http.request import Request
    from sgl_router.routing import RouteRequest
    from sgl_router.services import Model, Services
    from sgl_router.workers import Worker

__all__ = ["Endpoint", "Exchange"]


class Endpoint(NamedTuple):
    """What is particular to one endpoint whose requests go to workers."""

    read: Callable[[bytes], Awaitable[JsonObject]]
    """The body's fields. Raises BadRequest."""
    prepare: Callable[[Exchange, JsonObject], Awaitable[RouteRequest]]
    """What the router is asked: the prompt as far as it can be known. Raises BadRequest."""
    is_unrenderable: Callable[[Model, bytes], Awaitable[bool]]
    """Whether a body is one that the router cannot render for a fault in it: then neither can a worker."""


class Exchange:
    """Filled in from left to right as the steps run; `record` and `relayed` say at any time how far it has come."""

    __slots__ = (
        "adapter",
        "body",
        "endpoint",
        "model",
        "record",
        "relayed",
        "request",
        "route_request",
        "services",
        "tried",
        "writer",
    )

    body: JsonObject | None
    model: Model
    adapter: str | None
    route_request: RouteRequest

    def __init__(self, endpoint: Endpoint, services: Services, request: Request, writer: ResponseWriter) -> None:
        self.endpoint = endpoint
        self.services = services
        self.request = request
        self.writer = writer
        self.record = RequestRecord(request.request_id)
        self.relayed = Relayed()
        self.body = None
        self.tried: set[Worker] = set()
        """Workers that no connection could be made to."""
