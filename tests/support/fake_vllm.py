"""A stand-in for the library vLLM where there is none: the calls that `engines.vllm` makes, answered by a plain loop
over a transformers model. It keeps to what was recorded of the real one (`tests/unit/test_vllm.py` reads both)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from potstill import models

__version__ = "plain"
STARTED: list[dict[str, Any]] = []  # the settings of every model
CALLS: list[list[int]] = []  # of every call, how many tokens each text was given
ENDED: list[str] = []


class SamplingParams(SimpleNamespace):
    pass


class LLM:
    def __init__(self, model: str, **settings: Any) -> None:
        STARTED.append({"model": model, **settings})
        self.model = models.open_student(model).model
        self.model_config = SimpleNamespace(max_model_len=settings["max_model_len"] or 2048)
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: ENDED.append(model)))

    def generate(self, prompts: list[dict[str, list[int]]], params: list[Any], *, use_tqdm: bool) -> list[Any]:
        assert len(prompts) == len(params) and not use_tqdm
        CALLS.append([each.max_tokens for each in params])
        return [self._written(list(row["prompt_token_ids"]), each) for row, each in zip(prompts, params, strict=True)]

    def _written(self, read: list[int], asked: Any) -> Any:
        assert asked.ignore_eos and not asked.detokenize and asked.flat_logprobs
        generator = torch.Generator().manual_seed(asked.seed)
        flat = SimpleNamespace(start_indices=[], end_indices=[], token_ids=[], logprobs=[])
        drawn: list[int] = []
        while len(drawn) < asked.max_tokens and not (drawn and drawn[-1] in asked.stop_token_ids):
            with torch.no_grad():
                logits = self.model(input_ids=torch.tensor([read + drawn])).logits[0, -1].float()
            logs = logits.log_softmax(-1)
            if asked.temperature:
                shares = (logits / asked.temperature).softmax(-1)
                token = int(torch.multinomial(shares.nan_to_num(1.0), 1, generator=generator))
            else:
                token = int(logits.argmax())
            values, top = logs.topk(asked.logprobs)
            flat.start_indices.append(len(flat.token_ids))
            flat.token_ids += [token, *top.tolist()]
            flat.logprobs += [float(logs[token]), *values.tolist()]
            flat.end_indices.append(len(flat.token_ids))
            drawn.append(token)
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=drawn, logprobs=flat)])
