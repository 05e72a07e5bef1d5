"""The plan of a run before it is made: what it would read, sample, train and evaluate, and about how much that is.

    print(text(recipe.load(path)))        # what `potstill run RECIPE --dry-run` prints

Everything that is local is loaded; what is not (weights or chains still to be fetched) is said to be missing, and what
does not depend on it is given all the same. Memory and time are estimates: each says from what.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from potstill import checks, decoding, exam, questions, run, students, teachers, tokenizers, training_plan
from potstill.errors import UserError
from potstill.recipe import Recipe
from potstill.records import Question, Split
from potstill.stages import collect
from potstill.teachers import openai, replay

ADAM_BYTES = 16  # a parameter: weight, gradient and two moments, 32 bits each
FEW = 100  # questions; a score over fewer is said to be uncertain


def text(plan: Recipe) -> str:
    """The plan as plain text. Raises UserError for what would stop the run before its first stage."""
    away = any(own.file is None or own.hub is not None for own in plan.sets.values())
    kept = ", but fetched sets into the cache" if away else ""
    lines = [f"plan of {plan.name} (nothing is written{kept})", ""]
    gathered = collect.gather(plan)
    loaded = gathered.questions
    lines += _questions(gathered)
    train = [question for name in plan.questions.train for question in loaded[name].get("train", [])]
    if plan.teacher.kind == "none":
        return "\n".join([*lines, *_measuring(plan, loaded), "", *_problems(plan)])
    lines += _part(lambda: _teacher(plan, train), "teacher")
    lines += _part(lambda: _student(plan), "student")
    lines += _part(lambda: training_plan.lines(plan, train, _parameters(plan)), "training")
    lines += _part(lambda: _evaluation(plan, loaded), "answers")
    return "\n".join([*lines, "", *_problems(plan)])


def _part(made: Callable[[], list[str]], name: str) -> list[str]:
    """A part of the plan; where something is missing for it, that is in the list of problems at the end."""
    try:
        return made()
    except UserError as fault:
        return [f"{name:<17} not planned: {fault.where}: {fault.what}", ""]


def _problems(plan: Recipe) -> list[str]:
    """What would stop the run at one of its stages."""
    found = checks.problems(plan, run.stages(plan), run.folder_of(plan))
    if not found:
        return ["would stop it     nothing that can be seen now"]
    lines = []
    for problem in found:
        first, *rest = str(problem.fault).splitlines()
        lines += [f"would stop it     at {problem.stage}: {first}", *(f"                {line}" for line in rest)]
    return lines


def _questions(gathered: collect.Gathered) -> list[str]:
    loaded, unused = gathered.questions, gathered.unused
    lines = ["questions         train  validation    test  not used"]
    for name, by_split in loaded.items():
        counts = [str(len(by_split[split])) if split in by_split else "-" for split in ("train", "validation", "test")]
        lines.append(f"  {name:<12} {counts[0]:>8} {counts[1]:>11} {counts[2]:>7} {unused[name]:>9}")
    for name, by_split in loaded.items():
        for split in ("validation", "test"):
            n = len(by_split.get(split, ()))
            if 0 < n < FEW:
                lines.append(
                    f"  few             {name} {split}: +/- {98 / n**0.5:.0f} points at n = {n} and 50 % right"
                )
    lines += [
        f"  contradiction   {first.id} and {other.id} are one question with the answers {first.gold[:30]!r} and"
        f" {other.gold[:30]!r}"
        for first, other in _contradictions(loaded)[:3]
    ]
    return [*lines, *_templates(gathered), ""]


def _templates(gathered: collect.Gathered) -> list[str]:
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


def _contradictions(loaded: dict[str, dict[str, list[Question]]]) -> list[tuple[Question, Question]]:
    return questions.contradictions([q for by_split in loaded.values() for rows in by_split.values() for q in rows])


def _teacher(plan: Recipe, train: Sequence[Question]) -> list[str]:
    teacher, count = plan.teacher, len(train)
    if teacher.kind == "human":
        silent = [question.id for question in train if not question.rationale]
        lines = [f"teacher           human: {count - len(silent)} solutions of the sets themselves, no probabilities"]
        if silent:
            lines.append(
                f"  missing         {len(silent)} of {count} questions have no rationale, the first is {silent[0]};"
            )
            lines.append("                  the run would stop at sample")
        return [*lines, ""]
    if teacher.kind == "replay":
        path = training_plan.local(plan, teacher.chains or "", "teacher.chains")
        if path is None:
            return [f"teacher           replay: {teacher.chains} is not here; the run would stop at sample", ""]
        return [f"teacher           replay: {sum(1 for _ in replay.rows(path))} chains in {path}", ""]
    if teacher.kind == "openai":
        return _server(plan, train)
    path = training_plan.local(plan, teacher.model or "", "teacher.model")
    there = path if path else f"{teacher.model} is not here; the run would stop at sample"
    chains = count * teacher.samples
    tokens = chains * teacher.max_tokens
    chat = path is not None and teachers.spoken(plan) is not None
    return [
        f"teacher           {teacher.kind}: {there}",
        f"  asks            {count} questions x {teacher.samples} = {chains} chains of at most {tokens} tokens",
        f"  keeps           {teacher.candidates} candidates a token, temperature {teacher.temperature}",
        *(["  prompts         in its own chat template (teacher.chat: false for plain ones)"] if chat else []),
        "",
    ]


def _server(plan: Recipe, train: Sequence[Question]) -> list[str]:
    teacher = plan.teacher
    if teacher.prompt is not None and training_plan.local(plan, teacher.prompt, "teacher.prompt") is None:
        return [f"teacher           openai: {teacher.prompt} is not here; the run would stop at sample", ""]
    asked = openai.expected(plan, train)
    prices, ceiling = teacher.budget.prices, teacher.budget
    kept = f"{teacher.candidates} candidates a token" if teacher.candidates else "texts alone: hard targets"
    lines = [
        f"teacher           openai: {teacher.model} at {', '.join(teacher.server.urls)} (not asked yet)",
        f"  asks            {asked.questions} questions x {teacher.samples} = {asked.chains} chains"
        f" in {asked.requests} requests, if n is honoured",
        f"  tokens          about {asked.prompt_tokens} of prompts, at most {asked.written} written",
        f"  keeps           {kept}, temperature {teacher.temperature}",
    ]
    if prices.prompt or prices.completion:
        lines.append(
            f"  cost            at most about {asked.money:.2f}, at {prices.prompt:g} and {prices.completion:g}"
        )
    if ceiling.tokens or ceiling.money:
        most = [f"{ceiling.tokens} tokens"] if ceiling.tokens else []
        most += [f"{ceiling.money:g} in money"] if ceiling.money else []
        lines.append(f"  ceiling         {', '.join(most)}")
    return [*lines, "  time            told after the first minute, by the server's own rate", ""]


def _student(plan: Recipe) -> list[str]:
    count = _parameters(plan)
    asked = plan.student
    weights, chat = "random weights", None
    if asked.model is not None:
        path = training_plan.local(plan, asked.model, "student.model")
        if path is not None:
            students.check_tokenizer(plan, path)
            chat = students.spoken(plan, path)
        weights = str(path) if path else f"{asked.model} is not here; the run would stop at train"
    if count is None:
        return [f"student           {weights}; its size is not known without it (give student.shape too)", ""]
    gib, lora = count / 2**30, plan.train.lora
    held = 4 if lora else ADAM_BYTES
    parts = f"weights; adapters of rank {lora} on top" if lora else "weights, gradients and AdamW"
    engine = "the adapters' own" if lora else f"{8 * gib:.2f} GiB"
    return [
        f"student           {weights}",
        f"  prompts         {'in its own chat template (student.chat: false for plain ones)' if chat else 'plain'}",
        f"  parameters      {count}",
        f"  memory          {held * gib:.2f} GiB: {parts}, {held} bytes a parameter,",
        f"                  and the activations of {plan.train.batch_tokens} tokens",
        *(["                  all but the latter spread over the processes"] if plan.train.sharding == "full" else []),
        f"  checkpoints     {_kept(plan)} of {4 * gib:.2f} GiB, and the newest's engine state of {engine}",
        "",
    ]


def _measuring(plan: Recipe, loaded: dict[str, dict[str, list[Question]]]) -> list[str]:
    """What a recipe that trains nothing does."""
    n, formats = sum(len(found.get("test", [])) for found in loaded.values()), len(plan.evaluate.formats)
    answers = f"{n} x {formats} = {n * formats} of at most {plan.evaluate.max_tokens} tokens"
    return [f"student           {plan.student.model or 'random weights'}, not trained", f"answers           {answers}"]


def _evaluation(plan: Recipe, loaded: dict[str, dict[str, list[Question]]]) -> list[str]:
    formats = len(plan.evaluate.formats)
    counts = {split: sum(len(found.get(split, [])) for found in loaded.values()) for split in ("validation", "test")}
    steps = _kept(plan) * (1 + len(plan.evaluate.mix or ())) + 1
    rows: list[tuple[str, int, Split]] = [
        ("evaluation", steps, "validation"),
        ("test", 3 if plan.repair else 2, "test"),
    ]
    drawn = [sum(each.samples for each in decoding.drawings(exam.decodings(plan, split))) for _, _, split in rows]
    told = " x texts drawn" if max(drawn) > 1 else ""
    lines = [f"answers           of at most {plan.evaluate.max_tokens} tokens; steps x questions x formats{told}"]
    for (stage, times, split), texts in zip(rows, drawn, strict=True):
        n, more = counts[split], f" x {texts}" if told else ""
        lines.append(f"  {stage:<15} {times} x {n} x {formats}{more} = {times * n * formats * texts}")
    return lines


def _parameters(plan: Recipe) -> int | None:
    asked = plan.student
    if asked.shape is not None:
        return students.parameters(students.shape(plan, tokenizers.open(students.tokenizer_folder(plan)).size))
    path = training_plan.local(plan, asked.model or "", "student.model")
    return None if path is None else students.count(path)


def _kept(plan: Recipe) -> int:
    """Checkpoints that training leaves."""
    return -(-plan.train.steps // plan.train.checkpoint_every)
