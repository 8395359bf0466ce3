"""Keeps the index warm over restarts: a snapshot is loaded at start, its own or a peer's, and written now and then."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

import aiohttp
import structlog

from sgl_router.admin.snapshot import SNAPSHOT_PATH
from sgl_router.config import SnapshotConfig
from sgl_router.kv_events import KvIndex, Snapshot, SnapshotDecoder, SnapshotError, decode_snapshot, encode_snapshot

__all__ = ["SnapshotKeeper"]

log = structlog.get_logger(__name__)

_READ_BYTES = 1 << 20
_CONNECT_SECS = 3.0
_BUSY_PAUSE_SECS = 0.5
_LAST_SAVE_SECS = 30.0

_T = TypeVar("_T")


class SnapshotKeeper:
    """`load` before the first worker, `run` in the background, `close` while the streams are still followed.

    A failure costs warmth and is logged, nothing more.
    """

    def __init__(self, config: SnapshotConfig, index: KvIndex) -> None:
        self._config = config
        self._index = index
        self._path = None if config.path is None else Path(config.path)
        self._saving = asyncio.Lock()
        # One thread: what a cancelled save leaves behind is removed after its last write, not during it.
        self._files = ThreadPoolExecutor(1, "kv snapshot")

    async def load(self) -> None:
        """Give the index what the own file, else the first peer that has something, knows."""
        try:
            await self._load()
        except Exception:
            log.exception("kv snapshot not loaded")

    async def _load(self) -> None:
        snapshot, source = await self._from_file(), str(self._path)
        for peer in self._config.peers:
            if snapshot is not None:
                break
            snapshot, source = await self._from_peer(peer), peer
        if snapshot is None:
            return
        self._index.adopt(snapshot)
        log.info(
            "kv snapshot loaded",
            source=source,
            ranks=len(snapshot.ranks),
            blocks=snapshot.blocks,
            age_secs=round(time.time() - snapshot.created_at, 1),
        )

    async def run(self) -> None:
        """Write the file again and again; returns never."""
        while True:
            await asyncio.sleep(self._config.interval_secs)
            await self.save()

    async def close(self) -> None:
        """The last save."""
        try:
            await asyncio.wait_for(self._save_last(), _LAST_SAVE_SECS)
        except asyncio.TimeoutError:
            log.warning("kv snapshot not written at shutdown", reason=f"it took longer than {_LAST_SAVE_SECS:g} s")
        self._files.shutdown(wait=False)

    async def _save_last(self) -> None:
        await self.save()
        await self._in_thread(lambda: None)  # whatever has still to be removed is

    async def save(self) -> None:
        """Replace the file as a whole. Where there is nothing worth keeping, an earlier file stays: what it says is
        checked before it is believed."""
        if self._path is None or not self._worth_saving():
            return
        started = time.monotonic()
        async with self._saving:
            try:
                size = await self._write(self._path)
            except Exception as error:
                log.warning("kv snapshot not written", path=str(self._path), reason=_text(error))
                return
        log.debug("kv snapshot written", bytes=size, secs=round(time.monotonic() - started, 3))

    def _worth_saving(self) -> bool:
        held = (feed.stream.blocks_held for _, feed in self._index.followed())
        return any(held) or bool(self._index.warm.unsettled())

    async def _write(self, path: Path) -> int:
        temporary = path.with_name(f".{path.name}.tmp")
        opened = self._files.submit(_create, temporary)
        size = 0
        try:
            file = await asyncio.wrap_future(opened)
            async with contextlib.aclosing(encode_snapshot(self._index)) as chunks:
                async for chunk in chunks:
                    size += len(chunk)
                    await self._in_thread(lambda chunk=chunk: file.write(chunk))  # type: ignore[misc]
            await self._in_thread(lambda: _replace(file, temporary, path))
        except BaseException:
            self._files.submit(_discard, opened, temporary)
            raise
        return size

    async def _from_file(self) -> Snapshot | None:
        path = self._path
        if path is None:
            return None
        try:
            most = self._index.bound.max_blocks
            snapshot = await self._in_thread(lambda: decode_snapshot(_pieces(path), max_blocks=most))
        except FileNotFoundError:
            log.info("no kv snapshot yet", path=str(path))
        except (OSError, SnapshotError) as error:
            log.warning("kv snapshot not usable", path=str(path), reason=_text(error))
        else:
            if snapshot.ranks:
                return snapshot
        return None

    async def _from_peer(self, peer: str) -> Snapshot | None:
        try:
            snapshot = await asyncio.wait_for(self._fetch(peer), self._config.fetch_timeout_secs)
        except asyncio.TimeoutError:
            log.warning("no kv snapshot from peer", peer=peer, reason="it took too long")
        except (aiohttp.ClientError, OSError, SnapshotError, _Refused) as error:
            log.warning("no kv snapshot from peer", peer=peer, reason=_text(error))
        else:
            if snapshot.ranks:
                return snapshot
            log.info("no kv snapshot from peer", peer=peer, reason="it holds nothing")
        return None

    async def _fetch(self, peer: str) -> Snapshot:
        timeout = aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECS)
        async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session:
            while True:
                async with session.get(peer + SNAPSHOT_PATH, allow_redirects=False) as response:
                    if response.status == 200:
                        return await self._decode(response.content.iter_any())
                    if response.status != 429:
                        raise _Refused(f"status {response.status}")
                await asyncio.sleep(_BUSY_PAUSE_SECS)  # it is sending one to somebody else

    async def _decode(self, chunks: AsyncIterator[bytes]) -> Snapshot:
        decoder = SnapshotDecoder(max_blocks=self._index.bound.max_blocks)
        async for chunk in chunks:
            await self._in_thread(lambda chunk=chunk: decoder.feed(chunk))  # type: ignore[misc]
        return decoder.finish()

    async def _in_thread(self, job: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._files, job)


class _Refused(Exception):
    """The peer answered, but not with a snapshot."""


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            yield piece


def _create(path: Path) -> BinaryIO:
    """For the owner alone: the keys' secret is in it."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _replace(file: BinaryIO, temporary: Path, path: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name too must survive a power cut
    finally:
        os.close(folder)


def _discard(opened: Future[BinaryIO], temporary: Path) -> None:
    with contextlib.suppress(OSError, CancelledError):
        opened.result().close()
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
