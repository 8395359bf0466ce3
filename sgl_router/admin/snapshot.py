"""`GET /internal/kv_snapshot`: the index as a file, for a peer that starts. It holds the hash secret."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import structlog

from sgl_router.errors import SnapshotBusy
from sgl_router.http import ClientGone
from sgl_router.kv_events import KvIndex, encode_snapshot

if TYPE_CHECKING:
    from sgl_router.http import ResponseWriter
    from sgl_router.http.request import Request
    from sgl_router.http.routes import Serve
    from sgl_router.services import Services

__all__ = ["SNAPSHOT_PATH", "snapshot_route"]

log = structlog.get_logger(__name__)

SNAPSHOT_PATH = "/internal/kv_snapshot"
_STALL_SECS = 15.0
_HEADERS = [(b"content-type", b"application/octet-stream")]


def snapshot_route(index: KvIndex, *, stall_secs: float = _STALL_SECS) -> Serve:
    """One at a time: a copy costs memory and events wait for it. A client that stops reading is cut off."""
    busy = False

    async def serve(services: Services, request: Request, writer: ResponseWriter) -> None:
        nonlocal busy
        if busy:
            raise SnapshotBusy("another snapshot is being sent; try again in a moment")
        busy = True
        try:
            await writer.start(200, _HEADERS)
            if request.method != "HEAD":
                async with contextlib.aclosing(encode_snapshot(index)) as chunks:
                    async for chunk in chunks:
                        await asyncio.wait_for(writer.write(chunk), stall_secs)
            await asyncio.wait_for(writer.end(), stall_secs)
        except ClientGone:
            raise
        except Exception as error:
            # The status line is out: only a broken connection still tells the peer.
            log.warning("kv snapshot broke off", reason=repr(error))
            writer.abort()
        finally:
            busy = False

    return serve
