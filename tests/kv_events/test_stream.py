from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgl_router.kv_events import DecodeFailure, DistrustReason, FrameOutcome, StreamState, Tier
from sgl_router.kv_events.follow.stream import Remark


def stored(
    hashes: list[int], parent: int | None, tokens: list[int], size: int = 4, medium: str = "GPU", **extra: object
) -> dict[str, object]:
    return {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": parent,
        "token_ids": tokens,
        "block_size": size,
        "medium": medium,
        **extra,
    }


def removed(hashes: list[int], medium: str = "GPU") -> dict[str, object]:
    return {"type": "BlockRemoved", "block_hashes": hashes, "medium": medium}


CLEARED = {"type": "AllBlocksCleared"}
PROMPT = list(range(13))  # three whole blocks of four, and the token an engine always computes


def warm(follower: object) -> None:
    follower.send(CLEARED)  # type: ignore[attr-defined]
    follower.send(stored([11, 12, 13], None, PROMPT[:12]))  # type: ignore[attr-defined]


def test_a_chain_is_stored_and_matched(follower) -> None:
    warm(follower)
    assert follower.stream.state is StreamState.LIVE
    assert follower.stream.complete
    assert follower.depth(PROMPT) == 3
    assert follower.depth(PROMPT[:9]) == 2
    assert follower.depth([*PROMPT[:4], 99, *PROMPT[5:]]) == 1
    assert follower.stream.blocks_held == 3


def test_children_extend_a_parent_of_an_earlier_event(follower) -> None:
    follower.send(CLEARED)
    follower.send(stored([11], None, PROMPT[:4]), stored([12, 13], 11, PROMPT[4:12]))
    assert follower.depth(PROMPT) == 3


def test_an_unknown_parent_never_becomes_a_root(follower) -> None:
    follower.send(CLEARED)
    follower.send(stored([12], 999, PROMPT[:4]))
    assert follower.depth(PROMPT) == 0
    assert follower.stream.blocks_held == 0
    assert follower.stream.counters.orphans == 1


def test_a_block_is_gone_when_its_last_tier_is(follower) -> None:
    warm(follower)
    follower.send(stored([11, 12, 13], None, PROMPT[:12], medium="CPU_PINNED"))
    follower.send(removed([13, 12]))
    assert follower.depth(PROMPT) == 3
    assert follower.depth(PROMPT, device=True) == 1
    follower.send(removed([13], "CPU_PINNED"))
    assert follower.depth(PROMPT) == 2
    assert {tier.value: n for tier, n in follower.stream.held.items() if n} == {"GPU": 1, "CPU_PINNED": 2}


def test_an_unknown_medium_is_stored_nowhere_and_removed_everywhere(follower) -> None:
    warm(follower)
    follower.send(stored([14], 13, [1, 2, 3, 4], medium="TAPE"))
    assert follower.stream.blocks_held == 3
    assert follower.stream.counters.unindexed == 1
    follower.send(stored([13], 12, PROMPT[8:12], medium="DISK"))
    follower.send(removed([13], "TAPE"))
    assert follower.depth(PROMPT) == 2


def test_clearing_empties_every_tier(follower) -> None:
    warm(follower)
    follower.send(stored([11], None, PROMPT[:4], medium="CPU_PINNED"))
    follower.send(CLEARED)
    assert follower.held == set()
    assert follower.depth(PROMPT) == 0
    assert sum(follower.stream.held.values()) == 0
    follower.send(stored([11], None, PROMPT[:4]))
    assert follower.depth(PROMPT) == 1


def test_salts_and_adapters_are_namespaces(follower) -> None:
    follower.send(CLEARED)
    follower.send(stored([11], None, PROMPT[:4], cache_salt="s"), stored([21], None, PROMPT[:4], lora_name="a"))
    assert follower.depth(PROMPT) == 0
    assert follower.depth(PROMPT, cache_salt="s") == 1
    assert follower.depth(PROMPT, lora_name="a") == 1


def test_where_nothing_was_announced_the_first_store_tells_page_size_and_key_kind(make_follower) -> None:
    follower = make_follower(4, announced=False)
    follower.send(CLEARED)
    follower.send(stored([11], None, [[0, 1], [1, 2]], size=2))
    assert (follower.stream.hasher.page_size, follower.stream.hasher.bigram) == (2, True)
    assert follower.depth([0, 1, 2, 3]) == 1
    follower.send(stored([12], None, [0, 1, 2, 3], size=4))
    assert follower.stream.counters.other_page == 1


