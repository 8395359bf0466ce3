"""`sgl-router --config FILE`, with and without `--check`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sgl_router import signals
from sgl_router.config import ConfigError, LoadedConfig, load_config

__all__ = ["check", "new_event_loop", "serve"]

EXIT_CONFIG = 2


def check(path: str) -> int:
    """Validate a file, loading no tokenizer and asking no server. 0, or 2 with every problem on standard error."""
    loaded = _load(path)
    if loaded is None:
        return EXIT_CONFIG
    from sgl_router.discovery import DiscoveryUnavailable, make_discovery

    try:
        make_discovery(loaded.config.discovery)
    except DiscoveryUnavailable as error:
        print(f"sgl-router: {error}", file=sys.stderr)
        return EXIT_CONFIG
    models = ", ".join(model.id for model in loaded.config.models)
    print(f"{path}: valid ({loaded.config.discovery.backend}; models: {models})")
    for index, model in enumerate(loaded.config.models):
        named = model.tokenizer_path
        if not Path(named).exists():
            print(f"  models[{index}].tokenizer_path: no file or folder here, taken for a hub id: {named}")
    from sgl_router.tokenization.model_files import code_encoder_of

    for index, model in enumerate(loaded.config.models):
        encoder = code_encoder_of(model.tokenizer_path, given_template=model.chat_template is not None)
        if encoder is not None:
            print(
                f"sgl-router: warning: models[{index}]: the engine encodes chats of {model.id} by code ({encoder}), "
                "not by a chat template: the router cannot know their tokens and routes them by load alone",
                file=sys.stderr,
            )
    return 0


def serve(path: str) -> int:
    """Run the daemon until it is told to stop. 0 after a clean shutdown, 2 if it could not start.

    Before it has started, Ctrl-C ends the process here, with 130, and SIGTERM with 0.
    """
    signals.hold()
    loaded = _load(path)
    if loaded is None:
        return EXIT_CONFIG
    if loaded.config.server.processes > 1:
        from sgl_router.runtime.supervisor import supervise

        return supervise(loaded.config)
    from sgl_router.observability import configure_logging
    from sgl_router.runtime.daemon import Daemon, StartupError

    configure_logging(loaded.config.observability.log_level, loaded.config.observability.log_format)
    daemon = Daemon(loaded.config)

    async def run() -> int:
        signals.leave_before_start(asyncio.get_running_loop())
        await daemon.start()
        return await daemon.run()

    loop = new_event_loop()
    signals.handle(loop)
    try:
        return loop.run_until_complete(run())
    except StartupError as error:
        print(f"sgl-router: {error}", file=sys.stderr)
        return EXIT_CONFIG
    finally:
        loop.close()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _load(path: str) -> LoadedConfig | None:
    try:
        loaded = load_config(path)
    except ConfigError as error:
        print(f"sgl-router: {path} is not a valid configuration:", file=sys.stderr)
        for line in str(error).splitlines():
            print(f"  {line}", file=sys.stderr)
        return None
    for warning in loaded.warnings:
        print(f"sgl-router: warning: {warning}", file=sys.stderr)
    return loaded
