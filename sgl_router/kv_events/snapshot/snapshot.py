"""Snapshots of the index: what every rank holds and up to which frame, to begin from after a restart."""

from __future__ import annotations

import asyncio
import struct
import time
import zlib
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from xxhash import xxh3_64

from sgl_router.kv_events.follow.stream import StreamState
from sgl_router.kv_events.snapshot.records import (
    MAGIC,
    VERSION,
    End,
    Header,
    PackedBlocks,
    RankHead,
    RankSnapshot,
    Snapshot,
    SnapshotError,
    SnapshotFault,
    pack,
    unpack,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sgl_router.kv_events.follow.pump import EventPump, Feed
    from sgl_router.kv_events.follow.stream import EventStream, Holdings
    from sgl_router.kv_events.index.index import KvIndex
    from sgl_router.workers import Target

__all__ = ["SnapshotDecoder", "decode_snapshot", "encode_snapshot"]

PIECE_BLOCKS = 1_024
MAX_RECORD_BYTES = 4 << 20
MAX_BYTES = 4 << 30
"""Of a snapshot before compression: some 200 million blocks."""
_BLOCK_BYTES = 128
"""Of a block: 17 with integer hashes, 90 with digests and a parent."""
_LEAST_BYTES = 4 << 20
_MAX_RANKS = 65_536
_LEVEL = 1  # hashes do not compress; the rest does at any level
_OUT_BYTES = 256 << 10
_COPY_ATTEMPTS = 3
_LENGTH = struct.Struct("<I")

_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], Header | RankHead | PackedBlocks | End]
_decode = msgspec.msgpack.Decoder(Header | RankHead | PackedBlocks | End).decode


# --- writing --------------------------------------------------------------------------------------------------------


class _Copied(NamedTuple):
    cursor: int
    complete: bool
    page_size: int
    bigram: bool
    pieces: list[PackedBlocks]


