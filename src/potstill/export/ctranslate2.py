"""`potstill export RUN --as ctranslate2`: the student in CTranslate2's format, with its tokenizer.

    model.bin, config.json, *vocabulary.json    the files that `ctranslate2.Generator` or `ctranslate2.Translator` loads
    tokenizer.json, ...                         the tokenizer, for transformers or tokenizers
    export.json                                 prompt, stop, token limit, and the parity figure

The engine `ctranslate2` (`potstill.inference.ctranslate2`) makes the conversion, and corrects errors of CTranslate2's
converter. The folder is loaded again for the parity figure: the share of validation questions to which it gives the same
greedy answer as the student.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, cast

from potstill import progress, storage
from potstill.export.parity import compare_answers, not_equal
from potstill.export.source import ExportedRun, new_folder
from potstill.inference import ctranslate2
from potstill.inference.transformers import TransformersEngine

# Minimum share of equal answers in float32. They differ only if two tokens are equally likely up to float noise.
LEAST_EQUAL: Final = 0.9


def export_ctranslate2(run: ExportedRun, folder: Path, weights: str, questions: int) -> list[str]:
    """Write the folder. Returns sentences with its parity figure, and the code that loads it.

    weights    float32 or int8
    questions  number of validation questions that both the student and the folder answer

    Raises UserError if CTranslate2 is not installed, for a kind of model for which it was not tested, and if fewer than nine
    in ten answers in float32 are equal.
    """
    student = run.open_student()
    engine = TransformersEngine(student)
    int8 = weights == "int8"
    with new_folder(folder, "ctranslate2", run.run_dir) as (partial, about):
        for name, content in student.tokenizer.files.items():
            storage.write_file(partial / name, content)
        progress.print_line(f"write {weights}", "dim")
        names = ctranslate2.read_token_names(student, partial)
        ctranslate2.export_student(student, partial, names, cast(Literal["float32", "int8"], weights))
        exported = ctranslate2.CTranslate2Engine(student, int8=int8, exported=partial)
        answers = compare_answers(run, engine, exported, run.validation_questions(questions))
        if not int8 and answers.equal < LEAST_EQUAL * answers.questions:
            raise not_equal("CTranslate2 gives other answers in float32", answers.sentence)
        about |= {
            "weights": weights,
            "prompt": run.prompt_text(student, "{question}"),
            "add_special_tokens": student.chat is None,  # whether the tokenizer adds its own to the prompt
            "stop": [names[token] for token in engine.end_tokens],
            "max_tokens": run.recipe.evaluate.max_tokens,
            "parity": {"answers": answers.to_json(), "sentences": [f"answers: {answers.sentence}"]},
        }
    loader = "Translator" if student.family == "t5" else "Generator"
    return [f"answers: {answers.sentence}", f"ctranslate2.{loader}({str(folder)!r}, compute_type={weights!r})"]
