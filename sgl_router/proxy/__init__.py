"""The data path: a request to a worker, its answer to the client."""

from .deadline import Deadline
from .headers import RANK_HEADER, Headers, forward_headers, header_lines, header_pairs
from .outbound import ClientGone, DirectOutbound, Outbound
from .pool import UpstreamExchange, UpstreamPool
from .relay import Relayed, relay
from .verdict import Said

__all__ = [
    "RANK_HEADER",
    "ClientGone",
    "Deadline",
    "DirectOutbound",
    "Headers",
    "Outbound",
    "Relayed",
    "Said",
    "UpstreamExchange",
    "UpstreamPool",
    "forward_headers",
    "header_lines",
    "header_pairs",
    "relay",
]
