"""How busy workers are: what is reported, what is estimated, and what this router has in flight."""

from __future__ import annotations

from sgl_router.load.active_load import ActiveLoad, LoadGuard
from sgl_router.load.janitor import Janitor

__all__ = ["ActiveLoad", "Janitor", "LoadGuard"]
