"""From a prompt to a worker: looks the prompt up, lets the policy choose, and holds the chosen worker's load."""

from __future__ import annotations

from sgl_router.routing.decision_log import DecisionLog
from sgl_router.routing.lease import Lease, Routing
from sgl_router.routing.local import LocalRouting
from sgl_router.routing.request import RouteRequest

__all__ = ["DecisionLog", "Lease", "LocalRouting", "RouteRequest", "Routing"]
