"""vLLM in this process: decoder-only models on GPUs with large batches (extra `vllm`).

    engine = open_engine(folder, "vllm", vllm=VllmSection(gpus=2))      # starts vLLM with the weights in the folder

vLLM receives and returns token ids and gets no tokenizer, so potstill determines the bytes of a token. This module changes
or avoids defaults of vLLM:
- It would compute float32 weights in float16. The dtype is always given.
- It finds end tokens by its own rules. Here, it gets the end tokens of the reference engine and ignores all others.
  Sampling settings in the folder (penalties, cut-offs) are not read.
- Log-probabilities are computed before the temperature, in float32. They are always requested, because only they reveal
  NaN logits.
- It would raise a temperature below 0.01 to 0.01, and it rejects a temperature above 2. Both are refused here.
- It cannot stop after an answer. It generates TOKENS_PER_ROUND tokens at a time, and continues only texts without an
  answer. Its prefix cache makes a round cheap.
- It would send usage statistics, which are disabled.

Each text has a separate seed, a hash of the run's seed, the text's key and the position. It depends on the other texts of
its batch only by floating-point noise, which differs from run to run, because vLLM schedules texts as they arrive.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from potstill.errors import UserError
from potstill.inference.engine import (
    Decode,
    Generation,
    Request,
    SampleKey,
    check_installed,
    encoder_decoder_error,
    hash_key,
    unsupported_option_error,
)
from potstill.inference.sampling import AnswerDetector, StepLogprobs
from potstill.inference.transformers import TransformersEngine, nan_logits_error
from potstill.models import Student
from potstill.records import Prompt

if TYPE_CHECKING:
    from potstill.recipe import VllmSection

TOKENS_PER_ROUND: Final = 64  # number of tokens between two checks whether a text has an answer
VLLM_ENVIRONMENT: Final = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


class VllmEngine:
    """An `Engine` for a decoder-only model. Does not support the calculator. vLLM stops when this object is deleted."""

    def __init__(self, student: Student, settings: VllmSection, *, dtype: str, trust_remote_code: bool = False) -> None:
        """student: a student with weights, or without weights if `student.folder` contains them."""
        self.library = import_vllm()
        if student.family != "causal":
            raise encoder_decoder_error("", student.family)
        self.reference = TransformersEngine(student)
        self.vocabulary_size = student.head.weight.shape[0]
        with TemporaryDirectory() as temporary:
            if student.folder is None:
                student.save(temporary)
            self.model = self._start(student.folder or Path(temporary), settings, dtype, trust_remote_code)
        self.reference.max_positions = self.model.model_config.max_model_len

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        return self.reference.encode(prompt)

    @property
    def opens_thought(self) -> bool:
        return self.reference.opens_thought

    def generate(
        self, requests: Sequence[Request], decode: Decode, on_tokens: Callable[[int], None] | None = None
    ) -> list[Generation]:
        """A batch of texts; see `Engine`.

        Raises UserError for the calculator, `stop_repeats`, and a temperature that vLLM refuses.
        """
        for is_set, option in ((decode.calculator, "a calculator"), (decode.stop_repeats, "stop_repeats")):
            if is_set:
                raise unsupported_option_error("vllm", option)
        if decode.temperature and not 0.01 <= decode.temperature <= 2:
            what = "vLLM needs a temperature of 0 or from 0.01 to 2"
            raise UserError(what, code="E-inference-unsupported-temperature", found=decode.temperature)
        self.reference.check_requests(requests, decode.max_tokens)
        detector, end_tokens = None, self.reference.end_tokens
        if decode.stop_at_answer:
            detector = AnswerDetector(len(requests), self.reference.token_bytes, decode.stop_at_answer)
        tokens: list[list[int]] = [[] for _ in requests]
        steps: list[list[StepLogprobs]] = [[] for _ in requests]
        live = list(range(len(requests)))
        for start in range(0, decode.max_tokens, TOKENS_PER_ROUND) if detector else (0,):
            new_tokens = min(TOKENS_PER_ROUND, decode.max_tokens - start) if detector else decode.max_tokens
            results = self.model.generate(
                [{"prompt_token_ids": [*requests[row].prompt, *tokens[row]]} for row in live],
                [self._sampling_params(decode, requests[row].key, start, new_tokens) for row in live],
                use_tqdm=False,
            )
            for row, [text] in zip(live, (result.outputs for result in results), strict=True):
                for token, step in zip(text.token_ids, _read_logprobs(text.logprobs), strict=True):
                    if detector and token not in end_tokens:
                        detector.add(row, token, len(tokens[row]))
                    tokens[row].append(token)
                    steps[row].append(step)
                if on_tokens:
                    on_tokens(len(text.token_ids))
            live = [row for row in live if tokens[row][-1] not in end_tokens]
            live = [row for row in live if not detector or detector.lengths[row] is None]
            if not live:
                break
        answer_lengths = detector.lengths if detector else [None] * len(requests)
        return [
            self._to_generation(request.key, tokens[row], steps[row], answer_lengths[row], decode)
            for row, request in enumerate(requests)
        ]

    def _sampling_params(self, decode: Decode, key: SampleKey, start: int, max_tokens: int) -> Any:
        return self.library.SamplingParams(
            max_tokens=max_tokens,
            temperature=decode.temperature,
            top_p=1.0,
            top_k=0,
            seed=derive_seed(decode.seed, key, start),
            logprobs=min(decode.top_logprobs, self.vocabulary_size),
            flat_logprobs=True,
            ignore_eos=True,  # vLLM's end token; stop_token_ids has those of the reference engine
            stop_token_ids=list(self.reference.end_tokens),
            detokenize=False,
        )

    def _to_generation(
        self, key: SampleKey, tokens: list[int], steps: list[StepLogprobs], answer_length: int | None, decode: Decode
    ) -> Generation:
        sampled = [values[-1] for _, values in steps]
        if any(map(math.isnan, sampled)):
            raise nan_logits_error()
        text = self.reference.to_generation(key, tokens, steps if decode.top_logprobs else [], answer_length)
        if not decode.likelihood:
            return text
        return replace(text, likelihood=round(math.fsum(sampled[: text.written]), 6) + 0.0)

    def _start(self, folder: Path, settings: VllmSection, dtype: str, trust_remote_code: bool) -> Any:
        try:
            model = self.library.LLM(
                model=str(folder),
                skip_tokenizer_init=True,
                load_format="safetensors",
                use_tqdm_on_load=False,
                generation_config="vllm",
                dtype=dtype,
                logprobs_mode="raw_logprobs",
                max_logprobs=self.vocabulary_size,
                tensor_parallel_size=settings.gpus,
                gpu_memory_utilization=settings.memory,
                max_model_len=settings.length,
                enforce_eager=settings.eager,
                trust_remote_code=trust_remote_code,
            )
        except (ValueError, RuntimeError, OSError) as fault:
            lines = str(fault).strip().splitlines() or [type(fault).__name__]
            raise UserError(
                "vLLM does not start with this model",
                code="E-inference-vllm-start",
                where=folder,
                found=lines[0],
                hint="read what vLLM printed above; often a smaller length or memory, or more gpus, is needed",
            ) from fault
        # Otherwise vLLM keeps the GPU memory until the garbage collector runs.
        weakref.finalize(self, model.llm_engine.engine_core.shutdown)
        return model


def import_vllm() -> Any:
    """The module vllm. Raises UserError if it is not installed."""
    for name, value in VLLM_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    check_installed("vllm", "the engine vllm", "use the engine transformers (teacher.kind: local)")
    import vllm  # pyright: ignore[reportMissingImports]

    return vllm


def derive_seed(seed: int, key: SampleKey, position: int) -> int:
    """A seed of 31 bits for the tokens of a text from `position` on."""
    return hash_key(seed, key, position, 4) >> 1


def _read_logprobs(flat: Any) -> list[StepLogprobs]:
    """The steps in vLLM's flat format, which lists the sampled token first."""
    steps = []
    for start, end in zip(flat.start_indices, flat.end_indices, strict=True):
        ids, values = flat.token_ids[start:end], flat.logprobs[start:end]
        steps.append(([*ids[1:], ids[0]], [*values[1:], values[0]]))
    return steps