def test_the_announced_page_size_is_believed(follower) -> None:
    follower.send(CLEARED)
    follower.send(stored([91, 92], None, [0, 1, 2, 3], size=2))
    follower.send(stored([93], None, [0, 1, 2, 3, 4, 5, 6, 7], size=8))
    follower.send(stored([11, 12], None, PROMPT[:8]))
    assert follower.depth(PROMPT) == 2
    assert follower.stream.counters.other_page == 3
    assert follower.remarks == [Remark.OTHER_PAGE], "said once"
    follower.stream.restarted()
    follower.send(stored([91, 92], None, [0, 1, 2, 3], size=2))
    assert follower.remarks == [Remark.OTHER_PAGE] * 2, "and once of the next process"


def test_the_key_kind_is_told_by_the_first_store(follower) -> None:
    """What /server_info says of speculative decoding is a hint at most."""
    follower.send(CLEARED)
    follower.send(stored([11], None, [[0, 1], [1, 2], [2, 3], [3, 4]]))
    assert follower.stream.hasher.bigram
    assert follower.depth([0, 1, 2, 3, 4, 5]) == 1
    follower.send(stored([12], None, [0, 1, 2, 3]))
    assert follower.stream.counters.unindexed == 1


# --- sequences ------------------------------------------------------------------------------------------------------


def test_a_late_subscriber_is_live_but_not_complete(follower) -> None:
    follower.send(stored([11], None, PROMPT[:4]), seq=41)
    assert follower.stream.state is StreamState.LIVE
    assert not follower.stream.complete
    assert follower.depth(PROMPT) == 1


def test_a_gap_makes_the_stream_cold_until_it_is_cleared(follower) -> None:
    warm(follower)
    assert follower.send(stored([11], None, PROMPT[:4]), seq=5) is FrameOutcome.GAP
    assert follower.stream.state is StreamState.UNTRUSTED
    assert follower.stream.untrusted_for is DistrustReason.GAP
    assert (follower.stream.counters.gaps, follower.stream.counters.missing) == (1, 3)
    follower.send(stored([12], None, PROMPT[:4]))
    assert follower.held == set()
    follower.send(CLEARED, stored([11], None, PROMPT[:4]))
    assert follower.stream.state is StreamState.LIVE
    assert follower.depth(PROMPT) == 1


def test_a_frame_that_clears_after_a_gap_is_trusted_at_once(follower) -> None:
    warm(follower)
    assert follower.send(CLEARED, seq=9) is FrameOutcome.GAP
    assert follower.stream.state is StreamState.LIVE
    assert follower.held == set()


def test_duplicates_are_dropped(follower) -> None:
    warm(follower)
    follower.send(removed([13]))
    assert follower.send(stored([11, 12, 13], None, PROMPT[:12]), seq=1) is FrameOutcome.DUPLICATE
    assert follower.depth(PROMPT) == 2
    assert follower.stream.state is StreamState.LIVE
    assert follower.send(removed([12]), seq=3) is FrameOutcome.NEXT


def test_numbers_that_begin_again_are_a_new_process(follower) -> None:
    warm(follower)
    assert follower.send(stored([77], None, [9] * 4), seq=0) is FrameOutcome.RESTART
    assert follower.depth(PROMPT) == 0
    assert follower.depth([9] * 5) == 1
    assert follower.stream.counters.restarts == 1
    assert follower.send(CLEARED, seq=1) is FrameOutcome.NEXT


def test_a_restart_whose_first_frames_were_missed_is_still_a_restart(follower) -> None:
    warm(follower)
    for _ in range(5):
        follower.send(stored([14], 13, [9] * 4))
    assert follower.send(stored([77], None, [9] * 4), seq=2) is FrameOutcome.RESTART
    assert follower.depth(PROMPT) == 0
    assert not follower.stream.complete


def test_a_bad_frame_costs_the_frame_and_the_trust(follower) -> None:
    warm(follower)
    follower.frame(2, b"\xc1")
    assert follower.stream.state is StreamState.UNTRUSTED
    assert follower.stream.untrusted_for is DistrustReason.DECODE
    assert follower.stream.counters.failures == {DecodeFailure.MSGPACK: 1}
    assert follower.held == set()


@pytest.mark.parametrize("tokens", [[1, 2, 3, -4], [1, 2, 3, "x"], [[1, 2, 3]] * 4])
def test_tokens_that_are_none_cost_the_frame(follower, tokens: list[object]) -> None:
    warm(follower)
    follower.send(stored([14], 13, tokens))  # type: ignore[arg-type]
    assert follower.stream.counters.failures == {DecodeFailure.TOKEN_IDS: 1}
    assert follower.held == set()


