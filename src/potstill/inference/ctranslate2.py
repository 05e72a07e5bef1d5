"""CTranslate2: a compiled engine for T5-style and Llama-kind students, float32 or int8 (extra `fast`).

    engine = open(student, int8=True)      # converts, compares its scores with the student's, then loads it as int8

Its traps, and what is done about each:
- its converter reads `tie_word_embeddings` as transformers 4 meant it and divides a FlanT5's logits by d_model^0.5:
  greedy texts stay, scores and samples change. The scale is set from the student's own head, and a conversion whose
  scores differ by more than `PARITY` is refused.
- its converter takes a causal model apart: it is given a copy.
- it cuts inputs at 1,024 tokens without a word: that limit is off, and what does not fit the model is refused.
- its scores are divided by the length and its token strings are ambiguous: texts are scored again, token by token, and
  the vocabulary is the numbers of the tokens.
- beside a causal prompt of one token the others come back as if they had been written: it gets a call of its own.
- samples come back in the order of their scores, so that the first ones would be better than the others: they are put
  in the order of a draw of ours. A seed reaches only a translator that is opened after it: one is opened a batch.

Greedy texts are those of the reference but where two tokens are as likely as float noise (int8: as its rounding).
Samples depend on the batch they are drawn in; batches are a function of the requests, so a resumed run draws the same.
"""

from __future__ import annotations

import copy
import hashlib
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch

from potstill.errors import UserError
from potstill.inference import Generation, Request, SampleKey, StopUnit, draw_uniform
from potstill.inference.sampling import AnswerDetector
from potstill.inference.transformers import TransformersEngine as Reference
from potstill.models import Student
from potstill.records import Prompt

PARITY_TOLERANCE: Final = 1e-3  # largest difference of a token's natural log-probability that a conversion may have
SUPPORTED_CONFIGS: Final = ("T5Config", "LlamaConfig")


