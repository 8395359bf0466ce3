"""Child processes that never outlive the tests: own process group, logged, ended as a group."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import subprocess
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_running: weakref.WeakSet[ChildGroup] = weakref.WeakSet()


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class ChildGroup:
    """A process started as the leader of its own group. Start it from the main thread.

    Three nets: `stop()` and `kill()` end the whole group; an atexit hook kills what is left; and when this process
    dies without either, the kernel kills the leader (the death signal is tied to the thread that started it).
    """

    def __init__(self, argv: Sequence[str], *, env: Mapping[str, str], log_path: Path) -> None:
        self.argv = list(argv)
        self.log_path = log_path
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            log.write(f"--- {time.strftime('%H:%M:%S')} {' '.join(self.argv)}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                self.argv,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        _running.add(self)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status of the leader; None while it runs."""
        return self._process.poll()

    def signal_leader(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait_leader(self, timeout: float) -> int | None:
        """Exit status of the leader, or None where it still runs after `timeout` seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout)
        return None

    def members(self) -> list[int]:
        """Pids in the group that are alive; zombies are not."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError, IndexError, ValueError):
                # The command name may hold spaces and brackets: the fields start after the last ")".
                state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(group) == self.pid and state not in "ZX":
                    found.append(int(entry.name))
        return found

    def stop(self, grace: float = 15.0) -> int:
        """SIGTERM to the group, SIGKILL to what remains after `grace` seconds. Returns the leader's status."""
        self._signal_group(signal.SIGTERM)
        deadline = time.monotonic() + grace
        while self.members() and time.monotonic() < deadline:
            self._process.poll()
            time.sleep(0.05)
        return self.kill()

    def kill(self) -> int:
        """SIGKILL to the group, and wait until nothing of it is left."""
        # While the leader is unreaped or a member lives, the kernel cannot give the group's number to others.
        while self.members():
            self._signal_group(signal.SIGKILL)
            self._process.poll()
            time.sleep(0.02)
        _running.discard(self)
        return self._process.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def log_tail(self, characters: int = 4000) -> str:
        return self.log_path.read_text(errors="replace")[-characters:]


@atexit.register
def _kill_all() -> None:
    for group in list(_running):
        group.kill()
