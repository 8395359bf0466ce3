from __future__ import annotations

import subprocess
import sys

import sgl_router.tokenization as tokenization


def test_every_public_name_exists() -> None:
    assert all(hasattr(tokenization, name) for name in tokenization.__all__)


def test_importing_the_package_loads_no_tokenizer_library() -> None:
    code = (
        "import sys, sgl_router.tokenization\n"
        "heavy = {'transformers', 'tokenizers', 'fastokens', 'jinja2', 'huggingface_hub', 'torch'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240)
    assert done.stdout.strip() == "[]"
