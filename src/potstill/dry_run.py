"""What the plan of a run says about training: the mix of formats, tokens, operations and time.

    print("\n".join(lines(plan, train, parameters=250_000_000)))

Lengths are means over the first training questions and their own solutions, which stand for the teacher's chains.

The plan of a run before it is made: what it would read, sample, train and evaluate, and about how much that is.

    print(text(recipe.load(path)))        # what `potstill run RECIPE --dry-run` prints

Everything that is local is loaded; what is not (weights or chains still to be fetched) is said to be missing, and what
does not depend on it is given all the same. Memory and time are estimates: each says from what.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy

from potstill import data, models, preflight, prompts, runner, stages, teachers, tokenization
from potstill.data import assemble, splits
from potstill.errors import UserError
from potstill.evaluation import checkpoint, decoding
from potstill.recipe import Recipe, find_path
from potstill.records import Question, Split
from potstill.training import format_mix, on_policy, replay_data

SAMPLE_QUESTIONS = 200  # training questions whose prompts and solutions are tokenized to estimate lengths
FLOPS_RATES = (1e13, 1e14, 4e14)  # operations a second for which a time is given


def describe_training(recipe: Recipe, train: Sequence[Question], parameters: int | None) -> list[str]:
    """The lines on training. parameters: of the student, None if its size is not known.

    Raises UserError for what would stop training.
    """
    tokenizer = tokenization.load_tokenizer(models.tokenizer_folder(recipe))
    some = splits.sample_by_hash(train, SAMPLE_QUESTIONS)
    quotas = {prompts.FORMATS[name]: quota for name, quota in recipe.train.formats.items() if quota}
    shots = [prompts.Demonstration(q.text, q.gold, q.rationale or "") for q in some[: recipe.train.demonstrations]]
    chains = _max_chains(recipe, train)
    each = format_mix.mean_chains_per_prompt(recipe, len(train), chains)
    tokens = supervised = 0.0
    targets: dict[str, float] = {}
    prompt_tokens: dict[str, float] = {}
    path = find_local(recipe, recipe.student.model, "student.model") if recipe.student.model else None
    chat = models.chat_template_from_recipe(recipe, path) if path else None
    for format, quota in quotas.items():
        share = quota / sum(quotas.values())
        asked = [prompts.build_prompt(q.text, format, shots) for q in some]
        taught = [
            prompts.format_solution(q.rationale or "", q.gold) if format.rationale else prompts.format_answer(q.gold)
            for q in some
        ]
        target = targets[format.name] = _mean([len(ids.ids) + 1 for ids in tokenizer.encode_batch(taught)])
        if chat:
            prompt = _mean([len(chat.encode(chat.render(one))) for one in asked])
        else:
            prompt = _mean([len(ids.ids) + 1 for ids in tokenizer.encode_batch([one.plain for one in asked])])
        prompt_tokens[format.name] = prompt
        rows = each if format.rationale else 1
        tokens += share * (prompt + target * rows)  # the chains of a group share its prompt
        supervised += share * target * rows
    made = _format_lines(recipe, train, chains, prompt_tokens, targets)
    a_step = tokens * recipe.train.prompts_per_step
    total, taught = a_step * recipe.train.steps, supervised * recipe.train.prompts_per_step * recipe.train.steps
    made += [
        f"  steps           {recipe.train.steps} of {recipe.train.prompts_per_step} groups: {a_step:.0f} tokens a step,",
        f"                  {total:.3g} in all, of which {taught:.3g} supervised",
    ]
    if parameters is not None:
        work = 6 * parameters * total
        here = _measure_flops()
        times = [f"{_format_duration(work / rate)} at {rate / 1e12:.0f} TFLOP/s" for rate in FLOPS_RATES]
        made += [
            f"  time            {work:.2g} operations (6 x parameters x tokens):",
            f"                  {', '.join(times)};",
            f"                  {_format_duration(work / here)} at the {here / 1e12:.3f} TFLOP/s of one matrix product here",
        ]
    if recipe.train.early_stopping_patience is not None:
        made.append(
            f"  may stop        once {recipe.train.early_stopping_patience} checkpoints came after the best on validation"
        )
    if recipe.on_policy is not None:
        made.append(f"  repair          {_on_policy_line(recipe)}")
    return [*made, ""]


def _format_lines(
    recipe: Recipe,
    train: Sequence[Question],
    chains: int | None,
    prompt_tokens: dict[str, float],
    targets: dict[str, float],
) -> list[str]:
    """A line for each format, and what its columns are."""
    lines = ["training              rows  tokens  weight  epochs  prompt  target"]
    least = "" if teachers.from_recipe(recipe).right_by_definition else ">="
    for part in format_mix.compute_format_shares(recipe, targets, len(train), chains):
        tokens = "-" if part.tokens is None else f"{part.tokens:.1%}"
        about = least if part.name in targets and prompts.FORMATS[part.name].rationale else ""
        epochs = "-" if part.epochs is None else f"{about}{part.epochs:.2f}"
        lengths = f" {prompt_tokens[part.name]:>7.0f} {targets[part.name]:>7.0f}" if part.name in targets else ""
        lines.append(f"  {part.name:<19} {part.rows:>5.1%} {tokens:>7} {part.weight:>7.1%} {epochs:>7}{lengths}")
    if recipe.train.replay is not None:
        rows, share = replay_data.replay_rows_per_step(recipe), recipe.train.replay.share
        lines.append(f"                  replay adds {rows} rows to each step with {share:.0%} of its weight")
    lines += [
        "                  rows, tokens, weight: shares of the rows, of the supervised tokens and of the gradient",
        "                  epochs: how often each chain is seen, or each answer in an answer-only format",
    ]
    if least and chains is not None:
        lines.append(f"                  (>=: if all {chains} chains are right and kept; fewer are seen more often)")
    n = min(len(train), SAMPLE_QUESTIONS)
    return [*lines, f"                  prompt, target: tokens, means over {n} questions and their own solutions"]


def _max_chains(recipe: Recipe, train: Sequence[Question]) -> int | None:
    """How many chains there are to learn from at most; None if nothing is known of it."""
    chains, cap = teachers.from_recipe(recipe).count_chains(train), recipe.filter.max_per_question
    return chains if chains is None or cap is None else min(chains, len(train) * cap) or None


def _on_policy_line(recipe: Recipe) -> str:
    asked = recipe.on_policy
    assert asked is not None
    texts = (asked.prompts_per_step + on_policy.task_questions_per_step(recipe)) * asked.samples
    return f"{asked.steps} steps on {texts} texts of its own each, of at most {asked.max_tokens} tokens"


def find_local(recipe: Recipe, path: str, key: str) -> Path | None:
    try:
        return find_path(recipe, path, key)
    except UserError:
        return None


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0


def _measure_flops() -> float:
    """Operations a second of one matrix product in 32 bits, the best of three."""
    n = 1024
    left = numpy.ones((n, n), dtype=numpy.float32)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        numpy.matmul(left, left)
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def _format_duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


BYTES_PER_PARAMETER = 16  # a parameter: weight, gradient and two moments, 32 bits each
FEW_QUESTIONS = 100  # questions; a score over fewer is said to be uncertain


def describe_run(recipe: Recipe) -> str:
    """The plan as plain text. Raises UserError for what would stop the run before its first stage."""
    away = any(own.file is None or own.hub is not None for own in recipe.sets.values())
    kept = ", but fetched sets into the cache" if away else ""
    lines = [f"plan of {recipe.name} (nothing is written{kept})", ""]
    gathered = assemble.assemble_questions(recipe)
    loaded = gathered.questions
    lines += _question_lines(gathered)
    train = [question for name in recipe.questions.train for question in loaded[name].get("train", [])]
    if not recipe.has_teacher:
        return "\n".join([*lines, *_evaluation_only_lines(recipe, loaded), "", *_problem_lines(recipe)])
    lines += _section(lambda: [*teachers.from_recipe(recipe).forecast(train), ""], "teacher")
    lines += _section(lambda: _student_lines(recipe), "student")
    lines += _section(lambda: describe_training(recipe, train, _parameter_count(recipe)), "training")
    lines += _section(lambda: _evaluation_lines(recipe, loaded), "answers")
    return "\n".join([*lines, "", *_problem_lines(recipe)])


def _section(made: Callable[[], list[str]], name: str) -> list[str]:
    """A part of the plan; where something is missing for it, that is in the list of problems at the end."""
    try:
        return made()
    except UserError as fault:
        return [f"{name:<17} not planned: {fault.where}: {fault.what}", ""]


def _problem_lines(recipe: Recipe) -> list[str]:
    """What would stop the run at one of its stages."""
    found = preflight.find_problems(recipe, stages.recipe_stages(recipe), runner.default_run_dir(recipe))
    if not found:
        return ["would stop it     nothing that can be seen now"]
    lines = []
    for problem in found:
        first, *rest = str(problem.fault).splitlines()
        lines += [f"would stop it     at {problem.stage}: {first}", *(f"                {line}" for line in rest)]
    return lines


def _question_lines(gathered: assemble.AssembledQuestions) -> list[str]:
    loaded, unused = gathered.questions, gathered.unused
    lines = ["questions         train  validation    test  not used"]
    for name, by_split in loaded.items():
        counts = [str(len(by_split[split])) if split in by_split else "-" for split in ("train", "validation", "test")]
        lines.append(f"  {name:<12} {counts[0]:>8} {counts[1]:>11} {counts[2]:>7} {unused[name]:>9}")
    for name, by_split in loaded.items():
        for split in ("validation", "test"):
            n = len(by_split.get(split, ()))
            if 0 < n < FEW_QUESTIONS:
                lines.append(
                    f"  few             {name} {split}: +/- {98 / n**0.5:.0f} points at n = {n} and 50 % right"
                )
    lines += [
        f"  contradiction   {first.id} and {other.id} are one question with the answers {first.gold[:30]!r} and"
        f" {other.gold[:30]!r}"
        for first, other in _find_contradictions(loaded)[:3]
    ]
    return [*lines, *_template_lines(gathered), ""]


def _template_lines(gathered: assemble.AssembledQuestions) -> list[str]:
    """How many measured questions of each set a student learns with other numbers and names."""
    if gathered.dropped:
        return [
            f"  templates       {gathered.dropped} training questions left out: measured ones but for numbers and names"
        ]
    return [
        f"  templates       {name} {split}: {len(ids)} of {len(gathered.questions[name][split])} are training questions"
        " but for numbers and names"
        for name, by_split in gathered.templates.items()
        for split, ids in by_split.items()
        if ids
    ]


def _find_contradictions(loaded: dict[str, dict[str, list[Question]]]) -> list[tuple[Question, Question]]:
    return data.find_contradictions([q for by_split in loaded.values() for rows in by_split.values() for q in rows])


def _student_lines(recipe: Recipe) -> list[str]:
    count = _parameter_count(recipe)
    asked = recipe.student
    weights, chat = "random weights", None
    if asked.model is not None:
        path = find_local(recipe, asked.model, "student.model")
        if path is not None:
            models.check_tokenizer(recipe, path)
            chat = models.chat_template_from_recipe(recipe, path)
        weights = str(path) if path else f"{asked.model} is not here; the run would stop at train"
    if count is None:
        return [f"student           {weights}; its size is not known without it (give student.shape too)", ""]
    gib, lora = count / 2**30, recipe.train.lora
    held = 4 if lora else BYTES_PER_PARAMETER
    parts = f"weights; adapters of rank {lora} on top" if lora else "weights, gradients and AdamW"
    engine = "the adapters' own" if lora else f"{8 * gib:.2f} GiB"
    return [
        f"student           {weights}",
        f"  prompts         {'in its own chat template (student.chat: false for plain ones)' if chat else 'plain'}",
        f"  parameters      {count}",
        f"  memory          {held * gib:.2f} GiB: {parts}, {held} bytes a parameter,",
        f"                  and the activations of {recipe.train.batch_tokens} tokens",
        *(
            ["                  all but the latter spread over the processes"]
            if recipe.train.sharding == "full"
            else []
        ),
        f"  checkpoints     {_checkpoint_count(recipe)} of {4 * gib:.2f} GiB, and the newest's engine state of {engine}",
        "",
    ]


def _evaluation_only_lines(recipe: Recipe, loaded: dict[str, dict[str, list[Question]]]) -> list[str]:
    """What a recipe that trains nothing does."""
    n, formats = sum(len(found.get("test", [])) for found in loaded.values()), len(recipe.evaluate.formats)
    answers = f"{n} x {formats} = {n * formats} of at most {recipe.evaluate.max_tokens} tokens"
    return [
        f"student           {recipe.student.model or 'random weights'}, not trained",
        f"answers           {answers}",
    ]


def _evaluation_lines(recipe: Recipe, loaded: dict[str, dict[str, list[Question]]]) -> list[str]:
    formats = len(recipe.evaluate.formats)
    counts = {split: sum(len(found.get(split, [])) for found in loaded.values()) for split in ("validation", "test")}
    steps = _checkpoint_count(recipe) * (1 + len(recipe.evaluate.interpolate or ())) + 1
    rows: list[tuple[str, int, Split]] = [
        ("evaluation", steps, "validation"),
        ("test", 3 if recipe.on_policy else 2, "test"),
    ]
    drawn = [
        sum(each.samples for each in decoding.list_sampling_specs(checkpoint.list_decodings(recipe, split)))
        for _, _, split in rows
    ]
    told = " x texts drawn" if max(drawn) > 1 else ""
    lines = [f"answers           of at most {recipe.evaluate.max_tokens} tokens; steps x questions x formats{told}"]
    for (stage, times, split), texts in zip(rows, drawn, strict=True):
        n, more = counts[split], f" x {texts}" if told else ""
        lines.append(f"  {stage:<15} {times} x {n} x {formats}{more} = {times * n * formats * texts}")
    return lines


def _parameter_count(recipe: Recipe) -> int | None:
    asked = recipe.student
    if asked.shape is not None:
        return models.count_parameters(
            models.shape_from_recipe(recipe, tokenization.load_tokenizer(models.tokenizer_folder(recipe)).size)
        )
    path = find_local(recipe, asked.model or "", "student.model")
    return None if path is None else models.count_stored_parameters(path)


def _checkpoint_count(recipe: Recipe) -> int:
    """Checkpoints that training leaves."""
    return -(-recipe.train.steps // recipe.train.checkpoint_every)
