"""A tokenizer of realistic size, made without a download: byte-level BPE, some 32,000 ids, ChatML template, trained on
the sources of Python's standard library. Text of the same kind to encode."""

from __future__ import annotations

import hashlib
import json
import random
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

VOCABULARY = 32_000
TRAINING_BYTES = 12_000_000
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Qwen splits text before it merges bytes.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def sources() -> Iterator[str]:
    """The standard library's modules, in an order of their own."""
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for path in library.rglob("*.py") if "site-packages" not in path.parts)
    random.Random(1).shuffle(paths)
    for path in paths:
        try:
            yield path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue


def corpus() -> tuple[list[str], list[str]]:
    """Lines to train on, and lines kept back."""
    train: list[str] = []
    kept: list[str] = []
    size = 0
    for number, text in enumerate(sources()):
        lines = text.splitlines(keepends=True)
        if number % 10 == 0:
            kept += [line for line in lines if line.strip()]
        elif size < TRAINING_BYTES:
            train.append(text)
            size += len(text)
    return train, kept


def tokenizer_dir(cache: Path | None = None) -> Path:
    """A directory as a model's, made on first use: some ten seconds."""
    version = hashlib.sha256(f"{sys.version}{VOCABULARY}{TRAINING_BYTES}{TEMPLATE}{SPLIT}".encode()).hexdigest()[:12]
    folder = (cache or Path(tempfile.gettempdir())) / f"sgl-router-bench-tokenizer-{version}"
    if (folder / "tokenizer_config.json").exists():
        return folder
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus()[0], trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        work = Path(made) / "model"
        work.mkdir()
        tokenizer.save(str(work / "tokenizer.json"))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 131_072,
            "chat_template": TEMPLATE,
        }
        (work / "tokenizer_config.json").write_text(json.dumps(settings))
        try:
            work.rename(folder)
        except OSError:  # another run was quicker
            if not (folder / "tokenizer_config.json").exists():
                raise
    return folder


class Texts:
    """Text that was not trained on, never the same twice: lines in random order with random words between them."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._lines = corpus()[1]

    def some(self, chars: int) -> str:
        rng, parts, size = self._rng, [], 0
        while size < chars:
            line = f"{rng.choice(self._lines).rstrip()} {rng.randrange(10**6)}\n"
            parts.append(line)
            size += len(line)
        return "".join(parts)[:chars]
