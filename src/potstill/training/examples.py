"""Training data: the examples of each step as micro-batches, from the files of a run.

    data = read_training_data(run_dir, recipe, student)
    data.micro_batches(1)        # the examples of the first step, split by the token budget

    >>> one, three = (Target(range(n), range(n + 1), range(n), [1.0] * n, ["hard"] * n) for n in (1, 3))
    >>> rows = [[Example((5,), one, format="a")], [Example((5,), three, format="b"), Example((5,), one, format="b")]]
    >>> [[row.weight for row in group] for group in weight_formats(rows, {"a": 0.9, "b": 0.1})]
    [[4.5], [0.125, 0.125]]

`data_order` decides the questions, formats, chains and demonstrations of a step; this module builds prompts and targets
from them. In formats with a rationale the target is the chain; in the others it is the bare answer, as a hard target.

With `train.loss_weights` the loss of a step is the sum over the formats of w times the format's mean loss, where w is the
format's share of all weights and the mean is over its supervised positions in the step. So a format has the same weight
in every step: its number of rows, their lengths, the micro-batches and the processes do not matter. Without
`train.loss_weights` every supervised position has the same weight. Texts that the student writes have no such format: in
either case a position of theirs has the weight of the mean position of stored chains.

With `train.replay` every step also has replayed rows, so that the student keeps its generic ability. A replayed row is a
training question of a generic set, with the prompt of evaluation and its rationale as the target (the bare answer if it
has no rationale), or a prompt and its answer from a file. Their targets are hard. Every step has the same number of
replayed rows, which follows from `train.replay.share`, and their positions have exactly this share of the step's weight.
Rows that overlap too much with a validation or test question (`filter.contamination_threshold`) are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final

from potstill import prompts
from potstill.alignment import cross_tokenizer
from potstill.alignment.target_store import TargetOrigin, TargetStore
from potstill.data import labels, run_questions, splits
from potstill.errors import UserError
from potstill.models import Example, Student, tokenizer_folder
from potstill.recipe import Recipe, flatten_keys
from potstill.records import Chain, Prompt, Question, Target, Turn
from potstill.storage import manifest
from potstill.tokenization import Tokenizer
from potstill.training import data_order

VERSION: Final = 1  # of the rows of a step, their order, weights and micro-batches; stored by the stages that train
REPLAY_FORMAT: Final = "replay"  # the format under which the losses and positions of replayed rows are reported


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The training data of a run.

    groups         function from a step (counted from 1) to its prompt groups
    examples       function from a step to its rows, in the order of the groups, then the replayed rows
    micro_batches  function from a step to the same rows in micro-batches, for any number of processes
    counts         numbers of questions, chains and replayed rows for the manifest
    """

    groups: Callable[[int], tuple[data_order.PromptGroup[prompts.PromptFormat], ...]]
    examples: Callable[[int], list[Example]]
    micro_batches: Callable[[int], list[list[Example]]]
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class RowFormat:
    """A `data_order.FormatLike` for rows that have no prompt format of the paper."""

    name: str
    rationale: bool = False


@dataclass(frozen=True, slots=True)
class FormatShare:
    """The share of a format, of the student's own texts for a scorer, or of replay, in training, as known before the run.

    rows    share of the rows of a step
    tokens  share of the supervised tokens of all formats; None for replay
    weight  share of the gradient
    epochs  number of times that training uses a chain, an answer in an answer-only format, or a question that the student
            answers; None if unknown
    """

    name: str
    rows: float
    tokens: float | None
    weight: float
    epochs: float | None


