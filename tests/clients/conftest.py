"""`sgl-router demo` as a process of its own: what somebody who tries a client against it meets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

MODEL = "mock-model"

# LiteLLM would look for a newer price list on the internet when it is imported.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")


@pytest.fixture(scope="session")
def demo() -> Iterator[str]:
    """The demo's base URL, ending in /v1."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "sgl_router", "demo", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as run:
        assert run.stdout is not None
        said = []
        try:
            for line in run.stdout:
                said.append(line)
                if (found := re.match(r"ready: (http://\S+)", line)) is not None:
                    break
            else:
                pytest.fail(f"the demo ended before it was ready: {said}")
            yield found[1] + "/v1"
        finally:
            run.terminate()
            run.stdout.close()
            run.wait(20)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that read the environment must still reach loopback."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
