"""What the data-path benchmark is made of: compiled tools, a tokenizer and request bodies, each made once and kept.

python benchmarks/datapath_material.py DIRECTORY      trains the tokenizer there (done by the benchmark itself)
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

MODEL = "bench"
MARKER = "~" * 12
SYSTEM_PROMPTS = 16
BODIES = 256
SHARED = 0.7
SIZES = {"05k": 512, "8k": 8192, "64k": 65536}

_NATIVE = Path(__file__).parent / "native"
_VOCABULARY = 32_000
_CORPUS_BYTES = 12_000_000
_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sgl-router-bench"


def compiled(cache: Path, name: str) -> Path:
    """The path of a native tool, compiled where its source changed."""
    source = _NATIVE / f"{name}.c"
    binary = cache / f"{name}-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    if not binary.exists():
        part = binary.with_suffix(f".{os.getpid()}")
        subprocess.run(["gcc", "-O2", "-o", part, source, "-lm"], check=True)
        part.rename(binary)
    return binary


def tokenizer(cache: Path, python: str) -> Path:
    """A directory that transformers loads: a byte-level BPE over the standard library's sources, ChatML template."""
    directory = cache / "tokenizer-1"
    if not (directory / "tokenizer_config.json").exists():
        print("training a tokenizer (once)", flush=True)
        subprocess.run([python, __file__, str(directory)], check=True)
    return directory


def bodies(cache: Path, size: str, *, stream: bool) -> Path:
    """One JSON body per line, exactly `SIZES[size]` bytes each: 16 system prompts, 16 users of each."""
    path = cache / f"bodies-2-{size}{'-stream' if stream else ''}.jsonl"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text("".join(_lines(SIZES[size], stream)), encoding="ascii")
        part.rename(path)
    return path


def _lines(size: int, stream: bool) -> list[str]:
    rng = random.Random(size)
    prose = "\n\n".join(topics.values()).encode("ascii", "ignore").decode().replace("~", "-")
    text = prose + _sources(2_000_000).encode("ascii", "ignore").decode().replace("~", "-")
    room = size - len(_body("", "", stream))

    def excerpt(length: int) -> str:
        start = rng.randrange(len(text) - length)
        return text[start : start + length]

    systems = [excerpt(_fitting(excerpt(room), int(room * SHARED))) for _ in range(SYSTEM_PROMPTS)]
    lines = []
    for number in range(BODIES):
        system = systems[number % SYSTEM_PROMPTS]
        user = f"{MARKER} {excerpt(room)}"
        line = _body(system, user, stream)
        while len(line) > size:
            user = user[: min(len(user) - 1, len(user) - (len(line) - size) // 2)]
            line = _body(system, user, stream)
        lines.append(_body(system, user + "." * (size - len(line)), stream) + "\n")
    return lines


def _fitting(text: str, size: int) -> int:
    """How many characters of such text take `size` bytes in JSON."""
    return int(len(text) * size / len(json.dumps(text)))


def _body(system: str, user: str, stream: bool) -> str:
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
        "max_tokens": 32,
    }
    if stream:
        body["stream"] = True
    return json.dumps(body, separators=(",", ":"))


def _sources(size: int) -> str:
    """Python sources of the standard library, in the order of their names."""
    parts, taken = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        parts.append(text)
        taken += len(text)
        if taken >= size:
            break
    return "\n\n".join(parts)[:size]


def train(directory: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in _SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([*topics.values(), *_sources(_CORPUS_BYTES).split("\n\n")], trainer)
    directory.mkdir(parents=True, exist_ok=True)
    made.save(str(directory / "tokenizer.json"), pretty=False)
    config = {
        "add_prefix_space": False,
        "bos_token": None,
        "chat_template": _TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


if __name__ == "__main__":
    train(Path(sys.argv[1]))