class _Copy:
    """A feed's job: copies what its stream holds between two frames, a piece per step. None where that changed under
    it, or is not to be trusted."""

    def __init__(self, stream: EventStream) -> None:
        self.done: asyncio.Future[_Copied | None] = asyncio.get_running_loop().create_future()
        self._stream = stream
        self._epoch = stream.epoch
        self._cursor = stream.expected
        self._rest: Iterator[Holdings] | None = None
        self._pieces: list[PackedBlocks] = []

    def step(self) -> bool:
        try:
            return self._step()
        except Exception as error:  # the blocks changed while they were iterated over: another copy may succeed
            self._finish(None, error)
            return False

    def dropped(self) -> None:
        self._finish(None)

    def _step(self) -> bool:
        stream = self._stream
        if self._rest is None:
            self._rest, self._cursor, self._epoch = stream.export(PIECE_BLOCKS), stream.expected, stream.epoch
        moved = (stream.expected, stream.epoch) != (self._cursor, self._epoch)
        if moved or self._cursor is None or stream.state is not StreamState.LIVE:
            self._finish(None)
            return False
        piece = next(self._rest, None)
        if piece is not None:
            self._pieces.append(pack(piece))
            return True
        hasher = stream.hasher
        self._finish(_Copied(self._cursor, stream.complete, hasher.page_size, hasher.bigram, self._pieces))
        return False

    def _finish(self, result: _Copied | None, error: Exception | None = None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(result)
        else:
            self.done.set_exception(error)


async def copy_rank(pump: EventPump, target: Target, feed: Feed) -> RankSnapshot | None:
    """One rank at one moment; its frames wait meanwhile. None where its claims cannot be vouched for."""
    started_at = target.worker.info.started_at
    if started_at is None or feed.stream.state is not StreamState.LIVE or feed.job is not None or feed.dropped:
        return None
    job = _Copy(feed.stream)
    feed.job = job
    pump.wake(feed)
    try:
        copied = await job.done
    finally:
        if feed.job is job:  # cancelled: nobody waits for it any more
            feed.job = None
    if copied is None:
        return None
    head = RankHead(
        worker_url=target.worker.url,
        started_at=started_at,
        model_id=target.worker.model_id,
        dp_rank=target.dp_rank,
        cursor=copied.cursor,
        page_size=copied.page_size,
        bigram=copied.bigram,
        complete=copied.complete,
    )
    return RankSnapshot(head, copied.pieces)


class _Writer:
    """Frames, sums up and compresses records. Compression runs in a thread and lets the loop go on."""

    def __init__(self) -> None:
        self._zlib = zlib.compressobj(_LEVEL)
        self._sum = xxh3_64()
        self._waiting = bytearray()
        self.ranks = self.blocks = 0

    @property
    def full(self) -> bool:
        return len(self._waiting) >= _OUT_BYTES

    def add(self, record: Header | RankHead | PackedBlocks) -> None:
        self._frame(record, summed=True)

    def end(self) -> None:
        self._frame(End(ranks=self.ranks, blocks=self.blocks, checksum=self._sum.intdigest()), summed=False)

    async def compressed(self, *, last: bool = False) -> bytes:
        waiting, self._waiting = self._waiting, bytearray()
        return await asyncio.get_running_loop().run_in_executor(None, self._compress, waiting, last)

    def _compress(self, data: bytearray, last: bool) -> bytes:
        out = self._zlib.compress(data)
        return out + self._zlib.flush() if last else out

    def _frame(self, record: Header | RankHead | PackedBlocks | End, *, summed: bool) -> None:
        data = _encode(record)
        framed = _LENGTH.pack(len(data)) + data
        if summed:
            self._sum.update(framed)
        self._waiting += framed


async def encode_snapshot(index: KvIndex, *, created_at: float | None = None) -> AsyncGenerator[bytes, None]:
    """The whole index, piece by piece. Each rank is copied at a moment of its own; one that is not live is left out.

    Ranks of the snapshot this process began from, and not yet settled, are passed on as they came.
    """
    writer = _Writer()
    now = time.time() if created_at is None else created_at
    writer.add(Header(magic=MAGIC, version=VERSION, created_at=now, secret=index.secret))
    written: set[tuple[str, int]] = set()
    for target, feed in index.followed():
        async with index.copying:
            rank = await _copy_patiently(index.pump, target, feed)
        if rank is not None and rank.key not in written:
            written.add(rank.key)
            async for chunk in _write_rank(writer, rank):
                yield chunk
    for rank in index.warm.unsettled():
        if rank.key not in written:
            written.add(rank.key)
            async for chunk in _write_rank(writer, rank):
                yield chunk
    writer.end()
    yield await writer.compressed(last=True)


async def _copy_patiently(pump: EventPump, target: Target, feed: Feed) -> RankSnapshot | None:
    for _ in range(_COPY_ATTEMPTS):
        try:
            return await copy_rank(pump, target, feed)
        except RuntimeError:
            continue
    return None


async def _write_rank(writer: _Writer, rank: RankSnapshot) -> AsyncGenerator[bytes, None]:
    writer.add(rank.head)
    writer.ranks += 1
    for piece in rank.pieces:
        writer.add(piece)
        writer.blocks += piece.count
        if writer.full:
            chunk = await writer.compressed()
            if chunk:
                yield chunk


# --- reading --------------------------------------------------------------------------------------------------------


class SnapshotDecoder:
    """Feed it chunks, then `finish`. Everything is checked before anything is handed out. Blocking; holds at most
    `max_bytes`, and, where given, `max_blocks`: an index of that many is as much as there may be memory for."""

    def __init__(self, *, max_bytes: int = MAX_BYTES, max_blocks: int | None = None) -> None:
        if max_blocks is not None:
            # The bound is kept in steps: a peer's index may be a little over.
            self._most_blocks = max_blocks + max_blocks // 8
            max_bytes = min(max_bytes, _LEAST_BYTES + _BLOCK_BYTES * self._most_blocks)
        else:
            self._most_blocks = max_bytes
        self._zlib = zlib.decompressobj()
        self._sum = xxh3_64()
        self._left = max_bytes
        self._waiting = bytearray()
        self._header: Header | None = None
        self._end: End | None = None
        self._ranks: list[RankSnapshot] = []
        self._blocks = self._held = 0

    def feed(self, chunk: bytes) -> None:
        """Raises SnapshotError; after that the decoder must not be used."""
        while not self._zlib.eof:
            try:
                data = self._zlib.decompress(chunk, _OUT_BYTES)
            except zlib.error as error:
                fault = SnapshotFault.NOT_A_SNAPSHOT if self._header is None else SnapshotFault.COMPRESSION
                raise SnapshotError(fault, str(error)) from None
            self._left -= len(data)
            if self._left < 0:
                raise SnapshotError(SnapshotFault.TOO_LARGE, "more data than a snapshot may hold")
            self._waiting += data
            self._records()
            chunk = self._zlib.unconsumed_tail or self._zlib.unused_data
            if not chunk and len(data) < _OUT_BYTES:
                return
        if chunk:
            raise SnapshotError(SnapshotFault.TRAILING, "bytes after the end")

    def finish(self) -> Snapshot:
        """No more chunks. Raises SnapshotError."""
        if not self._zlib.eof or self._header is None or self._end is None or self._waiting:
            raise SnapshotError(SnapshotFault.TRUNCATED, "it ends before its end record")
        return Snapshot(self._header.created_at, self._header.secret, self._ranks)

    def _records(self) -> None:
        start, waiting = 0, self._waiting
        while len(waiting) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(waiting, start)
            if length > MAX_RECORD_BYTES:
                fault = SnapshotFault.NOT_A_SNAPSHOT if self._header is None else SnapshotFault.TOO_LARGE
                raise SnapshotError(fault, f"a record of {length} bytes")
            stop = start + _LENGTH.size + length
            if len(waiting) < stop:
                break
            self._record(bytes(waiting[start:stop]))
            start = stop
        del waiting[:start]

    def _record(self, framed: bytes) -> None:
        data = framed[_LENGTH.size :]
        if self._header is None:
            self._header = _header(data)
            self._sum.update(framed)
            return
        if self._end is not None:
            raise SnapshotError(SnapshotFault.ORDER, "a record after the end")
        try:
            record = _decode(data)
            if isinstance(record, PackedBlocks):
                unpack(record)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise SnapshotError(SnapshotFault.RECORD, str(error)) from None
        if isinstance(record, End):
            totals = (record.ranks, record.blocks, record.checksum)
            if totals != (len(self._ranks), self._blocks, self._sum.intdigest()):
                raise SnapshotError(SnapshotFault.CHECKSUM, "contents and end record differ")
            self._end = record
            return
        self._sum.update(framed)
        if isinstance(record, RankHead):
            self._ranks.append(RankSnapshot(record))
            if len(self._ranks) > _MAX_RANKS:
                raise SnapshotError(SnapshotFault.TOO_LARGE, f"more than {_MAX_RANKS} ranks")
        elif isinstance(record, PackedBlocks) and self._ranks:
            self._ranks[-1].pieces.append(record)
            self._blocks += record.count
            self._held += record.count if record.tiers else 0
            if self._held > self._most_blocks:
                raise SnapshotError(SnapshotFault.TOO_LARGE, "more blocks than kv_events.max_blocks")
        else:
            raise SnapshotError(SnapshotFault.ORDER, "a second header, or blocks of no rank")


def _header(data: bytes) -> Header:
    try:
        raw: Any = msgspec.msgpack.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise SnapshotError(SnapshotFault.NOT_A_SNAPSHOT, str(error)) from None
    if not isinstance(raw, dict) or raw.get("magic") != MAGIC:
        raise SnapshotError(SnapshotFault.NOT_A_SNAPSHOT, "it does not begin with a snapshot's header")
    if raw.get("version") != VERSION:
        raise SnapshotError(SnapshotFault.VERSION, f"version {str(raw.get('version'))[:20]}, known is {VERSION}")
    try:
        return msgspec.convert(raw, Header)
    except msgspec.ValidationError as error:
        raise SnapshotError(SnapshotFault.RECORD, str(error)) from None


def decode_snapshot(chunks: Iterable[bytes], *, max_bytes: int = MAX_BYTES, max_blocks: int | None = None) -> Snapshot:
    """The snapshot that `chunks` make up. Raises SnapshotError. Blocking: for a thread."""
    decoder = SnapshotDecoder(max_bytes=max_bytes, max_blocks=max_blocks)
    for chunk in chunks:
        decoder.feed(chunk)
    return decoder.finish()
