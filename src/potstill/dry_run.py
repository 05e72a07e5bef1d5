"""The plan of a run: the questions, chains, training and evaluation, with estimates of their size.

    plan = plan_run(load_recipe(path))
    print(plan.text)        # what `potstill run RECIPE --dry-run` prints
    plan.faults             # the errors for which the run would stop before it makes anything

The weights of a model on the hub are not downloaded; its configuration and tokenizer are. For an existing run, the plan
says what each stage has stored and what the run would do with it; chains, money and time are those from here.

Missing models and chains are listed, and everything that does not depend on them is still estimated. Lengths are means
over the first training questions and their own solutions, because the teacher's chains do not exist yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from potstill import (
    data,
    models,
    preflight,
    prompts,
    run_cost,
    runner,
    teachers,
    thoughts,
    tokenization,
)
from potstill.data import assemble, labels, splits
from potstill.errors import UserError
from potstill.existing_run import INDENT, Progress, describe_existing_run, read_progress
from potstill.recipe import Recipe
from potstill.records import Prompt, Question
from potstill.storage import ledger
from potstill.teachers.openai_api import stored_scores
from potstill.teachers.protocol import missing_chains
from potstill.training import estimates, examples, on_policy, scorer_models

FLOPS_RATES = (1e13, 1e14, 4e14)  # operations per second; the plan has a time for each rate
FEW_QUESTIONS = 100  # below this number, the plan states the uncertainty of a score


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run would do.

    text     the plan as plain text
    faults   the errors for which the run would stop before it makes anything, such as a missing model
    checked  False if an error of potstill ended the checks, so that there may be more faults
    """

    text: str
    faults: tuple[UserError, ...] = ()
    checked: bool = True


def describe_run(recipe: Recipe, run_dir: Path | None = None, redo: str | None = None) -> str:
    """The text of `plan_run`."""
    return plan_run(recipe, run_dir, redo).text


def plan_run(recipe: Recipe, run_dir: Path | None = None, redo: str | None = None) -> RunPlan:
    """The plan of a run. Raises UserError if a new run could not start its first stage.

    run_dir  the folder of the run; by default `runs/NAME`
    redo     a stage that the run would make again, with all later stages
    """
    with models.without_weights():
        return _plan_run(recipe, run_dir or runner.default_run_dir(recipe), redo)


def _plan_run(recipe: Recipe, run_dir: Path, redo: str | None) -> RunPlan:
    exists = (run_dir / "recipe.yaml").is_file()
    so_far, run_lines, plans = Progress(), list[str](), list[runner.StagePlan]()
    if exists:
        plans = runner.plan_stages(recipe, run_dir, redo)
        so_far = read_progress(recipe, run_dir, plans)
        run_lines = _section(lambda: describe_existing_run(run_dir, plans, redo), "this run")
    downloads = any(spec.file is None or spec.hub is not None for spec in recipe.sets.values())
    unless = " except downloaded sets" if downloads else ""
    try:
        assembled = assemble.assemble_questions(recipe)
    except UserError as fault:
        if not run_lines:
            raise
        hint = f"questions         no estimate: {fault.where}: {fault.what}"  # as for a run that was copied without its sets
        text = "\n".join([f"plan of {recipe.name} (nothing is written{unless})", "", *run_lines, hint])
        return RunPlan(text, tuple(_refusals(plans)))
    sets = assembled.questions
    lines = [f"plan of {recipe.name} (nothing is written{unless})", "", *run_lines, *_question_lines(assembled)]
    train = assemble.training_questions(recipe.questions.train, sets)
    if recipe.has_teacher:
        for source in recipe.sources:
            lines += _section(lambda source=source: _source_lines(recipe, source, train, run_dir, so_far), "teacher")
        lines += _section(lambda: _student_lines(recipe), "student")
        plan = cache(lambda: run_cost.plan_step(recipe, sets))  # two parts need it, and each names its error
        lines += _section(lambda: _training_lines(recipe, train, plan()), "training")
        if recipe.train.on_policy is not None:
            lines += _section(lambda: _own_text_lines(recipe, plan(), sets), "own texts")
        lines += _section(lambda: _evaluation_lines(recipe, sets, so_far), "answers")
        lines += _section(lambda: ["", *_cost_lines(recipe, plan(), sets, so_far)], "cost")
    else:
        n, formats = sum(len(by_split.get("test", [])) for by_split in sets.values()), len(recipe.evaluate.formats)
        answers = f"{n} x {formats} = {n * formats} of at most {recipe.evaluate.max_tokens} tokens"
        lines.append(f"student           {recipe.student.model or 'random weights'}, not trained")
        lines += _section(lambda: _thought_lines(run_cost.open_chat_template(recipe)), "student")
        lines.append(f"answers           {answers}")
    faults, checked = list(_refusals(plans)), False

    def problem_lines() -> list[str]:
        nonlocal checked
        found = preflight.list_problems(recipe, None if redo else run_dir, sets=sets)
        checked = True
        # A problem that may still be fixed stops the run only if nothing else is left to make.
        waits = any(plan.action != "keep" for plan in plans[:-1]) or not plans
        faults.extend(problem.fault for problem in found if not (problem.later and waits))
        return list(_problem_lines(found, waits=waits))

    lines += ["", *_section(problem_lines, "problems")]
    return RunPlan("\n".join(lines), tuple(faults), checked)


