"""A mock SGLang worker: the real protocols, a real prefix cache, a made-up model.

    async with MockWorker(MockWorkerConfig(page_size=16, dp_size=2)) as worker:
        ...  # worker.url, worker.kv_port, worker.caches, worker.faults, worker.gate, worker.log

What is real: ports, frames, block hashes, sequence numbers, replay, the prefix cache with its evictions,
HTTP shapes and errors, by engine version. What is made up: the text of the answers and the passing of
time. `radix`, `lease`, `scheduler` and `timing` are pure, for simulations without sockets.

Importing this package is cheap; the names below load what they need when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sgl_router.lab.mock_worker.config import EMBEDDED_TOKENIZER_PATH, Dialect, MockWorkerConfig, Role

if TYPE_CHECKING:
    from sgl_router.lab.mock_worker.faults import Fault, FaultKind, Faults, FaultScope
    from sgl_router.lab.mock_worker.gate import Gate
    from sgl_router.lab.mock_worker.namespace import Namespace
    from sgl_router.lab.mock_worker.ops import BlocksRemoved, BlocksStored, CacheCleared, CacheOp, Medium
    from sgl_router.lab.mock_worker.radix import RadixCache
    from sgl_router.lab.mock_worker.record import Outcome, RequestRecord
    from sgl_router.lab.mock_worker.worker import MockWorker, shared_tokenizer

__all__ = [
    "EMBEDDED_TOKENIZER_PATH",
    "BlocksRemoved",
    "BlocksStored",
    "CacheCleared",
    "CacheOp",
    "Dialect",
    "Fault",
    "FaultKind",
    "FaultScope",
    "Faults",
    "Gate",
    "Medium",
    "MockWorker",
    "MockWorkerConfig",
    "Namespace",
    "Outcome",
    "RadixCache",
    "RequestRecord",
    "Role",
    "shared_tokenizer",
]

_HOMES = {
    "BlocksRemoved": "ops",
    "BlocksStored": "ops",
    "CacheCleared": "ops",
    "CacheOp": "ops",
    "Fault": "faults",
    "FaultKind": "faults",
    "FaultScope": "faults",
    "Faults": "faults",
    "Gate": "gate",
    "Medium": "ops",
    "MockWorker": "worker",
    "Namespace": "namespace",
    "Outcome": "record",
    "RadixCache": "radix",
    "RequestRecord": "record",
    "shared_tokenizer": "worker",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
