from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from sgl_router.api.body import parse_chat
from sgl_router.api.chat import route_request
from sgl_router.config import KvCostConfig, ModelConfig, PolicyName, QueueConfig
from sgl_router.placement import Unmatched
from sgl_router.policies import make_policy
from sgl_router.routing import RouteRequest
from sgl_router.services import Model
from sgl_router.tokenization import Unrenderable
from sgl_router.tokenization.errors import UnrenderableReason


class Tokenizer:
    async def prompt(self, chat: object) -> Any:
        return SimpleNamespace()


async def asked(fields: str = "", headers: dict[str, str] | None = None, **config: Any) -> RouteRequest:
    config = {"policy": PolicyName.KV_COST, "queue": QueueConfig(enabled=True), **config}
    model = Model(
        ModelConfig(id="m", tokenizer_path="unused", **config),
        Tokenizer(),  # type: ignore[arg-type]
        make_policy(ModelConfig(id="m", tokenizer_path="unused", **config), random.Random(1)),
    )
    chat = parse_chat(b'{"model":"m","messages":[]%b}' % fields.encode())
    pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return await route_request(model, None, chat, pairs, "id")


@pytest.mark.parametrize(
    ("fields", "header", "priority"),
    [
        ("", None, 0),
        (',"priority":3', "system", 3),
        (',"priority":-3', None, -3),
        (',"priority":true', "bulk", -1),
        (',"priority":"1"', " Interactive ", 1),
        (',"priority":null', "system", 2),
        ("", "default", 0),
        ("", "-12", -12),
        ("", "1234567890", 0),
        ("", "1.5", 0),
        (',"priority":1' + "0" * 30, None, 10**9),
        (',"priority":-1' + "0" * 30, None, -(10**9)),
    ],
)
async def test_priority_is_the_bodys_or_the_headers(fields: str, header: str | None, priority: int) -> None:
    headers = {"X-SMG-Priority": header} if header is not None else {}
    assert (await asked(fields, headers)).priority == priority


async def test_what_plays_no_part_is_not_looked_for() -> None:
    headers = {"x-smg-priority": "system", "x-smg-routing-key": "chat-1"}
    assert (await asked(',"priority":3', headers, queue=QueueConfig())).priority == 0
    assert (await asked("", headers)).session is None
    assert (await asked("", headers, kv_cost=KvCostConfig(session_bonus_ms=1.0))).session == "chat-1"
    plain = await asked(',"stream":true', headers, policy=PolicyName.CACHE_AWARE_ZMQ)
    assert (plain.priority, plain.session, plain.wants_usage) == (0, None, False)


@pytest.mark.parametrize(("fields", "streamed"), [("", False), (',"stream":false', False), (',"stream":true', True)])
async def test_only_a_streams_first_byte_tells(fields: str, streamed: bool) -> None:
    ask = await asked(fields)
    assert (ask.streamed, ask.wants_usage) == (streamed, True)


async def test_a_chat_that_cannot_be_rendered_is_a_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    async def prompt(self: object, chat: object) -> Any:
        raise Unrenderable(UnrenderableReason.MEDIA, "an image")

    monkeypatch.setattr(Tokenizer, "prompt", prompt)
    ask = await asked()
    assert (ask.prompt, ask.unmatched) == (None, Unmatched.MEDIA)


@pytest.mark.parametrize("field", ["cache_salt", "lora_path"])
async def test_a_name_as_large_as_a_body_may_be_is_not_kept(field: str) -> None:
    """It would be remembered by the hasher, and be too much for a message between processes."""
    ask = await asked(f',"{field}":"{"x" * 4_096}"')
    assert ask.namespace is not None and "x" * 4_096 in ask.namespace
    ask = await asked(f',"{field}":"{"x" * 4_097}"')
    assert (ask.namespace, ask.unmatched) == (None, Unmatched.NAMESPACE)
    assert ask.prompt is not None
