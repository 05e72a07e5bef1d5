"""A model folder as teacher, in this process or in vLLM: sampled chains with the raw log-probabilities of its k
likeliest outcomes.

    >>> question = Question("mine/1", "What is 1 + 1?", "2", "mine", "train", "number")
    >>> prompt_of = make_prompt_builder(prefix="Question: 2 + 2?\\nLet's think step by step\\n2 + 2 = 4.\\nThe answer is 4\\n")
    >>> print(prompt_of(question).plain)
    Question: 2 + 2?
    Let's think step by step
    2 + 2 = 4.
    The answer is 4
    <BLANKLINE>
    Question: What is 1 + 1?
    Let's think step by step

The engine does the work; this module turns questions into requests and texts into chains cut behind the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from potstill import inference, prompts, storage
from potstill.errors import UserError
from potstill.inference import Decode, Engine, Generation, Request, ScoredText, ScoringEngine, batch_requests
from potstill.prompts import Demonstration, PromptFormat, PromptStyle
from potstill.records import Chain, Prompt, Question, Turn
from potstill.storage.segments import UNSHARDED, Shard
from potstill.teachers import ChainKey, chat_template_input
from potstill.teachers.truncate import merge_end_outcomes, truncate_at_answer

if TYPE_CHECKING:
    from potstill.recipe import Recipe


def sample_from_recipe(
    recipe: Recipe, questions: Sequence[Question], source: str, done: Container[ChainKey], shard: Shard = UNSHARDED
) -> Iterator[list[Chain]]:
    """The chains of a recipe's teacher of kind local or vllm: its model and its prompt file opened, then `sample`."""
    from potstill.recipe import find_path

    teacher = recipe.teacher
    assert teacher.model is not None
    folder = find_path(recipe, teacher.model, "teacher.model")
    kind = "vllm" if teacher.kind == "vllm" else "transformers"
    return sample(
        inference.open_engine(
            folder,
            kind,
            trust_remote_code=teacher.trust_remote_code,
            chat_template=teacher.chat,
            vllm=teacher.vllm,
        ),
        questions,
        prompt_builder_of(recipe),
        samples=teacher.samples,
        temperature=teacher.temperature,
        max_tokens=teacher.max_tokens,
        candidates=teacher.top_logprobs,
        seed=recipe.seed,
        source=source,
        budget=teacher.batch_tokens,
        done=done,
        shard=shard,
        chat=chat_template_input(recipe) is not None,
    )


def prompt_builder_of(recipe: Recipe) -> Callable[[Question], Prompt]:
    """How the teacher of a recipe is asked: behind its prompt file, if it has one."""
    from potstill.recipe import find_path

    if recipe.teacher.prompt is None:
        return make_prompt_builder()
    path = find_path(recipe, recipe.teacher.prompt, "teacher.prompt")
    try:
        return make_prompt_builder(prefix=storage.read_bytes(path).decode("utf-8"))
    except UnicodeDecodeError as fault:
        raise UserError("is not UTF-8 text", where=path, found=fault.reason, hint="name a text file") from None


def make_prompt_builder(
    *, style: PromptStyle = prompts.TEACHER_STYLE, demonstrations: Sequence[Demonstration] = (), prefix: str = ""
) -> Callable[[Question], Prompt]:
    """How a teacher is asked for a chain: behind demonstrations, or behind a text that already holds them.

    prefix  stands before the question as it is, with one newline between (Fu et al. 2023: the eight complex
            demonstrations, whose file ends in a newline itself)
    """
    assert not (demonstrations and prefix), "demonstrations and a prefix text: which comes first is not defined"

    def prompt(question: Question) -> Prompt:
        asked = prompts.build_prompt(
            question.text, PromptFormat(bool(demonstrations), True), demonstrations, style=style
        )
        if not prefix:
            return asked
        first, *others = asked.turns
        return Prompt((Turn(first.role, f"{prefix}\n{first.text}"), *others), asked.lead)

    return prompt


