from __future__ import annotations

from sgl_router.kv_events.follow.endpoints import Endpoints


def test_an_endpoint_named_twice_is_shared_until_one_goes() -> None:
    named: Endpoints[str] = Endpoints()
    assert named.add("tcp://a:1", "", "first") == []
    assert named.add("tcp://a:2", "", "other port") == []
    assert named.add("tcp://a:1", "", "second") == ["first"]
    assert named.add("tcp://a:1", "kv", "third") == ["first", "second"]
    assert named.remove("tcp://a:1", "", "second") == [], "two are left"
    assert named.remove("tcp://a:1", "kv", "third") == ["first"]
    assert named.remove("tcp://a:1", "", "first") == []
    assert named.add("tcp://a:1", "", "new") == []


def test_topics_of_one_endpoint_are_streams_of_their_own_unless_one_begins_with_the_other() -> None:
    named: Endpoints[str] = Endpoints()
    assert named.add("tcp://a:1", "x", "x") == []
    assert named.add("tcp://a:1", "y", "y") == []
    assert named.add("tcp://a:1", "xy", "xy") == ["x"]
    assert named.add("tcp://a:1", "", "all") == ["x", "y", "xy"]
    assert named.remove("tcp://a:1", "", "all") == ["y"]


def test_ways_to_write_this_machine_are_one() -> None:
    named: Endpoints[str] = Endpoints()
    named.add("tcp://127.0.0.1:1", "", "number")
    assert named.add("tcp://localhost:1", "", "name") == ["number"]
    assert named.add("tcp://[::1]:1", "", "six") == ["number", "name"]
    assert named.add("tcp://localhost.example:1", "", "another machine") == []