def read_training_data(
    run_dir: Path,
    recipe: Recipe,
    student: Student,
    own_micro_batches: Callable[[int], list[list[Example]]] | None = None,
) -> TrainingData:
    """The training data of a run whose chains are aligned. Raises UserError if a format has no target.

    own_micro_batches  function from a step to the micro-batches of texts that the student writes (`train.on_policy`);
                       stored chains are drawn for the other prompts of the step
    """
    section = recipe.train
    questions = {q.id: q for q in run_questions.read_questions(run_dir, recipe.questions.train, "train")}
    targets = TargetStore(targets_folder(run_dir, recipe), target_origin(run_dir, recipe, student.tokenizer))
    targets_of: dict[str, list[int]] = {name: [] for name in questions}
    quotas, lengths = chain_quotas(recipe), targets.lengths
    kinds = [chain_kind(recipe, source, int(lengths[index])) for index, (_, source, _) in enumerate(targets.keys)]
    for index, (question, _, _) in enumerate(targets.keys):
        if quotas is None or quotas[kinds[index]]:
            targets_of[question].append(index)
    kinds_of = {name: [kinds[index] for index in indices] for name, indices in targets_of.items()}
    order = build_data_order(recipe, [(name, len(indices)) for name, indices in targets_of.items()], kinds_of)
    read_replay, replay_counts = _read_replay_rows(run_dir, recipe, student)
    loss_weights: Mapping[str, float] | None = {**section.loss_weights} if section.loss_weights else None
    pool, instructions = _demonstration_pool(recipe, questions), labels.instructions(recipe)
    # A question may occur under two ids, one of which is in the pool. It must not be a demonstration for the other one.
    pool_name = {splits.canonical_question(shot.question): name for name, shot in pool.items()}

    @lru_cache(maxsize=1 << 16)
    def answer_target(question: str) -> Target:
        return _hard_target(question, prompts.format_answer(questions[question].gold), "answer", student.tokenizer)

    @lru_cache(maxsize=1 << 16)
    def encode(text: str) -> tuple[int, ...]:
        return tuple(student.encode(text))

    def build_prompt(group: data_order.PromptGroup[prompts.PromptFormat]) -> Prompt:
        text, shots = questions[group.question].text, []
        if group.format.few_shot:
            name = pool_name.get(splits.canonical_question(text), group.question)
            drawn = data_order.draw_demonstrations(
                recipe.training_seed, group.turn, name, group.format, tuple(pool), section.demonstrations
            )
            shots = [pool[name] for name in drawn]
        instruction = instructions.get(questions[group.question].task, "")
        return prompts.build_prompt(text, group.format, shots, instruction=instruction)

    prompts_before = stored_prompts_before(recipe)

    def draw_groups(step: int) -> tuple[data_order.PromptGroup[prompts.PromptFormat], ...]:
        first, last = prompts_before(step), prompts_before(step + 1)
        return data_order.draw_numbered_groups(order, first, last - first)

    def rows_by_group(step: int, own_weight: float = 0.0) -> list[list[Example]]:
        groups = []
        for group in draw_groups(step):
            prompt, indices = encode(student.render(build_prompt(group))), targets_of[group.question]
            group_targets = [targets[indices[chain]] for chain in group.chains] or [answer_target(group.question)]
            groups.append([Example(prompt, t, 1.0, group.question, group.format.name) for t in group_targets])
        groups = weight_formats(groups, loss_weights)
        weight = sum(row.weight * len(row.target) for rows in groups for row in rows) + own_weight
        return groups + [[row] for row in read_replay(step, weight)]

    def micro_batches(step: int) -> list[list[Example]]:
        own = own_micro_batches(step) if own_micro_batches is not None else []
        weight = sum(row.weight * len(row.target) for rows in own for row in rows)
        return build_micro_batches(rows_by_group(step, weight), section.batch_tokens, student.padded) + own

    return TrainingData(
        groups=draw_groups,
        examples=lambda step: [row for rows in rows_by_group(step) for row in rows],
        micro_batches=micro_batches,
        counts={
            "questions": sum(bool(indices) for indices in targets_of.values()),
            "chains": sum(map(len, targets_of.values())),
            **replay_counts,
        },
    )


def build_micro_batches(groups: Iterable[list[Example]], budget: int, padded: bool) -> list[list[Example]]:
    """The rows of a step in micro-batches of at most `budget` tokens.

    Without padding, the prompt of a group is computed once, so the rows of a group stay together. With padding
    (`padded`), every row is computed separately.
    """
    units = [unit for rows in groups for unit in ([[row] for row in rows] if padded else [rows])]
    lengths = [(len(unit[0].prompt), sum(len(row.target) for row in unit)) for unit in units]
    split = data_order.split_into_micro_batches(lengths, budget, padded=padded)
    return [[row for index in batch for row in units[index]] for batch in split]


def targets_folder(run_dir: Path, recipe: Recipe) -> Path:
    """The folder of a run's targets, from the stage `align`."""
    return run_dir / "align" / f"{tokenizer_folder(recipe).name}-{recipe.transfer.rule}"