def _refusals(plans: Sequence[runner.StagePlan]) -> Iterator[UserError]:
    yield from (plan.fault for plan in plans if plan.fault is not None)


def _problem_lines(problems: Sequence[preflight.Problem], *, waits: bool) -> Iterator[str]:
    for problem in problems:
        first, *rest = str(problem.fault).splitlines()
        label = "later" if problem.later and waits else "problem"
        yield f"{label:<17} at {problem.stage}: {first}"
        yield from (f"                {line}" for line in rest)
    if not problems:
        yield "problems          none found"


def _source_lines(recipe: Recipe, name: str, train: Sequence[Question], run_dir: Path, so_far: Progress) -> list[str]:
    """The lines about one source of chains; its name is empty if the recipe has only one."""
    with teachers.name_source(name):
        first, *lines = _teacher_lines(recipe.sources[name], train, run_dir, so_far.of_source(run_dir, name), name)
    return [f"teacher {name:<9} {first[18:]}" if name else first, *lines, ""]


def _teacher_lines(recipe: Recipe, train: Sequence[Question], run_dir: Path, so_far: Progress, name: str) -> list[str]:
    if so_far.sampled:
        return [f"teacher           {recipe.teacher.kind}: all chains are stored; nothing is left to sample"]
    teacher = teachers.from_recipe(recipe)
    lines = teacher.forecast(train, so_far.stored, so_far.scores)
    lines += _section(lambda: _sampling_lines(recipe, train, so_far), "  time")  # the other lines need no model
    stored, usage = sum((so_far.stored or {}).values()), ledger.total_usage(run_dir, name)
    if stored and usage["requests"] and teacher.generates:
        missing = sum(missing_chains(train, recipe.teacher.samples, so_far.stored)) / stored
        tokens = round(missing * (usage["prompt_tokens"] + usage["completion_tokens"]))
        money = f" and {missing * usage['money']:.4f} in money" if usage["money"] else ""
        lines.append(f"  from here       about {tokens} tokens{money}, as the {stored} stored chains took")
    return lines


