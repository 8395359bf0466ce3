"""Frames captured from real engines, followed from the first to the last."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from sgl_router.kv_events import StreamState

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures" / "kv_events"


def capture(name: str) -> dict[str, Any]:
    captured: dict[str, Any] = json.loads((FIXTURES / f"{name}.json").read_text())
    return captured


def play(follower: Any, step: dict[str, Any]) -> None:
    for batch in step.get("batches", []):
        _, seq, payload = (bytes.fromhex(part) for part in batch["frames_hex"])
        follower.frame(int.from_bytes(seq, "big"), payload)


def tokens_of(step: dict[str, Any]) -> list[int]:
    """The prompt of a step, as far as its first stored chain shows it."""
    for batch in step["batches"]:
        found: list[int] = []
        for event in batch["decoded"][1]:
            tokens = event["token_ids"] if isinstance(event, dict) else event[3] if event[0] == "BlockStored" else []
            found += tokens
        if found:
            return found
    raise AssertionError("no tokens in this step")


RADIX = [
    "radix_0.5.6_page16",
    "radix_0.5.12_page1",
    "radix_0.5.12_page16",
    "radix_0.5.18_page16",
    "radix_0.5.20_page16",
]


@pytest.mark.parametrize("name", RADIX)
def test_radix_cache_of_each_dialect(name: str, make_follower: Any) -> None:
    captured = capture(name)
    page = captured["page_size"]
    follower = make_follower(page)
    steps = {step["name"]: step for step in captured["steps"]}

    play(follower, steps["startup reset"])
    assert follower.stream.complete
    play(follower, steps["insert 150"])
    prompt = list(range(100, 250))
    whole = 149 // page
    assert follower.depth(prompt) == whole

    play(follower, steps["fork at 97"])
    shared = 97 // page if page == 1 else 96 // page
    fork = tokens_of(steps["fork at 97"])
    forked = [*prompt[: shared * page], *fork, 0]
    assert follower.depth(forked) == shared + len(fork) // page
    # 0.5.6 reports the split node as removed though it stays cached: what the fork proves comes back, the rest not.
    assert follower.depth(prompt) == (shared if name == "radix_0.5.6_page16" else whole)

    for step in captured["steps"][3:-1]:
        play(follower, step)
        assert follower.stream.state is StreamState.LIVE
    if "cache_salt=saltB, same tokens" in steps:
        assert follower.depth(prompt, cache_salt="saltB") > 0
        assert follower.depth(prompt, cache_salt="other") == 0
    play(follower, captured["steps"][-1])
    assert follower.held == set()
    assert follower.stream.counters.orphans == 0


@pytest.mark.parametrize("page", [16, 64])
def test_live_server_predicts_what_the_engine_reported(page: int, make_follower: Any) -> None:
    captured = capture(f"server_0.5.23_page{page}")
    steps = {step["name"].split(":")[0]: step for step in captured["steps"]}
    follower = make_follower(page)
    prompt = list(range(100, 250))

    play(follower, steps["A"])
    assert follower.depth(prompt) * page == steps["B"]["result"]["meta"]["cached_tokens"]
    forked = [*range(100, 197), *range(900, 950)]
    assert follower.depth(forked) * page == steps["C"]["result"]["meta"]["cached_tokens"]
    play(follower, steps["C"])
    for name in "DE":
        play(follower, steps[name])
    assert follower.depth(prompt, cache_salt="unknown") == 0
    chat = tokens_of(steps["F"])
    play(follower, steps["F"])
    cached = steps["G"]["result"]["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert min(follower.depth([*chat, 0]) * page, 131 // page * page) == cached
    play(follower, steps["I"])
    assert follower.held == set()
    play(follower, steps["J"])
    play(follower, steps["K"])
    assert 0 < follower.stream.blocks_held <= 4096 // page
    play(follower, steps["L"])
    assert follower.held == set()
    assert follower.stream.counters.orphans == 0
    assert follower.stream.counters.gaps == 0


def test_eagle_pairs(make_follower: Any) -> None:
    (step,) = capture("radix_0.5.12_eagle_page4")["steps"]
    follower = make_follower(4)
    play(follower, step)
    assert follower.stream.hasher.bigram
    pairs = tokens_of(step)
    prompt = [pairs[0][0], *(pair[1] for pair in pairs), 0]  # type: ignore[index]
    assert follower.depth(prompt) == len(pairs) // 4


def test_vllm(make_follower: Any) -> None:
    steps = {step["name"]: step for step in capture("vllm_cpu_0.32.0_block32")["steps"]}
    follower = make_follower(32)
    play(follower, steps["150 tokens"])
    prompt = list(range(100, 250))
    assert follower.depth(prompt) == 4
    play(follower, steps["cache_salt"])
    assert follower.depth(prompt) == 4
    assert follower.depth(prompt, cache_salt="saltB") == 4
    assert follower.depth(prompt, cache_salt="other") == 0
    assert follower.stream.counters.left_out == 0
    play(follower, steps["fork"])
    fork = tokens_of(steps["fork"])
    assert follower.depth([*prompt[:96], *fork, 0]) == 4
