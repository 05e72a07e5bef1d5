"""CTranslate2: a compiled engine for T5 and Llama students, in float32 or int8 (extra `fast`).

    engine = open_engine(student, "ctranslate2-int8")      # convert the student, compare the scores, load the conversion
    export_student(student, folder, "int8")                # write the conversion for other programs

CTranslate2 silently changes results in several ways. This module prevents each of them:
- Its converter reads `tie_word_embeddings` with the meaning of transformers 4, and divides a FlanT5's logits by
  d_model^0.5. This changes scores and samples, but not greedy texts. Here, the student's head determines the scale, and a
  conversion whose scores differ by more than PARITY_TOLERANCE is refused.
- Its converter modifies a causal model. It gets a copy.
- It truncates inputs after 1,024 tokens. This limit is disabled, and prompts that are too long for the model are refused.
- It divides scores by the length, and its token strings are ambiguous. Texts are scored again, token by token, and the
  vocabulary consists of token numbers (an exported folder has the tokenizer's strings, which its users need).
- In a batch with a causal prompt of one token, it returns the other prompts as parts of their texts. Such a prompt gets a
  separate call.
- It sorts samples by score, so the first samples would be the best. They are shuffled.
- Its time for a text grows with the batch, because it copies the state of all rows when a text ends. It gets small batches.
- A seed affects only translators that are opened later. A new translator is opened for every batch.

Greedy texts equal those of the reference engine, unless two tokens are equally likely up to floating-point noise (int8: up
to its rounding). Samples depend on their batch. Batches are a function of the requests, so a resumed run gets the same
samples.
"""

from __future__ import annotations

import copy
import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import torch
from transformers import PreTrainedTokenizerFast

from potstill import storage
from potstill.errors import UserError
from potstill.inference.engine import (
    Decode,
    Generation,
    Request,
    SampleKey,
    StopUnit,
    check_installed,
    draw_uniform,
    unsupported_option_error,
)
from potstill.inference.sampling import AnswerDetector
from potstill.inference.transformers import TransformersEngine, eval_mode
from potstill.models import Student
from potstill.records import Prompt

PARITY_TOLERANCE: Final = 1e-3  # maximum difference of a token's log-probability (nats) between model and conversion
ROWS_PER_BATCH: Final = 16  # maximum number of texts that the library generates at once
PROMPT_TOKENS_PER_BATCH: Final = 4096  # maximum number of their prompts' tokens; one prompt may exceed both
SUPPORTED_CONFIGS: Final = ("T5Config", "LlamaConfig")


