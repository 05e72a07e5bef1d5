"""The teachers `local` and `vllm`: a model folder, run by transformers or vLLM.

Chains are sampled and stored with the raw log-probabilities of the k likeliest tokens at each position.

    >>> generation = Generation(("mine/1", 0), (5, 6, 7), (b"The answer is", b" 2", b"\\n"),
    ...                         b"The answer is 2\\n", (), None, "cut")
    >>> build_chain(generation, "local").text
    'The answer is 2'

An engine of `potstill.inference` generates the texts. This module builds its requests from questions, and truncates the
texts after their answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from potstill import inference
from potstill.errors import UserError
from potstill.inference import (
    Decode,
    Engine,
    Generation,
    Request,
    ScoredText,
    ScoringEngine,
    batch_requests,
    check_decoder_only,
    check_installed,
)
from potstill.recipe import Recipe
from potstill.records import CUT_IN_THOUGHT, Chain, Prompt, Question
from potstill.teachers import chain_parts
from potstill.teachers.chain_parts import merge_end_outcomes, truncate_at_answer
from potstill.teachers.protocol import (
    PromptBuilder,
    SamplingState,
    Scorer,
    describe_chains,
    load_prompt_builder,
    missing_chains,
)
from potstill.thoughts import split_tags

if TYPE_CHECKING:
    from potstill.models import ChatSettings, ModelSource


class LocalModel(Scorer):
    """The teachers `local` and `vllm`. A scorer uses the model of `teacher.score`."""

    generates = True

    def __init__(self, recipe: Recipe, *, as_scorer: bool = False) -> None:
        super().__init__(recipe)
        score = self.recipe.teacher.score
        self.model_key = "teacher.score.model" if as_scorer else "teacher.model"
        section = score if as_scorer and score is not None else self.recipe.teacher
        self.model, self.revision = section.model, section.revision
        is_vllm = self.recipe.teacher.kind == "vllm"
        self.engine_kind: Literal["vllm", "transformers"] = "vllm" if is_vllm else "transformers"

    @property
    def folder(self) -> Path:
        return self._source.folder

    @property
    def _source(self) -> ModelSource:
        from potstill import models

        assert self.model is not None, f"the recipe's schema requires {self.model_key}"
        return models.find_model(self.recipe, self.model, self.model_key, self.revision)

    @property
    def uses_chat_template(self) -> bool:
        from potstill import models

        return self.recipe.teacher.chat is not False and models.auto_uses_chat_template(self.folder)

    @property
    def chat_settings(self) -> ChatSettings:
        from potstill import models

        return models.ChatSettings.from_section(self.recipe.teacher, "teacher")

    def _check_reasoning(self) -> None:
        """Raise UserError if the recipe selects a part of the output, but the model has no thoughts for potstill."""
        if self.recipe.teacher.reasoning != "both" and not self.uses_chat_template:
            raise UserError(
                "prompts are plain text, because no chat template is used, so no thought is recognised",
                code="E-model-chat-settings-unused",
                where="teacher.reasoning",
                found=self.folder,
                hint="remove teacher.reasoning, or use an instruction-tuned model",
            )

    def sample(self, questions: Sequence[Question], state: SamplingState | None = None) -> Iterator[list[Chain]]:
        teacher, chat = self.recipe.teacher, self.uses_chat_template
        self._check_reasoning()
        engine = inference.open_engine(
            self.folder,
            self.engine_kind,
            trust_remote_code=teacher.trust_remote_code,
            chat_template=self.chat_settings,
            dtype=teacher.dtype,
            vllm=teacher.vllm,
        )
        decode = Decode(
            max_tokens=teacher.max_tokens,
            temperature=teacher.temperature,
            seed=self.recipe.sampling_seed,
            top_logprobs=teacher.top_logprobs,
            stop_at_answer=None if chat else "line",
        )
        return sample(
            engine,
            questions,
            load_prompt_builder(self.recipe),
            decode,
            samples=teacher.samples,
            source=self.source,
            batch_tokens=teacher.batch_tokens,
            state=state or SamplingState(),
            chat=chat,
            reasoning=teacher.reasoning,
        )

    def score(
        self, questions: Sequence[Question], batches: Iterable[list[Chain]], state: SamplingState | None = None
    ) -> Iterator[list[Chain]]:
        teacher = self.recipe.teacher
        engine = inference.open_engine(
            self.folder,
            trust_remote_code=teacher.trust_remote_code,
            chat_template=self.chat_settings,
            dtype=teacher.dtype,
        )
        build_prompt, by_id = load_prompt_builder(self.recipe), {question.id: question for question in questions}
        for batch in batches:
            rows = [(build_prompt(by_id[chain.question]), chain) for chain in batch]
            yield score_chains(engine, rows, top_logprobs=teacher.top_logprobs, batch_tokens=teacher.batch_tokens)

    def inputs(self) -> dict[str, str]:
        from potstill import models, tokenization

        # The effect of `teacher.chat`, not its value: for a model without a template, the value changes nothing.
        chat = {"teacher.chat": "its template"} if self.uses_chat_template else {}
        versions = {"version of students": str(models.VERSION), "version of tokenizers": str(tokenization.VERSION)}
        chat |= models.end_of_turn_identity(self.folder, self.chat_settings)
        chat |= tokenization.thought_tags_identity(self.folder, self.model_key)
        if self.model_key == "teacher.model":
            chat |= models.identify_teacher_thoughts(self.folder, self.chat_settings)
        return self._source.identity(self.model_key) | super().inputs() | chat | versions

    def checks(self, *, weights: bool = True) -> Iterator[Callable[[], object]]:
        from potstill import models

        if self.model_key == "teacher.model":
            yield lambda: load_prompt_builder(self.recipe)
        if self.engine_kind == "vllm":
            yield lambda: check_installed("vllm", "teacher.kind", "set teacher.kind: local")
            yield lambda: check_decoder_only(self.folder, self.model_key)
        teacher = self.recipe.teacher
        if teacher.chat_template_kwargs or teacher.system_prompt is not None:
            yield lambda: models.open_chat_template(self.folder, self.chat_settings, models.read_family(self.folder))
        yield self._check_reasoning
        if self.engine_kind != "vllm" and weights:
            yield lambda: models.check_weights(self.folder, trust_remote_code=self.recipe.teacher.trust_remote_code)

    def forecast(
        self, questions: Sequence[Question], stored: Mapping[str, int] | None = None, scores: Path | None = None
    ) -> list[str]:
        teacher, folder = self.recipe.teacher, self._folder_or_none()
        chains = sum(missing_chains(questions, teacher.samples, stored))
        chat = folder is not None and self.uses_chat_template
        place = f"{teacher.model} does not exist; the run would stop at the stage sample"
        if folder is not None:
            size = self._source.missing_bytes
            place = f"{teacher.model} (the run downloads {size / 2**30:.2f} GiB of weights)" if size else str(folder)
        return [
            f"teacher           {teacher.kind}: {place}",
            f"  requests        {describe_chains(questions, teacher.samples, stored)} of at most"
            f" {chains * teacher.max_tokens} tokens",
            f"  stores          {teacher.top_logprobs} log-probabilities per token, temperature {teacher.temperature}",
            *(["  prompts         in the model's chat template (plain prompts: teacher.chat: false)"] if chat else []),
        ]

    def _folder_or_none(self) -> Path | None:
        try:
            return self.folder
        except UserError:
            return None

    def prompt_builder(self) -> PromptBuilder | None:
        return load_prompt_builder(self.recipe)

    def tokenizer_folder(self) -> Path | None:
        return self.folder


def sample(
    engine: Engine,
    questions: Sequence[Question],
    build_prompt: PromptBuilder,
    decode: Decode,
    *,
    samples: int,
    source: str,
    batch_tokens: int,
    state: SamplingState,
    chat: bool = False,
    reasoning: str = "both",
) -> Iterator[list[Chain]]:
    """`samples` chains of every question, batch by batch.

    A batch is skipped if all of its chains are stored; otherwise the whole batch is generated. The batches do not depend
    on the number of shards.

    source        the name of this teacher in the keys of its chains
    batch_tokens  maximum number of tokens in a batch: prompts and answers
    chat          whether the model uses its chat template. Then generation stops only at the end of the turn, because a
                  thought may contain "the answer is", and the chain is truncated after the answer that follows the
                  thought
    reasoning     part of the output that is learnt: both, reasoning, answer or shortened

    Raises UserError if a prompt is too long for the model. The longest prompts come first, so it is raised at once.
    """
    requests = [
        Request((question.id, index), prompt)
        for question in questions
        for prompt in [engine.encode(build_prompt(question))]
        for index in range(samples)
    ]
    for indices in state.shard.of(batch_requests(requests, batch_tokens, max_tokens=decode.max_tokens)):
        batch = [requests[index] for index in indices]
        if not all((request.key[0], source, request.key[1]) in state.stored for request in batch):
            yield [build_chain(generation, source, chat, reasoning) for generation in engine.generate(batch, decode)]


def score_chains(
    engine: ScoringEngine, rows: Sequence[tuple[Prompt, Chain]], *, top_logprobs: int, batch_tokens: int
) -> list[Chain]:
    """Existing chains with the tokens of this model, and the raw log-probabilities of its likeliest tokens.

    rows  pairs of the model's prompt and the chain
    The texts and keys of the chains do not change. Raises UserError if a chain is too long for the model.
    """
    texts = [chain.text for _, chain in rows]
    requests = [Request((chain.question, row), engine.encode(prompt)) for row, (prompt, chain) in enumerate(rows)]
    longest = max((len(text.encode()) for text in texts), default=0) // 2  # most tokens have two bytes or more
    scores: dict[int, ScoredText] = {}
    for batch in batch_requests(requests, max(batch_tokens, 1), max_tokens=longest):
        rows_of_batch = [requests[row] for row in batch], [texts[row] for row in batch]
        scored = engine.score(*rows_of_batch, top_logprobs=top_logprobs)
        scores.update(zip(batch, scored, strict=True))
    return [_with_scores(chain, scores[row]) for row, (_, chain) in enumerate(rows)]


def _with_scores(chain: Chain, scored: ScoredText) -> Chain:
    # A chain that was truncated at max_tokens has no end. Any other chain ends with its last line.
    *steps, end = scored.candidates
    candidates = steps if chain.stop == "length" else [*steps, merge_end_outcomes(end)]
    return replace(chain, tokens=scored.tokens, spans=scored.spans, candidates=tuple(candidates), semantics="raw")


def build_chain(generation: Generation, source: str, chat: bool = False, reasoning: str = "both") -> Chain:
    """The chain of a generated text, truncated after its answer sentence.

    For a chat model, tags around thoughts are removed, the parts that are not learnt are dropped (`reasoning`), and the
    answer sentence is searched after the last thought. A chain that was cut inside a thought gets the defect CUT_IN_THOUGHT.
    """
    question, index = generation.key
    chain = Chain.from_tokens(question, index, generation.tokens, generation.candidates, generation.stop, source=source)
    parts = split_tags(chain.text, opened=generation.opened and chain.stop == "length") if chat else []
    if chain_parts.lacks_answer(parts, chain.stop):
        chain = replace(chain, defects=(CUT_IN_THOUGHT,))
    if parts and chain.text.encode() != chain.content:  # the places of the parts are not those of the bytes
        return chain if chain.defects else truncate_at_answer(chain)
    return (
        truncate_at_answer(*chain_parts.select_parts(chain, parts, reasoning)) if parts else truncate_at_answer(chain)
    )
