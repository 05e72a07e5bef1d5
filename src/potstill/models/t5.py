"""Encoder-decoder students: T5, FlanT5, mT5.

The members of the family differ in the head and in the scale of the logits:

    member            head               logits                  tie_word_embeddings in config.json
    T5 v1.0           the embedding      times d_model^-0.5      true
    T5 v1.1, FlanT5   untied             not scaled              false
    mT5               untied             not scaled              false

In transformers 4, `tie_word_embeddings` determines the head and the scale. transformers 5 reads the key only as
`scale_decoder_outputs`, ties the head unless the file has a separate head, and always writes true. `Student.save` writes
settings that both versions understand, and always writes an untied head as a separate tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from potstill.models import t5_unpadded
from potstill.models.batch import Batch, Example, candidate_tensors, index_prompts, pad_rows
from potstill.models.student import Family, Head, Shape, Student
from potstill.models.unpadded import Layout, build_layout
from potstill.models.weight_files import config_error
from potstill.records import Prompt
from potstill.tokenization import Tokenizer

MODEL_TYPES = ("t5", "mt5")
# Names of the head's tensor, and of the embedding's tensor, if they are untied.
UNTIED_TENSORS = (("lm_head.weight",), ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"))
GELU_NEW, GELU_TANH = "gelu_new", "gelu_pytorch_tanh"  # the same function, as several operations and as one kernel


class T5Student(Student):
    """An encoder-decoder student. The encoder reads the prompt and an end token; the decoder reads the target."""

    padded = False
    family: ClassVar[Family] = "t5"

    @property
    def head(self) -> Head:
        scaled = getattr(self.model.config, "scale_decoder_outputs", False)
        return Head(self.model.lm_head.weight, scale=self.model.config.d_model**-0.5 if scaled else 1.0)

    def hidden(self, batch: Batch) -> Tensor:
        assert batch.prompt_ids is not None and batch.prompt_mask is not None
        # Every token of a target is a supervised position, so the order of the decoder's tokens is that of the loss.
        prompt_layout, target_layout, cross_layout = batch.layouts
        encoded = t5_unpadded.run_encoder(self.model, batch.prompt_ids[batch.prompt_mask], prompt_layout)
        targets = batch.input_ids[batch.input_mask]
        return t5_unpadded.run_decoder(self.model, targets, encoded, target_layout, cross_layout)

    def render(self, prompt: Prompt) -> str:
        return prompt.plain

    def encode(self, text: str) -> list[int]:
        return [*self.tokenizer.encode(text).ids, self.tokenizer.eos]

    def collate(self, examples: Sequence[Example]) -> Batch:
        prompts, prompt_indices = index_prompts(examples)
        start = self.model.config.decoder_start_token_id
        rows = [[start, *example.target.ids[:-1]] for example in examples]
        prompt_ids, prompt_mask = pad_rows(prompts, self.tokenizer.pad)
        input_ids, input_mask = pad_rows(rows, self.tokenizer.pad)
        return Batch(
            input_ids,
            input_mask,
            input_mask.flatten().nonzero().squeeze(1),
            *candidate_tensors(examples),
            tuple(examples),
            prompt_ids,
            prompt_mask,
            tuple(prompt_indices),
            self._layouts([len(prompt) for prompt in prompts], prompt_indices, [len(row) for row in rows]),
        )

    def _layouts(self, prompt_lengths: list[int], prompts: list[int], target_lengths: list[int]) -> tuple[Layout, ...]:
        """The layouts of attention over prompts, over targets, and from targets to prompts.

        prompts  index of each target's prompt
        A row of cross-attention is a prompt with all of its targets.
        """
        prompt_rows, target_rows = (
            np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1]) for lengths in (prompt_lengths, target_lengths)
        )
        targets_of: list[list[np.ndarray]] = [[] for _ in prompt_lengths]
        for target, prompt in zip(target_rows, prompts, strict=True):
            targets_of[prompt].append(target)
        cross_rows = [np.concatenate(targets) for targets in targets_of]
        pairs = ((prompt_rows, prompt_rows), (target_rows, target_rows), (cross_rows, prompt_rows))
        return tuple(build_layout(queries, keys, self.model.config.num_heads) for queries, keys in pairs)

    def config_overrides(self) -> dict[str, Any]:
        scaled = getattr(self.model.config, "scale_decoder_outputs", False)
        activation = self.model.config.dense_act_fn
        return {"tie_word_embeddings": scaled, "dense_act_fn": GELU_NEW if activation == GELU_TANH else activation}

    def shardable_modules(self) -> list[nn.Module]:
        stacks: list[Any] = [self.model.encoder, self.model.decoder]
        # All layers use the first layer's position biases, so the biases stay gathered when that layer is released.
        biases = [stack.block[0].layer[0].SelfAttention.relative_attention_bias for stack in stacks]
        return [*biases, *(block for stack in stacks for block in stack.block)]

    def register_fsdp_methods(self) -> None:
        t5_unpadded.register_fsdp_methods(self.model)

    def weights(self, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        state = super().weights(weights)
        if not self.config_overrides()["tie_word_embeddings"]:
            state["lm_head.weight"] = state["lm_head.weight"].clone()
        return state


STUDENT: Final = T5Student


def prepare_config(config: Any, tokenizer: Tokenizer, dropout: float | None) -> None:
    """Complete the settings of a model before it is built or loaded, in place.

    Raises UserError for a faulty decoder_start_token_id.
    """
    if dropout is not None:
        config.dropout_rate = dropout
    if config.dense_act_fn == GELU_NEW:
        config.dense_act_fn = GELU_TANH
    if getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = tokenizer.pad
    start = config.decoder_start_token_id
    if type(start) is not int or not 0 <= start < config.vocab_size:
        raise config_error("E-model-bad-config", "decoder_start_token_id is not a token", repr(start))


def build_random_model(shape: Shape, tokenizer: Tokenizer, dropout: float) -> T5ForConditionalGeneration:
    """A model with random weights, drawn from torch's current random state.

    An untied head has the standard deviation d_model^-0.5, so that the first logits have a variance near 1.
    """
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
        # Setting config.tie_word_embeddings instead would also untie the embeddings of encoder and decoder.
        model.lm_head = nn.Linear(shape.d_model, shape.vocabulary, bias=False)
        nn.init.normal_(model.lm_head.weight, std=shape.d_model**-0.5)
        model.all_tied_weights_keys.pop("lm_head.weight", None)
    return model
