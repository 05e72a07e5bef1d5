"""Decoder-only students: the kinds of Llama, Mistral, Qwen, Gemma.

Prompt and target stand in one row. The row's last token, the end of the target, is never read:

    row         <s> Q : 2 + 2 A : 4 </s>
    read        <s> Q : 2 + 2 A : 4
    supervised                  :  4          the token before `4` and the token before the end

Rows are not padded, and chains under one prompt read one copy of it (`students.packed`). A kind without a test of its
own is padded, row by row: its attention may know of things that only its own mask says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from potstill.errors import UserError
from potstill.losses import MissingProbability
from potstill.models import causal_unpadded
from potstill.models.batch import Batch, Example, candidate_tensors, pad_rows
from potstill.models.shape import Family, Shape
from potstill.models.student import Head, Student
from potstill.records import Prompt
from potstill.tokenization import Tokenizer

# Each is tested with a tiny random model.
MODEL_TYPES: Final = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
FIX_CONFIG: Final = "correct config.json, or get the folder again"
SOFTCAPPED_TYPES: Final = ("gemma2", "gemma3_text")  # kinds whose logits have a cap: others ignore the setting


class CausalStudent(Student):
    """`padding` is the side on which rows are padded where they are: it changes nothing but the layout."""

    family: ClassVar[Family] = "causal"
    padding: Literal["left", "right"] = "right"

    def __init__(self, model: Any, tokenizer: Tokenizer, *, mass: MissingProbability = "raw") -> None:
        super().__init__(model, tokenizer, mass=mass)
        self.padded = model.config.model_type not in MODEL_TYPES
        if not self.padded:
            causal_unpadded.enable_packing(model)

    @property
    def head(self) -> Head:
        linear: Any = self.model.get_output_embeddings()
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return Head(linear.weight, bias=getattr(linear, "bias", None), cap=cap)

    def hidden(self, batch: Batch) -> Tensor:
        decoder, told = self.model.get_decoder(), {"input_ids": batch.input_ids, "use_cache": False}
        if batch.packing is None:
            positions = (batch.input_mask.cumsum(1) - 1).clamp_min(0)
            states = decoder(**told, attention_mask=batch.input_mask, position_ids=positions)
        else:
            # A mask of four dimensions is taken as it is, and none is made: [tokens, tokens] must not exist.
            unused = batch.input_mask[None, None, :, :1]
            positions = batch.packing.positions[None]
            states = decoder(**told, attention_mask=unused, position_ids=positions, packing=batch.packing)
        return states.last_hidden_state.flatten(0, 1)[batch.positions]

    def render(self, prompt: Prompt) -> str:
        return prompt.plain + prompt.lead if self.chat is None else self.chat.render(prompt)

    def encode(self, text: str) -> list[int]:
        if self.chat is not None:
            return self.chat.encode(text)
        # The tokenizer's own template says what stands before a text; a config's bos_token_id is there even where it
        # was never used (Qwen).
        return [*self.tokenizer.prefix, *self.tokenizer.encode(text).ids]

    def settings(self) -> dict[str, Any]:
        """The rotary positions as transformers 4 reads them. Without them it takes its defaults, without a word."""
        stated = getattr(self.model.config, "rope_parameters", None) or {}
        whole, local = stated.get("full_attention", stated), stated.get("sliding_attention")
        settings = {"rope_theta": whole["rope_theta"]} if "rope_theta" in whole else {}
        if whole.get("rope_type", "default") != "default":
            settings["rope_scaling"] = {key: value for key, value in whole.items() if key != "rope_theta"}
        return settings | ({"rope_local_base_freq": local["rope_theta"]} if local else {})

    def collate(self, examples: Sequence[Example]) -> Batch:
        if not self.padded:
            return self._packed(examples)
        inputs = [[*example.prompt, *example.target.ids[:-1]] for example in examples]
        input_ids, input_mask = pad_rows(inputs, self.tokenizer.pad, self.padding)
        supervised = torch.zeros_like(input_mask)
        for row, (read, example) in enumerate(zip(inputs, examples, strict=True)):
            end = len(read) if self.padding == "right" else supervised.shape[1]
            supervised[row, end - len(example.target) : end] = True
        positions = supervised.flatten().nonzero().squeeze(1)
        ids, probabilities, weights, rows = candidate_tensors(examples)
        return Batch(input_ids, input_mask, positions, ids, probabilities, weights, rows, None, None, tuple(examples))

    def _packed(self, examples: Sequence[Example]) -> Batch:
        seen: dict[tuple[int, ...], int] = {}
        owners = [seen.setdefault(example.prompt, len(seen)) for example in examples]
        reads = [example.target.ids[:-1] for example in examples]
        chains = [(owner, len(read)) for owner, read in zip(owners, reads, strict=True)]
        packing = causal_unpadded.pack_rows([len(prompt) for prompt in seen], chains)
        read = torch.empty(1, len(packing.positions), dtype=torch.int64)
        supervised = []
        for example, own, (start, last) in zip(examples, reads, packing.starts, strict=True):
            # The prompt's last token is taught by every chain under it.
            read[0, last + 1 - len(example.prompt) : last + 1] = torch.tensor(example.prompt)
            read[0, start : start + len(own)] = torch.as_tensor(np.asarray(own, np.int64))
            supervised += [last, *range(start, start + len(own))]
        mask = torch.ones_like(read, dtype=torch.bool)
        ids, probabilities, weights, rows = candidate_tensors(examples)
        places = torch.tensor(supervised)
        return Batch(
            read, mask, places, ids, probabilities, weights, rows, None, None, tuple(examples), packing=packing
        )


def check_tied_head(model: Any) -> None:
    """Raises UserError where config.json ties the head to the embedding and the weights hold another head: transformers
    5 computes with that head, transformers 4 and vLLM with the embedding."""
    linear, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if getattr(model.config, "tie_word_embeddings", False) and linear.weight is not embedding.weight:
        raise UserError(
            "config.json ties the head to the embedding, but the weights hold another head",
            hint='set "tie_word_embeddings": false if the head is its own, else take lm_head.weight out',
        )


def prepare_config(config: Any, tokenizer: Tokenizer, dropout: float | None) -> None:
    """The settings of a model that is about to be made or loaded, in place. Raises UserError for settings that the
    model cannot be computed with, which transformers takes as they are."""
    cap, rate = getattr(config, "final_logit_softcapping", None), getattr(config, "attention_dropout", 0.0)
    if cap is not None and not (isinstance(cap, int | float) and cap > 0 and config.model_type in SOFTCAPPED_TYPES):
        found = f"final_logit_softcapping: {cap!r}"[:80]
        raise UserError("this kind of model has no such cap", where="config.json", found=found, hint=FIX_CONFIG)
    if rate is not None and not (isinstance(rate, int | float) and 0 <= rate < 1):
        raise UserError("attention_dropout is no share", where="config.json", found=f"{rate!r}"[:80], hint=FIX_CONFIG)
    if dropout is not None:
        if dropout and not hasattr(config, "attention_dropout"):
            raise UserError(
                "this kind of model has no dropout", where=f"student ({config.model_type})", hint="set it to 0"
            )
        config.attention_dropout = dropout


def build_random_model(shape: Shape, tokenizer: Tokenizer, dropout: float) -> LlamaForCausalLM:
    """A random model of the Llama kind from torch's current seed."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_ff,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads or shape.heads,
        head_dim=shape.d_kv,
        max_position_embeddings=shape.length,
        tie_word_embeddings=shape.tied,
        attention_dropout=dropout,
        pad_token_id=tokenizer.pad,
        bos_token_id=next(iter(tokenizer.prefix), None),
        eos_token_id=tokenizer.eos,
    )
    return LlamaForCausalLM(config)