def target_origin(run_dir: Path, recipe: Recipe, tokenizer: Tokenizer) -> TargetOrigin:
    """The origin of a run's targets: the student's tokenizer, the sampled chains, and the transfer rule."""
    sampled, filtered = (manifest.read_finished(run_dir / stage) for stage in ("sample", "filter"))
    assert sampled is not None and filtered is not None, "sample and filter come before targets"
    # The completions of the rule `text` come from the chains that the filter kept.
    settings = {key: value for key, value in flatten_keys(recipe, "transfer").items() if value is not None}
    identity = hashlib.sha256(json.dumps([settings, filtered.digest], sort_keys=True).encode()).hexdigest()
    rule = recipe.transfer.rule
    return TargetOrigin(tokenizer.digest, sampled.digest, rule, cross_tokenizer.VERSION, identity)


def build_data_order(
    recipe: Recipe, questions: Sequence[tuple[str, int]], kinds: Mapping[str, Sequence[str]] | None = None
) -> data_order.DataOrder[prompts.PromptFormat]:
    """The data order of a run's training.

    questions  (id, number of chains)
    kinds      question id -> the kind of each of its chains (`chain_kind`), for `train.sources` and `train.lengths`

    Raises UserError if a format has a loss weight, but some step would have no row of this format.
    """
    section, quotas = recipe.train, chain_quotas(recipe)
    order = data_order.DataOrder(
        seed=recipe.training_seed,
        groups_per_step=section.prompts_per_step,
        quotas={prompts.FORMATS[name]: quota for name, quota in section.formats.items() if quota},
        questions=questions,
        chains_per_prompt=section.chains_per_prompt,
        uniform_over=section.uniform_over,
        sources=kinds if quotas else None,
        source_quotas=quotas,
    )
    if section.loss_weights is not None:
        _check_weighted_formats(recipe, order)
    return order


def _check_weighted_formats(recipe: Recipe, order: data_order.DataOrder[prompts.PromptFormat]) -> None:
    """Raise UserError if a step has stored chains, but none in a format with a loss weight."""
    section, when = recipe.train, f"{recipe.train.prompts_per_step} prompts per step"
    counts = data_order.min_groups_per_step(order)
    if section.on_policy is not None:
        bounds = list(map(stored_prompts_before(recipe), range(1, section.steps + 2)))
        for step, counts in enumerate(data_order.count_formats(order, bounds), 1):
            stored = sum(counts.values())
            if stored and 0 in counts.values():
                when = f"{stored} prompts with stored chains in step {step}"
                break
        else:
            return
    for format, count in counts.items():
        if count == 0:
            quota, quotas = order.quotas[format], sum(order.quotas.values())
            raise UserError(
                f"the format {format.name} has a loss weight, but some steps have no prompt in this format",
                code="E-train-format-without-rows",
                where="train.loss_weights",
                found=f"{quota} of {quotas} prompts, {when}",
                hint=f"raise train.prompts_per_step, or the quota of {format.name} in train.formats",
            )


def chain_quotas(recipe: Recipe) -> dict[str, int] | None:
    """The quota of each kind of chain (`chain_kind`) from `train.sources` and `train.lengths`; None if all are alike."""
    sources, lengths = recipe.train.sources, recipe.train.lengths
    if lengths is None:
        return None if sources is None else {**sources}
    by_length = {"short": lengths.short, "long": lengths.long}
    if sources is None:
        return by_length
    return {f"{source}/{name}": quota * by_length[name] for source, quota in sources.items() for name in by_length}


def chain_kind(recipe: Recipe, source: str, tokens: int) -> str:
    """The kind of a chain by which `chain_quotas` counts it. tokens: the length of its target, with the end token."""
    lengths = recipe.train.lengths
    if lengths is None:
        return source
    name = "long" if tokens >= lengths.long_from else "short"
    return name if recipe.train.sources is None else f"{source}/{name}"


def stored_prompts_before(recipe: Recipe) -> Callable[[int], int]:
    """The function from a step to the number of prompts with stored chains in all steps before it. Without
    `train.on_policy`, all prompts have stored chains."""
    section, size = recipe.train.on_policy, recipe.train.prompts_per_step
    if section is None:
        return lambda step: (step - 1) * size
    own = section.count_own_prompts(size, recipe.train.steps)
    return lambda step: (step - 1) * size - own[step - 1]


def check_format_mix(recipe: Recipe) -> None:
    """Raises the errors of `build_data_order` that do not depend on the questions."""
    build_data_order(recipe, [("any question", 1)])


def order_questions(
    recipe: Recipe, groups_per_step: int, format: str, names: Iterable[str]
) -> data_order.DataOrder[RowFormat]:
    """The data order of questions without chains: every question occurs once in an epoch, in the given format."""
    questions = [(name, 0) for name in names]
    return data_order.DataOrder(recipe.training_seed, groups_per_step, {RowFormat(format): 1}, questions)


