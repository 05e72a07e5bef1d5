"""What a run costs: the size of its steps, the answers of its evaluations, and estimates of memory and time.

    plan = plan_step(recipe, training_questions)
    cost = estimate_cost(recipe, plan, questions_of_sets)
    cost.training_seconds, cost.answering_seconds       # on this machine, from products that are measured now

`dry_run` prints it for a run, and `study` for all runs of a study. Lengths are means over the first training questions and
their own solutions, because the teacher's chains do not exist yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from potstill import models, prompts, teachers, tokenization
from potstill.data import labels, splits
from potstill.errors import UserError
from potstill.evaluation import checkpoint, decoding
from potstill.existing_run import Progress
from potstill.recipe import Recipe
from potstill.records import BASE, Question, Split
from potstill.training import estimates, examples

SAMPLE_QUESTIONS: Final = (
    200  # number of training questions whose prompts and solutions are tokenized to estimate lengths
)
STAGE_NAMES: Final = {"evaluation": "evaluate", "test": "test"}  # name in the plan -> stage
Sets = Mapping[str, Mapping[str, list[Question]]]  # set -> split -> questions


@dataclass(frozen=True, slots=True)
class RunCost:
    """Estimates for the part of a run that is left.

    memory             part -> bytes in training
    answering_memory   bytes in evaluation; None for an engine that is not estimated
    operations         floating-point operations of training
    training_seconds   at the measured rate
    answering_seconds  answers on validation and test; 0 for an engine that is not estimated
    rates              operations per second in training and in decoding
    """

    memory: Mapping[str, float]
    answering_memory: float | None
    operations: float
    training_seconds: float
    answering_seconds: float
    rates: tuple[float, float]


def estimate_cost(recipe: Recipe, plan: StepPlan, sets: Sets, so_far: Progress) -> RunCost | None:
    """The cost of training and evaluation; None for another architecture or an unknown size.

    so_far  what the run has made already, which costs nothing more
    Raises UserError if the model is missing.
    """
    shape = find_shape(recipe)
    if shape is None:
        return None
    section, evaluate = recipe.train, recipe.evaluate
    batch = min(section.batch_tokens, plan.tokens)
    memory = estimates.training_memory(
        shape,
        tokens=batch,
        precision=section.precision,
        adapters=section.lora > 0,
        adafactor=section.optimizer == "adafactor",
        copies=section.async_checkpoints,
        checkpointing=section.gradient_checkpointing,
    )
    operations = max(0, section.steps - so_far.trained) * estimates.training_operations(
        shape, tokens=plan.tokens, supervised=plan.supervised, adapters=section.lora > 0
    )
    reads = writes = rows = 0.0
    for one in (evaluation for evaluation in list_evaluations(recipe, sets, so_far) if evaluation.steps):
        lengths = mean_lengths(recipe, one.questions, evaluate.formats, section.demonstrations)
        for prompt, target in lengths.values():
            budget = evaluate.base_max_tokens or evaluate.max_tokens
            n, target = len(one.questions) * one.samples, min(target, evaluate.max_tokens)
            reads += one.steps * len(one.questions) * prompt
            writes += n * (one.base * budget + (one.steps - one.base) * target)
            rows = max(rows, min(n, evaluate.batch_tokens / (prompt + budget)))
    rates = estimates.measure_rates(shape, tokens=batch, rows=rows, precision=section.precision, dtype=evaluate.dtype)
    answering, answering_memory = 0.0, None
    if evaluate.engine == "transformers":
        answering = estimates.answering_seconds(shape, reads=reads, writes=writes, rates=rates)
        answering_memory = sum(
            estimates.evaluation_memory(shape, tokens=evaluate.batch_tokens, dtype=evaluate.dtype).values()
        )
    return RunCost(memory, answering_memory, operations, operations / rates[0], answering, rates)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The expected size of an optimizer step.

    lengths     format -> mean number of tokens of a prompt and of its target
    chains      number of chains; None if the teacher cannot say
    tokens      number of tokens that the model reads
    supervised  number of tokens that it learns
    """

    lengths: dict[str, tuple[float, float]]
    chains: int | None
    tokens: float
    supervised: float