# --- connection -----------------------------------------------------------------------------------------------------


def test_after_a_reconnect_both_identity_and_continuity_must_be_shown(follower) -> None:
    warm(follower)
    follower.stream.suspend()
    assert follower.stream.state is StreamState.SUSPENDED
    follower.stream.reconnected()
    follower.send(removed([13]))
    assert follower.stream.state is StreamState.SUSPENDED  # a new process could be at this very number
    follower.stream.confirm(same_process=True)
    assert follower.stream.state is StreamState.LIVE
    assert follower.depth(PROMPT) == 2


def test_confirmed_first_then_continuous(follower) -> None:
    warm(follower)
    follower.stream.suspend()
    follower.stream.reconnected()
    follower.stream.confirm(same_process=True)
    assert follower.stream.state is StreamState.SUSPENDED
    follower.send(removed([13]))
    assert follower.stream.state is StreamState.LIVE


def test_frames_queued_before_the_break_prove_nothing(follower) -> None:
    warm(follower)
    follower.stream.suspend()
    follower.send(removed([13]))  # it was in the socket already when the connection broke
    follower.stream.reconnected()
    follower.stream.confirm(same_process=True)
    assert follower.stream.state is StreamState.SUSPENDED
    assert follower.send(removed([12]), seq=9) is FrameOutcome.GAP
    assert follower.stream.state is StreamState.UNTRUSTED


@pytest.mark.parametrize("queued", ["clear", "restart", "first"])
def test_nothing_queued_before_the_break_ends_the_suspension(follower, queued: str) -> None:
    if queued != "first":
        warm(follower)
    follower.stream.suspend()
    if queued == "restart":
        follower.send(stored([5], None, PROMPT[:4]), seq=0)
    elif queued == "clear":
        follower.send(CLEARED, stored([5], None, PROMPT[:4]))
    else:
        follower.send(stored([5], None, PROMPT[:4]), seq=4)
    assert follower.stream.state is StreamState.SUSPENDED
    follower.stream.reconnected()
    assert follower.stream.state is StreamState.SUSPENDED
    follower.stream.confirm(same_process=False)
    assert follower.stream.state is StreamState.WAITING
    assert follower.held == set()


def test_a_gap_across_a_reconnect_is_a_gap(follower) -> None:
    warm(follower)
    follower.stream.suspend()
    follower.stream.reconnected()
    follower.stream.confirm(same_process=True)
    assert follower.send(removed([13]), seq=4) is FrameOutcome.GAP
    assert follower.stream.state is StreamState.UNTRUSTED


def test_another_process_after_a_reconnect_starts_from_nothing(follower) -> None:
    warm(follower)
    follower.stream.suspend()
    follower.stream.reconnected()
    follower.stream.confirm(same_process=False)
    assert follower.stream.state is StreamState.WAITING
    assert follower.held == set()
    follower.send(stored([5], None, PROMPT[:4]), seq=2)
    assert follower.stream.state is StreamState.LIVE
    assert not follower.stream.complete


def test_a_stream_that_never_spoke_has_nothing_to_suspend(follower) -> None:
    follower.stream.suspend()
    assert follower.stream.state is StreamState.WAITING


# --- the split bug of 0.5.6 -----------------------------------------------------------------------------------------


def legacy(hashes: list[int], parent: int | None, tokens: list[int]) -> list[object]:
    return ["BlockStored", hashes, parent, tokens, 4, None]


def test_a_child_of_removed_blocks_brings_its_ancestors_back(follower) -> None:
    follower.send(["AllBlocksCleared"])
    follower.send(legacy([11], None, PROMPT[:4]), legacy([12], 11, PROMPT[4:8]), legacy([13], 12, PROMPT[8:12]))
    follower.send(["BlockRemoved", [11]], ["BlockRemoved", [12]], ["BlockRemoved", [13]], legacy([23], 12, [9] * 4))
    assert follower.depth(PROMPT) == 2
    assert follower.depth([*PROMPT[:8], *[9] * 5]) == 3
    follower.send(["BlockRemoved", [23]], ["BlockRemoved", [12]])
    assert follower.depth(PROMPT) == 1


def test_dialects_with_a_medium_do_not_keep_ghosts(follower) -> None:
    warm(follower)
    follower.send(removed([13, 12, 11]), stored([23], 12, [9] * 4))
    assert follower.held == set()
    assert follower.stream.counters.orphans == 1


