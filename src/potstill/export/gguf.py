"""`potstill export RUN --as gguf`: the student as a GGUF file, with a Modelfile for Ollama.

    student.gguf    weights, tokenizer and chat template
    Modelfile       the trained prompt as Ollama's template, the end tokens, greedy decoding
    export.json     prompt, stop, token limit, and the parity figures

potstill's converter (`potstill.models.gguf`) reads the file back. Bit by bit, its weights must equal the student's weights,
rounded to the type of the file; and its token ids must equal the student's ids on questions and chains of the run.

    >>> print(format_modelfile("Q: {{ .Prompt }}\\nA:", ["</s>"], 256, 4096))
    FROM ./student.gguf
    TEMPLATE \"\"\"Q: {{ .Prompt }}
    A:{{ .Response }}\"\"\"
    PARAMETER stop "</s>"
    PARAMETER temperature 0
    PARAMETER repeat_penalty 1
    PARAMETER num_predict 256
    PARAMETER num_ctx 4096
    <BLANKLINE>
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from potstill import models, progress, storage
from potstill.data import run_questions
from potstill.errors import UserError
from potstill.export.parity import compare_answers, not_equal
from potstill.export.source import PLACE_HOLDER, ExportedRun, new_folder
from potstill.inference.transformers import TransformersEngine
from potstill.models import gguf_writer
from potstill.models.gguf import convert_into

if TYPE_CHECKING:
    from potstill.models import Student

MODEL_FILE: Final = "student.gguf"
DEFAULT_KINDS: Final = {"bfloat16": "BF16", "float16": "F16"}  # type of the student's weights -> type in the file
OLLAMA_CONTEXT: Final = 4096  # number of positions; these prompts need no more, and more would cost memory


def export_gguf(run: ExportedRun, folder: Path, kind: str | None, questions: int) -> list[str]:
    """Write the folder. Returns its parity figures, one sentence per figure.

    kind       type of the weights: F32, F16, BF16 or Q8_0; None: the type that does not change the student's weights
    questions  number of validation questions that both the student and the file answer

    Raises UserError for a model or a tokenizer that GGUF's readers would compute differently, and if the file differs from
    the student.
    """
    student = run.open_student()
    engine = TransformersEngine(student)
    chosen = kind or DEFAULT_KINDS.get(_stored_dtype(run.student_folder), "F32")
    with new_folder(folder, "gguf", run.run_dir) as (partial, about):
        progress.print_line(f"write {MODEL_FILE}, {chosen}", "dim")
        gguf_writer.write_gguf(
            student, partial / MODEL_FILE, chosen, engine.end_tokens, name=f"{run.recipe.name} student"
        )
        stops = [_token_text(student, token) for token in engine.end_tokens]
        about |= {
            "weights": chosen,
            "prompt": run.prompt_text(student, "{question}"),
            "add_special_tokens": student.chat is None,  # whether the tokenizer adds its own to the prompt
            "stop": stops,
            "max_tokens": run.recipe.evaluate.max_tokens,
        }
        context = min(OLLAMA_CONTEXT, student.model.config.max_position_embeddings)
        modelfile = format_modelfile(ollama_template(run, student), stops, about["max_tokens"], context)
        storage.write_file(partial / "Modelfile", modelfile.encode())
        with TemporaryDirectory(dir=partial.parent, prefix=".read-back-") as place:
            parity = _read_back(run, student, engine, partial / MODEL_FILE, chosen, Path(place), questions)
        about["parity"] = parity
    return parity["sentences"]


def _read_back(
    run: ExportedRun,
    student: Student,
    engine: TransformersEngine,
    file: Path,
    kind: str,
    place: Path,
    number: int,
) -> dict[str, Any]:
    """The parity figures of a file. Raises UserError if weights, token ids or end tokens differ."""
    progress.print_line("read the file back", "dim")
    convert_into(file, place, key="export")
    settings = models.ChatSettings()
    if student.chat is not None:  # the file's template contains the recipe's arguments, but no system message
        settings = models.ChatSettings(True, system_prompt=student.chat.settings.system_prompt)
    read = models.open_student(place, chat_template=settings)
    weights = gguf_writer.compare_weights(student, read, kind)
    if weights.different:
        raise not_equal("the weights of the GGUF file are not those of the student", ", ".join(weights.different[:3]))
    questions = run.validation_questions(number)
    texts = [student.render(run.prompt_of(question)) for question in questions]
    texts += _chain_texts(run)
    for text in texts:
        if student.encode(text) != read.encode(text):
            raise not_equal("the GGUF file's tokenizer gives other tokens for a text", repr(text[:200]))
    for question in questions:
        prompt = run.prompt_of(question)
        if student.render(prompt) != read.render(prompt):
            raise not_equal("the chat template of the GGUF file gives another prompt", repr(read.render(prompt)[:200]))
    exported = TransformersEngine(read)
    if exported.end_tokens[0] != engine.end_tokens[0]:
        raise not_equal("the GGUF file has other end tokens", exported.end_tokens)
    exported.end_tokens = engine.end_tokens  # transformers reads only one end token, llama.cpp all
    answers = compare_answers(run, engine, exported, questions)
    if not weights.largest and answers.equal < answers.questions:
        raise not_equal("the GGUF file has the student's weights, but other answers", answers.sentence)
    rounding = f", by {kind}'s rounding up to {weights.largest:.2g} from the student's" if weights.largest else ""
    sentences = [
        f"weights: {weights.tensors} of {weights.tensors} tensors read back as written{rounding}",
        f"tokens: {len(texts)} of {len(texts)} texts have equal token ids",
        f"answers: {answers.sentence}",
    ]
    return {
        "weights": {"tensors": weights.tensors, "equal": weights.tensors, "largest_rounding": weights.largest},
        "texts": {"texts": len(texts), "equal": len(texts)},
        "answers": answers.to_json(),
        "sentences": sentences,
    }


def _chain_texts(run: ExportedRun, most: int = 200) -> list[str]:
    """Reference solutions and gold answers of training questions, as additional texts for the tokenizer check."""
    questions = run_questions.read_questions(run.run_dir, run.recipe.questions.train, "train")[:most]
    return [text for question in questions for text in (question.text, question.rationale or question.gold)]


def _stored_dtype(folder: Path) -> str:
    config = storage.read_json(folder / "config.json")
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def _token_text(student: Student, token: int) -> str:
    names = {number: name for name, number in student.tokenizer.vocabulary.specials.items()}
    return names[token]


def ollama_template(run: ExportedRun, student: Student) -> str:
    """The trained prompt in Go's template language, with `{{ .Prompt }}` at the place of the question.

    The template has no BOS token, because Ollama adds it before a text.
    """
    text = run.prompt_text(student, PLACE_HOLDER)
    for token in student.tokenizer.prefix:
        text = text.removeprefix(_token_text(student, token))
    if '"""' in text:
        raise UserError(
            "the prompt contains three quotation marks, which a Modelfile cannot contain",
            code="E-export-modelfile",
            where="--as gguf",
            found=text[:200],
            hint="remove the quotation marks from the chat template or the demonstrations",
        )
    return text.replace("{{", '{{ "{{" }}').replace(PLACE_HOLDER, "{{ .Prompt }}")


def format_modelfile(template: str, stops: Sequence[str], max_tokens: int, context: int) -> str:
    """A Modelfile for `ollama create NAME -f Modelfile`.

    It turns off Ollama's repetition penalty, which would change greedy answers.
    """
    lines = [
        f"FROM ./{MODEL_FILE}",
        f'TEMPLATE """{template}{{{{ .Response }}}}"""',
        *(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops),
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
        f"PARAMETER num_predict {max_tokens}",
        f"PARAMETER num_ctx {context}",
    ]
    return "\n".join(lines) + "\n"