def _sampling_lines(recipe: Recipe, train: Sequence[Question], so_far: Progress) -> list[str]:
    """The time of the chains that are left, if the teacher is a model in this process. A server has its own line."""
    teacher, made = teachers.from_recipe(recipe), recipe.teacher
    if made.kind not in ("local", "vllm"):
        return []
    chains = sum(missing_chains(train, made.samples, so_far.stored))
    folder, build_prompt = teacher.tokenizer_folder(), teacher.prompt_builder()
    shape = models.read_shape(folder) if made.kind == "local" and folder is not None else None
    if shape is None or folder is None or build_prompt is None:
        return ["  time            no estimate for this model or library"] if chains else []
    tokenizer, sample = tokenization.load_tokenizer(folder), splits.sample_by_hash(train, run_cost.SAMPLE_QUESTIONS)
    texts = [build_prompt(question).plain for question in sample]
    prompt = sum(len(encoded.ids) for encoded in tokenizer.encode_batch(texts)) / max(1, len(texts))
    tokens, rows = made.batch_tokens, made.batch_tokens / (prompt + made.max_tokens)
    rates = estimates.measure_rates(shape, tokens=tokens, rows=rows, precision=made.dtype, dtype=made.dtype)
    reads, writes = chains * prompt, chains * made.max_tokens
    seconds = estimates.answering_seconds(shape, reads=reads, writes=writes, rates=rates)
    return [f"  time            about {format_duration(seconds)} on this machine, if all chains take all their tokens"]


def _section(build: Callable[[], list[str]], name: str) -> list[str]:
    """A part of the plan. If an input is missing, the part says so, and the list of problems at the end names it.

    An error of potstill itself is a line, too, because the other parts are still worth reading.
    """
    try:
        return build()
    except UserError as fault:
        return [f"{name:<17} no estimate: {fault.where}: {fault.what}", ""]
    except Exception as error:
        message = str(error).partition("\n")[0]
        return [
            f"{name:<17} no estimate: an error in potstill, please report it: {type(error).__name__}: {message}",
            "",
        ]


def _question_lines(assembled: assemble.AssembledQuestions) -> list[str]:
    sets = assembled.questions
    lines = ["questions         train  validation    test  not used"]
    for name, by_split in sets.items():
        counts = [str(len(by_split[split])) if split in by_split else "-" for split in ("train", "validation", "test")]
        lines.append(f"  {name:<12} {counts[0]:>8} {counts[1]:>11} {counts[2]:>7} {assembled.unused[name]:>9}")
    for name, by_split in sets.items():
        for split in ("validation", "test"):
            n = len(by_split.get(split, ()))
            if 0 < n < FEW_QUESTIONS:
                interval = f"an accuracy of 50 % would be known to +/- {98 / n**0.5:.0f} points"
                lines.append(f"  few questions   {name} {split}, {n}: {interval}")
    questions = [question for by_split in sets.values() for rows in by_split.values() for question in rows]
    for first, other in data.find_contradictions(questions)[:3]:
        answers = f"the answers {first.gold[:30]!r} and {other.gold[:30]!r}"
        lines.append(f"  contradiction   {first.id} and {other.id} are the same question with {answers}")
    equal = "except for numbers and names"
    if assembled.dropped:
        lines.append(
            f"  templates       {assembled.dropped} training questions left out: they equal evaluated questions {equal}"
        )
    else:
        for name, by_split in assembled.templates.items():
            for split, ids in by_split.items():
                if ids:
                    share = f"{len(ids)} of {len(sets[name][split])}"
                    lines.append(f"  templates       {name} {split}: {share} equal training questions {equal}")
    return [*lines, ""]


def _student_lines(recipe: Recipe) -> list[str]:
    count, section = _parameter_count(recipe), recipe.student
    weights, chat = "random weights", None
    if section.model is not None:
        path = run_cost.student_folder(recipe)
        if path is not None:
            models.check_tokenizer(recipe, path)
            chat = run_cost.open_chat_template(recipe)
        weights = f"{section.model} cannot be opened (the problem is below): the run would stop at train"
        if path is not None:
            missing = models.find_model(recipe, section.model, "student.model", section.revision).missing_bytes
            download = f" (the run downloads {_format_gib(missing)} of weights)" if missing else ""
            weights = f"{section.model if missing else path}{download}"
    if count is None:
        return [f"student           {weights}; its size is unknown unless student.shape is also set", ""]
    gib = count / 2**30
    lines = [
        f"student           {weights}",
        f"  prompts         {'in the chat template (plain prompts: student.chat: false)' if chat else 'plain'}",
        *_thought_lines(chat),
        f"  parameters      {count}",
    ]
    saved, engine = f"{run_cost.checkpoint_count(recipe)} of {4 * gib:.2f} GiB", f"{8 * gib:.2f} GiB"
    if recipe.train.lora:  # the engine state has the adapters, too
        shape = run_cost.find_shape(recipe)
        mib = None if shape is None else models.count_adapter_parameters(shape, recipe.train.lora) / 2**20
        sizes = [f"{n * mib:.1f} MiB" if mib is not None else "an unknown size" for n in (4, 12)]
        saved, engine = f"{run_cost.checkpoint_count(recipe)} adapters of {sizes[0]}", sizes[1]
    return [*lines, f"  checkpoints     {saved}, and the engine state of the newest: {engine}", ""]


