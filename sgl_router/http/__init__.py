"""HTTP/1.1: bytes to requests, responses to bytes, and what both may cost."""

from __future__ import annotations

from sgl_router.http.headers import RANK_HEADER, Headers, forward_headers, header_lines, header_pairs
from sgl_router.http.outbound import ClientGone, DirectWriter, ResponseWriter

__all__ = [
    "RANK_HEADER",
    "ClientGone",
    "DirectWriter",
    "Headers",
    "ResponseWriter",
    "forward_headers",
    "header_lines",
    "header_pairs",
]
