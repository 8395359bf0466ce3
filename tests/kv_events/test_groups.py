from __future__ import annotations

import pytest

from sgl_router.kv_events.follow.groups import FULL_ATTENTION, CacheGroups
from sgl_router.kv_events.follow.stream import Remark

PROMPT = list(range(33))  # eight whole blocks of four, and the token an engine always computes


def stored(hashes: list[int], parent: int | None, start: int, **group: object) -> dict[str, object]:
    return {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": parent,
        "token_ids": PROMPT[start * 4 : (start + len(hashes)) * 4],
        "block_size": 4,
        "lora_id": None,
        "medium": "GPU",
        **group,
    }


def removed(hashes: list[int], **group: object) -> dict[str, object]:
    return {"type": "BlockRemoved", "block_hashes": hashes, "medium": "GPU", **group}


FULL = {"group_idx": 1, "kv_cache_spec_kind": "full_attention"}
WINDOW = {"group_idx": 0, "kv_cache_spec_kind": "sliding_window", "kv_cache_spec_sliding_window": 8}
CHAIN = list(range(1, 9))


def test_a_windows_removal_takes_nothing_from_full_attention(follower) -> None:
    follower.send(stored(CHAIN, None, 0, **WINDOW), stored(CHAIN, None, 0, **FULL))
    follower.send(removed(CHAIN[:6], group_idx=0))
    assert follower.depth(PROMPT) == 8
    assert follower.stream.counters.other_group == 14
    assert follower.stream.counters.removed == 0
    follower.send(removed(CHAIN[4:], group_idx=1))
    assert follower.depth(PROMPT) == 4


@pytest.mark.parametrize(
    "kind", ["sliding_window", "sliding_window_mla", "mamba", "chunked_local_attention", "unknown"]
)
def test_a_store_by_no_group_of_full_attention_is_no_hit(follower, kind: str) -> None:
    follower.send(stored(CHAIN, None, 0, group_idx=0, kv_cache_spec_kind=kind))
    assert follower.depth(PROMPT) == 0
    assert follower.stream.blocks_held == 0
    assert follower.stream.counters.other_group == 8


def test_a_group_of_other_pages_does_not_set_the_ranks(make_follower) -> None:
    follower = make_follower(16, announced=False)
    state = stored(CHAIN, None, 0, group_idx=0, kv_cache_spec_kind="mamba") | {
        "block_size": 2,
        "token_ids": PROMPT[:16],
    }
    follower.send(state, stored(CHAIN, None, 0, **FULL))
    assert follower.depth(PROMPT) == 8
    assert follower.stream.hasher.page_size == 4
    assert follower.remarks == []


def test_events_without_a_group_claim_as_ever(follower) -> None:
    follower.send(stored(CHAIN, None, 0))
    follower.send(removed(CHAIN[6:]))
    assert follower.depth(PROMPT) == 6
    assert follower.stream.counters.other_group == 0


def test_one_group_that_does_not_tell_its_kind_claims(follower) -> None:
    follower.send(stored(CHAIN, None, 0, group_idx=0))
    assert follower.depth(PROMPT) == 8
    follower.send(removed(CHAIN[6:], group_idx=0))
    assert follower.depth(PROMPT) == 6
    assert follower.remarks == []


def test_of_several_that_do_not_tell_none_claims(follower) -> None:
    follower.send(stored(CHAIN, None, 0, group_idx=0))
    follower.send(stored(CHAIN, None, 0, group_idx=1))
    assert follower.held == set()
    follower.send(stored(CHAIN, None, 0, group_idx=0))
    assert follower.depth(PROMPT) == 0
    assert follower.remarks == [Remark.GROUPS_UNTOLD]
    follower.send(stored(CHAIN, None, 0, **FULL))
    assert follower.depth(PROMPT) == 8, "one of them tells after all"


def test_what_a_wrong_group_stored_goes_when_the_right_one_shows(follower) -> None:
    follower.send(stored(CHAIN, None, 0, group_idx=0))
    follower.send(stored(CHAIN[:2], None, 0, **FULL))
    assert follower.depth(PROMPT) == 2


def test_groups_are_the_processs_and_survive_what_the_stream_forgets(follower) -> None:
    follower.send(stored(CHAIN, None, 0, group_idx=0), stored(CHAIN, None, 0, group_idx=1))
    follower.send({"type": "AllBlocksCleared"})
    follower.send(stored(CHAIN, None, 0, group_idx=0))
    assert follower.depth(PROMPT) == 0
    follower.stream.restarted()
    follower.send(stored(CHAIN, None, 0, group_idx=0))
    assert follower.depth(PROMPT) == 8, "another process, perhaps with one group"


def test_a_removal_by_an_unknown_group_counts_in_doubt(follower) -> None:
    """After a start from a snapshot the blocks are there, and no store has told of groups yet."""
    groups = CacheGroups()
    assert groups.concerns(0)
    assert not groups.stored(0, "mamba")
    assert not groups.concerns(0)
    assert groups.concerns(3)
    groups.stored(3, "mla_attention")
    assert groups.claiming == 3
    assert [group for group in range(5) if groups.concerns(group)] == [3]


def test_the_first_of_several_of_full_attention_claims() -> None:
    groups = CacheGroups()
    for group in (2, 1):
        assert not groups.stored(group, "full_attention")
    assert groups.claiming == 2
    assert groups.stored(2, "sliding_window"), "it was none after all"
    assert groups.claiming == 1


def test_the_number_of_groups_is_bounded() -> None:
    groups = CacheGroups()
    for group in range(10_000):
        groups.stored(group, "mamba")
    assert not any(groups.concerns(group) for group in range(256))
    assert groups.claiming is None
    assert len(groups._full) == 256


def test_kinds_of_full_attention_are_the_engines_names() -> None:
    assert {"full_attention", "mla_attention", "sink_full_attention"} == FULL_ATTENTION
