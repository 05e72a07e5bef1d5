"""Encoder-decoder students: T5, FlanT5, mT5.

Three things differ between members of the family, and transformers 5 blurs two of them (it forces
`tie_word_embeddings`):

    member            head               logits                  tie_word_embeddings in config.json
    T5 v1.0           the embedding      times d_model^-0.5      true
    T5 v1.1, FlanT5   its own            as they are             false
    mT5               its own            as they are             false

In transformers 4 that one key decided both; 5 reads it as `scale_decoder_outputs`, ties unless the file holds another
head, and writes true for everything. `save` writes what both understand, and a head of its own always as a tensor of
its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from potstill.errors import UserError
from potstill.models import t5_unpadded, unpadded
from potstill.models.batch import Batch, Example, candidate_tensors, pad_rows
from potstill.models.shape import Family, Shape
from potstill.models.student import Head, Student
from potstill.records import Prompt
from potstill.tokenization import Tokenizer

MODEL_TYPES = ("t5", "mt5")
# The tensors of a head and an embedding that are not tied, each by any of its names.
UNTIED_TENSORS = (("lm_head.weight",), ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"))
GELU_NEW, GELU_TANH = (
    "gelu_new",
    "gelu_pytorch_tanh",
)  # one function (Hendrycks and Gimpel), written out and as one kernel


class T5Student(Student):
    """The prompt is the encoder's row, with the end token; the target is the decoder's."""

    padded = False
    family: ClassVar[Family] = "t5"

    @property
    def head(self) -> Head:
        scaled = getattr(self.model.config, "scale_decoder_outputs", False)
        return Head(self.model.lm_head.weight, scale=self.model.config.d_model**-0.5 if scaled else 1.0)

    def hidden(self, batch: Batch) -> Tensor:
        assert batch.prompt_ids is not None and batch.prompt_mask is not None
        # Each supervised position is one token of a target, so the decoder's rows are the losses' in their order.
        prompts, targets, across = batch.layouts
        encoded = t5_unpadded.run_encoder(self.model, batch.prompt_ids[batch.prompt_mask], prompts)
        return t5_unpadded.run_decoder(self.model, batch.input_ids[batch.input_mask], encoded, targets, across)

    def render(self, prompt: Prompt) -> str:
        return prompt.plain

    def encode(self, text: str) -> list[int]:
        return [*self.tokenizer.encode(text).ids, self.tokenizer.eos]

    def collate(self, examples: Sequence[Example]) -> Batch:
        seen: dict[tuple[int, ...], int] = {}
        prompts = [seen.setdefault(example.prompt, len(seen)) for example in examples]
        prompt_ids, prompt_mask = pad_rows(list(seen), self.tokenizer.pad)
        start = self.model.config.decoder_start_token_id
        inputs = [[start, *example.target.ids[:-1]] for example in examples]
        input_ids, input_mask = pad_rows(inputs, self.tokenizer.pad)
        ids, probabilities, weights, rows = candidate_tensors(examples)
        return Batch(
            input_ids,
            input_mask,
            input_mask.flatten().nonzero().squeeze(1),
            ids,
            probabilities,
            weights,
            rows,
            prompt_ids,
            prompt_mask,
            tuple(examples),
            tuple(prompts),
            self._layouts([len(prompt) for prompt in seen], prompts, [len(read) for read in inputs]),
        )

    def _layouts(self, read: list[int], prompts: list[int], taught: list[int]) -> tuple[unpadded.Layout, ...]:
        """Of prompts of `read` tokens, and of targets of `taught` tokens under them. In cross-attention a row is a
        prompt with all its targets."""
        heads = self.model.config.num_heads
        own = np.split(np.arange(sum(read)), np.cumsum(read)[:-1])
        targets = np.split(np.arange(sum(taught)), np.cumsum(taught)[:-1])
        under: list[list[np.ndarray]] = [[] for _ in read]
        for target, prompt in zip(targets, prompts, strict=True):
            under[prompt].append(target)
        asking = [np.concatenate(parts) for parts in under]
        return (
            unpadded.build_layout(own, own, heads),
            unpadded.build_layout(targets, targets, heads),
            unpadded.build_layout(asking, own, heads),
        )

    def settings(self) -> dict[str, Any]:
        scaled = getattr(self.model.config, "scale_decoder_outputs", False)
        activation = self.model.config.dense_act_fn
        return {"tie_word_embeddings": scaled, "dense_act_fn": GELU_NEW if activation == GELU_TANH else activation}

    def parts(self) -> list[nn.Module]:
        stacks: list[Any] = [self.model.encoder, self.model.decoder]
        # All layers use the first one's bias, so it stays when that layer's weights go.
        biases = [each.block[0].layer[0].SelfAttention.relative_attention_bias for each in stacks]
        return [*biases, *(block for each in stacks for block in each.block)]

    def gathering(self) -> None:
        t5_unpadded.register_fsdp_methods(self.model)

    def state(self, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        state = super().state(weights)
        if not self.settings()["tie_word_embeddings"]:
            state["lm_head.weight"] = state["lm_head.weight"].clone()
        return state


def check_tied_head(model: T5ForConditionalGeneration, where: object) -> T5ForConditionalGeneration:
    """A model as it was loaded, checked: a scaled one with a head of its own means one thing to transformers 4,
    another to 5."""
    scaled = getattr(model.config, "scale_decoder_outputs", False)
    if scaled and model.lm_head.weight is not model.shared.weight:
        raise UserError(
            "config.json ties the head to the embedding, but the weights hold another head",
            where=where,
            hint='set "tie_word_embeddings": false if this is a T5 v1.1 or FlanT5, else take lm_head.weight out',
        )
    return model


def prepare_config(config: Any, tokenizer: Tokenizer, dropout: float | None) -> None:
    """The settings of a model that is about to be made or loaded, in place."""
    if dropout is not None:
        config.dropout_rate = dropout
    if config.dense_act_fn == GELU_NEW:
        config.dense_act_fn = GELU_TANH
    if getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = tokenizer.pad
    start = config.decoder_start_token_id
    if type(start) is not int or not 0 <= start < config.vocab_size:
        hint = "correct config.json, or get the folder again"
        raise UserError("decoder_start_token_id is no token", where="config.json", found=f"{start!r}"[:80], hint=hint)


def build_random_model(shape: Shape, tokenizer: Tokenizer, dropout: float) -> T5ForConditionalGeneration:
    """A random model from torch's current seed. A head of its own starts at d_model^-0.5, so that first logits are of
    size 1."""
    config = T5Config(
        vocab_size=shape.vocabulary,
        d_model=shape.d_model,
        d_kv=shape.d_kv,
        d_ff=shape.d_ff,
        num_layers=shape.encoder_layers or shape.layers,
        num_decoder_layers=shape.layers,
        num_heads=shape.heads,
        relative_attention_num_buckets=shape.buckets,
        relative_attention_max_distance=shape.reach,
        feed_forward_proj="gated-gelu" if shape.gated else "relu",
        pad_token_id=tokenizer.pad,
        eos_token_id=tokenizer.eos,
        decoder_start_token_id=tokenizer.pad,  # pyright: ignore[reportCallIssue]
        tie_word_embeddings=shape.tied,  # pyright: ignore[reportCallIssue]
    )
    prepare_config(config, tokenizer, dropout)
    model = T5ForConditionalGeneration(config)
    if not shape.tied:
        # Setting config.tie_word_embeddings instead would untie the encoder's and decoder's embeddings as well.
        model.lm_head = nn.Linear(shape.d_model, shape.vocabulary, bias=False)
        nn.init.normal_(model.lm_head.weight, std=shape.d_model**-0.5)
        model.all_tied_weights_keys.pop("lm_head.weight", None)
    return model