def weight_formats(groups: list[list[Example]], weights: Mapping[str, float] | None) -> list[list[Example]]:
    """The rows of a step by group, with weights that give each format its share of the step's weight. The mean weight of a
    position stays 1. Without `weights`, and without rows, nothing changes."""
    if weights is None or not groups:
        return groups
    positions = Counter[str]()
    for rows in groups:
        for row in rows:
            positions[row.format] += len(row.target)
    assert positions.keys() == weights.keys(), f"{sorted(positions)} of {sorted(weights)}"
    scale = positions.total() / sum(weights.values())
    position_weights = {name: scale * weight / positions[name] for name, weight in weights.items()}
    return [[replace(row, weight=position_weights[row.format]) for row in rows] for rows in groups]


def compute_format_shares(
    recipe: Recipe,
    target_lengths: Mapping[str, float],
    questions: int,
    chains: int | None,
    own_questions: Mapping[str, int] | None = None,
) -> list[FormatShare]:
    """The shares of a recipe's formats, of the texts that the student writes for each scorer, and of replay, as means over
    all steps.

    target_lengths  mean number of tokens of a target, by format; of a text of the student, by `own/NAME` of its scorer
    questions       number of training questions, which is also the number of answers
    chains          number of chains; None if unknown
    own_questions   number of questions of each scorer of `train.on_policy`
    """
    section = recipe.train
    quotas = {name: quota for name, quota in section.formats.items() if quota}
    own_prompts = {name: count / section.steps for name, count in count_own_prompts(recipe).items()}
    stored = section.prompts_per_step - sum(own_prompts.values())
    groups = {name: stored * quota / sum(quotas.values()) for name, quota in quotas.items()}
    per_prompt = mean_chains_per_prompt(recipe, questions, chains)
    rows = {name: count * (per_prompt if prompts.FORMATS[name].rationale else 1) for name, count in groups.items()}
    tokens = {name: rows[name] * target_lengths[name] for name in quotas}
    samples = section.on_policy.samples if section.on_policy is not None else 0
    own_rows = {name: count * samples for name, count in own_prompts.items()}
    own_tokens = {name: count * target_lengths[f"own/{name}"] for name, count in own_rows.items()}
    weights: dict[str, float] = {**section.loss_weights} if section.loss_weights else tokens
    replay_rows = replay_rows_per_step(recipe)
    replay_share = section.replay.share if section.replay else 0.0
    all_weights = sum(weights.values()) or 1.0  # 0 without any stored chain
    all_rows = sum(rows.values()) + sum(own_rows.values()) + replay_rows
    stored_tokens, all_tokens = sum(tokens.values()), sum(tokens.values()) + sum(own_tokens.values())
    shares = []
    for name in quotas:
        data = chains if prompts.FORMATS[name].rationale else questions
        weight = (1 - replay_share) * (stored_tokens / all_tokens) * weights[name] / all_weights
        epochs = rows[name] * section.steps / data if data else None
        shares.append(FormatShare(name, rows[name] / all_rows, tokens[name] / all_tokens, weight, epochs))
    for name in own_prompts:
        share, known = own_tokens[name] / all_tokens, (own_questions or {}).get(name)
        epochs = own_prompts[name] * section.steps / known if known else None
        shares.append(FormatShare(f"own/{name}", own_rows[name] / all_rows, share, (1 - replay_share) * share, epochs))
    if replay_rows:
        shares.append(FormatShare(REPLAY_FORMAT, replay_rows / all_rows, None, replay_share, None))
    return shares


def count_own_prompts(recipe: Recipe) -> dict[str, int]:
    """The number of prompts in all steps for which the student writes the texts, by scorer of `train.on_policy`."""
    section = recipe.train.on_policy
    if section is None:
        return {}
    total = section.count_own_prompts(recipe.train.prompts_per_step, recipe.train.steps)[-1]
    return data_order.count_in_rotation({name: scorer.quota for name, scorer in section.scorers.items()}, total)


def mean_chains_per_prompt(recipe: Recipe, questions: int, chains: int | None) -> float:
    """The mean number of chains in a prompt group; `train.chains_per_prompt` if the number of chains is unknown."""
    most = recipe.train.chains_per_prompt
    return most if chains is None else min(most, max(1.0, chains / questions))


