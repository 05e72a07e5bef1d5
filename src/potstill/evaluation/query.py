"""Querying a trained student with the prompt, the limits and the decoding of its evaluation.

settings = read_settings(Path("runs/demo/student"))
student = open_student(Path("runs/demo/student"), settings)
[answer] = answer_questions(student, settings, [AskedQuestion("Tom has 2 pens and buys 3. How many has he?")])
answer.rationale, answer.answer          # '2 + 3 = 5.', '5'

>>> split_answer("2 + 3 = 5.\\nThe answer is 5")
('2 + 3 = 5.', '5')
>>> read_answer("2 + 3 = 5.0. The answer is 5.0 pens", "number", "72", "end")
'5'
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from potstill import grading, inference, thoughts
from potstill.errors import UserError
from potstill.evaluation import checkpoint, decoding
from potstill.evaluation.query_settings import SETTINGS_FILE, QuerySettings, describe_run, read_settings
from potstill.inference import Decode, Request
from potstill.recipe import Recipe
from potstill.records import BASE, Checkpoint, Prediction, StopReason
from potstill.storage import manifest

if TYPE_CHECKING:
    from potstill.models import Student

# Answer types whose answers can be extracted without a gold answer. For others, the words after "the answer is" are used.
READ_TYPES: Final = ("number", "choice", "boolean", "time", "ratio", "brackets")
STAND_INS: Final = {"number": "0", "choice": "A"}  # answers that only name the type of a task without an example
_ANSWER: Final = re.compile(r"(?:\b(?:so|thus|hence|therefore),? )?\bthe answer is\b[\s:]*", re.IGNORECASE)


# Students


def open_student(folder: Path, settings: QuerySettings) -> Student:
    """The student in a folder, on the GPU if there is one. Raises UserError as `models.open_student` does."""
    from potstill import models

    student = models.open_student(folder, chat_template=settings.is_chat)
    return _move(student, settings)


def _move(student: Student, settings: QuerySettings) -> Student:
    """The student on its device, in the dtype of its evaluation, as `checkpoint.open_checkpoint_engine` opens it."""
    from potstill import models

    if settings.dtype == "bfloat16":
        student.convert_weights("bfloat16")
    return student.to(models.default_device())


def open_run_student(run_dir: Path, recipe: Recipe, chosen: Checkpoint | None = None) -> tuple[Student, QuerySettings]:
    """The student of a run and its settings. Raises UserError if the run has not yet selected a checkpoint.

    chosen  the checkpoint; None: the student in the folder `student`, or else the selected checkpoint; for a run that only
            evaluates, the base
    """
    if chosen is None:
        folder = run_dir / "student"
        if (folder / SETTINGS_FILE).is_file():
            settings = read_settings(folder)
            return open_student(folder, settings), settings
        if recipe.has_teacher and manifest.read_finished(run_dir / "select") is None:
            what, hint = "the run has chosen no checkpoint yet", "run the recipe until select"
            raise UserError(what, code="E-run-stage-not-finished", where=run_dir, hint=hint)
        chosen = checkpoint.read_choice(run_dir).checkpoint if recipe.has_teacher else BASE
    student = checkpoint.open_checkpoint(run_dir, recipe, chosen)
    described = describe_run(run_dir, recipe, student)
    if described is None:
        raise UserError(
            "the chat template of this student changes the questions",
            code="E-ask-template",
            where=run_dir,
            hint="ask it with transformers and its own chat template",
        )
    return _move(student, described), described


# Questions and answers


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """A question for a student.

    task  None: the default of the settings
    id    determines the random numbers of sampled answers, as in an evaluation; None: the text
    """

    text: str
    task: str | None = None
    id: str | None = None

    @property
    def key(self) -> str:
        return self.text if self.id is None else self.id


@dataclass(frozen=True, slots=True)
class Answer:
    """text       the text that the student wrote; of several samples, the chosen one
    rationale  the text before "the answer is"
    answer     the answer in canonical form; None if the text has no answer
    stop       end, length (the token limit) or cut (after the answer)
    votes      answer -> number of samples; empty for a single sample
    """

    text: str
    rationale: str
    answer: str | None
    stop: StopReason
    votes: Mapping[str, int]


def answer_questions(
    student: Student,
    settings: QuerySettings,
    questions: Sequence[AskedQuestion],
    *,
    format: str | None = None,
    decoding_name: str | None = None,
) -> list[Answer]:
    """One answer per question, in order.

    format, decoding_name   None: the defaults of the settings

    Raises UserError for a format or task without a prompt, for two questions with the same id, and for a question that is
    empty, too long, or contains a special token of a chat template.
    """
    spec = decoding.parse_decoding(name := decoding_name or settings.decoding).spec
    decode = Decode(
        max_tokens=settings.max_tokens,
        temperature=settings.temperature if spec.sampled else 0.0,
        seed=settings.seed,
        stop_at_answer="sentence" if settings.stop_at_answer else None,
        calculator=spec.calculator,
        likelihood=spec.sampled,
        stop_repeats=settings.stop_repeats,
    )
    by_key: dict[str, AskedQuestion] = {}
    for question in questions:
        known = by_key.setdefault(question.key, question)
        if known != question:
            what, hint = "two questions have the same id", "give every question a different id, or no id"
            raise UserError(what, code="E-ask-repeated-id", where=question.key, hint=hint)
    predictions = _generate(student, settings, by_key, format or settings.format, decode, spec.samples)
    votes: dict[str, Counter[str]] = {key: Counter() for key in by_key}
    for prediction in predictions:
        votes[prediction.question].update([prediction.answer] if prediction.answer is not None else [])
    chosen: dict[str, Answer] = {}
    for prediction in decoding.choose_answers(name, predictions):
        counts = dict(votes[prediction.question].most_common()) if spec.samples > 1 else {}
        rationale = split_answer(prediction.text)[0]
        chosen[prediction.question] = Answer(prediction.text, rationale, prediction.answer, prediction.stop, counts)
    return [chosen[question.key] for question in questions]


def _generate(
    student: Student,
    settings: QuerySettings,
    questions: Mapping[str, AskedQuestion],
    format: str,
    decode: Decode,
    samples: int,
) -> list[Prediction]:
    """All samples of all questions, without real grades, because the right answers are not known."""
    engine = inference.open_engine(student)
    requests, tasks = list[Request](), dict[str, str]()
    for key, question in questions.items():
        if not question.text.strip():
            raise UserError("the question is empty", code="E-ask-empty-question", where=key, hint="write a question")
        if student.chat is not None:
            student.chat.check_text(question.text)
        tasks[key] = settings.task if question.task is None else question.task
        before, after = settings.prompt(format, tasks[key])
        ids = tuple(student.encode(before + question.text + after))
        requests += [Request((key, index), ids) for index in range(samples)]
    predictions = []
    for indices in inference.batch_requests(requests, settings.batch_tokens, max_tokens=decode.max_tokens):
        for made in engine.generate([requests[index] for index in indices], decode):
            (key, index), text, stop = made.key, made.text, made.stop
            answer = read_answer(text, tasks[key], settings.answers.get(tasks[key]), stop, opened=made.opened)
            predictions.append(Prediction(key, "", tasks[key], text, stop, "no answer", answer, index, made.likelihood))
    return predictions


def split_answer(text: str) -> tuple[str, str | None]:
    """The rationale of a text, and the words of its last answer sentence (None without one)."""
    found = list(_ANSWER.finditer(text))
    if not found:
        return text.strip(), None
    return text[: found[-1].start()].strip(), text[found[-1].end() :].strip().partition("\n")[0].rstrip(" .") or None


def read_answer(text: str, task: str, example: str | None, stop: StopReason, *, opened: bool = False) -> str | None:
    """The answer in a text, in canonical form if its type is one of `READ_TYPES`; None without an answer.

    example  a right answer to another question of the task; without one, or for another type, the answer is the words
             after "the answer is"
    opened   whether the prompt opened a thought in which the text begins. If the text was cut inside it, it has no answer
    """
    if opened and thoughts.is_cut_in_thought(text, stop, opened=opened):
        return None
    if example is not None or task:
        kind = grading.infer_answer_type(example or STAND_INS["number"], task or None)
        example = example or STAND_INS.get(kind)
        if kind in READ_TYPES and example is not None:
            return grading.grade(text, example, kind, stop).answer
    return split_answer(text)[1]


def with_decoding(settings: QuerySettings, *, calculator: bool | None, vote: int | None) -> str:
    """The name of the default decoding with changes. calculator: with or without; vote: number of samples (0: greedy)."""
    default = decoding.parse_decoding(settings.decoding)
    wanted = replace(default, calculator=default.calculator if calculator is None else calculator)
    if vote is not None:
        wanted = replace(wanted, choice="vote" if vote else "greedy", samples=vote or 1)
    return wanted.name
