"""Rebuild the embedded tokenizer: `python -m sgl_router.lab.mock_worker.make_tokenizer [DIRECTORY]`.

Trains a byte-level BPE of 1024 tokens on `corpus.txt` and writes what transformers loads. The training
is deterministic: equal corpora give equal vocabularies.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from sgl_router.lab.mock_worker.config import EMBEDDED_TOKENIZER_PATH

VOCABULARY_SIZE = 1024
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TOKENIZER_CONFIG = {
    "add_prefix_space": False,
    "bos_token": None,
    "clean_up_tokenization_spaces": False,
    "eos_token": "<|im_end|>",
    "model_max_length": 131072,
    "pad_token": "<|endoftext|>",
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": None,
}


def train(corpus: str) -> Any:
    """A `tokenizers.Tokenizer` trained on the paragraphs of a text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.split("\n\n"), trainer)
    return tokenizer


def write(directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json beside the corpus and the chat template."""
    source = Path(EMBEDDED_TOKENIZER_PATH)
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("corpus.txt", "chat_template.jinja"):
        if directory.resolve() != source.resolve():
            shutil.copyfile(source / name, directory / name)
    train((source / "corpus.txt").read_text(encoding="utf-8")).save(str(directory / "tokenizer.json"), pretty=False)
    # Older transformers read the template only from here.
    template = (source / "chat_template.jinja").read_text(encoding="utf-8")
    config = json.dumps({**_TOKENIZER_CONFIG, "chat_template": template}, indent=2, sort_keys=True)
    (directory / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else EMBEDDED_TOKENIZER_PATH))
