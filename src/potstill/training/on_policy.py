"""On-policy distillation: the student writes the texts of a step, and another model scores their tokens.

    plan = plan_training(run_dir, recipe, student)       # `train.on_policy`: a share of the steps of `train`
    plan = plan_repair(run_dir, recipe, student, base)   # `on_policy`: all of the steps after the selection
    texts = OwnTexts(plan, student)
    texts.micro_batches(7)      # writes with the student's current weights, so call it right before step 7
    texts.complete(metrics)     # the metrics of step 7, with the measures of its texts

A plan has *parts*: questions with one scorer. Each step draws questions from its parts. The student answers them in the
form of the evaluation (`select.format`), the scorer gives its distribution at every token of the answer, and the grader
may weigh the answers (`rewards`). The texts, and with them a step, are a function of the weights, the seed and the step.

Texts may be written for several steps at once, a *window* of `refresh_every` steps, with the weights before its first
step. The log-probabilities under these weights are stored with the texts, for the ratios of `losses.OnPolicyLoss`. If a
step measures that the weights have moved too far from those that wrote (`max_kl`), the texts of the window's other steps
are discarded and written again.

After the selection, the generic questions of `on_policy.sets` are scored by the base, so that the student gets back what
it lost; with `on_policy.keep`, answers to the task's questions are scored by the selected student, so that it keeps what
it learned. Generic questions that overlap too much with a validation or test question
(`filter.contamination_threshold`) are left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean
from typing import Final

from potstill import inference, prompts, storage
from potstill.data import run_questions
from potstill.errors import UserError
from potstill.grading import grade
from potstill.inference import Decode, EngineKind
from potstill.inference.transformers import score_targets
from potstill.models import Example, Student, WrittenText
from potstill.recipe import Recipe
from potstill.recipe.on_policy import RewardsSection
from potstill.records import Prompt, Question, Verdict
from potstill.training import data_order, examples, scorer_models
from potstill.training.distributed import broadcast_from_main, is_main_process, share_work
from potstill.training.loop import StepMetrics
from potstill.training.own_texts import (
    OwnText,
    Slot,
    read_own_texts,
    rows_of,
    summarize_texts,
    to_example,
    truncate_own_texts,
    with_logprobs,
    write_texts,
)
from potstill.training.rewards import reward_effects, reward_of
from potstill.training.scorer_models import Scorer
from potstill.training.scorers import only_answer_scores, without_scores

ROLLOUT_FORMAT: Final = "own"  # the format under which losses and positions of generic questions are reported
TASK_FORMAT: Final = "kept"  # the format under which losses and positions of the task's questions are reported
RECENT_STEPS: Final = 20  # steps whose own texts a progress bar counts


@dataclass(frozen=True, slots=True)
class Part:
    """Questions that the student answers, and the scorer of its answers.

    format       the format under which losses and positions are reported
    questions    question id -> question
    draw         function from a step to the ids of its questions
    scorer       None: the texts have only rewards
    only_answer  whether only the answer after the thoughts is scored
    rewards      whether the plan's rewards apply
    """

    format: str
    questions: Mapping[str, Question]
    draw: Callable[[int], list[str]]
    scorer: Scorer | None
    only_answer: bool = False
    rewards: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """How the own texts of a run are written and scored.

    prompt_of      function from a question to the student's prompt
    batch_tokens   largest number of tokens in a batch of the writer, and in a micro-batch
    window         number of steps whose texts are written at once
    max_kl         divergence, in nats per token, above which the texts of a window are written again; None: no bound
    logprobs       whether the log-probabilities of the tokens are needed when the texts are written
    rewards        what the grader's verdicts change; None: texts are not graded, and have no `Example.written`
    file           file of the texts; None: they are not stored
    """

    parts: tuple[Part, ...]
    prompt_of: Callable[[Question], Prompt]
    decode: Decode
    samples: int
    batch_tokens: int
    engine: EngineKind = "transformers"
    window: int = 1
    max_kl: float | None = None
    logprobs: bool = False
    rewards: RewardsSection | None = None
    file: Path | None = None


@dataclass(slots=True)
class OwnTexts:
    """The own texts of a run, as the rows of its steps.

    micro_batches is called with rising steps, each right before the step, and complete right after it. With a `plan.file`,
    the texts of all steps before the first call are those in the file, and each call appends its texts.

    student  writes the texts
    refresh  gives it the current weights, right before it writes; None if it is the student in training
    """

    plan: Plan
    student: Student
    refresh: Callable[[], None] | None = None
    _first: int = 0  # the texts in use were written by the weights before this step
    _stored: dict[int, list[OwnText]] = field(default_factory=dict)
    _prepared: dict[int, list[list[Example]]] = field(default_factory=dict)
    _measures: dict[int, dict[str, float]] = field(default_factory=dict)
    _right: deque[float] = field(default_factory=partial(deque, maxlen=RECENT_STEPS))  # shares of right texts

    def resume(self, step: int, measures: Mapping[str, float]) -> None:
        """Continue after this step: read the texts of its window, and remove later ones from the file.

        measures  the measures of the step's texts (`written` in metrics.jsonl); {} before the first step
        """
        assert self.plan.file is not None, "only stored texts can be resumed"
        last = self._last_of_window(step)
        if is_main_process():
            truncate_own_texts(self.plan.file, last)
        for text in broadcast_from_main(partial(read_own_texts, self.plan.file)) if last > step else ():
            if text.step > step:
                self._stored.setdefault(text.step, []).append(text)
        self._first = step - int(measures.get("staleness", 0))
        self._end_step(step, measures)

    def complete(self, metrics: StepMetrics) -> StepMetrics:
        """The metrics of a step with all measures of its texts (`summarize_texts`)."""
        measures = {**self._measures.pop(metrics.step), **(metrics.written or {})}
        self._right.extend([measures["right"]] if "right" in measures else [])
        self._end_step(metrics.step, measures)
        return replace(metrics, written=measures)

    @property
    def progress_note(self) -> str:
        """The mean share of right texts in the last steps, for a progress bar; empty if no text is graded."""
        return f", {fmean(self._right):.0%} of recent own texts right" if self._right else ""

    def _end_step(self, step: int, measures: Mapping[str, float]) -> None:
        """Discard the texts of the window's other steps if the weights have moved too far from those that wrote them.

        measures  the measures of the step's texts, which are the same on every process
        """
        if self.plan.max_kl is not None and measures.get("kl", 0.0) > self.plan.max_kl:
            self._first = step + 1
            self._stored.clear()
            self._prepared.clear()

    def _last_of_window(self, step: int) -> int:
        return -(-step // self.plan.window) * self.plan.window

    def micro_batches(self, step: int) -> list[list[Example]]:
        """The rows of a step in micro-batches, with the distributions of their scorers. The rows whose scorer needs a whole
        micro-batch have them only on the process that computes the micro-batch."""
        if step not in self._prepared:
            self._prepare(step)
        return self._prepared.pop(step)

    def _prepare(self, step: int) -> None:
        """Write or read the texts of the window from this step on, and score them."""
        plan, last = self.plan, self._last_of_window(step)
        if (step - 1) % plan.window == 0:
            self._first = step
        writes = step == self._first
        slots = {number: self._slots(number) for number in range(step, last + 1)}
        texts = {number: self._stored.pop(number) for number in list(self._stored) if number in slots}
        if writes:
            if self.refresh is not None:
                self.refresh()
            texts = self._write(slots)
        elif slots[step] and step not in texts:
            what, hint = "the texts of this step were written by earlier weights, and are lost", "train again"
            where, found = plan.file or "on-policy texts", f"step {step} of the steps up to {last}"
            raise UserError(what, code="E-train-own-texts-lost", where=where, found=found, hint=f"{hint}: --redo train")
        groups = {number: self._rows(slots[number], texts.get(number, [])) for number in slots}
        if plan.logprobs and writes:
            rows = [row for number in groups for group in groups[number] for row in group]
            values = iter(_written_logprobs(self.student, rows, plan.batch_tokens))
            counts = {number: sum(map(len, groups[number])) for number in groups}
            texts = {n: with_logprobs(texts.get(n, []), [next(values) for _ in range(counts[n])]) for n in groups}
            groups = {number: _with_written(groups[number], texts[number]) for number in groups}
        if plan.file is not None and writes and is_main_process():
            if (step - 1) % plan.window:  # the discarded texts
                truncate_own_texts(plan.file, step - 1)
            with storage.Appender(plan.file) as file:
                file.append(row for number in slots for row in rows_of(texts.get(number, [])))
        for number, rows in groups.items():
            batches = examples.build_micro_batches(rows, plan.batch_tokens, self.student.padded)
            measures = summarize_texts(texts.get(number, []))
            if plan.window > 1:
                measures["staleness"] = number - self._first
            self._prepared[number], self._measures[number] = [self._score(batch) for batch in batches], measures

    def _slots(self, step: int) -> list[Slot]:
        drawn = [(part, name) for part in self.plan.parts for name in part.draw(step)]
        return [
            Slot(step, number, name, self._encode(part.questions[name]), part.format)
            for number, (part, name) in enumerate(drawn)
        ]

    def _encode(self, question: Question) -> tuple[int, ...]:
        return _encode_prompt(self.student, self.plan.prompt_of(question))

    def _write(self, slots: Mapping[int, list[Slot]]) -> dict[int, list[OwnText]]:
        """The texts of every step, graded, in the order of the slots."""
        plan, flat = self.plan, [slot for number in slots for slot in slots[number]]
        if not flat:
            return {}
        engine = inference.open_engine(self.student, plan.engine)
        limits = {"samples": plan.samples, "batch_tokens": plan.batch_tokens}
        written = write_texts(engine, flat, plan.decode, vocabulary=self.student.tokenizer.size, **limits)
        if plan.rewards is not None:
            written = broadcast_from_main(lambda: self._graded(flat, written))
        texts: dict[int, list[OwnText]] = {}
        for slot in flat:
            texts.setdefault(slot.step, []).extend(written.get((slot.step, slot.number), []))
        return texts

    def _graded(
        self, slots: Sequence[Slot], written: Mapping[tuple[int, int], list[OwnText]]
    ) -> dict[tuple[int, int], list[OwnText]]:
        """The texts with grades, rewards, weights and advantages, where rewards apply."""
        section, parts = self.plan.rewards, {part.format: part for part in self.plan.parts}
        assert section is not None
        result = dict(written)
        for slot in slots:
            part, texts = parts[slot.format], written.get((slot.step, slot.number), [])
            if not part.rewards or not texts:
                continue
            question = part.questions[slot.question]
            # The grader gets the stop reason of evaluation: a text that is cut is truncated.
            gold, task, opened = question.gold, question.task, self.student.opens_thought
            verdicts: list[Verdict] = [grade(text.text, gold, task, text.stop, opened=opened) for text in texts]
            rewards = [reward_of(verdict, text.stop, section) for verdict, text in zip(verdicts, texts, strict=True)]
            rows = zip(texts, verdicts, rewards, reward_effects(rewards, section), strict=True)
            result[slot.step, slot.number] = [
                replace(text, grade=verdict.grade, reward=reward, weight=effect.weight, advantage=effect.advantage)
                for text, verdict, reward, effect in rows
            ]
        return result

    def _rows(self, slots: Sequence[Slot], texts: Sequence[OwnText]) -> list[list[Example]]:
        """The rows of a step by slot, scored by the scorers that need the whole step."""
        by_slot: dict[int, list[OwnText]] = {}
        for text in texts:
            by_slot.setdefault(text.slot, []).append(text)
        end = self.student.tokenizer.eos
        groups = [
            [to_example(text, slot, end) for text in by_slot[slot.number]] for slot in slots if slot.number in by_slot
        ]
        for part in self.plan.parts:
            if part.scorer is None or part.scorer.by_step is not None:
                rows = [row for group in groups for row in group if row.format == part.format]
                if not rows:
                    continue
                if part.scorer is None:
                    scored = [replace(row, target=without_scores(row.target)) for row in rows]
                else:
                    assert part.scorer.by_step is not None
                    scored = self._answers_only(part, part.scorer.by_step(rows))
                new = iter(scored)
                groups = [[next(new) if row.format == part.format else row for row in group] for group in groups]
        return groups if self.plan.rewards is None else _with_written(groups, texts)

    def _score(self, rows: list[Example]) -> list[Example]:
        """A micro-batch, scored by the scorers that need only a micro-batch. The order of the rows stays."""
        for part in self.plan.parts:
            if part.scorer is not None and part.scorer.by_batch is not None:
                own = [row for row in rows if row.format == part.format]
                scored = iter(self._answers_only(part, part.scorer.by_batch(own)) if own else [])
                rows = [next(scored) if row.format == part.format else row for row in rows]
        return rows

    def _answers_only(self, part: Part, rows: list[Example]) -> list[Example]:
        return [only_answer_scores(row, self.student.tokenizer) for row in rows] if part.only_answer else rows


@lru_cache(maxsize=1 << 16)
def _encode_prompt(student: Student, prompt: Prompt) -> tuple[int, ...]:
    return tuple(student.encode(student.render(prompt)))


def _with_written(groups: Sequence[Sequence[Example]], texts: Sequence[OwnText]) -> list[list[Example]]:
    """The rows with what training needs to know of their texts. The texts are in the order of the rows."""
    left = iter(texts)
    return [
        [
            replace(row, written=WrittenText(text.weight, text.advantage, text.logprobs))
            for row, text in zip(group, left, strict=False)
        ]
        for group in groups
    ]


def _written_logprobs(student: Student, rows: Sequence[Example], batch_tokens: int) -> list[tuple[float, ...]]:
    """The natural log-probabilities of the tokens of every row's target under the student's current weights."""
    lengths = [(len(row.prompt), len(row.target)) for row in rows]
    batches = data_order.split_into_micro_batches(lengths, batch_tokens, padded=student.padded)

    def score(batch: tuple[int, ...]) -> list[tuple[float, ...]]:
        _, log_q = score_targets(student, [rows[index] for index in batch], 1)
        values = iter(log_q[:, -1].tolist())
        return [tuple(next(values) for _ in range(lengths[index][1])) for index in batch]

    result: list[tuple[float, ...]] = [()] * len(rows)
    for batch, scored in zip(batches, share_work(batches, score), strict=True):
        for index, values in zip(batch, scored, strict=True):
            result[index] = values
    return result


# Plans


def plan_training(run_dir: Path, recipe: Recipe, student: Student, file: Path, stack: ExitStack) -> Plan:
    """The plan of `train.on_policy`.

    stack  closes the connections to servers that score

    Raises UserError if no question is left, or if a scorer cannot be opened.
    """
    section, train = recipe.train.on_policy, recipe.train
    assert section is not None, "the recipe has the section train.on_policy"
    quotas = {name: scorer.quota for name, scorer in section.scorers.items()}
    counts = section.count_own_prompts(train.prompts_per_step, train.steps + section.refresh_every)
    prompt_of, parts = _evaluation_prompts(run_dir, recipe), []
    for name, scorer in section.scorers.items():
        questions = _own_questions(run_dir, recipe, scorer.sets, f"train.on_policy.scorers.{name}.sets")
        order = examples.order_questions(recipe, 1, f"own/{name}", questions)

        def draw(step: int, name: str = name, order: data_order.DataOrder[examples.RowFormat] = order) -> list[str]:
            first, last = (data_order.count_in_rotation(quotas, number)[name] for number in counts[step - 1 : step + 1])
            return [group.question for group in data_order.draw_numbered_groups(order, first, last - first)]

        opened = scorer_models.open_scorer(
            run_dir,
            recipe,
            name,
            student,
            questions,
            lambda question, known=questions: prompt_of(known[question]),
            stack,
        )
        parts.append(Part(f"own/{name}", questions, draw, opened, scorer.part == "answer", scorer.rewards))
    decode = Decode(section.max_tokens, temperature=section.temperature, seed=recipe.training_seed)
    return Plan(
        tuple(parts),
        prompt_of,
        decode,
        section.samples,
        train.batch_tokens,
        section.engine,
        section.refresh_every,
        section.max_kl,
        section.stores_probabilities,
        section.rewards,
        file,
    )


def plan_repair(
    run_dir: Path,
    recipe: Recipe,
    student: Student,
    scorer: Student,
    task_scorer: Student | None = None,
    file: Path | None = None,
) -> Plan:
    """The plan of `on_policy`, after the checkpoint was selected. The texts are graded, but grades change nothing.

    task_scorer  the selected student, which scores the answers to the task's questions (`on_policy.keep`)

    Raises UserError if no generic question is left.
    """
    section = recipe.on_policy
    assert section is not None, "the recipe has the section on_policy"
    prompt_of, budget = _evaluation_prompts(run_dir, recipe), recipe.train.batch_tokens

    def part(format: str, questions: Mapping[str, Question], count: int, scorer: Student) -> Part:
        order = examples.order_questions(recipe, count, ROLLOUT_FORMAT, questions)
        opened = scorer_models.from_model(
            scorer, student, lambda name: prompt_of(questions[name]), top_k=section.top_logprobs, budget=budget
        )
        draw = lambda step: [group.question for group in data_order.draw_groups(order, step)]  # noqa: E731
        return Part(format, questions, draw, opened, rewards=True)

    generic = examples.read_generic_questions(run_dir, recipe, section.sets, "on_policy.sets")
    parts = [part(ROLLOUT_FORMAT, generic, section.prompts_per_step, scorer)]
    if section.keep is not None and task_scorer is not None:
        rows = run_questions.read_questions(run_dir, recipe.questions.train, "train")
        questions = {question.id: question for question in rows}
        parts.append(part(TASK_FORMAT, questions, task_questions_per_step(recipe), task_scorer))
    decode = Decode(section.max_tokens, temperature=section.temperature, seed=recipe.training_seed)
    return Plan(tuple(parts), prompt_of, decode, section.samples, budget, rewards=RewardsSection(), file=file)


def task_questions_per_step(recipe: Recipe) -> int:
    """The number of the task's questions in a step of `on_policy`, at least 1. It follows from their share
    `on_policy.keep`; without this key it is 0."""
    section = recipe.on_policy
    if section is None or section.keep is None:
        return 0
    return data_order.rows_for_share(section.prompts_per_step, section.keep)


def _own_questions(run_dir: Path, recipe: Recipe, sets: Sequence[str], key: str) -> dict[str, Question]:
    """The training questions of the sets, by id. Those of sets that are not trained on are checked for contamination."""
    trained = [name for name in sets if name in recipe.questions.train]
    questions = {question.id: question for question in run_questions.read_questions(run_dir, trained, "train")}
    if generic := [name for name in sets if name not in trained]:
        questions |= examples.read_generic_questions(run_dir, recipe, generic, key)
    return questions


def _evaluation_prompts(run_dir: Path, recipe: Recipe) -> Callable[[Question], Prompt]:
    """The function from a question to its prompt in the evaluation, in the format `select.format`."""
    table, form = run_questions.read_task_prompts(run_dir), prompts.FORMATS[recipe.select.format]
    return lambda question: run_questions.evaluation_prompt(question, form, table)


__all__ = ["OwnTexts", "Part", "Plan", "plan_repair", "plan_training", "task_questions_per_step"]
