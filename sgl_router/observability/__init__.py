"""What operators see: metrics, logs, and the record of every decision."""

from sgl_router.observability.forecasts import ForecastCollector
from sgl_router.observability.lag import watch_loop_lag
from sgl_router.observability.logs import configure_logging, flush_logs
from sgl_router.observability.metrics import Metrics
from sgl_router.observability.record import RequestRecord

__all__ = [
    "ForecastCollector",
    "Metrics",
    "RequestRecord",
    "configure_logging",
    "flush_logs",
    "watch_loop_lag",
]