def test_an_engine_hash_that_changes_its_block_gives_the_old_one_up(follower) -> None:
    warm(follower)
    follower.send(stored([13], None, [7] * 4))
    assert follower.depth(PROMPT) == 2
    assert follower.depth([7] * 5) == 1


def test_ghosts_that_lead_back_to_themselves_end(follower) -> None:
    follower.send(["AllBlocksCleared"])
    follower.send(legacy([1], None, PROMPT[:4]))
    follower.send(legacy([1], 1, PROMPT[:4]))
    follower.send(["BlockRemoved", [1]])
    follower.send(legacy([2], 1, PROMPT[:4]))
    assert follower.stream.counters.orphans <= 1
    assert follower.depth(PROMPT) <= 1


def test_one_hash_for_two_blocks_of_an_event_leaves_nothing_behind(follower) -> None:
    follower.send(CLEARED)
    follower.send(stored([5, 5], None, PROMPT[:8]))
    slot = follower.stream.slot
    follower.stream.resync()
    follower.tree.sweep(100)
    assert list(follower.tree.holdings(slot)) == []


# --- a page an event ------------------------------------------------------------------------------------------------


def one_page(block: int, parent: int | None, tokens: list[int]) -> list[object]:
    return ["BlockStored", [block], parent, tokens, 4, None, "GPU"]


def test_a_page_whose_parent_is_unknown_does_not_orphan_the_next_one(follower) -> None:
    warm(follower)
    follower.send(one_page(12, 99, [7] * 4), one_page(14, 12, [9] * 4))
    assert follower.stream.counters.orphans == 1
    assert follower.depth([*PROMPT[:8], 9, 9, 9, 9, 0]) == 3


@given(
    st.lists(
        st.tuples(
            st.booleans(), st.integers(1, 6), st.integers(0, 6), st.integers(0, 2), st.sampled_from(["GPU", "DISK"])
        ),
        max_size=30,
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_pages_in_one_batch_do_what_they_do_one_by_one(make_follower, pages) -> None:
    events = [
        ["BlockStored", [block], parent or None, [token] * 4, 4, None, medium]
        if storing
        else ["BlockRemoved", [block], medium]
        for storing, block, parent, token, medium in pages
    ]
    together, apart = make_follower(4), make_follower(4)
    for one in (together, apart):
        one.send(CLEARED)
    together.send(*events)
    for event in events:
        apart.send(event)
    assert together.held == apart.held
    assert dict(together.stream._blocks.items()) == dict(apart.stream._blocks.items())
    assert together.stream.held == apart.stream.held
    for name in ("stored", "orphans"):
        assert getattr(together.stream.counters, name) == getattr(apart.stream.counters, name)


def test_long_removals_do_what_short_ones_do(follower) -> None:
    tokens = list(range(4 * 60 + 1))
    follower.send(CLEARED)
    follower.send(stored(list(range(1, 61)), None, tokens[:-1]))
    follower.send(stored(list(range(1, 31)), None, tokens[:120], medium="DISK"))
    follower.send(removed(list(range(11, 61))))
    assert follower.depth(tokens, device=True) == 10
    assert follower.depth(tokens) == 30
    assert follower.stream.blocks_held == 30
    assert {tier.value: n for tier, n in follower.stream.held.items() if n} == {"GPU": 10, "DISK": 30}


def test_a_disclaimed_block_hides_what_is_below_it_until_it_is_stored_again(follower) -> None:
    prompt = list(range(13))
    stored = ["BlockStored", [1, 2, 3], None, prompt[:12], 4, None, "GPU"]
    follower.send(["AllBlocksCleared"], stored)
    keys = [key for _, key in follower.stream._blocks.items()]
    follower.stream.disclaim(keys[1])
    follower.stream.disclaim(keys[1])
    assert (follower.depth(prompt), follower.stream.held[Tier.GPU], follower.stream.complete) == (1, 2, False)
    follower.send(["BlockStored", [4], 3, [7, 7, 7, 7], 4, None, "GPU"])
    assert follower.depth([*prompt[:12], 7, 7, 7, 7, 0]) == 1
    follower.send(stored)
    assert follower.depth([*prompt[:12], 7, 7, 7, 7, 0]) == 4
    follower.stream.disclaim(keys[0])
    follower.send(["BlockRemoved", [1, 2, 3, 4], "GPU"])
    assert (follower.held, follower.stream.held[Tier.GPU], follower.stream.blocks_held) == (set(), 0, 0)
