from __future__ import annotations

import pytest

from sgl_router.config import KvCostConfig
from sgl_router.kv_events import MatchedPrefix
from sgl_router.policies.cost import Costs
from sgl_router.policies.load_snapshot import LoadSnapshot


@pytest.fixture
def standing(fleet) -> LoadSnapshot:
    made = LoadSnapshot(fleet(0, 0, 0), KvCostConfig(prefill_tokens_per_sec=1_000.0, decode_ms_per_1k_tokens=0.0), 0.0)
    made.others = 2.0
    return made


def test_a_total_is_work_for_oneself_and_others_and_what_all_pay(standing: LoadSnapshot) -> None:
    standing.fixed_ms[1] = 70.0
    costs = Costs(standing, 100, [100.0, 40.0, 0.0], {})
    assert costs.totals == [300.0, 190.0, 0.0]
    assert not costs.held


def test_terms_are_told_for_each(standing: LoadSnapshot) -> None:
    prefix = MatchedPrefix(3, 1, 2, 4, 16)
    costs = Costs(standing, 100, [100.0, 45.0, 100.0], {1: prefix}, [0.0, 5.0, 7.0], 1, 30.0)
    assert costs.held
    assert (costs.prefix(1), costs.prefix(0)) == (prefix, None)
    one, two, three = costs.every()
    assert two == costs.of(1)
    assert (two.uncached_tokens, two.compute_ms, two.load_back_ms) == (36, 36.0, 9.0)
    assert (two.others_ms, two.eviction_ms, two.session_ms, two.total_ms) == (90.0, 5.0, -30.0, 110.0)
    assert (one.uncached_tokens, one.compute_ms, one.load_back_ms, one.session_ms) == (100, 100.0, 0.0, 0.0)
    assert (three.eviction_ms, three.total_ms) == (7.0, 307.0)
    assert [cost.target for cost in (one, two, three)] == standing.candidates


def test_a_prefix_beyond_the_prompt_leaves_nothing(standing: LoadSnapshot) -> None:
    assert Costs(standing, 30, [0.0] * 3, {0: MatchedPrefix(2, 2, 2, 2, 16)}).of(0).uncached_tokens == 0
