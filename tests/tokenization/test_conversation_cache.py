from __future__ import annotations

from array import array
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.prompt import SharedPrefix
from sgl_router.tokenization import conversation_cache
from sgl_router.tokenization.conversation_cache import ConversationCache


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(conversation_cache, "MIN_PIECE_CHARS", 1)
        yield


def use(cache: ConversationCache, *pieces: str) -> tuple[int, SharedPrefix | None]:
    """A prompt of these pieces, an id for each character: how many pieces were found, and its shared prefix."""
    walk = cache.walk(pieces, "end")
    assert [node.piece for node in walk.path] + walk.new == list(pieces)
    return len(walk.path), cache.keep(walk, [b"1234" * len(piece) for piece in walk.new])


def test_a_prompt_leaves_its_pieces_to_the_next() -> None:
    cache = ConversationCache(100_000)
    found, shared = use(cache, "ab", "c")
    assert found == 0
    assert shared is not None
    assert shared.tokens == 3
    found, again = use(cache, "ab", "c", "def")
    assert found == 2
    assert again is not None
    assert again.tokens == 6
    assert use(cache, "ab", "x")[0] == 1
    assert use(cache, "c", "ab")[0] == 0
    assert (cache.hits, cache.misses, cache.tokens_reused) == (2, 2, 3 + 2)
    assert len(cache) == 6


def test_ids_of_a_path_are_those_of_its_pieces() -> None:
    cache = ConversationCache(100_000)
    use(cache, "ab", "c")
    walk = cache.walk(["ab", "c", "new"], "end")
    assert b"".join(node.ids for node in walk.path) == b"1234" * 3
    assert (walk.new, walk.rest) == (["new"], "end")


def test_short_pieces_are_joined_with_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation_cache, "MIN_PIECE_CHARS", 4)
    cache = ConversationCache(100_000)
    walk = cache.walk(["ab", "cd", "efghi", "j"], "end")
    assert (walk.new, walk.rest) == (["abcd", "efghi"], "jend")
    cache.keep(walk, [b"1234", b"1234"])
    walk = cache.walk(["ab", "cd", "efghi", "j", "klm"], "end")
    assert [node.piece for node in walk.path] == ["abcd", "efghi"]
    assert (walk.new, walk.rest) == (["jklm"], "end")


def test_what_was_met_once_does_not_flush_what_was_met_twice() -> None:
    cache = ConversationCache(40_000)
    for _ in range(2):
        use(cache, "system", "shots")
    for i in range(1_000):
        use(cache, f"once {i}", f"and {i}")
        assert cache.bytes <= 40_000
    assert cache.evictions > 1_000
    assert use(cache, "system", "shots")[0] == 2


def test_the_least_recently_used_goes_first() -> None:
    cache = ConversationCache(20_000)
    for name in "ab":
        for _ in range(2):
            use(cache, name)
    for i in range(100):
        use(cache, "a")
        for _ in range(2):
            use(cache, f"x{i}")
    assert use(cache, "a")[0] == 1
    assert use(cache, "b")[0] == 0


def test_leaves_go_before_what_they_grow_on() -> None:
    cache = ConversationCache(20_000)
    use(cache, "root", *[f"turn {i}" for i in range(8)])
    for i in range(20):
        use(cache, f"other {i}")
    found = use(cache, "root", *[f"turn {i}" for i in range(8)])[0]
    assert found < 9
    # Whatever was found is a beginning without holes, and nothing is kept that cannot be reached.
    reachable, pending = 0, [cache._root]
    while pending:
        children = list((pending.pop().children or {}).values())
        reachable += len(children)
        pending.extend(children)
    assert reachable == len(cache)


def test_a_piece_too_large_for_the_bound_is_not_kept() -> None:
    cache = ConversationCache(10_000)
    _, shared = use(cache, "a", "b" * 5_000, "c")
    assert shared is not None
    assert shared.tokens == 1
    assert len(cache) == 1
    assert use(ConversationCache(100), "a") == (0, None)


