"""Every wire to a worker: requests and their responses, probes, KV events."""

from sgl_router.upstream.deadline import Deadline
from sgl_router.upstream.pool import UpstreamExchange, UpstreamPool
from sgl_router.upstream.relay import Relayed, relay
from sgl_router.upstream.verdict import Said

__all__ = [
    "Deadline",
    "Relayed",
    "Said",
    "UpstreamExchange",
    "UpstreamPool",
    "relay",
]
