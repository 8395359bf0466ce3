"""However the bytes of a pipelined stream are cut on their way, the same requests arrive and the same answers leave."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from tests.conformance.case import CHUNKED, ECHO, HEALTH, STREAM, post
from tests.conformance.mutation import CHUNKED_BODIES
from tests.conformance.rig import read_reply, running

PARTS = (
    post(b"one"),
    post(b"", target=STREAM),
    post(b"\r\n\r\nPOST / HTTP/1.1\r\n\r\n"),
    post(b"x" * 3000, target=STREAM + b"?q"),
    post(b"five", b"Expect: 100-continue"),
    post(b"", line=b"PUT " + ECHO + b" HTTP/1.1", length=False),
    b"\r\n" + post(b"six", b"Connection: keep-alive", line=b"POST " + ECHO + b" HTTP/1.0"),
    *(post(body, CHUNKED, length=False) for body in CHUNKED_BODIES),
)
ADMIN = post(b"", line=b"GET " + HEALTH + b" HTTP/1.1", length=False)
Seen = tuple[list[tuple[int, bytes]], list[bytes]]


def made_of(rng: random.Random) -> list[bytes]:
    parts = [rng.choice(PARTS) for _ in range(rng.randrange(1, 12))]
    if rng.random() < 0.3:
        parts.insert(rng.randrange(len(parts) + 1), ADMIN)
    return parts


def cut(rng: random.Random, data: bytes) -> list[bytes]:
    number = rng.choice((0, 1, 3, 10, 60))
    places = [0, *sorted(rng.randrange(len(data)) for _ in range(number)), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places) if a < b]


async def exchange(pieces: list[bytes], answers: int) -> Seen:
    """The turns of the loop between them make most pieces a read of their own."""
    async with running() as rig:
        reader, writer = await rig.open()
        for piece in pieces:
            writer.write(piece)
            if len(pieces) > 1:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        replies = []
        for _ in range(answers):
            reply = await asyncio.wait_for(read_reply(reader), 120)
            assert reply is not None
            replies.append((reply.status, reply.body))
        return [(status, b"" if status == 405 else body) for status, body in replies], [one.body for one in rig.seen]


@pytest.mark.parametrize("seed", range(40))
async def test_any_cut(seed: int) -> None:
    rng = random.Random(seed)
    parts = made_of(rng)
    stream = b"".join(parts)
    whole = await exchange([stream], len(parts))
    for _ in range(3):
        assert await exchange(cut(rng, stream), len(parts)) == whole


async def test_byte_by_byte() -> None:
    stream = b"".join(part for part in PARTS if len(part) < 1000)
    count = sum(len(part) < 1000 for part in PARTS)
    assert await exchange([stream[at : at + 1] for at in range(len(stream))], count) == await exchange([stream], count)
