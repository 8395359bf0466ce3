"""GET /internal/kv_snapshot: the index as a file, for a peer that starts. For operators: it holds the hash secret."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from sgl_router.errors import SnapshotBusy
from sgl_router.kv_events import KvIndex, encode_snapshot

__all__ = ["SNAPSHOT_PATH", "snapshot_route"]

log = structlog.get_logger(__name__)

SNAPSHOT_PATH = "/internal/kv_snapshot"
_STALL_SECS = 15.0


def snapshot_route(
    index: KvIndex, *, stall_secs: float = _STALL_SECS
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """One at a time: a copy costs memory and events wait for it. A client that stops reading is cut off."""
    busy = False

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal busy
        if busy:
            raise SnapshotBusy("another snapshot is being sent; try again in a moment")
        busy = True
        response = web.StreamResponse(headers={"content-type": "application/octet-stream"})
        try:
            await response.prepare(request)
            if request.method == "HEAD":
                return response
            async with contextlib.aclosing(encode_snapshot(index)) as chunks:
                async for chunk in chunks:
                    await asyncio.wait_for(response.write(chunk), stall_secs)
            await asyncio.wait_for(response.write_eof(), stall_secs)
        except ConnectionError:
            pass  # the peer has gone
        except Exception as error:
            # The status line is out: only a broken connection still tells the peer.
            log.warning("kv snapshot broke off", reason=repr(error))
            if request.transport is not None:
                request.transport.abort()
        finally:
            busy = False
        return response

    return handle
