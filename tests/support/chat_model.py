"""A tiny student whose tokenizer has a chat template."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from potstill import models, tokenization
from potstill.models import Shape
from tools.toy_models.tokenizer_training import train_bpe, train_unigram

TEXTS = ["Q: Tom has 2 apples and buys 3. How many? A: 2 + 3 = 5. The answer is 5", "user assistant system day"]
SPECIAL = ["<|start|>", "<|stop|>"]
TEMPLATE = (
    "{{ bos_token }}{% if strftime_now is defined %}{{ strftime_now('%d') }}\n{% endif %}"
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|stop|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def save_chat_model(run_dir: Path, template: str | None = TEMPLATE, family: str = "causal") -> Path:
    """A tiny student with random weights whose tokenizer has a template."""
    run_dir.mkdir()
    base = train_bpe(TEXTS, 290) if family == "causal" else train_unigram(TEXTS, 60)
    for name, content in base.files.items():
        (run_dir / name).write_bytes(content)
    library = AutoTokenizer.from_pretrained(run_dir)
    library.add_special_tokens({"additional_special_tokens": SPECIAL, "bos_token": SPECIAL[0]})
    library.chat_template = template
    library.save_pretrained(run_dir)
    tokenizer = tokenization.load_tokenizer(run_dir)
    models.random_student(Shape(family, 16, 1, 2, 24, 8, tokenizer.size), tokenizer, seed=1).save(run_dir)  # pyright: ignore
    return run_dir
