"""What workers say about their own load, also for requests that came to them past this router."""

from .outcome import LoadOutcome, LoadSource
from .report import LoadReport
from .watch import LoadListener, LoadWatch

__all__ = ["LoadListener", "LoadOutcome", "LoadReport", "LoadSource", "LoadWatch"]
