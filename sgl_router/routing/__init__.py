"""From a prompt to a worker: looks the prompt up, lets the policy choose, and holds the chosen worker's load."""

from __future__ import annotations

from .decision_log import DecisionLog
from .lease import Lease, Routing
from .local import LocalRouting
from .request import RouteRequest

__all__ = ["DecisionLog", "Lease", "LocalRouting", "RouteRequest", "Routing"]
