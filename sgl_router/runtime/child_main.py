"""How the supervisor starts a process: `main`, as ROLE. Not for people."""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="sgl-router process")
    parser.add_argument("role", choices=("routing", "data"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--control", type=int, required=True, metavar="FD")
    parser.add_argument("--beat-secs", type=float, required=True)
    parser.add_argument("--listener", type=int, metavar="FD")
    parser.add_argument("--admin-listener", type=int, metavar="FD")
    parser.add_argument("--number", type=int, default=0)
    options = parser.parse_args()

    from sgl_router import signals
    from sgl_router.runtime.control import Control, die_with_parent

    # A service manager may signal the whole group: when to go is the supervisor's to say.
    signals.ignore_all()
    die_with_parent(options.parent)

    import msgspec
    import structlog

    from sgl_router.cli.serve import new_event_loop
    from sgl_router.config import Config
    from sgl_router.observability import configure_logging
    from sgl_router.runtime.listen import StartupError
    from sgl_router.runtime.paths import Paths

    paths = Paths(options.folder)
    config = msgspec.json.decode(paths.config.read_bytes(), type=Config)
    configure_logging(config.observability.log_level, config.observability.log_format)
    name = "routing" if options.role == "routing" else f"data-{options.number}"
    structlog.contextvars.bind_contextvars(process=name)

    async def run() -> int:
        control = Control(options.control, options.beat_secs)
        try:
            if options.role == "routing":
                from sgl_router.runtime.routing_process import run_routing

                return await run_routing(config, paths, control)
            from sgl_router.runtime.data_process import run_data

            listener = socket.socket(fileno=options.listener)
            admin = socket.socket(fileno=options.admin_listener) if options.admin_listener is not None else None
            return await run_data(config, options.number, listener, paths, control, admin)
        finally:
            await control.close()

    loop = new_event_loop()
    signals.dump_on_request(loop)
    try:
        return loop.run_until_complete(run())
    except StartupError as error:
        print(f"sgl-router: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
