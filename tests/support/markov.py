"""A causal student that is exactly a Markov chain, so that tests know its texts and their probabilities."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from potstill.inference.transformers import TransformersEngine
from potstill.models import Shape, random_student
from potstill.tokenization import Tokenizer
from tools.toy_models.tokenizer_training import train_bpe

NEVER = -30.0  # natural log-probability of what the chain does not say; not -inf, so that candidates can be seen

SOLUTION = "So it was. The answer is four\nQ"


def writer(text: str = SOLUTION, *, last: str = "Q") -> TransformersEngine:
    """An engine that goes on as `text` does from whatever token of it a prompt ends in, and repeats `last`."""
    tokenizer = train_bpe([text] * 20, 290)
    ids = tokenizer.encode(text).ids
    assert len(set(ids)) == len(ids), [tokenizer.token_bytes(token) for token in ids]
    table = {here: {there: 0.0} for here, there in zip(ids, [*ids[1:], *tokenizer.encode(last).ids], strict=True)}
    return markov(tokenizer, table)


def markov(tokenizer: Tokenizer, table: Mapping[int, Mapping[int, float]]) -> TransformersEngine:
    """table: token -> next token -> natural log-probability; tokens that it lacks are followed by the end."""
    size = tokenizer.size
    shape = Shape("causal", d_model=size, layers=1, heads=1, d_ff=2, d_kv=2, vocabulary=size)
    student = random_student(shape, tokenizer, seed=0)
    logits = torch.full((size, size), NEVER)
    for token in range(size):
        for following, value in table.get(token, {tokenizer.eos: 0.0}).items():
            logits[token, following] = value
    with torch.no_grad():
        for name, weight in student.model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        # Attention and feed-forward add nothing, so what the last norm sees is the token's own unit vector.
        student.model.get_input_embeddings().weight.copy_(torch.eye(size))
        scale = (1 / size + student.model.config.rms_norm_eps) ** -0.5
        student.head.weight.copy_(logits.T / scale)
    return TransformersEngine(student)
