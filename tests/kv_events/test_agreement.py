from __future__ import annotations

import random

import pytest

from sgl_router.kv_events.index.agreement import Agreement, Prediction, Verdict

PAGE = 16


class Rank:
    """An agreement fed with conversations: each is a chain of keys of its own below what it shares with others."""

    def __init__(self) -> None:
        self.agreement = Agreement()
        self.now = 0.0

    def chain(self, name: object, shared: int = 0, length: int = 400) -> list[int]:
        common = random.Random("shared")
        own = random.Random(repr(name))
        return [common.getrandbits(63) for _ in range(shared)] + [own.getrandbits(63) for _ in range(length - shared)]

    def ask(self, keys: list[int], claimed: int, cached: int, namespace: int = 1) -> Verdict:
        """One answer: so many blocks of the chain were claimed, so many were cached."""
        self.now += 1.0
        prefix = self.agreement.prefix_of(namespace, keys, claimed)
        return self.agreement.report(
            claimed * PAGE,
            cached * PAGE,
            namespace=namespace,
            depth=claimed,
            end=keys[claimed - 1],
            prefix=prefix,
            now=self.now,
        )


@pytest.fixture
def rank() -> Rank:
    return Rank()


def test_exact_and_modest_predictions_are_never_suspect(rank: Rank) -> None:
    chain = rank.chain("one")
    assert {rank.ask(chain, 10, cached) for cached in [10, 11] * 50} == {Verdict.NONE}
    assert rank.agreement.score == 1.0
    assert rank.agreement.counts == {Prediction.EXACT: 50, Prediction.MORE: 50, Prediction.LESS: 0}


def test_predicting_nothing_proves_nothing() -> None:
    agreement = Agreement()
    assert {agreement.report(0, 0) for _ in range(100)} == {Verdict.NONE}
    assert agreement.counts[Prediction.EXACT] == 100
    agreement.report(16, 0)
    assert agreement.score < 1.0


def test_evictions_now_and_then_are_no_drift(rank: Rank) -> None:
    verdicts = {rank.ask(rank.chain(number % 9), 10, 0 if number % 4 == 0 else 10) for number in range(200)}
    assert verdicts == {Verdict.NONE}


@pytest.mark.parametrize("shared", [0, 200])
def test_a_lost_cache_is_found_within_a_dozen_answers_and_forgiven_once(rank: Rank, shared: int) -> None:
    """All prefixes were fine, and then none is; whether or not they begin with one system prompt."""
    for number in range(60):
        rank.ask(rank.chain(number, shared), 250, 250)
    verdicts = [rank.ask(rank.chain(100 + number, shared), 250, shared and 200) for number in range(16)]
    assert verdicts.index(Verdict.RANK) <= 11
    assert verdicts[:4] == [Verdict.NONE] * 4
    assert rank.agreement.given_up[Verdict.RANK] >= 1
    rank.agreement.forgive()
    assert rank.ask(rank.chain("other"), 10, 0) is Verdict.NONE


def test_a_fresh_rank_needs_some_answers_first(rank: Rank) -> None:
    verdicts = [rank.ask(rank.chain(number), 10, 0) for number in range(9)]
    assert verdicts.index(Verdict.RANK) == 8


@pytest.mark.parametrize("grows", [0, 1, 7, 30])
def test_one_conversation_that_disagrees_outvotes_nothing(rank: Rank, grows: int) -> None:
    """However often it is asked, whether it stays or grows, and with no other traffic on the rank."""
    chain, verdicts = rank.chain("hot", length=4_000), []
    for turn in range(100):
        verdicts.append(rank.ask(chain, 10 + turn * grows, 5))
    assert set(verdicts) == {Verdict.NONE, Verdict.PREFIX}
    assert verdicts[2] is Verdict.PREFIX, "the third time in a row"


def test_its_claims_go_though_others_agree(rank: Rank) -> None:
    hot, verdicts = rank.chain("hot"), []
    for number in range(60):
        rank.ask(rank.chain(number % 6), 10, 10)
        verdicts.append(rank.ask(hot, 10, 0))
    assert set(verdicts) == {Verdict.NONE, Verdict.PREFIX}


def test_a_bad_namespace_takes_itself_out_and_nothing_else(rank: Rank) -> None:
    """Its prompts are nine in ten, all different, and never come true."""
    verdicts = []
    for number in range(400):
        if number % 10 == 0:
            assert rank.ask(rank.chain(number % 30), 10, 10, namespace=1) is Verdict.NONE
        else:
            verdicts.append(rank.ask(rank.chain(number), 10, 0, namespace=2))
    assert set(verdicts) == {Verdict.NONE, Verdict.NAMESPACE}
    assert verdicts.index(Verdict.NAMESPACE) < 12


def test_most_namespaces_of_a_lost_cache_are_the_rank(rank: Rank) -> None:
    for number in range(60):
        rank.ask(rank.chain(number), 10, 10, namespace=number % 6)
    verdicts = [rank.ask(rank.chain(1000 + number), 10, 0, namespace=number % 6) for number in range(100)]
    assert Verdict.RANK in verdicts


def test_half_of_the_prefixes_are_not_most(rank: Rank) -> None:
    """Nor are half of the answers, though those that disagree are ever new prefixes and the others always the same."""
    verdicts = [rank.ask(rank.chain(n % 8 if n % 2 else n), 10, 10 if n % 2 else 0) for n in range(400)]
    assert set(verdicts) == {Verdict.NONE}


def test_old_votes_do_not_count(rank: Rank) -> None:
    for number in range(40):
        rank.ask(rank.chain(number), 10, 10, namespace=number % 4)
    rank.now += 3_600.0
    verdicts = [rank.ask(rank.chain(100 + number), 10, 0, namespace=9) for number in range(12)]
    assert Verdict.RANK in verdicts, "the other namespaces are no longer in use"


def test_any_history_is_kept_in_bounds(rank: Rank) -> None:
    rng = random.Random(5)
    for _ in range(20_000):
        keys = rank.chain(rng.randrange(400), length=20)
        rank.ask(keys, rng.randrange(1, 20), rng.choice([0, 5, 20]), namespace=rng.randrange(300))
    namespaces = rank.agreement._namespaces
    assert len(namespaces) <= 16
    for known in namespaces.values():
        assert len(known.prefixes) <= 16
        assert all(end == prefix.end for end, prefix in known.prefixes.items())
    assert 0.0 <= rank.agreement.score <= 1.0
