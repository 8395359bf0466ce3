"""For every test."""

from __future__ import annotations

import os
import sys

from hypothesis import HealthCheck, settings

# Hundreds of tests start the router as a process of its own. Each would compile its modules, and each of pytest's own
# processes rewrite the tests, where an environment forbids to keep what was compiled.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# How long an example takes says how busy the machine is, and nothing of what is tested.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