class CTranslate2Engine:
    """A student as CTranslate2 runs it. Fulfils `engines.Engine`, without candidates and without a calculator."""

    def __init__(self, student: Student, *, int8: bool = False, threads: int | None = None) -> None:
        self.library = _import_ctranslate2()
        self.reference = Reference(student)
        self.kind = "int8" if int8 else "float32"
        self.threads = threads or torch.get_num_threads()
        self.student, self.files = student, _convert_student(self.library, student)
        exact = self._opened("float32")
        worst = self._difference(exact)
        if not worst <= PARITY_TOLERANCE:
            raise UserError(
                "the converted model's scores are not those of the model",
                where=f"evaluate.engine (CTranslate2 {self.library.__version__})",
                found=f"log-probabilities differ by up to {worst:.2g}, at most {PARITY_TOLERANCE:g} is rounding",
                hint="set evaluate.engine: transformers, and report this kind of model",
            )
        self.model = self._opened(self.kind) if int8 else exact

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
        """One batch; see `engines.Engine`. Raises UserError for candidates and a calculator, which it does not have."""
        if candidates or calculator:
            what = "shows no candidates" if candidates else "has no calculator"
            raise UserError(
                f"the engine ctranslate2 {what}", where="evaluate.engine", hint="use the engine transformers"
            )
        if not requests:
            return []
        self.reference.check(requests, max_tokens)
        groups: dict[tuple[int, ...], list[SampleKey]] = {}
        for request in requests:
            groups.setdefault(request.prompt, []).append(request.key)
        model = self.model if temperature == 0 else self._opened(self.kind, _derive_batch_seed(seed, requests))
        found: dict[SampleKey, list[int]] = {}
        # One call a number of samples: the prompt of each is read once.
        for number in sorted({len(keys) for keys in groups.values()}):
            prompts = [prompt for prompt, keys in groups.items() if len(keys) == number]
            written = self._write(model, prompts, 1 if temperature == 0 else number, max_tokens, temperature)
            for prompt, texts in zip(prompts, written, strict=True):
                keys = groups[prompt]
                order = sorted(
                    range(len(texts)), key=lambda rank, keys=keys: draw_uniform(seed, (keys[0][0], rank), -1)
                )
                for at, key in enumerate(keys):
                    found[key] = texts[order[at % len(texts)]]
        texts = [self._collect(request.key, found[request.key], stop_at_answer) for request in requests]
        return self._known(requests, texts) if likelihood else texts

    def _write(
        self, model: Any, prompts: Sequence[tuple[int, ...]], number: int, max_tokens: int, temperature: float
    ) -> list[list[list[int]]]:
        """Ids of every text of every prompt, its end token, if it has one, among them."""
        settings = {
            "beam_size": 1,
            "num_hypotheses": number,
            "end_token": [str(token) for token in self.reference.ends],
            "return_end_token": True,
            "sampling_topk": 1 if temperature == 0 else 0,
            "sampling_temperature": temperature or 1.0,
        }
        rows = [[str(token) for token in prompt] for prompt in prompts]
        if self.student.family == "t5":
            made = model.translate_batch(
                rows, max_input_length=0, max_decoding_length=max_tokens, min_decoding_length=0, **settings
            )
            return [[[int(token) for token in text] for text in each.hypotheses] for each in made]
        # Beside a prompt of one token the others come back as if they had been drawn: it gets a call of its own.
        made = {}
        for single in (True, False):
            own = [row for row in rows if (len(row) == 1) == single]
            if own:
                told = model.generate_batch(own, max_length=max_tokens, include_prompt_in_result=False, **settings)
                made.update(zip(map(tuple, own), told, strict=True))
        return [[list(text) for text in made[tuple(row)].sequences_ids] for row in rows]

    def _collect(self, key: SampleKey, drawn: list[int], stop_at_answer: StopUnit | None) -> Generation:
        line = None
        if stop_at_answer:  # written to the end and cut: nothing can be said to the library while it writes
            reader = AnswerDetector(1, self.reference.piece, stop_at_answer)
            line = reader.at[0] if any(reader.add(0, token, at) for at, token in enumerate(drawn)) else None
        return self.reference.collect(key, drawn, [], line)

    def _known(self, requests: Sequence[Request], texts: Sequence[Generation]) -> list[Generation]:
        """The texts with their likelihoods, from one more reading at temperature 1."""
        end = (self.student.tokenizer.eos,)
        rows = [text.ids + (end if text.stop == "end" else ()) for text in texts]
        known = self._scores(self.model, [request.prompt for request in requests], rows)
        return [replace(text, likelihood=round(sum(row), 6) + 0.0) for text, row in zip(texts, known, strict=True)]

    def _scores(self, model: Any, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """Natural log-probabilities of the tokens of each row behind its prompt."""
        asked, written = ([[str(token) for token in each] for each in table] for table in (prompts, rows))
        if self.student.family == "t5":
            # It adds an end token of its own: what stands at it belongs to no text.
            told = model.score_batch(asked, written, max_input_length=0, max_batch_size=32)
            return [list(each.log_probs[: len(row)]) for each, row in zip(told, rows, strict=True)]
        whole = [prompt + row for prompt, row in zip(asked, written, strict=True)]
        told = model.score_batch(whole, max_input_length=0, max_batch_size=32)
        return [list(each.log_probs[len(a) - 1 :][: len(b)]) for each, a, b in zip(told, asked, written, strict=True)]

    def _difference(self, model: Any) -> float:
        """The largest difference between the two models' log-probabilities, on rows longer than T5's buckets reach."""
        size = self.student.tokenizer.size
        prompts = [tuple((7 * at + 3 * row) % size for at in range(length)) for row, length in enumerate((150, 5, 40))]
        rows = [tuple((5 * at + row) % size for at in range(length)) for row, length in enumerate((12, 150, 30))]
        limit = getattr(self.student.model.config, "max_position_embeddings", None) or 400
        prompts, rows = ([each[: limit // 2] for each in table] for table in (prompts, rows))
        theirs = self._scores(model, prompts, rows)
        worst = 0.0
        for prompt, row, told in zip(prompts, rows, theirs, strict=True):
            own = _compute_log_probabilities(self.student, prompt, row)
            difference = (own - torch.tensor(told, dtype=torch.float64)).abs().max()
            worst = max(worst, float("inf") if difference.isnan() else float(difference))
        return worst

    def _opened(self, kind: str, seed: int | None = None) -> Any:
        if seed is not None:
            self.library.set_random_seed(seed)
        made = self.library.Translator if self.student.family == "t5" else self.library.Generator
        files = {name: io.BytesIO(content) for name, content in self.files.items()}
        return made("student", compute_type=kind, inter_threads=1, intra_threads=self.threads, files=files)


def _import_ctranslate2() -> Any:
    try:
        import ctranslate2  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            "CTranslate2 is not installed",
            where="evaluate.engine",
            hint="pip install 'potstill[fast]', or use the engine transformers",
        ) from None
    return ctranslate2


def _convert_student(library: Any, student: Student) -> dict[str, bytes]:
    """The files of a student in CTranslate2's form. Tokens are called by their numbers, rows that pad a head too."""
    from ctranslate2.converters import transformers as converters  # pyright: ignore[reportMissingImports]

    name = type(student.model.config).__name__
    loader = converters._MODEL_LOADERS.get(name) if name in SUPPORTED_CONFIGS else None
    if loader is None:
        raise UserError(
            "CTranslate2 is not tested with this kind of model",
            where="evaluate.engine",
            found=name,
            hint="use the engine transformers",
        )
    tokenizer, head = student.tokenizer, student.head
    with torch.no_grad():
        spec = loader.get_model_spec(copy.deepcopy(student.model))  # it takes a causal model apart
    tokens = [str(token) for token in range(head.weight.shape[0])]
    if student.family == "t5":
        spec.decoder.scale_outputs = head.scale
        spec.register_source_vocabulary(tokens)
        spec.register_target_vocabulary(tokens)
        spec.config.decoder_start_token = str(student.model.config.decoder_start_token_id)
        spec.config.layer_norm_epsilon = student.model.config.layer_norm_epsilon
        spec.config.add_source_bos = spec.config.add_source_eos = False
    else:
        spec.register_vocabulary(tokens)
        spec.config.layer_norm_epsilon = student.model.config.rms_norm_eps
    spec.config.bos_token = spec.config.unk_token = str(tokenizer.pad)
    spec.config.eos_token = str(tokenizer.eos)
    spec.validate()
    spec.optimize(quantization="float32")
    with TemporaryDirectory() as folder:
        spec.save(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def _compute_log_probabilities(student: Student, prompt: Sequence[int], row: Sequence[int]) -> torch.Tensor:
    """Natural log-probabilities [n] of the tokens of a row behind a prompt, from one plain forward pass."""
    model, training = student.model, student.model.training
    model.eval()
    with torch.no_grad():
        if student.family == "t5":
            start: Any = model.config.decoder_start_token_id
            read = torch.tensor([[start, *row[:-1]]])
            logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=read).logits[0]
        else:
            logits = model(input_ids=torch.tensor([[*prompt, *row[:-1]]])).logits[0, len(prompt) - 1 :]
    model.train(training)
    return logits.double().log_softmax(-1).gather(-1, torch.tensor(row)[:, None])[:, 0]


def _derive_batch_seed(seed: int, requests: Sequence[Request]) -> int:
    """A seed for the whole batch: of the run's and of every key in it."""
    text = "\n".join([str(seed), *(f"{question}#{index}" for question, index in (each.key for each in requests))])
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "big")
