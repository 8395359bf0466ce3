"""Snapshots: what is written comes back, whatever is broken is refused, and a copy describes one moment."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgl_router.kv_events import KvIndex, SnapshotError, Tier, decode_snapshot, encode_snapshot
from sgl_router.kv_events.follow.stream import Holdings
from sgl_router.kv_events.follow.wire import Frame, decode_batch
from sgl_router.kv_events.snapshot.records import VERSION, PackedBlocks, SnapshotFault, pack, unpack
from sgl_router.kv_events.snapshot.snapshot import MAX_RECORD_BYTES, SnapshotDecoder
from sgl_router.workers import KvEventSource, Worker, WorkerInfo

PAGE = 4


def worker(number: int = 0, *, started_at: Any = "then", dp_size: int = 1, **info: Any) -> Worker:
    source = KvEventSource(host="127.0.0.1", port_base=1 + number)  # nobody listens there
    fields = {"served_model_name": "m", "block_size": PAGE, "dp_size": dp_size, "started_at": started_at, **info}
    return Worker(f"http://w{number}:1", WorkerInfo(kv_source=source, **fields))


def stored(hashes: list[Any], *, parent: Any = None, medium: str | None = "GPU", base: int = 0, **more: Any) -> Any:
    event = {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": parent,
        "token_ids": list(range(base, base + PAGE * len(hashes))),
        "block_size": PAGE,
        **more,
    }
    return event if medium is None else {**event, "medium": medium}


def removed(hashes: list[Any], medium: str | None = "GPU") -> Any:
    event = {"type": "BlockRemoved", "block_hashes": hashes}
    return event if medium is None else {**event, "medium": medium}


def payload(*events: Any) -> bytes:
    return msgspec.msgpack.encode([1.0, list(events), 0])


def stream_of(index: KvIndex, one: Worker, rank: int = 0) -> Any:
    return index.status(one)[rank].stream


def tell(index: KvIndex, one: Worker, *events: Any, rank: int = 0, seq: int | None = None) -> None:
    stream = stream_of(index, one, rank)
    data = payload(*events)
    stream.observe(Frame((stream.expected or 0) if seq is None else seq, data))
    for event in decode_batch(data).events:
        stream.apply(event)


def held(index: KvIndex, one: Worker, rank: int = 0) -> set[tuple[int, str]]:
    return {(key, tier.value) for key, tier in index.tree.holdings(stream_of(index, one, rank).slot)}


async def written(index: KvIndex, **options: Any) -> bytes:
    return b"".join([chunk async for chunk in encode_snapshot(index, **options)])


def knowledge(stream: Any) -> set[Any]:
    """Everything a stream has to know of every block."""
    found = set()
    for piece in stream.export(1 << 20):
        tiers, parents = piece.tiers or bytes(len(piece.keys)), piece.parents or [None] * len(piece.keys)
        found |= set(zip(piece.hashes, piece.keys, tiers, parents, strict=True))
    return found


async def taken_over(data: bytes, one: Worker) -> KvIndex:
    """A second router's index with the snapshot's blocks in place and not yet proven."""
    index = KvIndex()
    index.adopt(decode_snapshot([data]))
    index.worker_added(one)
    while any(feed.job for _, feed in index.followed()):
        await asyncio.sleep(0)
    return index


@pytest.fixture
async def index():
    index = KvIndex()
    yield index
    index.close()


HASHES = {
    "signed": [-(2**63), -5, 0, 7],
    "unsigned": [2**64 - 1, 2**63, 5],
    "of both kinds": [-1, 2**64 - 1],
    "bytes": [b"\0" * 32, b"abc", b""],
    "mixed": [b"abc", 5, -5],
}


@pytest.mark.parametrize("hashes", HASHES.values(), ids=HASHES)
async def test_every_kind_of_hash_comes_back(index, hashes: list[Any]) -> None:
    one = worker()
    index.worker_added(one)
    tell(index, one, stored(hashes))
    other = await taken_over(await written(index), worker())
    assert knowledge(stream_of(other, next(iter(other._ranks)))) == knowledge(stream_of(index, one))
    other.close()


async def test_tiers_namespaces_ranks_and_the_secret_come_back(index) -> None:
    one = worker(dp_size=2)
    index.worker_added(one)
    tell(index, one, stored([1, 2, 3]), stored([1, 2], medium="CPU_PINNED"))
    tell(index, one, stored([3], parent=2, medium="DISK", base=2 * PAGE))
    tell(index, one, stored([4, 5], cache_salt="salt"), stored([6], lora_name="adapter"), removed([2]))
    tell(index, one, stored([1], base=77), rank=1)
    data = await written(index, created_at=12.5)
    snapshot = decode_snapshot([data])
    assert (snapshot.created_at, snapshot.secret, snapshot.blocks) == (12.5, index.secret, 7)
    assert [(rank.head.dp_rank, rank.head.cursor, rank.head.complete) for rank in snapshot.ranks] == [
        (0, 3, True),
        (1, 1, True),
    ]
    again = worker(dp_size=2)
    other = await taken_over(data, again)
    for rank in (0, 1):
        assert held(other, again, rank) == held(index, one, rank)
        assert stream_of(other, again, rank).held == stream_of(index, one, rank).held
    assert {tier for _, tier in held(other, again)} == {"GPU", "CPU_PINNED", "DISK"}
    other.close()


async def test_what_resolves_the_split_bug_comes_back(index) -> None:
    """Versions that do not name a medium: parents, and blocks reported as removed that may still be there."""
    one, again = worker(), worker()
    index.worker_added(one)
    tell(index, one, stored([1, 2, 3], medium=None), removed([2, 3], medium=None))
    other = await taken_over(await written(index), again)
    branch = stored([9], parent=2, medium=None, base=500)
    for each, who in ((index, one), (other, again)):
        tell(each, who, branch)
        assert stream_of(each, who).counters.orphans == 0
    assert knowledge(stream_of(other, again)) == knowledge(stream_of(index, one))
    assert held(other, again) == held(index, one)
    other.close()


async def test_ranks_that_cannot_be_vouched_for_are_left_out(index) -> None:
    unnamed, broken, silent, live = (worker(number) for number in range(4))
    unnamed = worker(0, started_at=None)
    for one in (unnamed, broken, silent, live):
        index.worker_added(one)
    for one in (unnamed, broken, live):
        tell(index, one, stored([1, 2]))
    tell(index, broken, stored([3]), seq=9)
    snapshot = decode_snapshot([await written(index)])
    assert [rank.head.worker_url for rank in snapshot.ranks] == [live.url]


class Frames:
    """A source that always has another frame while the first copies are made: a worker that does not pause for them."""

    def __init__(self) -> None:
        self.seq = 1
        self.hash = 1_000_000

    def receive(self) -> list[bytes] | None:
        if self.seq > 20_000:  # a copy of an index that grows as fast as it is copied would never be finished
            return None
        self.seq += 1
        self.hash += 1
        event = stored([self.hash], parent=self.hash - 1, base=self.hash)
        return [b"", struct.pack(">Q", self.seq - 1), payload(event)]


async def test_a_rank_is_copied_at_one_moment_though_its_worker_never_pauses(index) -> None:
    one = worker()
    index.worker_added(one)
    tell(index, one, stored(list(range(1, 8_001))), stored([1_000_000], base=1 << 20))
    ((_, feed),) = index.followed()
    feed.source = Frames()
    index.pump.wake(feed)
    for _ in range(3):
        snapshot = decode_snapshot([await written(index)])
        (rank,) = snapshot.ranks
        assert rank.blocks == 8_001 + rank.head.cursor - 1
    assert stream_of(index, one).counters.gaps == 0
    assert stream_of(index, one).expected > 10


async def test_a_worker_removed_while_it_is_copied_is_left_out(index) -> None:
    one, two = worker(0), worker(1)
    for each in (one, two):
        index.worker_added(each)
        tell(index, each, stored(list(range(1, 20_001))))
    writing = asyncio.create_task(written(index))
    while not any(feed.job for _, feed in index.followed()):
        await asyncio.sleep(0)
    index.worker_removed(one)
    assert [rank.head.worker_url for rank in decode_snapshot([await writing]).ranks] == [two.url]


async def test_blocks_that_change_under_a_copy_make_it_begin_again(index) -> None:
    one = worker()
    index.worker_added(one)
    tell(index, one, stored(list(range(1, 20_001))))
    writing = asyncio.create_task(written(index))
    ((_, feed),) = index.followed()
    while feed.job is None or not feed.job._pieces:
        await asyncio.sleep(0)
    for event in decode_batch(payload(removed([20_000]))).events:
        feed.stream.apply(event)  # not by a frame: as if something forgot a block to save memory
    assert decode_snapshot([await writing]).blocks == 19_999


async def test_a_full_index_is_copied_too() -> None:
    index, one = KvIndex(max_blocks=5_000), worker()
    index.worker_added(one)
    tell(index, one, stored(list(range(1, 20_001))))
    assert decode_snapshot([await written(index)]).blocks > 5_000
    while not index.pump.idle:
        await asyncio.sleep(0)
    index.pump.schedule()
    while not index.pump.idle:
        await asyncio.sleep(0)
    assert stream_of(index, one).blocks_held == 5_000
    index.close()


async def test_a_cancelled_copy_leaves_nothing_behind(index) -> None:
    one = worker()
    index.worker_added(one)
    tell(index, one, stored(list(range(1, 20_001))))
    ((_, feed),) = index.followed()
    writing = asyncio.create_task(written(index))
    while feed.job is None:
        await asyncio.sleep(0)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert feed.job is None
    assert decode_snapshot([await written(index)]).blocks == 20_000


async def test_two_at_a_time_are_both_whole(index) -> None:
    for number in range(2):
        index.worker_added(worker(number))
    for one in list(index._ranks):
        tell(index, one, stored(list(range(1, 5_001))))
    first, second = await asyncio.gather(written(index), written(index))
    assert decode_snapshot([first]).blocks == decode_snapshot([second]).blocks == 10_000


# --- what is not a snapshot -----------------------------------------------------------------------------------------


@pytest.fixture
async def sample(index) -> bytes:
    one = worker(dp_size=2)
    index.worker_added(one)
    tell(index, one, stored([1, 2, 3]), stored([1, 2], medium="CPU_PINNED"))
    tell(index, one, stored([b"x", b"y"]), rank=1)
    return await written(index)


def records(data: bytes) -> Iterator[Any]:
    plain = zlib.decompress(data)
    at = 0
    while at < len(plain):
        (length,) = struct.unpack_from("<I", plain, at)
        yield msgspec.msgpack.decode(plain[at + 4 : at + 4 + length])
        at += 4 + length


def framed(*parts: Any) -> bytes:
    return zlib.compress(b"".join(_framed(*parts)))


def _framed(*parts: Any) -> Iterator[bytes]:
    for part in parts:
        encoded = part if isinstance(part, bytes) else msgspec.msgpack.encode(part)
        yield struct.pack("<I", len(encoded)) + encoded


def fault(*chunks: bytes, **options: Any) -> SnapshotFault:
    with pytest.raises(SnapshotError) as caught:
        decode_snapshot(chunks, **options)
    return caught.value.reason


async def test_chunks_may_be_cut_anywhere(sample: bytes) -> None:
    whole = decode_snapshot([sample])
    for size in (1, 7, 100):
        assert decode_snapshot([sample[at : at + size] for at in range(0, len(sample), size)]) == whole


async def test_a_part_of_one_is_refused(sample: bytes) -> None:
    for length in range(len(sample)):
        assert fault(sample[:length]) is SnapshotFault.TRUNCATED


async def test_each_defect_is_named(sample: bytes) -> None:
    header, *rest, end = records(sample)
    assert fault(b"not a snapshot at all") is SnapshotFault.NOT_A_SNAPSHOT
    assert fault(zlib.compress(b"neither is this, though it is compressed")) is SnapshotFault.NOT_A_SNAPSHOT
    assert fault(framed(b"\xc1")) is SnapshotFault.NOT_A_SNAPSHOT
    assert fault(framed({**header, "magic": "other"}, *rest, end)) is SnapshotFault.NOT_A_SNAPSHOT
    assert fault(framed({**header, "version": VERSION + 1}, *rest, end)) is SnapshotFault.VERSION
    assert fault(framed({**header, "secret": "x"}, *rest, end)) is SnapshotFault.RECORD
    assert fault(framed(header, header, *rest, end)) is SnapshotFault.ORDER
    assert fault(framed(header, rest[1], end)) is SnapshotFault.ORDER
    assert fault(framed(header, *rest, end, rest[0])) is SnapshotFault.ORDER
    assert fault(framed(header, *rest, {**end, "blocks": 1})) is SnapshotFault.CHECKSUM
    assert fault(framed(header, *rest[1:], end)) in (SnapshotFault.ORDER, SnapshotFault.CHECKSUM)
    assert fault(framed(header, {**rest[0], "cursor": 5}, *rest[1:], end)) is SnapshotFault.CHECKSUM
    assert fault(framed(header, {**rest[0], "cursor": -1}, *rest[1:], end)) is SnapshotFault.RECORD
    assert fault(framed(header, b"\x93\x01\x02", end)) is SnapshotFault.RECORD
    assert fault(framed(header, b"\x91" * 5_000, end)) is SnapshotFault.RECORD
    assert fault(sample, b"more") is SnapshotFault.TRAILING
    assert fault(sample[:40] + b"\xff\xff\xff\xff" + sample[44:]) in SnapshotFault


async def test_sizes_are_bounded(sample: bytes) -> None:
    header, *_ = records(sample)
    bomb = zlib.compressobj(9)
    chunks = [bomb.compress(b"\0" * (1 << 20)) for _ in range(64)] + [bomb.flush()]
    assert fault(*chunks) is SnapshotFault.NOT_A_SNAPSHOT  # records of no bytes
    head = msgspec.msgpack.encode(header)
    long = struct.pack("<I", len(head)) + head + struct.pack("<I", MAX_RECORD_BYTES + 1)
    assert fault(zlib.compress(long)) is SnapshotFault.TOO_LARGE
    assert fault(sample, max_bytes=100) is SnapshotFault.TOO_LARGE


async def test_blocks_are_bounded_after_decompression(sample: bytes) -> None:
    header, rank, piece, *_ = records(sample)
    blocks = decode_snapshot([sample]).blocks
    assert decode_snapshot([sample], max_blocks=blocks).blocks == blocks
    assert fault(sample, max_blocks=blocks // 2) is SnapshotFault.TOO_LARGE
    # A few hundred KiB on the wire, gigabytes unpacked: refused after what the bound has room for.
    bomb, unpacked = zlib.compressobj(9), 0
    decoder = SnapshotDecoder(max_blocks=1_000)
    decoder.feed(bomb.compress(b"".join(_framed(header, rank))))
    filler = b"".join(_framed({**rank, "worker_url": "x" * 1_000_000}))
    with pytest.raises(SnapshotError) as caught:
        while unpacked < 1 << 30:
            unpacked += len(filler)
            decoder.feed(bomb.compress(filler) + bomb.flush(zlib.Z_SYNC_FLUSH))
    assert caught.value.reason is SnapshotFault.TOO_LARGE
    assert unpacked < 16 << 20
    assert fault(framed(header, *[rank] * 70_000)) is SnapshotFault.TOO_LARGE
    assert piece["count"]


GOOD = pack(Holdings([1, 2], [3, 4], b"\1\2", None))


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 3},
        {"count": 1},
        {"kind": "x"},
        {"kind": "i"},
        {"keys": b"\0" * 15},
        {"hashes": b"\0" * 16},
        {"hashes": [1]},
        {"hashes": [1, 1]},
        {"tiers": b"\1"},
        {"tiers": b"\1\0"},
        {"tiers": bytes([1, 1 << len(Tier)])},
        {"tiers": b""},
        {"parents": [1]},
    ],
)
async def test_blocks_whose_parts_do_not_fit_are_refused(changes: dict[str, Any]) -> None:
    broken = msgspec.structs.replace(GOOD, **changes)
    with pytest.raises(ValueError):
        unpack(broken)


async def test_blocks_fit_as_they_were_packed() -> None:
    assert unpack(GOOD) == Holdings((1, 2), (3, 4), b"\1\2", None)
    assert isinstance(GOOD, PackedBlocks)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_corrupted_bytes_are_refused_or_change_nothing(sample: bytes, data: Any) -> None:
    """Of the compressed stream, or of the records inside, where zlib's own sum cannot help."""
    whole = decode_snapshot([sample])
    inside = data.draw(st.booleans())
    raw = bytearray(zlib.decompress(sample) if inside else sample)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if kind == "set":
            raw[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del raw[at : at + data.draw(st.integers(1, 40))]
            raw = raw or bytearray(b"\0")
        else:
            raw[at:at] = data.draw(st.binary(min_size=1, max_size=20))
    broken = zlib.compress(bytes(raw)) if inside else bytes(raw)
    try:
        found = decode_snapshot([broken])
    except SnapshotError:
        return
    assert found == whole


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(raw: bytes) -> None:
    fault(raw)
    fault(zlib.compress(raw))
