from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sgl_router.runtime.folder import private_folder, remove_abandoned


@pytest.fixture(autouse=True)
def parent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # a path short enough for sockets
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


def left_behind(parent: Path, name: str = "sgl-router-dead", lock: bool = True) -> Path:
    folder = parent / name
    folder.mkdir(mode=0o700)
    (folder / "config.json").write_text("{}")
    if lock:
        (folder / "lock").touch()
    return folder


def test_a_folder_goes_with_its_router(parent: Path) -> None:
    with private_folder() as paths:
        assert paths.folder.parent == parent
        assert paths.folder.stat().st_mode & 0o777 == 0o700
        assert paths.removed == 0
        assert remove_abandoned(parent) == 0, "its owner lives"
        with private_folder() as other:
            assert other.removed == 0
            assert paths.folder.is_dir()
    assert list(parent.iterdir()) == []


def test_the_folder_of_a_killed_router_is_removed_by_the_next_one(parent: Path) -> None:
    code = "import os, signal, tempfile\n"
    code += f"tempfile.tempdir = {str(parent)!r}\n"
    code += "from sgl_router.runtime.folder import private_folder\n"
    code += "with private_folder() as paths:\n    print(paths.folder)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    done = subprocess.run([sys.executable, "-u", "-c", code], capture_output=True, text=True, timeout=120)
    folder = Path(done.stdout.strip())
    assert folder.is_dir(), done.stderr
    with private_folder() as paths:
        assert paths.removed == 1
        assert not folder.exists()


def test_what_is_not_provably_a_dead_routers_is_left_alone(parent: Path) -> None:
    alive = left_behind(parent, "sgl-router-alive")
    lock = os.open(alive / "lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    beginning = left_behind(parent, "sgl-router-beginning", lock=False)
    others = left_behind(parent, "something-else")
    open_to_all = left_behind(parent, "sgl-router-open")
    open_to_all.chmod(0o755)
    target = left_behind(parent, "elsewhere")
    (parent / "sgl-router-link").symlink_to(target)
    linked = left_behind(parent, "sgl-router-linked", lock=False)
    (linked / "lock").symlink_to(target / "lock")
    (parent / "sgl-router-file").touch()
    left = {*parent.iterdir()}
    assert remove_abandoned(parent) == 0
    assert {*parent.iterdir()} == left
    assert (target / "config.json").exists()
    os.close(lock)
    assert remove_abandoned(parent) == 1
    assert {*parent.iterdir()} == left - {alive}
    assert beginning.exists()
    assert others.exists()


def test_a_folder_that_cannot_be_read_is_no_failure(tmp_path: Path) -> None:
    assert remove_abandoned(tmp_path / "missing") == 0