def _thought_lines(chat: models.ChatTemplate | None) -> list[str]:
    """A warning if the base may use its tokens for a thought, because the gain then looks larger than it is."""
    if chat is None or not (chat.opens_thought or chat.thinking_switch):
        return []
    does = "opens a thought" if chat.opens_thought else "lets the model think before it answers"
    advice = thoughts.advise(chat.thinking_switch)
    return [
        f"  thoughts        the template {does}: a base that uses its tokens for thinking looks worse than it is.",
        f"{INDENT}{advice}",
    ]


def _training_lines(recipe: Recipe, train: Sequence[Question], plan: run_cost.StepPlan) -> list[str]:
    """The lines about training. Raises UserError if training would fail."""
    section = recipe.train
    total, learnt = plan.tokens * section.steps, plan.supervised * section.steps
    lines = _format_lines(recipe, train, plan)
    mean = "" if section.on_policy is None else " on average"
    lines += [
        f"  steps           {section.steps} of {section.prompts_per_step} prompts: {plan.tokens:.0f} tokens per step{mean},",
        f"{INDENT}{total:.3g} in total, of which {learnt:.3g} are supervised",
    ]
    if section.early_stopping_patience is not None:
        patience = f"{section.early_stopping_patience} checkpoints without improvement on validation"
        lines.append(f"  may stop        after {patience}")
    if (policy := recipe.on_policy) is not None:
        texts = (policy.prompts_per_step + on_policy.task_questions_per_step(recipe)) * policy.samples
        limit = f"of at most {policy.max_tokens} tokens"
        lines.append(f"  repair          {policy.steps} steps on {texts} texts of the student each, {limit}")
    return [*lines, ""]


def _own_text_lines(recipe: Recipe, plan: run_cost.StepPlan, sets: run_cost.Sets) -> list[str]:
    """The lines about the texts that the student writes in training, and what a server takes to score them."""
    section, train = recipe.train.on_policy, recipe.train
    assert section is not None, "the recipe has the section train.on_policy"
    by_scorer = examples.count_own_prompts(recipe)
    asked, total = sum(by_scorer.values()), train.steps * train.prompts_per_step
    share = f"{100 * section.share:g} %" if not isinstance(section.share, dict) else f"{100 * asked / total:.0f} %"
    points = sorted(section.share.items()) if isinstance(section.share, dict) else []
    changes = f": {', '.join(f'{100 * value:g} % at step {step}' for step, value in points)}" if points else ""
    most = max(
        after - before for before, after in pairwise(section.count_own_prompts(train.prompts_per_step, train.steps))
    )
    each = f" ({section.samples} for each)" if section.samples > 1 else ""
    lines = [
        f"own texts         the student writes the texts for {share} of the prompts{changes}",
        f"  texts           {asked * section.samples} for {asked} of {total} prompts{each}, at most"
        f" {most * section.samples} per step, of at most {section.max_tokens} tokens",
    ]
    if asked == total and any(source.teacher.kind != "human" for source in recipe.sources.values()):
        lines += [
            "  stored chains   are sampled, and none is learnt: with teacher: {kind: human, unsolved: answer}",
            f"{INDENT}none is sampled; train.on_policy.scorers then names the model that scores",
        ]
    if section.refresh_every > 1:
        cap = "" if section.ratio_cap is None else f"; importance ratios up to {section.ratio_cap:g}"
        lines.append(f"  ahead           {section.refresh_every} steps at once{cap}")
    servers = list[str]()
    for name, count in by_scorer.items():
        entry, scorer = section.scorers[name], scorer_models.describe_scorer(recipe, name)
        how = f"scored by {scorer}" if scorer else "with rewards only"
        questions = f"{count} prompts from {plan.own_questions[name]} questions of {', '.join(entry.sets)}"
        lines.append(f"  {name:<15} {questions}, {how}")
        servers += _server_lines(recipe, name, count * section.samples, sets)
    return [*lines, *servers, ""]


