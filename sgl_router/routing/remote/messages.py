"""What a data process and the routing process say to each other: msgpack behind a four-byte length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from sgl_router.errors import ErrorCode
from sgl_router.outcome import Outcome
from sgl_router.placement import Placement, Unmatched
from sgl_router.workers.worker import HealthState, Target, WorkerMode

__all__ = [
    "MAX_MESSAGE_BYTES",
    "MAX_TOKENS",
    "Choose",
    "Chosen",
    "Counts",
    "Declare",
    "End",
    "Expired",
    "Explain",
    "Explained",
    "FirstByte",
    "Fleet",
    "FromRouting",
    "Hashing",
    "Heard",
    "Held",
    "Hello",
    "Message",
    "NobodyLeft",
    "Question",
    "Readiness",
    "Refused",
    "ToRouting",
    "WorkerGone",
    "WorkerState",
    "encode_into",
    "from_routing",
    "to_routing",
]

MAX_MESSAGE_BYTES = 32 << 20
# What is beyond is only not matched: prefixes are looked up from the front.
MAX_TOKENS = 4 << 20


class Message(msgspec.Struct, array_like=True, gc=False):
    """Base of all. A request is known by the number (`seq`) its data process gave it, unique on one connection."""


# --- from a data process --------------------------------------------------------------------------------------------


class Hello(Message, tag=1):
    """First on every connection; the leases in flight (`Declare`) follow."""

    process: int
    pid: int


class Question(Message):
    """`routing.Ask` on its way. `tokens`: how many the prompt has, None where there is none. `keys`: of its blocks, by
    root, as uint64 in the machine's byte order. `namespace` is (salt, adapter), None where unknown."""

    seq: int
    model_id: str
    tokens: int | None
    keys: dict[int, bytes]
    namespace: tuple[str | None, str | None] | None
    unmatched: Unmatched | None
    request_id: str
    session: str | None


class Choose(Question, tag=2):
    """`tried`: generations of workers not to be chosen again."""

    tried: list[int]
    streamed: bool
    priority: int
    fingerprint: int | None = None


class Explain(Question, tag=7):
    """Say what would be chosen, and why; there will be no lease. The answer is `Explained` or `Refused`."""


class FirstByte(Message, tag=3):
    seq: int
    status: int


class End(Message, tag=4):
    """Of a lease, or of interest in what has been asked for."""

    seq: int
    outcome: Outcome
    cached_tokens: int | None
    output_tokens: int | None = None
    status: int = 0
    retry_after_secs: float | None = None
    unrenderable: bool = False


class Declare(Message, tag=5):
    """A lease the routing process does not know: chosen without it, or by its predecessor. `computed`: its first byte
    has been."""

    seq: int
    url: str
    model_id: str
    dp_rank: int
    prefill_tokens: int
    decode_blocks: int
    streamed: bool
    computed: bool
    fingerprint: int | None = None


class Heard(Message, tag=8):
    """Generations of workers from which a good byte of a response has come since this was said last."""

    generations: list[int]


class Counts(Message, tag=6):
    """What this process has counted since it last said so, in the metrics' own encoding."""

    delta: bytes


# --- from the routing process ---------------------------------------------------------------------------------------


class WorkerState(Message, tag=11):
    """A worker that is new or has changed, with what relaying and least load need of it."""

    generation: int
    url: str
    model_id: str
    mode: WorkerMode
    dp_size: int
    block_size: int
    started_at: float | str | None
    health: HealthState
    busy: bool = False
    """Unhealthy, but to be used before a request is refused (`workers.Worker.busy`)."""


class Hashing(Message, tag=17):
    """What block keys are made with: the index's secret, and the kinds (page size, bigram) in use by model. The first
    message of a connection, and sent again whenever it changes."""

    secret: int
    kinds: dict[str, list[tuple[int, bool]]]


class Fleet(Message, tag=12):
    """All workers there are, at the beginning of a connection. Only now may the routing process be asked."""

    workers: list[WorkerState]


class Readiness(Message, tag=21):
    """Why this router is not ready; nothing where it is. Before `Fleet`, and again whenever it changes."""

    reasons: list[str]
    started_at: float
    """Unix time: what `/v1/models` says of when its models were there is the same in all processes."""


class WorkerGone(Message, tag=13):
    generation: int


class Chosen(Message, tag=14):
    """A placement, and a lease under `seq`."""

    seq: int
    placement: Placement


class NobodyLeft(Message, tag=15):
    """No worker could be chosen: there is no lease."""

    seq: int


class Held(Message, tag=18):
    """The request waits for a worker to have room: the answer may take as long as `queue.max_wait_secs` says."""

    seq: int


class Refused(Message, tag=19):
    """There is no lease or explanation, and this is what the client is told."""

    seq: int
    code: ErrorCode
    message: str
    retry_after: int


class Explained(Message, tag=20):
    """`view`: as `routing.Routing.explain` gives it."""

    seq: int
    view: dict[str, Any]


class Expired(Message, tag=16):
    """The lease has outlived `active_load.stale_request_timeout_secs`: its request must end."""

    seq: int


ToRouting = Hello | Choose | Explain | FirstByte | End | Declare | Heard | Counts
FromRouting = (
    Hashing | Readiness | Fleet | WorkerState | WorkerGone | Chosen | NobodyLeft | Held | Refused | Explained | Expired
)

to_routing: msgspec.msgpack.Decoder[ToRouting] = msgspec.msgpack.Decoder(ToRouting)


def from_routing(target: Callable[[int, int], Target]) -> msgspec.msgpack.Decoder[FromRouting]:
    """`target`: the one with a worker's generation and dp rank."""
    return msgspec.msgpack.Decoder(FromRouting, dec_hook=lambda kind, sent: target(*sent))


def _sent(target: object) -> tuple[int, int]:
    """A target as it crosses: the only object in a message that is none of msgspec's."""
    if not isinstance(target, Target):
        raise NotImplementedError(f"a {type(target).__name__} does not cross processes")
    return target.worker.generation, target.dp_rank


_encoder = msgspec.msgpack.Encoder(enc_hook=_sent)


def encode_into(message: Message, buffer: bytearray) -> None:
    """Append `message` with its length. One that cannot be encoded raises, and leaves nothing of itself behind: the
    peer could read no message after it."""
    start = len(buffer)
    buffer += b"\0\0\0\0"
    try:
        _encoder.encode_into(message, buffer, -1)
    except Exception:
        del buffer[start:]
        raise
    buffer[start : start + 4] = (len(buffer) - start - 4).to_bytes(4, "big")
