"""Write a tiny Llama with random weights, its tokenizer and its chat template to a folder. No network.

    <environment>/venv/bin/python make_model.py OUT

The tokenizer has the make of today's models (byte-level BPE behind a regex split, special tokens, a BOS added to plain
text), so that rendering and tokenizing meet the rules they meet in production. It is trained on the source text of the
installed sglang package, so it depends on pinned versions only; tokenizer.sha256 holds the digest it must have.
"""

import hashlib
import importlib.util
import sys
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, PAD, TURN, END = "<|bos|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
VOCABULARY = 4000
POSITIONS = 16384
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def corpus() -> list[str]:
    spec = importlib.util.find_spec("sglang")
    root = Path(spec.submodule_search_locations[0]) / "srt"
    files = sorted(f for part in ("disaggregation", "entrypoints") for f in (root / part).rglob("*.py"))
    if not files:
        sys.exit(f"no text to train on below {root}")
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


def train() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, PAD, TURN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B:1", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def main(out: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train(),
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[TURN],
        model_max_length=POSITIONS,
        chat_template=(Path(__file__).resolve().parent / "chat_template.jinja").read_text(),
    )
    tokenizer.save_pretrained(out)

    torch.manual_seed(20250)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(out)
    for file in sorted(out.iterdir()):
        print(hashlib.sha256(file.read_bytes()).hexdigest(), file.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
