"""The data path: a request to a worker, its answer to the client."""

from .connection import Headers
from .deadline import Deadline
from .headers import RANK_HEADER, forward_headers, relay_headers
from .outbound import ClientGone, Outbound
from .pool import UpstreamExchange, UpstreamPool
from .relay import Relayed, relay

__all__ = [
    "RANK_HEADER",
    "ClientGone",
    "Deadline",
    "Headers",
    "Outbound",
    "Relayed",
    "UpstreamExchange",
    "UpstreamPool",
    "forward_headers",
    "relay",
    "relay_headers",
]