def replay_rows_per_step(recipe: Recipe) -> int:
    """The number of replayed rows in a step, at least 1. It follows from `train.replay.share`; without replay it is 0."""
    section = recipe.train.replay
    return 0 if section is None else data_order.rows_for_share(recipe.train.prompts_per_step, section.share)


def read_generic_questions(run_dir: Path, recipe: Recipe, sets: Sequence[str], key: str) -> dict[str, Question]:
    """The training questions of generic sets by id, without those that overlap with a validation or test question.

    Raises UserError if no question is left; `key` is the recipe's key that the message names.
    """
    return _drop_contaminated(run_dir, recipe, run_questions.read_questions(run_dir, sets, "train"), key)


def _read_replay_rows(
    run_dir: Path, recipe: Recipe, student: Student
) -> tuple[Callable[[int, float], list[Example]], dict[str, int]]:
    """The function (step, weight of all other positions of the step) -> replayed rows, and counts for the manifest."""
    section = recipe.train.replay
    if section is None:
        return lambda step, weight: [], {}
    all_rows = run_questions.read_replay(run_dir, section.sets)
    rows = _drop_contaminated(run_dir, recipe, all_rows, "train.replay")
    table = run_questions.read_task_prompts(run_dir)
    order = order_questions(recipe, replay_rows_per_step(recipe), REPLAY_FORMAT, rows)
    odds = section.share / (1 - section.share)

    def examples(step: int, weight: float) -> list[Example]:
        drawn = []
        for group in data_order.draw_groups(order, step):
            prompt, answer = _prompt_and_answer(rows[group.question], table)
            target = _hard_target(group.question, answer, REPLAY_FORMAT, student.tokenizer)
            ids = tuple(student.encode(student.render(prompt)))
            drawn.append(Example(ids, target, 1.0, group.question, REPLAY_FORMAT))
        position_weight = odds * weight / sum(len(row.target) for row in drawn)
        return [replace(row, weight=position_weight) for row in drawn]

    dropped = len(all_rows) - len(rows)
    return examples, {"replayed rows": len(rows), "rows too near to a measured question": dropped}


def _drop_contaminated(run_dir: Path, recipe: Recipe, rows: Sequence[Question], key: str) -> dict[str, Question]:
    overlaps = run_questions.read_overlaps(run_dir)
    kept = {row.id: row for row in rows if overlaps.get(row.id, 0.0) < recipe.filter.contamination_threshold}
    if not kept:
        raise UserError(
            "every row overlaps with a validation or test question",
            code="E-train-replay-contaminated",
            where=key,
            found=f"{len(rows)} rows",
            hint="use other rows, or raise filter.contamination_threshold",
        )
    return kept


def _prompt_and_answer(row: Question, table: dict[str, run_questions.TaskPrompt]) -> tuple[Prompt, str]:
    if row.id.startswith("replay:"):  # from a file: whitespace at the end of the prompt becomes the start of the answer
        text = row.text.rstrip()
        return Prompt((Turn("user", text),), row.text[len(text) :] or " "), row.gold
    name = "zero-shot-rationale" if row.rationale else "zero-shot-answer"
    prompt = run_questions.evaluation_prompt(row, prompts.FORMATS[name], table)
    return prompt, prompts.format_solution(row.rationale or "", row.gold)


def _hard_target(question: str, text: str, source: str, tokenizer: Tokenizer) -> Target:
    return cross_tokenizer.transfer(Chain.from_text(question, 0, text, source=source), tokenizer, "one-hot")


def _demonstration_pool(recipe: Recipe, questions: dict[str, Question]) -> dict[str, prompts.Demonstration]:
    """The training questions with a rationale (Fu et al. 2023, section 3), without duplicates in canonical form; {} if
    the recipe has no few-shot format."""
    few_shot = [name for name, quota in recipe.train.formats.items() if quota and prompts.FORMATS[name].few_shot]
    if not few_shot:
        return {}
    by_form: dict[str, tuple[str, prompts.Demonstration]] = {}
    for name, question in questions.items():
        if question.rationale:
            shot = prompts.Demonstration(question.text, question.gold, question.rationale)
            by_form.setdefault(splits.canonical_question(question.text), (name, shot))
    if not by_form:
        raise UserError(
            "demonstrations need rationales, but no training question has one",
            code="E-train-no-demonstrations",
            where="train.formats",
            found=", ".join(few_shot),
            hint="add rationales to the sets, or set the quota of the few-shot formats to 0",
        )
    return dict(by_form.values())
