"""What a run costs: the size of its steps, the answers of its evaluations, and estimates of memory and time.

    plan = plan_step(recipe, questions_of_sets)
    cost = estimate_cost(recipe, plan, questions_of_sets)
    cost.training_seconds, cost.answering_seconds       # on this machine, from products that are measured now

`dry_run` prints it for a run, and `study` for all runs of a study. Lengths are means over the first training questions and
their own solutions, because the teacher's chains do not exist yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from potstill import models, prompts, teachers, tokenization
from potstill.data import labels, splits
from potstill.data.assemble import Sets, training_questions
from potstill.errors import UserError
from potstill.evaluation import checkpoint, decoding
from potstill.existing_run import Progress
from potstill.recipe import Recipe
from potstill.records import BASE, Question, Split
from potstill.training import estimates, examples, scorer_models

SAMPLE_QUESTIONS: Final = (
    200  # number of training questions whose prompts and solutions are tokenized to estimate lengths
)
MEASURED_TOKENS: Final = 512  # at most, in the product that gives the rate of a scorer, which may be large
STAGE_NAMES: Final = {"evaluation": "evaluate", "test": "test"}  # name in the plan -> stage


@dataclass(frozen=True, slots=True)
class RunCost:
    """Estimates for the part of a run that is left.

    memory             part -> bytes in training
    answering_memory   bytes in evaluation; None for an engine that is not estimated
    operations         floating-point operations of training
    training_seconds   at the measured rate
    answering_seconds  answers on validation and test; 0 for an engine that is not estimated
    rates              operations per second in training and in decoding
    own_texts          the texts that the student writes in training; None without them
    """

    memory: Mapping[str, float]
    answering_memory: float | None
    operations: float
    training_seconds: float
    answering_seconds: float
    rates: tuple[float, float]
    own_texts: OwnTextCost | None = None

    @property
    def own_seconds(self) -> float:
        """The time to write and to score own texts, as far as there is an estimate."""
        return 0.0 if self.own_texts is None else self.own_texts.writing + self.own_texts.scoring


@dataclass(frozen=True, slots=True)
class OwnTextCost:
    """Estimates of the seconds that the texts of `train.on_policy` take, for the part of a run that is left.

    writing       if a text is as long as a solution; `longest_writing`: if every text has max_tokens tokens
    scoring       the same, for the scorers in this process, with the transfer to the student's tokens
    unknown       scorers without an estimate: models of other architectures, and servers
    """

    writing: float
    longest_writing: float
    scoring: float
    longest_scoring: float
    unknown: tuple[str, ...] = ()


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
        quantized=section.load_in_4bit,
        adafactor=section.optimizer == "adafactor",
        copies=section.async_checkpoints,
        checkpointing=section.gradient_checkpointing,
        writer=section.on_policy is not None and section.sharding == "full",
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
    own = _estimate_own_texts(recipe, plan, shape, so_far)
    return RunCost(memory, answering_memory, operations, operations / rates[0], answering, rates, own)


def _estimate_own_texts(recipe: Recipe, plan: StepPlan, shape: models.Shape, so_far: Progress) -> OwnTextCost | None:
    section, train = recipe.train.on_policy, recipe.train
    if section is None:
        return None
    counts = section.count_own_prompts(train.prompts_per_step, train.steps)
    left = (counts[-1] - counts[min(so_far.trained, train.steps)]) / max(1, counts[-1])
    prompts_at_once = max(1.0, counts[-1] / train.steps * section.refresh_every)
    unknown, totals = list[str](), dict[str, float]()
    totals |= dict.fromkeys(("writing", "longest_writing", "scoring", "longest_scoring"), 0.0)
    rates: dict[models.Shape, tuple[float, float]] = {}

    def rates_of(model: models.Shape, rows: float) -> tuple[float, float]:
        if model not in rates:
            tokens = min(train.batch_tokens, MEASURED_TOKENS)
            rates[model] = estimates.measure_rates(
                model, tokens=tokens, rows=rows, precision="float32", dtype="float32"
            )
        return rates[model]

    for name, count in examples.count_own_prompts(recipe).items():
        prompt, expected = plan.lengths[f"own/{name}"]
        model = scorer_models.find_scorer_model(recipe, name)
        scorer, transfers = _scorer_shape(model, shape), model is not None and _has_other_tokens(recipe, model)
        unknown += [name] if model is not None and scorer is None else []
        for prefix, length in (("", expected), ("longest_", float(section.max_tokens))):
            reads, writes = left * count * prompt, left * count * section.samples * length
            rows = min(prompts_at_once * section.samples, train.batch_tokens / (prompt + section.max_tokens))
            seconds = estimates.answering_seconds(shape, reads=reads, writes=writes, rates=rates_of(shape, rows))
            read = reads + writes
            if section.stores_probabilities:  # the student reads each text once more
                rate = rates_of(shape, rows)[0]
                seconds += estimates.scoring_operations(shape, tokens=read, scored=writes) / rate
            totals[f"{prefix}writing"] += seconds
            totals[f"{prefix}scoring"] += writes * estimates.TRANSFER_SECONDS * transfers
            if scorer is not None:
                operations = estimates.scoring_operations(scorer, tokens=read, scored=writes)
                totals[f"{prefix}scoring"] += operations / rates_of(scorer, rows)[0]
    return OwnTextCost(**totals, unknown=tuple(unknown))


def _scorer_shape(model: scorer_models.ScorerModel | None, student: models.Shape) -> models.Shape | None:
    """The size of the model of a scorer; None if it is unknown, behind a server, or if there is no model."""
    if model is None or model.server is not None:
        return None
    return student if model.folder is None else models.read_shape(model.folder)


def _has_other_tokens(recipe: Recipe, model: scorer_models.ScorerModel) -> bool:
    """Whether the scores of a scorer are transferred to the student's tokens."""
    if model.folder is None:
        return model.server is not None
    of_student = tokenization.load_tokenizer(models.tokenizer_folder(recipe))
    return tokenization.load_tokenizer(model.folder).digest != of_student.digest


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The expected size of an optimizer step.

    lengths     format -> mean number of tokens of a prompt and of its target; also for `own/NAME` of each scorer of
                `train.on_policy`, where a text of the student is as long as a solution, and at most max_tokens
    chains      number of chains; None if the teacher cannot say
    tokens      number of tokens that the model reads, as the mean over all steps
    supervised  number of tokens that it learns, as the mean over all steps
    own_questions  scorer -> number of questions that the student answers
    """

    lengths: dict[str, tuple[float, float]]
    chains: int | None
    tokens: float
    supervised: float
    own_questions: Mapping[str, int] = field(default_factory=dict)


def plan_step(recipe: Recipe, sets: Sets) -> StepPlan:
    section, own = recipe.train, recipe.train.on_policy
    train = training_questions(recipe.questions.train, sets)
    quotas = {name: quota for name, quota in section.formats.items() if quota}
    lengths = mean_lengths(recipe, train, list(quotas), section.demonstrations)
    chains, cap = teachers.from_recipe(recipe).count_chains(train), recipe.filter.max_per_question
    if chains is not None and cap is not None:
        chains = min(chains, len(train) * cap) or None
    chains_per_prompt = examples.mean_chains_per_prompt(recipe, len(train), chains)
    tokens = supervised = 0.0
    own_prompts = examples.count_own_prompts(recipe)
    stored = section.prompts_per_step - sum(own_prompts.values()) / section.steps
    for name, quota in quotas.items():
        prompt, target = lengths[name]
        share, rows = quota / sum(quotas.values()), chains_per_prompt if prompts.FORMATS[name].rationale else 1
        tokens += stored * share * (prompt + target * rows)  # the chains of a prompt share its tokens
        supervised += stored * share * target * rows
    own_questions = dict[str, int]()
    for name, count in own_prompts.items():
        assert own is not None, "only on-policy training has such prompts"
        asked, format = training_questions(own.scorers[name].sets, sets), recipe.select.format
        [(prompt, target)] = mean_lengths(recipe, asked, [format], section.demonstrations).values()
        lengths[f"own/{name}"] = prompt, (target := min(target, float(own.max_tokens)))
        own_questions[name] = len(asked)
        tokens += count / section.steps * (prompt + target * own.samples)
        supervised += count / section.steps * target * own.samples
    return StepPlan(lengths, chains, tokens, supervised, own_questions)


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
