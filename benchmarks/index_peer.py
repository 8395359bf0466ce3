"""The same work through ai-dynamo-runtime's RadixTree: an interpreter that has it, driven beside ours, turn by turn."""

from __future__ import annotations

import contextlib
import importlib.util
import pickle
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from index_cpu import Prompts, apply_once, match_once
from index_work import Wire, frames, median, root_tokens, share

PACKAGE = "ai-dynamo-runtime"
CHILD = Path(__file__).with_name("index_peer_child.py")

APPLY_COLUMNS = (
    "events",
    "page",
    "workers",
    "blocks",
    "ours blocks/s",
    "theirs blocks/s",
    "ours/theirs",
    "CPU ours/theirs",
    "theirs, ready JSON",
    "ours/theirs, ready JSON",
)
MATCH_COLUMNS = (
    "prompt",
    "workers",
    "held by",
    "ours walk p50 us",
    "theirs",
    "ours/theirs",
    "ours hash+walk p50 us",
    "theirs",
    "ours/theirs",
    "ours p99 us",
    "theirs p99",
)


def install(directory: Path) -> str:
    """A virtual environment with the peer (about 75 MB) and msgspec, which its half of the work decodes with."""
    venv.create(directory, with_pip=True)
    python = str(directory / ("Scripts" if sys.platform == "win32" else "bin") / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", PACKAGE, "msgspec"], check=True)
    return python


def find(python: str | None) -> str | None:
    """The interpreter to ask: the one named, or this one where it has the package."""
    if python is not None:
        return python
    return sys.executable if importlib.util.find_spec("dynamo") is not None else None


class Peer:
    """The peer's process."""

    def __init__(self, python: str) -> None:
        self._child = subprocess.Popen([python, str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, name: str, *arguments: Any) -> Any:
        assert self._child.stdin is not None and self._child.stdout is not None
        pickle.dump((name, arguments), self._child.stdin)
        self._child.stdin.flush()
        try:
            return pickle.load(self._child.stdout)
        except EOFError:
            raise RuntimeError(f"the peer's process ended with status {self._child.wait()}") from None

    def close(self) -> None:
        assert self._child.stdin is not None
        with contextlib.suppress(OSError):
            self._child.stdin.close()
        self._child.wait(30)


def medians(results: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: median([result[name] for result in results]) for name in results[0]}


def apply_rows(
    peer: Peer, blocks: int, pages: Sequence[int], workers: Sequence[int], runs: int
) -> Iterator[Sequence[str]]:
    for per_page in (False, True):
        for page in pages:
            # One event per page costs the peer a hand-over between threads each: less of it, or it takes minutes.
            total = (blocks if page == 1 else blocks // 4) // (4 if per_page else 1)
            for count in workers:
                work: list[Wire] = frames(total, page=page, workers=count, per_page=per_page, seed=count)
                plain = [(wire.worker, wire.parts[2]) for wire in work]
                ours, theirs = [], []
                for _ in range(runs):
                    ours.append(apply_once(work, count, page))
                    theirs.append(peer.ask("apply", plain, page))
                if "missing" in theirs[0]:
                    raise RuntimeError("the peer's interpreter has no msgspec")
                us, them = medians(ours), medians(theirs)
                held = us["blocks"]
                yield (
                    "one event per page" if per_page else "chains",
                    str(page),
                    str(count),
                    f"{held:,.0f}",
                    f"{held / us['wall']:,.0f}",
                    f"{held / them['wall']:,.0f}",
                    f"{them['wall'] / us['wall']:.2f}",
                    f"{us['cpu'] / them['cpu']:.2f}",
                    f"{held / them['ready_wall']:,.0f}",
                    f"{them['ready_wall'] / us['wall']:.2f}",
                )


def match_rows(
    peer: Peer, lengths: Sequence[int], page: int, workers: Sequence[int], runs: int, *, background: int, rounds: int
) -> Iterator[Sequence[str]]:
    for blocks in lengths:
        for count in workers:
            for scenario in ("all", "staircase", "none"):
                prompts = Prompts(scenario, blocks, count, page, background=background, count=4)
                rng = np.random.default_rng(1)
                chains = [(n % count, root_tokens(rng, 512 * page, n)) for n in range(background // 512)]
                for worker in range(count):
                    held = share(scenario, worker, count, blocks)
                    chains += [(worker, ids[: held * page].tolist()) for ids in prompts.ids if held]
                expected = {w: held for w in range(count) if (held := share(scenario, w, count, blocks))}
                peer.ask("setup", page, chains, [ids.tolist() for ids in prompts.ids], expected)
                ours, theirs = [], []
                for _ in range(runs):
                    ours.append(match_once(prompts, rounds))
                    theirs.append(peer.ask("match", rounds))
                if "wrong" in theirs[0]:
                    raise RuntimeError(f"the peer found {theirs[0]}")
                us, them = medians(ours), medians(theirs)
                yield (
                    f"{blocks:,} blocks",
                    str(count),
                    scenario,
                    *(f"{value:,.1f}" for value in (us["walk50"], them["walk50"])),
                    f"{us['walk50'] / them['walk50']:.2f}",
                    *(f"{value:,.1f}" for value in (us["match50"], them["match50"])),
                    f"{us['match50'] / them['match50']:.2f}",
                    *(f"{value:,.1f}" for value in (us["match99"], them["match99"])),
                )
                del prompts