def sample(
    engine: Engine,
    questions: Sequence[Question],
    prompt_of: Callable[[Question], Prompt],
    *,
    samples: int,
    temperature: float,
    max_tokens: int,
    candidates: int,
    seed: int,
    source: str,
    budget: int,
    done: Container[ChainKey] = (),
    shard: Shard = UNSHARDED,
    chat: bool = False,
) -> Iterator[list[Chain]]:
    """`samples` chains of every question, one list a batch.

    temperature  of the draws; the candidates' natural log-probabilities are those of the raw distribution
    candidates   outcomes a step; 0 gives tokens without distributions
    source       the name of this teacher in the keys of its chains
    budget       tokens that a batch may hold, prompts and answers
    done         keys that are stored: a batch of nothing else is not generated again, any other is, whole
    shard        which of the batches: they are those of the whole, so a chain does not depend on the number of shards
    chat         of a model that is asked in its chat template: it writes until it ends its turn, because it may say
                 "the answer is" in a thought; the chain is cut behind the line of the answer part that says it

    Raises UserError if a prompt does not fit the model; the longest come first, so at once.
    """
    requests = [
        Request((question.id, index), prompt)
        for question in questions
        for prompt in [engine.encode(prompt_of(question))]
        for index in range(samples)
    ]
    for batch in shard.of(batch_requests(requests, budget, max_tokens=max_tokens)):
        asked = [requests[index] for index in batch]
        if all((request.key[0], source, request.key[1]) in done for request in asked):
            continue
        written = engine.generate(
            asked,
            Decode(
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
                top_logprobs=candidates,
                stop_at_answer=None if chat else "line",
            ),
        )
        yield [build_chain(text, source, chat) for text in written]


def score_chains(
    engine: ScoringEngine, rows: Sequence[tuple[Prompt, Chain]], *, candidates: int, budget: int
) -> list[Chain]:
    """Chains that exist, as this model reads them: its tokens, and at each the raw log-probabilities of its outcomes.

    rows  each chain with the prompt that the model would have been asked; texts and keys stay as they are
    Raises UserError if a chain does not fit the model.
    """
    texts = [one.text for _, one in rows]
    requests = [Request((one.question, place), engine.encode(prompt)) for place, (prompt, one) in enumerate(rows)]
    longest = max((len(text.encode()) for text in texts), default=0) // 2  # tokens of fewer bytes are rare
    found: dict[int, ScoredText] = {}
    for batch in batch_requests(requests, max(budget, 1), max_tokens=longest):
        told = engine.score(
            [requests[place] for place in batch], [texts[place] for place in batch], top_logprobs=candidates
        )
        found.update(zip(batch, told, strict=True))
    return [_with_scores(one, found[place]) for place, (_, one) in enumerate(rows)]


def _with_scores(one: Chain, read: ScoredText) -> Chain:
    # What was cut off by a budget has no end; any other text ends where its last line does.
    steps = (
        read.candidates[:-1]
        if one.stop == "length"
        else (*read.candidates[:-1], merge_end_outcomes(read.candidates[-1]))
    )
    return replace(one, tokens=read.tokens, spans=read.spans, candidates=steps, semantics="raw")


def score_batches(recipe: Recipe, questions: Sequence[Question], found: Iterable[list[Chain]]) -> Iterator[list[Chain]]:
    """Batches of chains, each chain with the distributions of the model that a recipe's `teacher.score` names."""
    from potstill.recipe import find_path

    teacher = recipe.teacher
    assert teacher.score is not None
    folder = find_path(recipe, teacher.score.model, "teacher.score.model")
    engine = inference.open_engine(folder, trust_remote_code=teacher.trust_remote_code, chat_template=teacher.chat)
    prompt_of, by_id = prompt_builder_of(recipe), {question.id: question for question in questions}
    for batch in found:
        rows = [(prompt_of(by_id[one.question]), one) for one in batch]
        yield score_chains(engine, rows, candidates=teacher.top_logprobs, budget=teacher.batch_tokens)


def build_chain(text: Generation, source: str, chat: bool = False) -> Chain:
    """A generated text as a chain, cut behind its answer sentence. Of a chat model's the tags around a thought are
    taken out, as of a server's, and the sentence is looked for behind the thought."""
    question, index = text.key
    made = Chain.from_tokens(question, index, text.tokens, text.candidates, text.stop, source=source)
    if not chat or made.text.encode() != made.content:
        return truncate_at_answer(made)
    from potstill.teachers import reasoning  # brings the library for HTTP

    parts = reasoning.split_tags(made.text)
    return truncate_at_answer(*reasoning.select_parts(made, parts, "both")) if parts else truncate_at_answer(made)
