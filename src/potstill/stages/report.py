"""report: the page with its tables, and the chosen student as a folder that any Hugging Face tool loads.

A run without a teacher has the page only.

The page is built only from the files of the run and of its controls. `time.html` and `time.csv` are not outputs of the
stage: they show measurements of the machine, which no digest covers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill import grading, models, prompts, storage
from potstill.data import run_questions, splits
from potstill.evaluation import checkpoint, choice, intervals, query_settings, selection
from potstill.inference.transformers import TransformersEngine
from potstill.models import query_files
from potstill.recipe import Recipe
from potstill.report import card, collect, csv_tables, figures, html, licences, run_files
from potstill.stages import Stage, StageResult

if TYPE_CHECKING:
    from potstill.models import Student

CHECKED_QUESTIONS = 20  # number of questions for which the folder's tokenizer and template must give the evaluated ids


class Report(Stage):
    reads = (
        *("report", "name", "seed", "questions", "transfer.min_transferred_probability", "select.weights"),
        "train.save_adapter",
    )
    after = (*collect.REPORTED_STAGES, "repair")

    def versions(self) -> dict[str, int]:
        return {
            "answers": grading.VERSION,
            "card": card.VERSION,
            "exam": checkpoint.VERSION,
            "intervals": intervals.VERSION,
            "page": html.VERSION,
            "selection": selection.VERSION,
            "splits": splits.VERSION,
        }

    def free(self, recipe: Recipe) -> tuple[str, ...]:
        """The name may change: a renamed run needs only a new page and card; see `grown`.

        `save_adapter` is among them if it is not set, so that the manifest does not name it.
        """
        return ("name",) if recipe.train.save_adapter else ("name", "train.save_adapter")

    def inputs(self, recipe: Recipe, run_dir: Path | None = None) -> dict[str, str]:
        return {} if run_dir is None else run_files.control_digests(run_dir, recipe)

    def keeps_inputs(self, run_dir: Path, recipe: Recipe) -> bool:
        """Whether no control run exists. An unfinished control run exists, too, and would change the report later."""
        return not any((run_dir.parent / name).exists() for name in recipe.report.controls)

    def grown(self, recipe: Recipe, counts: Mapping[str, Any]) -> bool:
        return counts["name"] != recipe.name

    def unread(self, run_dir: Path, recipe: Recipe) -> tuple[str, ...]:
        return choice.list_unused_checkpoints(run_dir, recipe)

    def make(self, run_dir: Path, recipe: Recipe) -> StageResult:
        folder = run_dir / "report"
        data = collect.collect_report(run_dir, recipe)
        paths = [folder / "index.html"]
        storage.write_file(paths[0], html.render_report(data, figures.draw_figures(data)).encode("utf-8"))
        for name, text in csv_tables.build_tables(data).items():
            paths.append(folder / f"{name}.csv")
            storage.write_file(paths[-1], text.encode("utf-8"))
        for name, text in html.render_times(data, collect.read_times(run_dir), collect.read_speed(run_dir)).items():
            storage.write_file(folder / name, text.encode("utf-8"))
        if not recipe.has_teacher:  # nothing was trained, so there is no student to write
            return StageResult(paths, {"files": len(paths), "name": recipe.name})
        assert data.choice is not None, "report comes after select"
        with storage.write_folder(run_dir / "student") as student_folder:
            student = checkpoint.open_checkpoint(run_dir, recipe, data.choice.checkpoint, rounded=False)
            dtype = checkpoint.read_measured_dtype(run_dir, data.choice.checkpoint)
            student.save(student_folder, dtype=dtype)  # the rounded weights that the stage `test` measured
            if recipe.train.save_adapter:
                adapter_folder = student_folder / models.ADAPTER_FOLDER
                checkpoint.copy_adapter(run_dir, data.choice.checkpoint, adapter_folder)
            facts = _write_query_files(run_dir, recipe, student, student_folder, dtype)
            storage.write_file(student_folder / "README.md", card.render_card(data, facts).encode("utf-8"))
        paths += [path for path in (run_dir / "student").rglob("*") if path.is_file()]
        return StageResult(paths, {"step": data.choice.checkpoint.json_value, "files": len(paths), "name": recipe.name})


def _write_query_files(run_dir: Path, recipe: Recipe, student: Student, folder: Path, dtype: str) -> card.CardFacts:
    """Write the files with which other programs query the student exactly as it was measured. Returns facts for the card."""
    settings = query_settings.describe_run(run_dir, recipe, student)
    end_tokens = TransformersEngine(student).end_tokens
    query_files.write_generation_config(folder, student, max_tokens=recipe.evaluate.max_tokens, end_tokens=end_tokens)
    tokenizer_class, has_template = None, False
    if settings is not None:
        query_settings.write_settings(folder, settings)
        sets = recipe.questions.in_distribution + recipe.questions.out_of_distribution + recipe.questions.generic
        questions = run_questions.read_questions(run_dir, sets, "validation")
        texts = [question.text for question in questions if question.task == settings.task][:CHECKED_QUESTIONS]
        before, after = settings.prompt(settings.format, settings.task)
        tokenizer_class = query_files.find_tokenizer_class(folder, student, [before + text + after for text in texts])
        has_template = query_files.write_prompt_template(folder, student, before, after, texts)
    names = {token: name for name, token in student.tokenizer.vocabulary.specials.items()}
    return card.CardFacts(
        family=student.family,
        base=licences.find_base(recipe),
        sets=tuple(licences.list_sets(recipe)),
        settings=settings,
        tokenizer_class=tokenizer_class,
        has_template=has_template,
        end_tokens=tuple(names[token] for token in end_tokens if token in names),
        thought_tags=tuple(names[token] for token in sorted(student.tokenizer.vocabulary.thought_tags)),
        has_rationales=any(quota and prompts.FORMATS[name].rationale for name, quota in recipe.train.formats.items()),
        has_teacher_chains=any(source.teacher.kind != "human" for source in recipe.sources.values()),
        weights_dtype=dtype,
        adapter_base=_describe_adapter_base(recipe) if recipe.train.save_adapter else None,
    )


def _describe_adapter_base(recipe: Recipe) -> str:
    """The base on which a program opens the adapter beside the student."""
    return f"{recipe.student.model}" + (" loaded in 4 bits (NF4)" if recipe.train.load_in_4bit else "")
