"""The supervisor's private folder: made, locked for as long as its owner lives, and cleaned up after the dead."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from sgl_router.runtime.listen import StartupError
from sgl_router.runtime.paths import Paths

__all__ = ["private_folder", "remove_abandoned"]

_PREFIX = "sgl-router-"
_LOCK = "lock"
# A socket's whole path has at most 107 bytes.
_LONGEST_TEMPDIR = 70
_MAX_ENTRIES = 10_000


@contextlib.contextmanager
def private_folder() -> Iterator[Paths]:
    """For this router alone (mode 0700), and with a name short enough for the sockets in it. Raises StartupError."""
    parent = "/tmp" if len(tempfile.gettempdir()) > _LONGEST_TEMPDIR else tempfile.gettempdir()
    removed = remove_abandoned(Path(parent))
    try:
        folder = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent)
    except OSError as error:
        reason = f"server.processes: no folder for the sockets between processes: {error.strerror}"
        raise StartupError(reason) from None
    with folder as name:
        lock = _locked(Path(name))
        try:
            yield Paths(Path(name), removed)
        finally:
            if lock is not None:
                os.close(lock)


def remove_abandoned(parent: Path) -> int:
    """Remove the folders of routers that were killed; how many there were.

    Only this user's own, and only where the lock in it is free: the kernel drops it with its owner, however that ends.
    """
    removed = 0
    try:
        with os.scandir(parent) as entries:
            names = [entry.name for entry in islice(entries, _MAX_ENTRIES) if entry.name.startswith(_PREFIX)]
    except OSError:
        return 0
    for name in names:
        with contextlib.suppress(OSError):
            removed += _remove_if_abandoned(parent / name)
    return removed


def _remove_if_abandoned(folder: Path) -> bool:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != 0o700:
        return False
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
    return not folder.exists()


def _locked(folder: Path) -> int | None:
    """Locked before it has its name: one that is found without a lock is a dead router's. None: no locks here."""
    lock: int | None = None
    try:
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / ".lock").rename(folder / _LOCK)
    except OSError:
        if lock is not None:
            os.close(lock)
        return None
    return lock
