"""Build the environment of the real SGLang server on CPU: a Python 3.11 venv, and a tiny model with its tokenizer.

    python tests/engine/kit/provision.py          # prints the folder; does nothing when it is up to date

The folder is $SGL_ROUTER_ENGINE_DIR, or ~/.cache/sgl-router/engine-cpu. It takes 2.8 GB and about two minutes.
$SGL_ROUTER_ENGINE_PYTHON names the Python 3.11 to use, $SGL_ROUTER_ENGINE_PIP_ARGS adds arguments to every pip install.
Standard library only: any Python from 3.10 on can run this file.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KIT = Path(__file__).resolve().parent
TORCH = "torch==2.13.0+cpu"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
LAYOUT = 1  # raise it when the steps below change what ends up in the folder
_FREE_MB = 5000
_OWNER_MARK = ".sgl-router-engine"


class ProvisionError(RuntimeError):
    """The environment cannot be built or is not there; the message says what to do."""


@dataclass(frozen=True)
class Environment:
    """The folder and what lies in it."""

    path: Path

    @classmethod
    def default(cls) -> Environment:
        chosen = os.environ.get("SGL_ROUTER_ENGINE_DIR")
        path = Path(chosen) if chosen else Path.home() / ".cache" / "sgl-router" / "engine-cpu"
        return cls(path.expanduser().absolute())

    @property
    def python(self) -> Path:
        return self.path / "venv" / "bin" / "python"

    @property
    def model(self) -> Path:
        """Weights, tokenizer and chat template of the model the workers serve."""
        return self.path / "model"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def stamp(self, part: str) -> Path:
        return self.path / f".{part}.recipe"

    def is_current(self, part: str) -> bool:
        stamp = self.stamp(part)
        return stamp.is_file() and stamp.read_text() == recipes()[part]

    def require(self) -> Environment:
        """Itself, if it was built by the present recipe."""
        if not all(map(self.is_current, recipes())):
            raise ProvisionError(f"{self.path} holds no engine built by this recipe: run tests/engine/run.sh")
        return self


def recipes() -> dict[str, str]:
    """A digest per part of the environment, of everything that decides its contents."""
    packages = _digest(f"{LAYOUT} {TORCH}", KIT / "requirements.txt")
    model = _digest(packages, *(KIT / n for n in ("make_model.py", "chat_template.jinja", "tokenizer.sha256")))
    return {"packages": packages, "model": model}


def _digest(seed: str, *files: Path) -> str:
    digest = hashlib.sha256(seed.encode())
    for file in files:
        digest.update(b"\0" + file.read_bytes())
    return digest.hexdigest()


def ensure(environment: Environment) -> None:
    """Build what is missing or outdated. Two callers at once: the second waits and finds the work done."""
    environment.path.mkdir(parents=True, exist_ok=True)
    with _locked(environment.path):
        began = time.monotonic()
        if not environment.is_current("packages"):
            _build_packages(environment, began)
        if not environment.is_current("model"):
            _build_model(environment, began)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.with_name(path.name + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another process that is building {path}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build_packages(environment: Environment, began: float) -> None:
    path = environment.path
    mark = path / _OWNER_MARK
    # Building deletes the folder's contents: only an empty one, or one made here, qualifies.
    if not mark.exists() and any(path.iterdir()):
        raise ProvisionError(f"{path} is not empty and was not made by this script: choose another folder")
    base = find_python()
    free = shutil.disk_usage(path).free // 2**20
    if free < _FREE_MB:
        raise ProvisionError(f"{_FREE_MB} MB of free disk are needed in {path}, there are {free}")

    _step(began, f"new environment in {path}")
    mark.touch()
    for entry in path.iterdir():
        if entry != mark:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    environment.logs.mkdir()
    log = environment.logs / "provision.log"
    _run([str(base), "-m", "venv", str(path / "venv")], log)

    _step(began, f"{TORCH} (the largest download)")
    try:
        _pip(environment, log, TORCH)
    except ProvisionError:
        # Indexes that mirror the CPU builds are served above; PyPI itself carries the CUDA build only.
        _pip(environment, log, TORCH, "--index-url", TORCH_INDEX)

    _step(began, "SGLang and what it imports")
    # The list is closed: resolving SGLang's own requirements would pull several GB of CUDA packages.
    _pip(environment, log, "-r", str(KIT / "requirements.txt"))
    _silence_torchvision(environment)
    environment.stamp("packages").write_text(recipes()["packages"])


def _build_model(environment: Environment, began: float) -> None:
    _step(began, "tiny model and tokenizer")
    shutil.rmtree(environment.model, ignore_errors=True)
    environment.logs.mkdir(exist_ok=True)
    log = environment.logs / "model.log"
    log.unlink(missing_ok=True)
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    _run([str(environment.python), str(KIT / "make_model.py"), str(environment.model)], log, env=offline)
    expected = (KIT / "tokenizer.sha256").read_text().split()[0]
    found = hashlib.sha256((environment.model / "tokenizer.json").read_bytes()).hexdigest()
    if found != expected:
        raise ProvisionError(f"tokenizer.json came out as {found}, tokenizer.sha256 says {expected}")
    environment.stamp("model").write_text(recipes()["model"])
    _step(began, "done")


def _silence_torchvision(environment: Environment) -> None:
    """Empty the module that makes `import torchvision` fail beside a CPU torch.

    PyPI's torchvision is a CUDA build. Its C operators do not load here, and this module registers shapes for them.
    """
    places = list((environment.path / "venv" / "lib").glob("python3.*/site-packages/torchvision"))
    for place in places:
        (place / "_meta_registrations.py").write_text("# emptied by sgl-router's tests/engine/kit/provision.py\n")
    if not places:
        raise ProvisionError("torchvision was not installed where it was expected")


def find_python() -> Path:
    """A working Python 3.11."""
    named = os.environ.get("SGL_ROUTER_ENGINE_PYTHON")
    if named:
        candidates = [named]
    else:
        folders = os.environ.get("PATH", "").split(os.pathsep)
        candidates = [sys.executable, *(os.path.join(f, "python3.11") for f in folders)]  # noqa: PTH118
    probe = "import sys, venv, ensurepip; print(*sys.version_info[:2])"
    for candidate in candidates:
        with contextlib.suppress(OSError):
            answer = subprocess.run([candidate, "-c", probe], capture_output=True, text=True, check=False)
            if answer.stdout.split() == ["3", "11"]:
                return Path(candidate)
    raise ProvisionError(
        "the CPU engine needs Python 3.11 with venv and ensurepip"
        + (f", and SGL_ROUTER_ENGINE_PYTHON={named} is not that" if named else "; none was found on PATH")
        + ". Install it (Debian: python3.11 python3.11-venv; pyenv, uv or conda also have it), or name one with"
        " SGL_ROUTER_ENGINE_PYTHON."
    )


def _pip(environment: Environment, log: Path, *arguments: str) -> None:
    extra = shlex.split(os.environ.get("SGL_ROUTER_ENGINE_PIP_ARGS", ""))
    head = [str(environment.python), "-m", "pip", "--disable-pip-version-check", "install", "--prefer-binary"]
    # torch's own requirements stand in the closed list as well.
    _run([*head, "--no-deps", *arguments, *extra], log)


def _run(argv: list[str], log: Path, env: dict[str, str] | None = None) -> None:
    with log.open("a") as out:
        out.write(f"$ {shlex.join(argv)}\n")
        out.flush()
        status = subprocess.run(argv, stdout=out, stderr=subprocess.STDOUT, env=env, check=False).returncode
    if status:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise ProvisionError(f"{shlex.join(argv)} ended with status {status}; {log} ends with:\n{tail}")


def _step(began: float, what: str) -> None:
    _say(f"{time.monotonic() - began:4.0f} s  {what}")


def _say(line: str) -> None:
    print(f"[engine] {line}", file=sys.stderr, flush=True)


def main() -> int:
    environment = Environment.default()
    try:
        ensure(environment)
    except ProvisionError as error:
        _say(f"FAILED: {error}")
        return 1
    print(environment.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
