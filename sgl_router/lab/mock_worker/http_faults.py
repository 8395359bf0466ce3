"""Committing the faults that come before, or instead of, a response."""

from __future__ import annotations

import asyncio

from aiohttp import web

from sgl_router.lab.mock_worker.faults import Fault, FaultKind, Faults
from sgl_router.lab.mock_worker.listener import reset_connection
from sgl_router.lab.mock_worker.refusal import Refusal


class InjectedFault(ConnectionResetError):
    """A fault closed the connection under a response."""


async def commit_before_headers(fault: Fault, request: web.Request, faults: Faults) -> web.Response | None:
    """Commit what comes before the headers; a response replaces the answer, None lets it go on."""
    if fault.kind is FaultKind.HANG:
        await faults.until_cleared()
    elif fault.kind is FaultKind.SLOW_FIRST_BYTE:
        await asyncio.sleep(fault.delay_secs)
    elif fault.kind is FaultKind.RESET and not fault.after_chunks:
        reset_connection(request.transport)
        return web.Response()
    elif fault.kind is FaultKind.STATUS:
        refusal = Refusal(fault.message, status=fault.status, kind=str(fault.status))
        headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
        return web.json_response(refusal.openai_body(), status=fault.status, headers=headers)
    return None


async def truncate_body(request: web.Request, body: bytes) -> None:
    """Promise `body` and send half of it, then close the connection in good order."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()