def test_block_keys_move_along_as_a_conversation_grows() -> None:
    cache = ConversationCache(100_000)
    _, first = use(cache, "sys", "one")
    assert first is not None
    first.keys[5] = array("Q", [1, 2])
    _, second = use(cache, "sys", "one", "two")
    assert second is not None
    assert second is not first
    assert second.keys[5].tolist() == [1, 2]
    assert first.keys == {}
    found, again = use(cache, "sys", "one", "two")
    assert (found, again) == (3, second)


def test_block_keys_stay_where_conversations_part() -> None:
    cache = ConversationCache(100_000)
    _, system = use(cache, "sys")
    assert system is not None
    use(cache, "sys", "x")
    system.keys[5] = array("Q", [1, 2])
    _, branch = use(cache, "sys", "y")
    assert branch is not None
    assert branch.keys[5].tolist() == [1, 2]
    assert branch.keys[5] is not system.keys[5]
    assert system.keys[5].tolist() == [1, 2]


def test_block_keys_are_counted_and_their_roots_bounded() -> None:
    cache = ConversationCache(100_000)
    _, shared = use(cache, "sys")
    before = cache.bytes
    assert shared is not None
    for root in range(50):
        shared.keys[root] = array("Q", range(100))
    use(cache, "sys")
    assert list(shared.keys) == list(range(42, 50))
    assert cache.bytes - before >= 8 * 100 * 16  # a key, and its row in the index
    small = ConversationCache(4_000)
    _, shared = use(small, "sys")
    assert shared is not None
    shared.keys[1] = array("Q", range(1_000))
    use(small, "sys")
    assert small.bytes <= 4_000


def test_a_walk_outlives_the_eviction_of_what_it_found() -> None:
    cache = ConversationCache(4_000)
    use(cache, "a", "b")
    walk = cache.walk(["a", "b", "c"], "end")
    ids = [node.ids for node in walk.path]
    for i in range(20):
        for _ in range(2):
            use(cache, f"x{i}")
    assert cache.keep(walk, [b"1234"]) is None
    assert ids == [b"1234", b"1234"]
    assert cache.bytes <= 4_000


def test_two_walks_that_bring_the_same_pieces_share_them() -> None:
    cache = ConversationCache(100_000)
    first, second = cache.walk(["a", "b"], "end"), cache.walk(["a", "b"], "end")
    shared = cache.keep(first, [b"1234", b"1234"])
    assert cache.keep(second, [b"1234", b"1234"]) is shared
    assert len(cache) == 2


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 12_000),
    st.lists(st.tuples(st.lists(st.sampled_from("abcd"), max_size=6), st.integers(0, 40)), max_size=60),
)
def test_the_bound_holds_and_the_books_balance(bound: int, prompts: list[tuple[list[str], int]]) -> None:
    cache = ConversationCache(bound)
    for pieces, keys in prompts:
        _, shared = use(cache, *pieces)
        assert cache.bytes <= bound
        nodes = [*cache._probation, *cache._protected]
        assert cache.bytes == sum(node.bytes for node in nodes)
        assert cache._protected_bytes == sum(node.bytes for node in cache._protected)
        assert all(node.kept and node.protected is (node in cache._protected) for node in nodes)
        for node in nodes:
            assert node.parent is not None
            assert node.parent.children is not None
            assert node.parent.children[node.name] is node
            assert node.parent is cache._root or node.parent.kept
        if shared is not None:
            assert shared.tokens <= len(pieces)
            shared.keys[keys % 3] = array("Q", range(keys))


def test_a_prompt_brings_only_so_many_pieces_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation_cache, "MAX_NEW_PIECES", 2)
    cache = ConversationCache(100_000)
    for known in (0, 2, 4):
        walk = cache.walk(["a", "b", "c", "d", "e"], "end")
        assert [node.piece for node in walk.path] + walk.new + [walk.rest] == [
            *"abcde"[: known + 2],
            "abcde"[known + 2 :] + "end",
        ]
        cache.keep(walk, [b"1234"] * len(walk.new))