def _server_lines(recipe: Recipe, name: str, texts: int, sets: run_cost.Sets) -> list[str]:
    """What it costs to score `texts` texts, if the scorer is behind a server."""
    section, found = recipe.train.on_policy, scorer_models.find_scorer_model(recipe, name)
    if section is None or found is None or found.server is None:
        return []
    questions = assemble.training_questions(section.scorers[name].sets, sets)
    sample = splits.sample_by_hash(questions, run_cost.SAMPLE_QUESTIONS)
    form, instructions = prompts.FORMATS[recipe.select.format], labels.instructions(recipe)

    def student_prompt(question: Question) -> Prompt:
        return prompts.build_prompt(question.text, form, instruction=instructions.get(question.task, ""))

    asked = [(found.prompt_of or student_prompt)(question) for question in sample]
    size = sum(len((prompt.plain + prompt.lead).encode()) for prompt in asked) / max(1, len(asked))
    forecast = stored_scores.forecast_scoring(
        found.server, texts=texts, max_tokens=section.max_tokens, prompt_bytes=size
    )
    first, *lines = stored_scores.describe_forecast(found.server, forecast)
    return [f"scores by {name:<7} {first[18:]}", *lines]


def _format_lines(recipe: Recipe, train: Sequence[Question], plan: run_cost.StepPlan) -> list[str]:
    """One line per format, and the meaning of the columns."""
    chains, lengths = plan.chains, plan.lengths
    lines = ["training              rows  tokens  weight  epochs  prompt  target"]
    at_least = "" if teachers.from_recipe(recipe).right_by_definition else ">="
    targets = {name: target for name, (_, target) in lengths.items()}
    for part in examples.compute_format_shares(recipe, targets, len(train), chains, plan.own_questions):
        tokens = "-" if part.tokens is None else f"{part.tokens:.1%}"
        bound = at_least if part.name in prompts.FORMATS and prompts.FORMATS[part.name].rationale else ""
        epochs = "-" if part.epochs is None else f"{bound}{part.epochs:.2f}"
        columns = "".join(f" {length:>7.0f}" for length in lengths.get(part.name, ()))
        lines.append(f"  {part.name:<19} {part.rows:>5.1%} {tokens:>7} {part.weight:>7.1%} {epochs:>7}{columns}")
    if recipe.train.replay is not None:
        rows, share = examples.replay_rows_per_step(recipe), recipe.train.replay.share
        lines.append(f"{INDENT}replay adds {rows} rows to each step with {share:.0%} of its weight")
    lines += [
        f"{INDENT}rows, tokens, weight: shares of rows, supervised tokens and gradient",
        f"{INDENT}epochs: passes over the chains (in a format without rationales, over the answers)",
    ]
    if recipe.train.on_policy is not None:
        lines.append(
            f"{INDENT}own/NAME: texts of the student, as long as the solutions; epochs: passes over the questions"
        )
    if at_least and chains is not None:
        lines.append(f"{INDENT}(>= because some of the {chains} chains may be wrong or dropped)")
    n = min(len(train), run_cost.SAMPLE_QUESTIONS)
    return [*lines, f"{INDENT}prompt, target: tokens, means over {n} questions and their own solutions"]


