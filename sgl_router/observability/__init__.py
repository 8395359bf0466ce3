"""What operators see: metrics, logs, and the record of every decision."""

from .forecasts import ForecastCollector
from .lag import watch_loop_lag
from .logs import configure_logging, flush_logs
from .metrics import Metrics
from .outcome import Outcome
from .record import RequestRecord

__all__ = [
    "ForecastCollector",
    "Metrics",
    "Outcome",
    "RequestRecord",
    "configure_logging",
    "flush_logs",
    "watch_loop_lag",
]
