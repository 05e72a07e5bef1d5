"""A tiny student whose tokenizer has a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Final

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


# Name -> (token that ends a turn, token that ends a document, further special tokens, template) of well-known tokenizers.
END_TOKENS: Final = {
    "gemma": (
        "<end_of_turn>",
        "<eos>",
        ["<start_of_turn>", "<bos>"],
        "{{ '<bos>' }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    ),
    "llama3": (
        "<|eot_id|>",
        "<|end_of_text|>",
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"],
        "{% for m in messages %}{{ '<|begin_of_text|>' if loop.first }}<|start_header_id|>{{ m.role }}<|end_header_id|>"
        "\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    ),
    "chatml": (
        "<|im_end|>",
        "<|endoftext|>",
        ["<|im_start|>"],
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ),
}


def save_end_model(folder: Path, kind: str) -> tuple[str, str]:
    """A tiny student with the special tokens and the template of a kind in `END_TOKENS`, whose generation config names
    the tokenizer's own end token alone. Returns the tokens that end a turn and a document."""
    turn, document, others, template = END_TOKENS[kind]
    save_chat_model(folder, template, special=[turn, *others], eos=document)
    return turn, document


def save_chat_model(
    run_dir: Path,
    template: str | None = TEMPLATE,
    family: str = "causal",
    special: list[str] = SPECIAL,
    eos: str | None = None,
) -> Path:
    """A tiny student with random weights whose tokenizer has a template."""
    run_dir.mkdir()
    base = train_bpe(TEXTS, 290) if family == "causal" else train_unigram(TEXTS, 60)
    for name, content in base.files.items():
        (run_dir / name).write_bytes(content)
    library = AutoTokenizer.from_pretrained(run_dir)
    library.add_special_tokens({"additional_special_tokens": special, "bos_token": special[0]})
    if eos is not None:
        library.add_special_tokens({"eos_token": eos})
    library.chat_template = template
    library.save_pretrained(run_dir)
    tokenizer = tokenization.load_tokenizer(run_dir)
    models.random_student(Shape(family, 16, 1, 2, 24, 8, tokenizer.size), tokenizer, seed=1).save(run_dir)  # pyright: ignore
    return run_dir