class CTranslate2Engine:
    """An `Engine` for a student. Does not support `top_logprobs`, the calculator and `stop_repeats`.

    exported  folder from `export_student` that is loaded instead of a new conversion
    """

    def __init__(self, student: Student, *, int8: bool = False, exported: Path | None = None) -> None:
        self.library = _import_ctranslate2()
        self.reference = TransformersEngine(student)
        self.compute_type = "int8" if int8 else "float32"
        self.student = student
        self.names = _number_names(student) if exported is None else read_token_names(student, exported)
        self.ids = {name: token for token, name in enumerate(self.names)}
        if exported is not None:
            files = ("model.bin", "config.json", *(path.name for path in exported.glob("*vocabulary.*")))
            self.files = {name: (exported / name).read_bytes() for name in files}
            self.model = self._load(self.compute_type)
            return
        self.files = _convert_student(self.library, student, self.names)
        exact = self._load("float32")
        difference = self._measure_difference(exact)
        if not difference <= PARITY_TOLERANCE:
            raise UserError(
                "the converted model's scores differ from those of the model",
                code="E-inference-ctranslate2-parity",
                where=f"evaluate.engine (CTranslate2 {self.library.__version__})",
                found=f"log-probabilities differ by up to {difference:.2g}; rounding explains {PARITY_TOLERANCE:g}",
                hint="set evaluate.engine: transformers, and report this kind of model",
            )
        self.model = self._load(self.compute_type) if int8 else exact

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        return self.reference.encode(prompt)

    @property
    def opens_thought(self) -> bool:
        return self.reference.opens_thought

    def generate(
        self, requests: Sequence[Request], decode: Decode, on_tokens: Callable[[int], None] | None = None
    ) -> list[Generation]:
        """A batch of texts; see `Engine`. Raises UserError for `top_logprobs`, the calculator and `stop_repeats`."""
        for is_set, option in (
            (decode.top_logprobs, "log-probabilities of candidates"),
            (decode.calculator, "a calculator"),
            (decode.stop_repeats, "stop_repeats"),
        ):
            if is_set:
                raise unsupported_option_error("ctranslate2", option)
        if not requests:
            return []
        self.reference.check_requests(requests, decode.max_tokens)
        keys_of: dict[tuple[int, ...], list[SampleKey]] = {}
        for request in requests:
            keys_of.setdefault(request.prompt, []).append(request.key)
        greedy = decode.temperature == 0
        model = self.model if greedy else self._load(self.compute_type, _derive_batch_seed(decode.seed, requests))
        tokens: dict[SampleKey, list[int]] = {}
        # One call per number of samples, so that each prompt is read once.
        for number in sorted({len(keys) for keys in keys_of.values()}):
            prompts = [prompt for prompt, keys in keys_of.items() if len(keys) == number]
            written = self._generate(model, prompts, 1 if greedy else number, decode)
            for prompt, texts in zip(prompts, written, strict=True):
                keys = keys_of[prompt]
                uniforms = [draw_uniform(decode.seed, (keys[0][0], rank), -1) for rank in range(len(texts))]
                order = sorted(range(len(texts)), key=uniforms.__getitem__)
                for index, key in enumerate(keys):
                    tokens[key] = texts[order[index % len(texts)]]
                    if on_tokens:
                        on_tokens(len(tokens[key]))
        texts = [self._to_generation(request.key, tokens[request.key], decode.stop_at_answer) for request in requests]
        rows = [tokens[request.key] for request in requests]
        return self._with_likelihoods(requests, texts, rows) if decode.likelihood else texts

    def _generate(
        self, model: Any, prompts: Sequence[tuple[int, ...]], number: int, decode: Decode
    ) -> list[list[list[int]]]:
        """The token ids of `number` texts per prompt, including end tokens."""
        settings = {
            "beam_size": 1,
            "num_hypotheses": number,
            "end_token": [self.names[token] for token in self.reference.end_tokens],
            "return_end_token": True,
            "sampling_topk": 1 if decode.temperature == 0 else 0,
            "sampling_temperature": decode.temperature or 1.0,
        }
        rows = [[self.names[token] for token in prompt] for prompt in prompts]
        # The library copies the state of all rows whenever a text ends, so small batches are up to three times as fast.
        longest = max(1, *map(len, prompts))
        settings["max_batch_size"] = max(1, min(ROWS_PER_BATCH // number, PROMPT_TOKENS_PER_BATCH // longest))
        if self.student.family == "t5":
            settings |= {"max_input_length": 0, "max_decoding_length": decode.max_tokens, "min_decoding_length": 0}
            results = model.translate_batch(rows, **settings)
            return [[[self.ids[token] for token in text] for text in result.hypotheses] for result in results]
        settings |= {"max_length": decode.max_tokens, "include_prompt_in_result": False}
        results = {}
        for is_single in (True, False):  # prompts of one token get separate calls, see above
            if group := [row for row in rows if (len(row) == 1) == is_single]:
                results.update(zip(map(tuple, group), model.generate_batch(group, **settings), strict=True))
        return [[list(text) for text in results[tuple(row)].sequences_ids] for row in rows]

    def _to_generation(self, key: SampleKey, tokens: list[int], stop_at_answer: StopUnit | None) -> Generation:
        length = None
        if stop_at_answer:  # the library cannot stop after an answer, so the text is truncated afterwards
            detector = AnswerDetector(1, self.reference.token_bytes, stop_at_answer)
            complete = any(detector.add(0, token, position) for position, token in enumerate(tokens))
            length = detector.lengths[0] if complete else None
        return self.reference.to_generation(key, tokens, [], length)

    def _with_likelihoods(
        self, requests: Sequence[Request], texts: Sequence[Generation], tokens: Sequence[list[int]]
    ) -> list[Generation]:
        """The texts with their likelihoods, from another forward pass at temperature 1.

        tokens  token ids of each text, including end tokens
        """
        rows = [row[: text.written] for text, row in zip(texts, tokens, strict=True)]
        scores = self._score(self.model, [request.prompt for request in requests], rows)
        return [replace(text, likelihood=round(sum(row), 6) + 0.0) for text, row in zip(texts, scores, strict=True)]

    def _score(self, model: Any, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """Natural log-probabilities of the tokens of each row, which follows its prompt."""
        sources, targets = ([[self.names[token] for token in row] for row in table] for table in (prompts, rows))
        if self.student.family == "t5":
            # CTranslate2 appends an end token, whose score does not belong to the text.
            results = model.score_batch(sources, targets, max_input_length=0, max_batch_size=32)
            return [list(result.log_probs[: len(row)]) for result, row in zip(results, rows, strict=True)]
        whole = [source + target for source, target in zip(sources, targets, strict=True)]
        results = model.score_batch(whole, max_input_length=0, max_batch_size=32)
        return [
            list(result.log_probs[len(source) - 1 :][: len(target)])
            for result, source, target in zip(results, sources, targets, strict=True)
        ]

    def _measure_difference(self, model: Any) -> float:
        """The largest difference (nats) between the log-probabilities of model and conversion, over some test tokens.

        The rows of tokens are longer than T5's position buckets.
        """
        size = self.student.tokenizer.size
        limit = getattr(self.student.model.config, "max_position_embeddings", None) or 400
        lengths = ((150, 12), (5, 150), (40, 30))
        prompts, rows = (
            [
                tuple((factor * position + shift * row) % size for position in range(min(pair[side], limit // 2)))
                for row, pair in enumerate(lengths)
            ]
            for side, factor, shift in ((0, 7, 3), (1, 5, 1))
        )
        worst = 0.0
        for prompt, row, score in zip(prompts, rows, self._score(model, prompts, rows), strict=True):
            expected = _compute_log_probabilities(self.student, prompt, row)
            difference = (expected - torch.tensor(score, dtype=torch.float64)).abs().max()
            worst = max(worst, float("inf") if difference.isnan() else float(difference))
        return worst

    def _load(self, compute_type: str, seed: int | None = None) -> Any:
        if seed is not None:
            self.library.set_random_seed(seed)
        model_type = self.library.Translator if self.student.family == "t5" else self.library.Generator
        files = {name: io.BytesIO(content) for name, content in self.files.items()}
        threads = {"inter_threads": 1, "intra_threads": torch.get_num_threads()}
        return model_type("student", compute_type=compute_type, files=files, **threads)


def _import_ctranslate2() -> Any:
    check_installed("ctranslate2", "evaluate.engine", "use the engine transformers")
    import ctranslate2  # pyright: ignore[reportMissingImports]

    return ctranslate2


def export_student(student: Student, folder: Path, names: Sequence[str], weights: Literal["float32", "int8"]) -> None:
    """Write the student in CTranslate2's format into an existing folder.

    names    names of the tokens, one per row of the head; see `read_token_names`
    weights  type of the weights in the file

    Raises UserError if CTranslate2 is not installed, and for a kind of model for which it was not tested.
    """
    library = _import_ctranslate2()
    for name, content in _convert_student(library, student, names, weights).items():
        storage.write_file(folder / name, content)


def read_token_names(student: Student, folder: Path) -> list[str]:
    """The names of the head's rows: the tokenizer's strings, as `convert_ids_to_tokens` returns them; for rows without a
    token, other names. folder: folder of the tokenizer's files."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    names: list[str] = []
    for row in range(student.head.weight.shape[0]):
        name = tokenizer.convert_ids_to_tokens(row) if row < len(tokenizer) else None
        names.append(f"<row {row}>" if name is None else name)
    assert len(set(names)) == len(names), "two tokens with one string"
    return names


def _number_names(student: Student) -> list[str]:
    """Token numbers as the names of the head's rows, including padding rows."""
    return [str(token) for token in range(student.head.weight.shape[0])]


def _convert_student(
    library: Any, student: Student, names: Sequence[str], weights: Literal["float32", "int8"] = "float32"
) -> dict[str, bytes]:
    """File name -> content, for a student in CTranslate2's format. names: names of the head's rows, including padding."""
    from ctranslate2.converters import transformers as converters  # pyright: ignore[reportMissingImports]

    name = type(student.model.config).__name__
    loader = converters._MODEL_LOADERS.get(name) if name in SUPPORTED_CONFIGS else None
    if loader is None:
        what, hint = "CTranslate2 is not tested with this kind of model", "use the engine transformers"
        raise UserError(what, code="E-inference-unsupported-model", where="evaluate.engine", found=name, hint=hint)
    tokenizer, head = student.tokenizer, student.head
    with torch.no_grad():
        spec = loader.get_model_spec(copy.deepcopy(student.model))
    tokens = list(names)
    if student.family == "t5":
        spec.decoder.scale_outputs = head.scale
        spec.register_source_vocabulary(tokens)
        spec.register_target_vocabulary(tokens)
        spec.config.decoder_start_token = names[student.model.config.decoder_start_token_id]
        spec.config.layer_norm_epsilon = student.model.config.layer_norm_epsilon
        spec.config.add_source_bos = spec.config.add_source_eos = False
    else:
        spec.register_vocabulary(tokens)
        spec.config.layer_norm_epsilon = student.model.config.rms_norm_eps
    spec.config.bos_token = spec.config.unk_token = names[tokenizer.pad]
    spec.config.eos_token = names[tokenizer.eos]
    spec.validate()
    spec.optimize(quantization=weights)
    with TemporaryDirectory() as folder:
        spec.save(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def _compute_log_probabilities(student: Student, prompt: Sequence[int], row: Sequence[int]) -> torch.Tensor:
    """Natural log-probabilities [n] of the tokens of a row, which follows a prompt, from a plain forward pass."""
    model = student.model
    with eval_mode(model), torch.no_grad():
        if student.family == "t5":
            start: Any = model.config.decoder_start_token_id
            decoder_ids = torch.tensor([[start, *row[:-1]]])
            logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=decoder_ids).logits[0]
        else:
            logits = model(input_ids=torch.tensor([[*prompt, *row[:-1]]])).logits[0, len(prompt) - 1 :]
    return logits.double().log_softmax(-1).gather(-1, torch.tensor(row)[:, None])[:, 0]


def _derive_batch_seed(seed: int, requests: Sequence[Request]) -> int:
    """A seed for a batch: a hash of the run's seed and of all keys in the batch."""
    keys = (request.key for request in requests)
    text = "\n".join([str(seed), *(f"{question}#{index}" for question, index in keys)])
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "big")
