"""A scoring server with a real model: the log-probabilities are those of a transformers model in this process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

from scoring_stub import ScoringStub


@dataclass
class ModelStub(ScoringStub):
    """student: a causal student. Tokens are named by their ids, as vLLM names them if ids are requested."""

    student: Any = None

    def scores(self, body: dict, method: str, fault: str = "") -> dict:
        ids = list(self.student.tokenizer.encode(body["prompt"]).ids)
        table = self._distributions(ids)
        choice: dict[str, Any] = {"text": "", "finish_reason": "length", "prompt_token_ids": ids}
        choice["prompt_logprobs"] = [None] + [
            {
                str(token): {"logprob": value, "decoded_token": ""}
                for token, value in self._top(row, token, body[method])
            }
            for row, token in zip(table, ids[1:], strict=False)
        ]
        choice["logprobs"] = self._listed([int(table[-1].argmax())], table[-1:], body["logprobs"])
        return {"model": self.model, "choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": 1}}

    def written_body(self, head: bytes, body: dict, fault: str) -> bytes:
        ids, choices, spent = list(self.student.tokenizer.encode(body["prompt"]).ids), [], 0
        for index in range(body.get("n", 1)):
            drawn: list[int] = []
            generator = torch.Generator().manual_seed(body["seed"] + index)
            while len(drawn) < body["max_tokens"] and self.student.tokenizer.eos not in drawn:
                row = self._distributions(ids + drawn)[-1]
                drawn.append(int(torch.multinomial(row.exp(), 1, generator=generator)))
            spent += len(drawn)
            ended = drawn[-1] == self.student.tokenizer.eos
            text = self.student.tokenizer.decode(drawn[:-1] if ended else drawn)
            table = self._distributions(ids + drawn)[len(ids) - 1 : -1]
            listed = self._listed(drawn, table, body["logprobs"])
            choices.append({"text": text, "logprobs": listed, "finish_reason": "stop" if ended else "length"})
        usage = {"prompt_tokens": len(ids), "completion_tokens": spent}
        # With a space less than json.dumps writes, as the stub does; ScoringStub replaces the name of the model.
        return json.dumps({"model": "stub", "choices": choices, "usage": usage}, separators=(",", ":")).encode()

    def _distributions(self, ids: list[int]) -> torch.Tensor:
        """[n, v] natural log-probabilities of the token after each prefix of `ids`."""
        with torch.no_grad():
            return torch.log_softmax(self.student.model(input_ids=torch.tensor([ids])).logits[0].float(), -1)

    def _top(self, row: torch.Tensor, token: int, k: int) -> list[tuple[int, float]]:
        values, tokens = row.topk(k)
        pairs = dict(zip(tokens.tolist(), values.tolist(), strict=True))
        return [*({token: float(row[token])} | pairs).items()]

    def _listed(self, tokens: list[int], table: torch.Tensor, k: int) -> dict:
        tops = [dict(self._top(row, token, k)) for token, row in zip(tokens, table, strict=True)]
        return {
            "tokens": [f"token_id:{token}" for token in tokens],
            "token_logprobs": [top[token] for top, token in zip(tops, tokens, strict=True)],
            "top_logprobs": [{f"token_id:{token}": value for token, value in top.items()} for top in tops],
        }
