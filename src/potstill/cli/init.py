"""`potstill init`: looks at a file of questions, asks a few questions, and writes a commented recipe.

    >>> print(_scalar("billing"), _scalar("yes"), _scalar("a: b"), _scalar("7"))
    billing "yes" "a: b" "7"

Without a terminal, or with `--yes`, nothing is asked, and the proposals count. No existing file is changed.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Optional

import typer

from potstill.errors import UserError

if TYPE_CHECKING:
    from potstill.data.propose import Proposal
    from potstill.recipe import Recipe
    from potstill.records import Question

ENDINGS: Final = (".jsonl", ".csv", ".tsv", ".parquet", ".json", ".arrow")
DEFAULT_STUDENT: Final = "HuggingFaceTB/SmolLM2-135M-Instruct"
SHOWN_QUESTIONS: Final = 5
SHOWN_LABELS: Final = 12
EXAMPLE_WIDTH: Final = 60
EPOCHS: Final = 10
PROMPTS_PER_STEP: Final = 16


def add_init_command(app: typer.Typer) -> None:
    """Add `potstill init` to an application."""
    app.command("init", epilog="Example: potstill init --file tickets.csv --question text --answer department")(_init)


def _init(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of the data file and of the new recipe.")
    ] = Path(),
    file: Annotated[
        Optional[Path],  # noqa: UP045 - typer does not read `Path | None`
        typer.Option(
            metavar="FILE", help="Data file: JSONL, CSV or Parquet; the only one in FOLDER.", show_default=False
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the recipe and its run; the name of the file.")] = "",
    question: Annotated[str, typer.Option(metavar="COLUMN", help="Column of the questions or texts.")] = "",
    answer: Annotated[str, typer.Option(metavar="COLUMN", help="Column of the right answers or labels.")] = "",
    rationale: Annotated[str, typer.Option(metavar="COLUMN", help="Column of solutions in words, if any.")] = "",
    choices: Annotated[str, typer.Option(metavar="COLUMN", help="Column of the options of a choice, if any.")] = "",
    task: Annotated[str, typer.Option(metavar="TYPE", help="Answer type: label, number, choice, text, ...")] = "",
    teacher: Annotated[str, typer.Option(metavar="MODEL", help="Model of an OpenAI-compatible server.")] = "",
    url: Annotated[str, typer.Option(help="Address of the teacher's server.")] = "http://localhost:8000/v1",
    student: Annotated[
        str, typer.Option(metavar="MODEL", help="Folder of the student, or its name on the Hugging Face hub.")
    ] = DEFAULT_STUDENT,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing; take the proposals.")] = False,
) -> None:
    """Look at your data file, and write a recipe for it.

    Proposes columns, answer type and splits, and shows five questions as the student will see them.
    """
    chosen = {"question": question, "answer": answer, "rationale": rationale, "choices": choices}
    asks = not yes and sys.stdin.isatty() and sys.stdout.isatty()
    path = write_recipe(
        folder, file, name, {key: value for key, value in chosen.items() if value}, task, teacher, url, student, asks
    )
    typer.echo(f"\nwrote {path}\ncheck it:  potstill run {path} --dry-run\nrun it:    potstill run {path}")


def write_recipe(
    folder: Path,
    file: Path | None,
    name: str,
    chosen: Mapping[str, str],
    task: str,
    teacher: str,
    url: str,
    student: str,
    asks: bool,
) -> Path:
    """Write the recipe into the folder, and print what was found. Returns its path. The arguments are the command's.

    Raises UserError if there is no data file or several, and if the file or the recipe is not right. Nothing is written then.
    """
    from potstill import data, storage
    from potstill.data import assemble, propose, set_files
    from potstill.recipe import parse_recipe
    from potstill.recipe.fields import write_name

    path = file if file is not None else _find_file(folder, asks)
    rows = [row for _, _, row in set_files.read_rows(path)]
    if not rows:
        raise UserError("the file has no rows", code="E-data-empty-set", where=path, hint="write one question per row")
    typer.echo(f"{path}: {len(rows)} rows\n")
    _print_columns(rows)
    proposal = propose.propose(rows, chosen, task or None)
    if asks:
        proposal, teacher, student = _ask(rows, proposal, chosen, task, teacher, student)
    name = name or write_name(path.name.split(".")[0], "mine")
    name = f"my-{name}" if name in data.SETS else name
    questions = data.load_set(
        name, file=path, fields=proposal.columns, labels=proposal.labels, task=proposal.task, validation=0.25, test=0.25
    )
    recipe_path = folder / f"{name}.yaml"
    if recipe_path.exists():
        hint = "choose another name with --name, or remove the file"
        raise UserError("the recipe exists already", code="E-init-exists", where=recipe_path, hint=hint)
    text = render_recipe(_Plan(name, path, recipe_path, proposal, questions, teacher, url, student))
    recipe = parse_recipe(text, str(recipe_path))
    sets = assemble.assemble_questions(recipe).questions[name]
    _print_proposal(proposal, questions, list(dict.fromkeys(name for row in rows for name in row)))
    counts = ", ".join(f"{len(sets[split])} {split}" for split in ("train", "validation", "test"))
    typer.echo(f"questions   {counts}")
    _print_questions(recipe, sets["train"])
    storage.write_file(recipe_path, text.encode("utf-8"))
    return recipe_path


def _find_file(folder: Path, asks: bool) -> Path:
    """The data file in a folder. Raises UserError without one, and if there are several and nobody can be asked."""
    found = sorted(path for path in folder.glob("*") if path.suffix in ENDINGS) if folder.is_dir() else []
    if len(found) == 1:
        return found[0]
    if not found:
        hint = "name the file: potstill init --file tickets.csv (or .jsonl, .parquet)"
        raise UserError("the folder has no data file", code="E-init-no-file", where=folder, hint=hint)
    if asks:
        names = [path.name for path in found]
        return folder / _ask_name("Data file", names[0], names)
    hint, shown = "name one with --file", ", ".join(path.name for path in found[:8])
    raise UserError(
        "the folder has several data files", code="E-init-several-files", where=folder, found=shown, hint=hint
    )


# Questions to the user


def _ask(
    rows: Sequence[Mapping[str, Any]],
    proposal: Proposal,
    chosen: Mapping[str, str],
    task: str,
    teacher: str,
    student: str,
) -> tuple[Proposal, str, str]:
    """The proposal after the user's answers, the teacher's model (or none) and the student's model."""
    from potstill import grading
    from potstill.data import propose

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = dict(chosen)
    for field, text in (("question", "Column of the questions"), ("answer", "Column of the answers")):
        if field not in columns:
            columns[field] = _ask_name(text, proposal.columns[field], names)
    columns |= {field: proposal.columns[field] for field in ("rationale", "choices") if field in proposal.columns}
    values = [column for field, column in columns.items() if field in ("question", "answer")]
    columns = {
        field: column for field, column in columns.items() if field in ("question", "answer") or column not in values
    }
    proposal = propose.propose(rows, columns, task or None)
    if not task:
        default = "label" if proposal.labels else proposal.task or "any"
        task = _ask_name("Answer type (label: one of a few labels)", default, ["label", "any", *grading.ANSWER_TYPES])
        if task != default:
            proposal = propose.propose(rows, columns, None if task == "any" else task)
    if not teacher:
        text = "Model on an OpenAI-compatible server that writes chains of thought (empty: learn what the file has)"
        teacher = typer.prompt(text, default="", show_default=False)
    return proposal, teacher, typer.prompt("Student (folder or name on the hub)", default=student)


