"""The engine `vllm` in the interpreter that runs this file: `python record_vllm.py FOLDER OUT.json [--record]`.

Writes what the engine made of the model in FOLDER for each of `CASES`; with --record also what vLLM itself was asked
and answered, and the tokenizer's files: so `tests/support/recorded/vllm.json` was made, for the model of `servers.rambling`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from potstill import inference, prompts, tokenization
from potstill.recipe import VllmSection
from potstill.records import END
from potstill.serialization import encode_bytes

QUESTIONS = ("Zoë has 1 cafés and buys 1 more. How many?", "José has 2 cafés and buys 4 more. How many?")
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"max_tokens": 70, "likelihood": True},
    "sampled": {"max_tokens": 40, "temperature": 1.0, "seed": 3, "top_logprobs": 3, "likelihood": True},
    "wild": {"max_tokens": 12, "temperature": 2.0, "seed": 1, "top_logprobs": 2},
    "line": {"max_tokens": 70, "temperature": 0.7, "seed": 2, "top_logprobs": 2, "stop_at_answer": "line"},
    "sentence": {"max_tokens": 70, "stop_at_answer": "sentence"},
}
SAMPLES = 3


def samples_of(case: dict[str, Any]) -> int:
    return SAMPLES if "temperature" in case else 1


def requests(engine: inference.Engine, samples: int) -> list[inference.Request]:
    asked = [
        prompts.build_prompt(text, prompts.FORMATS["zero-shot-rationale"], style=prompts.TEACHER_STYLE)
        for text in QUESTIONS
    ]
    return [
        inference.Request((f"q{place}", index), engine.encode(prompt))
        for place, prompt in enumerate(asked)
        for index in range(samples)
    ]


def told(texts: list[inference.Generation]) -> list[dict[str, Any]]:
    return [
        {
            "key": list(text.key),
            "ids": list(text.ids),
            "content": encode_bytes(text.content),
            "tokens": [encode_bytes(token) for token in text.tokens],
            "candidates": [
                [[None if what is END else encode_bytes(what), value] for what, value in step]
                for step in text.candidates
            ],
            "stop": text.stop,
            "likelihood": text.likelihood,
        }
        for text in texts
    ]


def answered(call: list[Any]) -> list[dict[str, Any]]:
    """What vLLM said, of each request of a call."""
    rows = []
    for each in call:
        [text] = each.outputs
        flat = text.logprobs
        rows.append({"token_ids": list(text.token_ids), "finish": text.finish_reason, "stop": text.stop_reason})
        rows[-1] |= {"starts": flat.start_indices, "ends": flat.end_indices, "ids": flat.token_ids}
        rows[-1]["logprobs"] = [round(value, 8) for value in flat.logprobs]
    return rows


if __name__ == "__main__":
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    engine: Any = inference.open_engine(folder, "vllm", vllm=VllmSection(eager=True, length=256, dtype="float32"))
    calls: list[dict[str, Any]] = []
    asked = engine.model.generate

    def generate(prompts: list[dict[str, list[int]]], params: list[Any], use_tqdm: bool) -> Any:
        made = asked(prompts, params, use_tqdm=use_tqdm)
        settings = [{"seed": each.seed, "max_tokens": each.max_tokens, "logprobs": each.logprobs} for each in params]
        calls.append(
            {"prompts": [row["prompt_token_ids"] for row in prompts], "params": settings, "told": answered(made)}
        )
        return made

    engine.model.generate = generate
    found: dict[str, Any] = {"texts": {}, "calls": {}}
    for name, case in CASES.items():
        found["texts"][name] = told(engine.generate(requests(engine, samples_of(case)), inference.Decode(**case)))
        found["calls"][name], calls[:] = list(calls), []
    if "--record" in sys.argv:
        found["files"] = {
            name: encode_bytes(content) for name, content in tokenization.load_tokenizer(folder).files.items()
        }
        found["library"] = engine.library.__version__
    else:
        del found["calls"]
    out.write_text(json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
