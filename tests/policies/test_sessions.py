from __future__ import annotations

from sgl_router.policies.sessions import Sessions


def test_the_last_target_is_remembered(fleet) -> None:
    one, two = fleet(0, 0)
    sessions = Sessions()
    assert sessions.target("a") is None
    sessions.went("a", one)
    sessions.went("b", one)
    sessions.went("a", two)
    assert (sessions.target("a"), sessions.target("b")) == (two, one)


def test_those_not_seen_for_longest_are_forgotten(fleet) -> None:
    (target,) = fleet(0)
    sessions = Sessions(limit=2)
    for name in ("a", "b", "a", "c"):
        sessions.went(name, target)
    assert [sessions.target(name) for name in "abc"] == [target, None, target]
    assert len(sessions) == 2


def test_long_names_are_not_kept(fleet) -> None:
    (target,) = fleet(0)
    sessions = Sessions()
    sessions.went("x" * 100_000, target)
    assert all(isinstance(name, int) for name in sessions._targets)
    assert sessions.target("x" * 100_000) is target
    assert sessions.target("x" * 99_999) is None
