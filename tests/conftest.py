"""For every test."""

from __future__ import annotations

import os
import sys

# Hundreds of tests start the router as a process of its own. Each would compile its modules, and each of pytest's own
# processes rewrite the tests, where an environment forbids to keep what was compiled.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
