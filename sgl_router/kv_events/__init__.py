"""KV-cache events: from the workers' sockets to an exact index of who holds which prefix."""

from .expectation import Expectation
from .hashing import DEFAULT_NAMESPACE, BlockHasher, Namespace
from .index import KvIndex, RankStatus
from .matched import MatchedPrefix, PromptMatch
from .snapshot import SnapshotDecoder, decode_snapshot, encode_snapshot
from .snapshot_records import Snapshot, SnapshotError
from .stream import EventStream, FrameOutcome, StreamState, Untrust
from .tree import BlockTree
from .warm import SnapshotOutcome
from .wire import DecodeFailure, Tier, WireError, decode_batch, decode_frame
from .witness import Sent

__all__ = [
    "DEFAULT_NAMESPACE",
    "BlockHasher",
    "BlockTree",
    "DecodeFailure",
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
    "Untrust",
    "WireError",
    "decode_batch",
    "decode_frame",
    "decode_snapshot",
    "encode_snapshot",
]