def plan_step(recipe: Recipe, train: Sequence[Question]) -> StepPlan:
    section = recipe.train
    quotas = {name: quota for name, quota in section.formats.items() if quota}
    lengths = mean_lengths(recipe, train, list(quotas), section.demonstrations)
    chains, cap = teachers.from_recipe(recipe).count_chains(train), recipe.filter.max_per_question
    if chains is not None and cap is not None:
        chains = min(chains, len(train) * cap) or None
    chains_per_prompt = examples.mean_chains_per_prompt(recipe, len(train), chains)
    tokens = supervised = 0.0
    for name, quota in quotas.items():
        prompt, target = lengths[name]
        share, rows = quota / sum(quotas.values()), chains_per_prompt if prompts.FORMATS[name].rationale else 1
        tokens += share * (prompt + target * rows)  # the chains of a prompt share its tokens
        supervised += share * target * rows
    n = section.prompts_per_step
    return StepPlan(lengths, chains, n * tokens, n * supervised)


def mean_lengths(
    recipe: Recipe, questions: Sequence[Question], formats: Sequence[str], demonstrations: int
) -> dict[str, tuple[float, float]]:
    """Format -> mean number of tokens of a prompt and of its target, over a sample of the questions.

    demonstrations  number of demonstrations in a few-shot prompt; they are questions of the sample
    """
    tokenizer = tokenization.load_tokenizer(models.tokenizer_folder(recipe))
    chat, instructions = open_chat_template(recipe), labels.instructions(recipe)
    sample = splits.sample_by_hash(questions, SAMPLE_QUESTIONS)
    shown = [prompts.Demonstration(q.text, q.gold, q.rationale or "") for q in sample[:demonstrations]]

    def mean(counts: Sequence[int]) -> float:
        return sum(counts) / len(counts) if counts else 0.0

    def mean_tokens(texts: list[str]) -> float:
        return mean([len(encoded.ids) + 1 for encoded in tokenizer.encode_batch(texts)])

    lengths = {}
    for name in formats:
        format = prompts.FORMATS[name]
        inputs = [prompts.build_prompt(q.text, format, shown, instruction=instructions.get(q.task, "")) for q in sample]
        solutions = [
            prompts.format_solution(q.rationale or "", q.gold) if format.rationale else prompts.format_answer(q.gold)
            for q in sample
        ]
        if chat:
            prompt = mean([len(chat.encode(chat.render(turns))) for turns in inputs])
        else:
            prompt = mean_tokens([turns.plain for turns in inputs])
        lengths[name] = prompt, mean_tokens(solutions)
    return lengths


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The answers of one stage: every step, including the base, answers every question `samples` times.

    steps  number of checkpoints that are left to evaluate; `done`: that are evaluated already
    base   whether the base is left to evaluate
    """

    stage: str
    steps: int
    done: int
    base: bool
    questions: list[Question]
    samples: int


def list_evaluations(recipe: Recipe, sets: Sets, so_far: Progress) -> list[Evaluation]:
    steps = checkpoint_count(recipe) * (1 + len(recipe.evaluate.interpolate or ())) + 1
    tested = (3 if recipe.on_policy else 2) + len(recipe.select.also or ())  # fewer, if choices coincide
    rows: list[tuple[str, int, Split]] = [("evaluation", steps, "validation"), ("test", tested, "test")]
    evaluations = []
    for stage, times, split in rows:
        specs = decoding.list_sampling_specs(checkpoint.list_decodings(recipe, split))
        questions = [question for by_split in sets.values() for question in by_split.get(split, [])]
        done = so_far.evaluated.get(STAGE_NAMES[stage], ())
        left, samples = max(0, times - len(done)), sum(spec.samples for spec in specs)
        evaluations.append(Evaluation(stage, left, len(done), BASE.name not in done, questions, samples))
    return evaluations


def find_shape(recipe: Recipe) -> models.Shape | None:
    """The size of the student; None if it is unknown."""
    if recipe.student.shape is not None:
        size = tokenization.load_tokenizer(models.tokenizer_folder(recipe)).size
        return models.shape_from_recipe(recipe, size)
    path = student_folder(recipe)
    return None if path is None else models.read_shape(path)


def student_folder(recipe: Recipe) -> Path | None:
    """The folder of the student's model; None if the model is not available."""
    try:
        return models.model_folder(recipe) if recipe.student.model else None
    except UserError:
        return None


def checkpoint_count(recipe: Recipe) -> int:
    """The number of checkpoints that training saves."""
    return len(recipe.train.checkpoint_steps)


def open_chat_template(recipe: Recipe) -> models.ChatTemplate | None:
    path = student_folder(recipe)
    return models.chat_template_from_recipe(recipe, path) if path else None
