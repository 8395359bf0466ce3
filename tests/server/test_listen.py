from __future__ import annotations

import contextlib
import socket

import pytest

from sgl_router.runtime.listen import StartupError, bind


def test_several_sockets_share_a_port_that_is_free() -> None:
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(one) for one in bind("127.0.0.1", 0, sockets=3)]
        assert len({one.getsockname() for one in made}) == 1
        for one in made:
            one.listen()
        with pytest.raises(StartupError, match=r"cannot listen on 127\.0\.0\.1:\d+: Address already in use"):
            bind("127.0.0.1", made[0].getsockname()[1], sockets=2)  # not even beside others who share
        with pytest.raises(StartupError, match="already in use"):
            bind("127.0.0.1", made[0].getsockname()[1])


def test_connections_reach_every_listener() -> None:
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(one) for one in bind("127.0.0.1", 0, sockets=2)]
        for one in made:
            one.listen(64)
            one.setblocking(False)
        for _ in range(40):
            stack.enter_context(socket.create_connection(made[0].getsockname()))
        accepted = []
        for one in made:
            accepted.append(0)
            with contextlib.suppress(BlockingIOError):
                while True:
                    stack.enter_context(one.accept()[0])
                    accepted[-1] += 1
        assert sum(accepted) == 40
        assert min(accepted) > 0


def test_a_single_socket_shares_with_nobody() -> None:
    [one] = bind("127.0.0.1", 0)
    with one:
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0


def test_a_host_that_is_not_ours_is_a_clear_error() -> None:
    with pytest.raises(StartupError, match=r"server\.host, server\.port: cannot listen on 192\.0\.2\.1:0"):
        bind("192.0.2.1", 0, sockets=2)
