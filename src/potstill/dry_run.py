"""The plan of a run: the questions, chains, training and evaluation, with estimates of their size.

    print(describe_run(load_recipe(path)))        # what `potstill run RECIPE --dry-run` prints

The weights of a model on the hub are not downloaded; its configuration and tokenizer are. For an existing run, the plan
says what each stage has stored and what the run would do with it; chains, money and time are those from here.

Missing models and chains are listed, and everything that does not depend on them is still estimated. Lengths are means
over the first training questions and their own solutions, because the teacher's chains do not exist yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from potstill import (
    data,
    models,
    preflight,
    prompts,
    runner,
    stages,
    teachers,
    thoughts,
    tokenization,
)
from potstill.data import assemble, labels, splits
from potstill.errors import UserError
from potstill.evaluation import checkpoint, decoding
from potstill.existing_run import INDENT, Progress, describe_existing_run, read_progress
from potstill.recipe import Recipe
from potstill.records import BASE, Question, Split
from potstill.storage import ledger
from potstill.teachers.protocol import missing_chains
from potstill.training import estimates, examples, on_policy

SAMPLE_QUESTIONS = 200  # number of training questions whose prompts and solutions are tokenized to estimate lengths
FLOPS_RATES = (1e13, 1e14, 4e14)  # operations per second; the plan has a time for each rate
STAGE_NAMES = {"evaluation": "evaluate", "test": "test"}  # name in the plan -> stage
FEW_QUESTIONS = 100  # below this number, the plan states the uncertainty of a score
Sets = dict[str, dict[str, list[Question]]]  # set -> split -> questions


def describe_run(recipe: Recipe, run_dir: Path | None = None, redo: str | None = None) -> str:
    """The plan as plain text. Raises UserError if a new run could not start its first stage.

    run_dir  the folder of the run; by default `runs/NAME`
    redo     a stage that the run would make again, with all later stages
    """
    with models.without_weights():
        return _describe_run(recipe, run_dir or runner.default_run_dir(recipe), redo)


def _describe_run(recipe: Recipe, run_dir: Path, redo: str | None) -> str:
    exists = (run_dir / "recipe.yaml").is_file()
    so_far, run_lines = Progress(), list[str]()
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
        return "\n".join([f"plan of {recipe.name} (nothing is written{unless})", "", *run_lines, hint])
    sets = assembled.questions
    lines = [f"plan of {recipe.name} (nothing is written{unless})", "", *run_lines, *_question_lines(assembled)]
    train = [question for name in recipe.questions.train for question in sets[name].get("train", [])]
    if recipe.has_teacher:
        for source in recipe.sources:
            lines += _section(lambda source=source: _source_lines(recipe, source, train, run_dir, so_far), "teacher")
        lines += _section(lambda: _student_lines(recipe), "student")
        plan = cache(lambda: _plan_step(recipe, train))  # two parts need it, and each names its error
        lines += _section(lambda: _training_lines(recipe, train, plan()), "training")
        lines += _section(lambda: _evaluation_lines(recipe, sets, so_far), "answers")
        lines += _section(lambda: ["", *_cost_lines(recipe, plan(), sets, so_far)], "cost")
    else:
        n, formats = sum(len(by_split.get("test", [])) for by_split in sets.values()), len(recipe.evaluate.formats)
        answers = f"{n} x {formats} = {n * formats} of at most {recipe.evaluate.max_tokens} tokens"
        lines.append(f"student           {recipe.student.model or 'random weights'}, not trained")
        lines += _section(lambda: _thought_lines(_open_chat_template(recipe)), "student")
        lines.append(f"answers           {answers}")
    lines += ["", *_section(lambda: _problem_lines(recipe, train, None if redo else run_dir), "problems")]
    return "\n".join(lines)


def _source_lines(recipe: Recipe, name: str, train: Sequence[Question], run_dir: Path, so_far: Progress) -> list[str]:
    """The lines about one source of chains; its name is empty if the recipe has only one."""
    with teachers.name_source(name):
        first, *lines = _teacher_lines(recipe.sources[name], train, run_dir, so_far.of_source(run_dir, name), name)
    return [f"teacher {name:<9} {first[18:]}" if name else first, *lines, ""]


def _teacher_lines(recipe: Recipe, train: Sequence[Question], run_dir: Path, so_far: Progress, name: str) -> list[str]:
    if so_far.sampled:
        return [f"teacher           {recipe.teacher.kind}: all chains are stored; nothing is left to sample"]
    lines = teachers.from_recipe(recipe).forecast(train, so_far.stored)
    lines += _section(lambda: _sampling_lines(recipe, train, so_far), "  time")  # the other lines need no model
    stored, usage = sum((so_far.stored or {}).values()), ledger.total_usage(run_dir, name)
    if stored and usage["requests"]:
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
    tokenizer, sample = tokenization.load_tokenizer(folder), splits.sample_by_hash(train, SAMPLE_QUESTIONS)
    texts = [build_prompt(question).plain for question in sample]
    prompt = sum(len(encoded.ids) for encoded in tokenizer.encode_batch(texts)) / max(1, len(texts))
    tokens, rows = made.batch_tokens, made.batch_tokens / (prompt + made.max_tokens)
    rates = estimates.measure_rates(shape, tokens=tokens, rows=rows, precision="float32", dtype="float32")
    reads, writes = chains * prompt, chains * made.max_tokens
    seconds = estimates.answering_seconds(shape, reads=reads, writes=writes, rates=rates)
    return [f"  time            about {_format_duration(seconds)} on this machine, if all chains take all their tokens"]


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


def _problem_lines(recipe: Recipe, train: Sequence[Question], run_dir: Path | None) -> list[str]:
    """The problems that would stop the run at one of its stages. run_dir: to skip its finished stages."""
    names = stages.recipe_stages(recipe)
    problems = preflight.find_problems(recipe, names, run_dir, questions=train)
    lines = []
    for problem in problems:
        first, *rest = str(problem.fault).splitlines()
        lines += [f"problem           at {problem.stage}: {first}", *(f"                {line}" for line in rest)]
    return lines or ["problems          none found"]


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
                interval = f"+/- {98 / n**0.5:.0f} points at n = {n} and 50 % right"
                lines.append(f"  few             {name} {split}: {interval}")
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
        path = _student_folder(recipe)
        if path is not None:
            models.check_tokenizer(recipe, path)
            chat = _open_chat_template(recipe)
        weights = f"{section.model} cannot be opened (the problem is below): the run would stop at train"
        if path is not None:
            missing = models.find_model(recipe, section.model, "student.model", section.revision).missing_bytes
            download = f" (the run downloads {_format_gib(missing)} of weights)" if missing else ""
            weights = f"{section.model if missing else path}{download}"
    if count is None:
        return [f"student           {weights}; its size is unknown unless student.shape is also set", ""]
    gib = count / 2**30
    engine = "the adapters" if recipe.train.lora else f"{8 * gib:.2f} GiB"
    lines = [
        f"student           {weights}",
        f"  prompts         {'in the chat template (plain prompts: student.chat: false)' if chat else 'plain'}",
        *_thought_lines(chat),
        f"  parameters      {count}",
    ]
    saved = f"{_checkpoint_count(recipe)} of {4 * gib:.2f} GiB"
    return [*lines, f"  checkpoints     {saved}, and the engine state of the newest: {engine}", ""]


def _open_chat_template(recipe: Recipe) -> models.ChatTemplate | None:
    path = _student_folder(recipe)
    return models.chat_template_from_recipe(recipe, path) if path else None


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


@dataclass(frozen=True, slots=True)
class _StepPlan:
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


def _plan_step(recipe: Recipe, train: Sequence[Question]) -> _StepPlan:
    section = recipe.train
    quotas = {name: quota for name, quota in section.formats.items() if quota}
    lengths = _mean_lengths(recipe, train, list(quotas), section.demonstrations)
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
    return _StepPlan(lengths, chains, n * tokens, n * supervised)


def _training_lines(recipe: Recipe, train: Sequence[Question], plan: _StepPlan) -> list[str]:
    """The lines about training. Raises UserError if training would fail."""
    section = recipe.train
    total, learnt = plan.tokens * section.steps, plan.supervised * section.steps
    lines = _format_lines(recipe, train, plan.chains, plan.lengths)
    lines += [
        f"  steps           {section.steps} of {section.prompts_per_step} prompts: {plan.tokens:.0f} tokens per step,",
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


def _mean_lengths(
    recipe: Recipe, questions: Sequence[Question], formats: Sequence[str], demonstrations: int
) -> dict[str, tuple[float, float]]:
    """Format -> mean number of tokens of a prompt and of its target, over a sample of the questions.

    demonstrations  number of demonstrations in a few-shot prompt; they are questions of the sample
    """
    tokenizer = tokenization.load_tokenizer(models.tokenizer_folder(recipe))
    chat, instructions = _open_chat_template(recipe), labels.instructions(recipe)
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


def _format_lines(
    recipe: Recipe, train: Sequence[Question], chains: int | None, lengths: dict[str, tuple[float, float]]
) -> list[str]:
    """One line per format, and the meaning of the columns."""
    lines = ["training              rows  tokens  weight  epochs  prompt  target"]
    at_least = "" if teachers.from_recipe(recipe).right_by_definition else ">="
    targets = {name: target for name, (_, target) in lengths.items()}
    for part in examples.compute_format_shares(recipe, targets, len(train), chains):
        tokens = "-" if part.tokens is None else f"{part.tokens:.1%}"
        bound = at_least if part.name in lengths and prompts.FORMATS[part.name].rationale else ""
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
    if at_least and chains is not None:
        lines.append(f"{INDENT}(>= because some of the {chains} chains may be wrong or dropped)")
    n = min(len(train), SAMPLE_QUESTIONS)
    return [*lines, f"{INDENT}prompt, target: tokens, means over {n} questions and their own solutions"]


def _evaluation_lines(recipe: Recipe, sets: Sets, so_far: Progress) -> list[str]:
    formats, evaluations = len(recipe.evaluate.formats), _list_evaluations(recipe, sets, so_far)
    column = " x samples" if any(evaluation.samples > 1 for evaluation in evaluations) else ""
    lines = [f"answers           of at most {recipe.evaluate.max_tokens} tokens; steps x questions x formats{column}"]
    for one in evaluations:
        more, n = f" x {one.samples}" if column else "", len(one.questions)
        total = one.steps * n * formats * one.samples
        done = f" ({one.done} more checkpoints are evaluated already)" if one.done else ""
        lines.append(f"  {one.stage:<15} {one.steps} x {n} x {formats}{more} = {total}{done}")
    return lines


@dataclass(frozen=True, slots=True)
class _Evaluation:
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


def _list_evaluations(recipe: Recipe, sets: Sets, so_far: Progress) -> list[_Evaluation]:
    steps = _checkpoint_count(recipe) * (1 + len(recipe.evaluate.interpolate or ())) + 1
    tested = (3 if recipe.on_policy else 2) + len(recipe.select.also or ())  # fewer, if choices coincide
    rows: list[tuple[str, int, Split]] = [("evaluation", steps, "validation"), ("test", tested, "test")]
    evaluations = []
    for stage, times, split in rows:
        specs = decoding.list_sampling_specs(checkpoint.list_decodings(recipe, split))
        questions = [question for by_split in sets.values() for question in by_split.get(split, [])]
        done = so_far.evaluated.get(STAGE_NAMES[stage], ())
        left, samples = max(0, times - len(done)), sum(spec.samples for spec in specs)
        evaluations.append(_Evaluation(stage, left, len(done), BASE.name not in done, questions, samples))
    return evaluations


def _cost_lines(recipe: Recipe, plan: _StepPlan, sets: Sets, so_far: Progress) -> list[str]:
    """Time and memory of training and evaluation. Raises UserError if the model is missing."""
    shape = _find_shape(recipe)
    if shape is None:
        return ["cost              no estimate: the model has another architecture, or its size is unknown"]
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
    steps = max(0, section.steps - so_far.trained)
    left = f" ({steps} steps are left)" if so_far.trained else ""
    operations = steps * estimates.training_operations(
        shape, tokens=plan.tokens, supervised=plan.supervised, adapters=section.lora > 0
    )
    reads = writes = rows = 0.0
    for one in (evaluation for evaluation in _list_evaluations(recipe, sets, so_far) if evaluation.steps):
        lengths = _mean_lengths(recipe, one.questions, evaluate.formats, section.demonstrations)
        for prompt, target in lengths.values():
            budget = evaluate.base_max_tokens or evaluate.max_tokens
            n, target = len(one.questions) * one.samples, min(target, evaluate.max_tokens)
            reads += one.steps * len(one.questions) * prompt
            writes += n * (one.base * budget + (one.steps - one.base) * target)
            rows = max(rows, min(n, evaluate.batch_tokens / (prompt + budget)))
    rates = training_rate, decoding_rate = estimates.measure_rates(
        shape, tokens=batch, rows=rows, precision=section.precision, dtype=evaluate.dtype
    )
    answers = estimates.evaluation_memory(shape, tokens=evaluate.batch_tokens, dtype=evaluate.dtype)
    parts = sorted(((size, name) for name, size in memory.items()), reverse=True)
    lines = [
        f"memory            about {_format_gib(sum(memory.values()))} in training:",
        *(f"{INDENT}{_format_gib(size)}: {name}" for size, name in parts),
    ]
    if section.sharding == "full":
        lines.append(f"{INDENT}everything except the activations is split among the processes")
    times = [f"{_format_duration(operations / rate)} at {rate / 1e12:.0f} TFLOP/s" for rate in FLOPS_RATES]
    if not operations and not writes:
        return [*lines, "time              nothing is left to train or to evaluate"]
    training = operations / training_rate
    answering = estimates.answering_seconds(shape, reads=reads, writes=writes, rates=rates)
    if evaluate.engine == "transformers":
        lines.append(f"{INDENT}about {_format_gib(sum(answers.values()))} in evaluation")
        both = f"{_format_duration(training)} for training and {_format_duration(answering)} for answers"
        here = f"{_format_duration(training + answering)}: {both}"
    else:
        here = f"{_format_duration(training)} for training; none for answers by {evaluate.engine}"
    return [
        *lines,
        f"time              about {here}, on this machine:",
        f"{INDENT}training at {training_rate / 1e12:.3f} TFLOP/s, writing at {decoding_rate / 1e12:.3f}; both follow from",
        f"{INDENT}products of this size, which were measured now. Answers of the base count with all their tokens",
        f"{INDENT}training takes {operations:.2g} operations{left}: {', '.join(times)}",
    ]


def _find_shape(recipe: Recipe) -> models.Shape | None:
    """The size of the student; None if it is unknown."""
    if recipe.student.shape is not None:
        size = tokenization.load_tokenizer(models.tokenizer_folder(recipe)).size
        return models.shape_from_recipe(recipe, size)
    path = _student_folder(recipe)
    return None if path is None else models.read_shape(path)


def _student_folder(recipe: Recipe) -> Path | None:
    """The folder of the student's model; None if the model is not available."""
    try:
        return models.model_folder(recipe) if recipe.student.model else None
    except UserError:
        return None


def _parameter_count(recipe: Recipe) -> int | None:
    if recipe.student.shape is not None and (shape := _find_shape(recipe)) is not None:
        return models.count_parameters(shape)
    path = _student_folder(recipe)
    if path is None:
        return None
    try:
        return models.count_stored_parameters(path)
    except UserError as fault:
        if fault.code != models.NOT_DOWNLOADED:
            raise
        shape = models.read_shape(path)
        return None if shape is None else models.count_parameters(shape)


def _checkpoint_count(recipe: Recipe) -> int:
    """The number of checkpoints that training saves."""
    return len(recipe.train.checkpoint_steps)


def _format_gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _format_duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
