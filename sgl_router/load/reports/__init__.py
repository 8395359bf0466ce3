"""What workers say about their own load, also for requests that came to them past this router."""

from sgl_router.load.reports.outcome import LoadOutcome, LoadSource
from sgl_router.load.reports.report import LoadReport
from sgl_router.load.reports.watch import LoadListener, LoadWatch

__all__ = ["LoadListener", "LoadOutcome", "LoadReport", "LoadSource", "LoadWatch"]
