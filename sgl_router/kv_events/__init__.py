"""KV-cache events: from the workers' sockets to an exact index of who holds which prefix."""

from sgl_router.kv_events.follow.stream import DistrustReason, EventStream, FrameOutcome, StreamState
from sgl_router.kv_events.follow.wire import DecodeFailure, Tier, WireError, decode_batch, decode_frame
from sgl_router.kv_events.index.expectation import Expectation
from sgl_router.kv_events.index.hashing import DEFAULT_NAMESPACE, BlockHasher, Namespace
from sgl_router.kv_events.index.index import KvIndex, RankStatus
from sgl_router.kv_events.index.matched import MatchedPrefix, PromptMatch
from sgl_router.kv_events.index.tree import BlockTree
from sgl_router.kv_events.index.witness import Sent
from sgl_router.kv_events.snapshot.records import Snapshot, SnapshotError
from sgl_router.kv_events.snapshot.restore import SnapshotOutcome
from sgl_router.kv_events.snapshot.snapshot import SnapshotDecoder, decode_snapshot, encode_snapshot

__all__ = [
    "DEFAULT_NAMESPACE",
    "BlockHasher",
    "BlockTree",
    "DecodeFailure",
    "DistrustReason",
    "EventStream",
    "Expectation",
    "FrameOutcome",
    "KvIndex",
    "MatchedPrefix",
    "Namespace",
    "PromptMatch",
    "RankStatus",
    "Sent",
    "Snapshot",
    "SnapshotDecoder",
    "SnapshotError",
    "SnapshotOutcome",
    "StreamState",
    "Tier",
    "WireError",
    "decode_batch",
    "decode_frame",
    "decode_snapshot",
    "encode_snapshot",
]
