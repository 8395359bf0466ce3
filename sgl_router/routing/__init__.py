"""From a prompt to a worker: looks the prompt up, lets the policy choose, and holds the chosen worker's load."""

from __future__ import annotations

from .ask import Ask
from .decision_log import DecisionLog
from .lease import Lease, Routing
from .local import LocalRouting

__all__ = ["Ask", "DecisionLog", "Lease", "LocalRouting", "Routing"]
