"""Tiny random models of every supported architecture, and their next-token logits without a cache."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from potstill.models import Shape, Student, random_student
from potstill.models.causal import CausalStudent
from tools.toy_models.tokenizer_training import train_bpe, train_unigram

TEXTS = ["Tom has 3 apples and buys 4 more.", "3 + 4 = 7.", "The answer is 7"] * 3
BPE, UNIGRAM = train_bpe(TEXTS, 262), train_unigram(TEXTS, 60)
PROMPTS = [(9, 8, 7, 6), (5, 6), (9, 8, 7, 6), (5, 6), (9, 8, 7, 6), (11, 12, 13, 14, 15, 16, 17)]


def random_model(kind: str) -> Student:
    """A tiny random model; its windows, if it has any, are shorter than the rows below."""
    if kind == "t5 of more layers in its decoder":
        shape = Shape("t5", d_model=16, layers=3, heads=2, d_ff=24, d_kv=8, vocabulary=60, encoder_layers=1)
        return random_student(shape, UNIGRAM, 1)
    if kind == "t5":
        return random_student(Shape("t5", d_model=16, layers=2, heads=2, d_ff=24, d_kv=8, vocabulary=60), UNIGRAM, 1)
    more = {"sliding_window": 6} if kind in ("mistral", "gemma2", "gemma3_text") else {}
    config = AutoConfig.for_model(
        kind,
        vocab_size=BPE.size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        eos_token_id=BPE.eos,
        bos_token_id=None,
        **more,
    )
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for value in model.parameters():
            torch.nn.init.normal_(value, std=0.3)
    return CausalStudent(model, BPE).eval()


def next_logits(student: Student, prompt: tuple[int, ...], ids: list[int]) -> torch.Tensor:
    """Logits [v] behind a prompt and some tokens, without a cache."""
    with torch.no_grad():
        if student.family == "t5":
            start = student.model.config.decoder_start_token_id
            row = student.model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[start, *ids]]))
        else:
            row = student.model(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False)
    return row.logits[0, -1]
