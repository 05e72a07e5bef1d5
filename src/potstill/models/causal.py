"""Decoder-only students: models such as Llama, Mistral, Qwen and Gemma.

Prompt and target form one row. The model never reads the row's last token, the end of the target:

    row         <s> Q : 2 + 2 A : 4 </s>
    input       <s> Q : 2 + 2 A : 4
    supervised                  :  4          the token before `4` and the token before the end

Rows are not padded. Chains under the same prompt share one copy of it, and prompts with the same beginning share one copy
of that beginning (`potstill.models.causal_unpadded`). Rows of a model type that no test covers are padded, because its
attention may depend on information that only its own mask has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from potstill.errors import UserError
from potstill.models import causal_unpadded
from potstill.models.batch import Batch, Example, candidate_tensors, index_prompts, pad_rows
from potstill.models.student import Family, Head, Shape, Student
from potstill.models.weight_files import config_error
from potstill.records import Prompt
from potstill.tokenization import Tokenizer

# Model types that tests cover with tiny random models.
MODEL_TYPES: Final = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
SOFTCAPPED_TYPES: Final = ("gemma2", "gemma3_text")  # the other types ignore final_logit_softcapping


class CausalStudent(Student):
    """A decoder-only student. padding: the side on which rows are padded, if they are; it does not change results."""

    family: ClassVar[Family] = "causal"
    padding: Literal["left", "right"] = "right"

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        super().__init__(model, tokenizer)
        self.padded = model.config.model_type not in MODEL_TYPES
        if not self.padded:
            causal_unpadded.enable_packing(model)

    @property
    def head(self) -> Head:
        linear: Any = self.model.get_output_embeddings()
        softcap = getattr(self.model.config, "final_logit_softcapping", None)
        return Head(linear.weight, bias=getattr(linear, "bias", None), softcap=softcap)

    def hidden(self, batch: Batch) -> Tensor:
        decoder, inputs = self.model.get_decoder(), {"input_ids": batch.input_ids, "use_cache": False}
        if batch.packing is None:
            positions = (batch.input_mask.cumsum(1) - 1).clamp_min(0)
            states = decoder(**inputs, attention_mask=batch.input_mask, position_ids=positions)
        else:
            # transformers does not change a mask of four dimensions. Without one, it would build [tokens, tokens], which
            # is too large for a packed batch. `packed_attention` ignores the mask.
            unused = batch.input_mask[None, None, :, :1]
            positions = batch.packing.positions[None]
            states = decoder(**inputs, attention_mask=unused, position_ids=positions, packing=batch.packing)
        return states.last_hidden_state.flatten(0, 1)[batch.positions]

    def render(self, prompt: Prompt) -> str:
        return prompt.plain + prompt.lead if self.chat is None else self.chat.render(prompt)

    def encode(self, text: str) -> list[int]:
        if self.chat is not None:
            return self.chat.encode(text)
        # The tokenizer's post-processor decides what precedes a text; a config may have a bos_token_id that the model
        # never saw in training (Qwen).
        return [*self.tokenizer.prefix, *self.tokenizer.encode(text).ids]

    def config_overrides(self) -> dict[str, Any]:
        """The settings of rotary positions in the form of transformers 4, which otherwise silently uses defaults."""
        rope = getattr(self.model.config, "rope_parameters", None) or {}
        full, sliding = rope.get("full_attention", rope), rope.get("sliding_attention")
        overrides = {"rope_theta": full["rope_theta"]} if "rope_theta" in full else {}
        if full.get("rope_type", "default") != "default":
            overrides["rope_scaling"] = {key: value for key, value in full.items() if key != "rope_theta"}
        return overrides | ({"rope_local_base_freq": sliding["rope_theta"]} if sliding else {})

    def collate(self, examples: Sequence[Example]) -> Batch:
        if not self.padded:
            return self._packed_batch(examples)
        rows = [[*example.prompt, *example.target.ids[:-1]] for example in examples]
        input_ids, input_mask = pad_rows(rows, self.tokenizer.pad, left=self.padding == "left")
        supervised = torch.zeros_like(input_mask)
        for index, (row, example) in enumerate(zip(rows, examples, strict=True)):
            end = len(row) if self.padding == "right" else supervised.shape[1]
            supervised[index, end - len(example.target) : end] = True
        positions = supervised.flatten().nonzero().squeeze(1)
        return Batch(input_ids, input_mask, positions, *candidate_tensors(examples), tuple(examples))

    def _packed_batch(self, examples: Sequence[Example]) -> Batch:
        prompts, prompt_indices = index_prompts(examples)
        read_targets = [example.target.ids[:-1] for example in examples]
        chains = [(prompt, len(read)) for prompt, read in zip(prompt_indices, read_targets, strict=True)]
        lengths = [len(prompt) for prompt in prompts]
        prefix = causal_unpadded.find_shared_prefix(prompts, sum(lengths) + sum(map(len, read_targets)))
        packing = causal_unpadded.pack_rows(lengths, chains, prefix)
        input_ids = torch.empty(1, len(packing.positions), dtype=torch.int64)
        input_ids[0, :prefix] = torch.tensor(prompts[0][:prefix])
        supervised = []
        for example, read, (start, prompt_end) in zip(examples, read_targets, packing.starts, strict=True):
            # Every chain under a prompt supervises the prompt's last token, because the chain's first token follows it.
            rest = example.prompt[prefix:]
            input_ids[0, prompt_end + 1 - len(rest) : prompt_end + 1] = torch.tensor(rest)
            input_ids[0, start : start + len(read)] = torch.as_tensor(np.asarray(read, np.int64))
            supervised += [prompt_end, *range(start, start + len(read))]
        input_mask, positions = torch.ones_like(input_ids, dtype=torch.bool), torch.tensor(supervised)
        candidates = candidate_tensors(examples)
        return Batch(input_ids, input_mask, positions, *candidates, tuple(examples), packing=packing)


STUDENT: Final = CausalStudent


def prepare_config(config: Any, tokenizer: Tokenizer, dropout: float | None) -> None:
    """Complete the settings of a model before it is built or loaded, in place.

    Raises UserError for settings that transformers accepts, but cannot compute with.
    """
    softcap, rate = getattr(config, "final_logit_softcapping", None), getattr(config, "attention_dropout", 0.0)
    is_number = isinstance(softcap, int | float) and softcap > 0
    if softcap is not None and not (is_number and config.model_type in SOFTCAPPED_TYPES):
        raise config_error(
            "E-model-bad-config", "this kind of model has no such softcap", f"final_logit_softcapping: {softcap!r}"
        )
    if rate is not None and not (isinstance(rate, int | float) and 0 <= rate < 1):
        raise config_error("E-model-bad-config", "attention_dropout is not between 0 and 1", repr(rate))
    if dropout is None:
        return
    if dropout and not hasattr(config, "attention_dropout"):
        raise UserError(
            "this kind of model has no dropout",
            code="E-model-no-dropout",
            where=f"student ({config.model_type})",
            hint="set student.dropout to 0",
        )
    config.attention_dropout = dropout


def build_random_model(shape: Shape, tokenizer: Tokenizer, dropout: float) -> LlamaForCausalLM:
    """A Llama with random weights, drawn from torch's current random state."""
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
