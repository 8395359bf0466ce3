"""The address clients connect to. No heavy imports: the supervisor of several processes binds it too."""

from __future__ import annotations

import socket

__all__ = ["BACKLOG", "StartupError", "bind"]

BACKLOG = 2_048


class StartupError(Exception):
    """The router cannot start; the text names the field at fault."""


def bind(host: str, port: int, *, sockets: int = 1, section: str = "server") -> list[socket.socket]:
    """So many sockets on one address, not listening yet: they listen once there is something to answer with.

    Several share the address by SO_REUSEPORT: the system deals new connections out among those that listen. `section`:
    of the configuration, which StartupError names.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made: list[socket.socket] = []
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0]
        if sockets == 1:
            made.append(_bound(family, address))
            return made
        # Sharing would also let us in beside another router of the same user: see first whether the port is free.
        with _bound(family, address) as probe:
            address = (address[0], probe.getsockname()[1], *address[2:])
        for _ in range(sockets):
            made.append(_bound(family, address, shared=True))
    except OSError as error:
        for one in made:
            one.close()
        keys = f"{section}.host, {section}.port"
        raise StartupError(f"{keys}: cannot listen on {host}:{port}: {error.strerror}") from None
    return made


def _bound(family: int, address: tuple[object, ...], *, shared: bool = False) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made