def _ask_name(text: str, default: str, names: Sequence[str]) -> str:
    """One of the names. The question is repeated until the answer is one of them."""
    while (answer := str(typer.prompt(text, default=default))) not in names:
        typer.echo(f"one of: {', '.join(names)}")
    return answer


# What the user sees


def _print_columns(rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    width = max(map(len, names))
    for name in names:
        value = next((row[name] for row in rows if row.get(name) not in (None, "")), "")
        typer.echo(
            f"  {name:<{width}}  {_shorten(value if isinstance(value, str) else json.dumps(value, default=str))}"
        )
    typer.echo("")


def _print_proposal(proposal: Proposal, questions: Sequence[Question], names: Sequence[str]) -> None:
    """Print the columns that were chosen, how answers are graded, and the number of questions of each label.

    names  all columns of the file
    """
    from potstill.cli.tables import print_wrapped
    from potstill.data.propose import UNUSED

    columns = {field: column for field, column in proposal.columns.items() if column != UNUSED}
    unused = [name for name in names if name not in columns.values()]
    lines = [f"columns     {', '.join(f'{field}: {column}' for field, column in columns.items())}"]
    lines += [f"not used    {', '.join(unused)}"] if unused else []
    counts = Counter(question.gold for question in questions)
    kind = (
        f"{len(counts)} labels" if proposal.labels is not None else proposal.task or "graded by the form of each answer"
    )
    several = len(counts) > SHOWN_LABELS
    if proposal.labels is not None or (proposal.task in ("boolean", "choice") and not several):
        shown = ", ".join(f"{gold} ({count})" for gold, count in counts.most_common(SHOWN_LABELS))
        kind += f": {shown}{f' and {len(counts) - SHOWN_LABELS} more' if several else ''}"
    lines += [f"answers     {kind}", *(f"note        {note}" for note in proposal.notes)]
    print_wrapped(lines)


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= EXAMPLE_WIDTH else f"{text[: EXAMPLE_WIDTH - 3]}..."


def _print_questions(recipe: Recipe, questions: Sequence[Question]) -> None:
    """Print training questions as the student will see them: the prompt, and the text to learn or the right answer."""
    from potstill import models, prompts
    from potstill.data import labels, splits

    format, instructions = prompts.FORMATS[recipe.select.format], labels.instructions(recipe)
    model = Path(recipe.student.model or "")
    chat = models.chat_template_from_recipe(recipe, model) if recipe.student.model and model.is_dir() else None
    if recipe.student.model and not model.is_dir():
        typer.echo("(if the student has a chat template, the run puts these prompts into it)")
    for number, question in enumerate(splits.sample_by_hash(questions, SHOWN_QUESTIONS), 1):
        prompt = prompts.build_prompt(question.text, format, instruction=instructions.get(question.task, ""))
        solution = question.rationale or "" if format.rationale else ""
        taught = prompts.format_solution(solution, question.gold)
        if format.rationale and not question.rationale:
            taught = f"(a chain of the teacher that ends with {prompts.format_answer(question.gold)!r})"
        typer.echo(f"\n--- question {number} ({question.id})\n{chat.render(prompt) if chat else prompt.plain}")
        typer.echo(f"--- the student learns to answer\n{taught}")


# The recipe


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the recipe is made of."""

    name: str
    file: Path
    path: Path
    proposal: Proposal
    questions: Sequence[Question]
    teacher: str
    url: str
    student: str


def render_recipe(plan: _Plan) -> str:
    """The text of the recipe, with a comment at every choice."""
    solved = sum(bool(question.rationale) for question in plan.questions)
    bare = not plan.teacher and not solved
    format = "zero-shot-answer" if bare else "zero-shot-rationale"
    train = sum(question.split == "train" for question in plan.questions)
    steps = 4 * min(500, max(10, -(-EPOCHS * train // (4 * PROMPTS_PER_STEP))))
    lines = [
        f"# Written by `potstill init` for {plan.file.name}, {len(plan.questions)} questions. Other keys have defaults.",
        f"#   check it   potstill run {plan.path.as_posix()} --dry-run",
        f"#   run it     potstill run {plan.path.as_posix()}",
        f"name: {_scalar(plan.name)}",
        "seed: 1",
        "",
        "sets:",
        f"  {_scalar(plan.name)}:",
        f"    file: {_scalar(plan.file.as_posix())}",
        *_field_lines(plan.proposal),
        "",
        "questions:",
        f"  train: [{_scalar(plan.name)}]",
        *_split_lines(plan.proposal),
        "",
        "# With one data set, the checkpoint is selected on the set's own validation questions. The scores then say nothing",
        "# about other data. To measure other data too, name more sets under questions.out_of_distribution and generic.",
        f"select: {{rule: in-distribution, format: {format}}}",
        "",
        *_teacher_lines(plan, solved),
        "",
        "# The model that learns: a folder, or a name on the Hugging Face hub.",
        f"student: {{model: {_scalar(plan.student)}}}",
        "",
        "train:",
        f"  formats: {{{format}: 1}}",
        f"  steps: {steps}  # about {max(1, steps * PROMPTS_PER_STEP // max(1, train))} times each of"
        f" the {train} training questions",
        f"  prompts_per_step: {PROMPTS_PER_STEP}",
        f"  learning_rate: {'5e-4' if 't5' in plan.student.lower() else '2e-4'}",
        f"  checkpoint_every: {steps // 4}  # every checkpoint answers the validation questions",
        "",
        "evaluate:",
        f"  formats: [{format}]",
        f"  max_tokens: {32 if bare else 256}  # an answer is cut after this number of tokens",
    ]
    return "\n".join(lines) + "\n"


def _field_lines(proposal: Proposal) -> list[str]:
    """The keys of the set: its columns, and how its answers are graded."""
    lines, renamed = [], {name: column for name, column in proposal.columns.items() if name != column}
    if renamed:
        pairs = ", ".join(f"{name}: {_scalar(column)}" for name, column in renamed.items())
        unused = "; none: not used" if "none" in renamed.values() else ""
        lines += [f"    # A field of potstill, then the column of the file{unused}.", f"    fields: {{{pairs}}}"]
    if proposal.labels is not None:
        lines += [
            "    # Every answer is one of these labels. Prompts list them, and the page has a table of them.",
            f"    labels: [{', '.join(map(_scalar, proposal.labels))}]",
        ]
    elif proposal.task is not None:
        lines += [f"    task: {proposal.task}  # how answers are graded"]
    else:
        lines += ["    # Without `task`, the form of each answer decides how it is graded (number, choice, text, ...)."]
    return lines


def _split_lines(proposal: Proposal) -> list[str]:
    if proposal.splits:
        counts = ", ".join(f"{number} {split}" for split, number in sorted(proposal.splits.items()))
        return [f"  # The file divides the questions: {counts}."]
    return [
        "  # Shares of the questions that select the checkpoint and that test it. The text of a question decides its part,",
        "  # so new questions move no others.",
        "  validation: 0.25",
        "  test: 0.25",
    ]


def _teacher_lines(plan: _Plan, solved: int) -> list[str]:
    server = 'teacher: {kind: openai, model: NAME, samples: 4, server: {urls: ["http://localhost:8000/v1"]}}'
    if plan.teacher:
        return [
            "# The model that writes chains of thought. Right chains are kept, and the student learns from them.",
            server.replace("NAME", _scalar(plan.teacher)).replace('"http://localhost:8000/v1"', _scalar(plan.url)),
        ]
    if solved == len(plan.questions):
        return ["# The student learns the solutions of the file. A teacher on a server writes others:", f"# {server}",
                "teacher: {kind: human}"]  # fmt: skip
    if solved:
        missing = len(plan.questions) - solved
        return [f"# The student learns the solutions of the file; {missing} questions without one are skipped in training.",
                f"# {server}", "teacher: {kind: human, unsolved: skip}"]  # fmt: skip
    return [
        "# The file has no solutions in words, so the student learns bare answers. To learn chains of thought, use a teacher",
        "# on a server, and write zero-shot-rationale for zero-shot-answer in this file, and max_tokens: 256:",
        f"# {server}",
        "teacher: {kind: human, unsolved: answer}",
    ]


_WORDS: Final = ("yes", "no", "true", "false", "null", "on", "off", "y", "n", "none")


def _scalar(text: str) -> str:
    """A text in YAML: plain if nothing in it has a meaning in YAML, otherwise quoted."""
    plain = re.fullmatch(r"[A-Za-z_/][A-Za-z0-9_./-]*(?: [A-Za-z0-9_./-]+)*", text) and text.lower() not in _WORDS
    return text if plain or text == "none" else json.dumps(text, ensure_ascii=False)