def _evaluation_lines(recipe: Recipe, sets: run_cost.Sets, so_far: Progress) -> list[str]:
    formats, evaluations = len(recipe.evaluate.formats), run_cost.list_evaluations(recipe, sets, so_far)
    column = " x samples" if any(evaluation.samples > 1 for evaluation in evaluations) else ""
    lines = [f"answers           of at most {recipe.evaluate.max_tokens} tokens; steps x questions x formats{column}"]
    for one in evaluations:
        more, n = f" x {one.samples}" if column else "", len(one.questions)
        total = one.steps * n * formats * one.samples
        done = f" ({one.done} more checkpoints are evaluated already)" if one.done else ""
        lines.append(f"  {one.stage:<15} {one.steps} x {n} x {formats}{more} = {total}{done}")
    return lines


def _cost_lines(recipe: Recipe, plan: run_cost.StepPlan, sets: run_cost.Sets, so_far: Progress) -> list[str]:
    """Time and memory of training and evaluation. Raises UserError if the model is missing."""
    cost = run_cost.estimate_cost(recipe, plan, sets, so_far)
    if cost is None:
        return ["cost              no estimate: the model has another architecture, or its size is unknown"]
    parts = sorted(((size, name) for name, size in cost.memory.items()), reverse=True)
    lines = [
        f"memory            about {_format_gib(sum(cost.memory.values()))} in training:",
        *(f"{INDENT}{_format_gib(size)}: {name}" for size, name in parts),
    ]
    if recipe.train.sharding == "full":
        whole = "the activations" + (" and the weights that write texts" if recipe.train.on_policy else "")
        lines.append(f"{INDENT}everything except {whole} is split among the processes")
    if not cost.operations and not cost.answering_seconds:
        return [*lines, "time              nothing is left to train or to evaluate"]
    training = f"{format_duration(cost.training_seconds)} for training"
    if cost.own_texts is not None:
        training += f", {format_duration(cost.own_seconds)} for the student's own texts"
    if cost.answering_memory is not None:
        lines.append(f"{INDENT}about {_format_gib(cost.answering_memory)} in evaluation")
        both = f"{training} and {format_duration(cost.answering_seconds)} for answers"
        here = f"{format_duration(cost.training_seconds + cost.own_seconds + cost.answering_seconds)}: {both}"
    else:
        here = f"{training}; none for answers by {recipe.evaluate.engine}"
    times = [f"{format_duration(cost.operations / rate)} at {rate / 1e12:.0f} TFLOP/s" for rate in FLOPS_RATES]
    left = f" ({max(0, recipe.train.steps - so_far.trained)} steps are left)" if so_far.trained else ""
    training_rate, decoding_rate, own_lines = *cost.rates, list[str]()
    if (own := cost.own_texts) is not None:
        unknown = f". No estimate for the scorer {', '.join(own.unknown)}" if own.unknown else ""
        own_lines = [
            f"{INDENT}own texts: {format_duration(own.writing)} to write and {format_duration(own.scoring)} to score"
            f" texts as long as the solutions;",
            f"{INDENT}{format_duration(own.longest_writing)} and {format_duration(own.longest_scoring)}"
            f" if all take all their tokens{unknown}",
        ]
    return [
        *lines,
        f"time              about {here}, on this machine:",
        f"{INDENT}training at {training_rate / 1e12:.3f} TFLOP/s, writing at {decoding_rate / 1e12:.3f}; both follow from",
        f"{INDENT}work of this size, which was measured now. Answers of the base count with all their tokens",
        *own_lines,
        f"{INDENT}training takes {cost.operations:.2g} operations{left}: {', '.join(times)}",
    ]


def _parameter_count(recipe: Recipe) -> int | None:
    if recipe.student.shape is not None and (shape := run_cost.find_shape(recipe)) is not None:
        return models.count_parameters(shape)
    path = run_cost.student_folder(recipe)
    if path is None:
        return None
    try:
        return models.count_stored_parameters(path)
    except UserError as fault:
        if fault.code != models.NOT_DOWNLOADED:
            raise
        shape = models.read_shape(path)
        return None if shape is None else models.count_parameters(shape)


def _format_gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def format_duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
