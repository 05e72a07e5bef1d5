"""Runs a recipe from Python, opens the folder of a run, and iterates over its records.

    import potstill as ps
    run = ps.open_run("runs/demo")
    chain, verdict = next(run.chains())
    [row.accuracy for row in run.scores("test") if row.checkpoint == run.choice]

Files are read only when a method needs them. The records are frozen values of `potstill.records`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from potstill import object_store
from potstill.errors import UserError
from potstill.records import BASE, Chain, Checkpoint, LabelTable, Prediction, Question, Score, Split, Target, Verdict

if TYPE_CHECKING:
    from potstill.models import Student
    from potstill.recipe import Recipe

STAGE_OF: dict[str, str] = {"validation": "evaluate", "test": "test"}
SPLITS: Final = get_args(Split)
STUDY_FILE: Final = "study.json"  # in the folder of a study


def run(
    recipe: str | Path | Mapping[str, Any],
    set: Mapping[str, Any] | None = None,
    *,
    run_dir: str | Path | None = None,
    until: str = "report",
    redo: str | None = None,
    yes: bool | Callable[[str], bool] = False,
) -> Run:
    """Run a recipe, as `potstill run RECIPE` does, and return the run.

    recipe   the path of a recipe (YAML), or its keys: `{"name": "mine", "sets": {...}, ...}`
    set      dotted keys to change, with their new values: `{"train.steps": 500}` is `--set train.steps=500`
    run_dir  the folder of the run; by default `runs/NAME`, where NAME is the recipe's name
    until    the last stage to run
    redo     a stage to run again, with all later stages
    yes      whether `redo` may remove chains that cost money. It may be a function, which gets a sentence that
             describes the loss, and returns True or False

    A stage that is up to date is not run again, and an interrupted stage continues. Raises `UserError` for all faults
    that only the user can correct.
    """
    from potstill import runner
    from potstill.recipe import load_recipe, parse_recipe, write_value

    changes = [f"{key}={write_value(value, key)}" for key, value in (set or {}).items()]
    if isinstance(recipe, Mapping):
        parsed = parse_recipe(write_value(recipe, "recipe"), "recipe", changes)
    else:
        parsed = load_recipe(Path(recipe), changes)
    if run_dir is not None:
        object_store.refuse_run_url(run_dir)
    folder = None if run_dir is None else Path(run_dir)
    return Run(runner.run(parsed, folder, until=until, redo=redo, yes=yes))


def open_run(run_dir: str | Path) -> Run:
    """Open the folder of a run, which may be unfinished. Raises `UserError` if it is not the folder of a run."""
    object_store.refuse_run_url(run_dir)
    if not (Path(run_dir) / "recipe.yaml").is_file():
        what, found, hint = "this is not the folder of a run", "no recipe.yaml", "give a folder such as runs/demo"
        if Path(run_dir).suffix in (".yaml", ".yml") and Path(run_dir).is_file():
            found = "a recipe file"
            hint = (
                "give the folder of its run, which is runs/NAME with the recipe's name; `potstill run RECIPE` makes it"
            )
        elif (study := next(filter(is_study, (Path(run_dir), Path(run_dir).parent)), None)) is not None:
            found = "the folder of a study" if study == Path(run_dir) else f"a folder of the study {study}"
            hint = f"give one of its runs, {study}/RUN; `potstill status {study}` lists them, and"
            hint += f" `potstill compare {study}` compares them"
        raise UserError(what, code="E-run-not-a-run", where=run_dir, found=found, hint=hint)
    return Run(Path(run_dir))


def is_study(folder: Path) -> bool:
    """Whether a folder is that of a study, which has the folders of its runs."""
    return (folder / STUDY_FILE).is_file()


@dataclass(frozen=True)
class Run:
    """The folder of a run, whose files are read when a method is called.

    Every method raises `UserError` if the stage that writes its files has not finished.
    """

    run_dir: Path

    def __repr__(self) -> str:
        return f"Run({str(self.run_dir)!r})"

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the run, with all defaults."""
        from potstill.recipe import load_recipe

        return load_recipe(self.run_dir / "recipe.yaml")

    def questions(self, split: Split = "train") -> Iterator[Question]:
        """The questions of a split. For `train` they are the training questions, otherwise those that are evaluated."""
        from potstill.data import run_questions

        if split not in SPLITS:
            raise self._unknown_split(split, "train, validation or test")
        folder = self._finished("collect")
        names = sorted(path.name.removesuffix(f".{split}.jsonl") for path in folder.glob(f"*.{split}.jsonl"))
        yield from run_questions.read_questions(self.run_dir, names, split)

    def chains(self, *, kept: bool = False) -> Iterator[tuple[Chain, Verdict]]:
        """Every sampled chain with its verdict. With `kept`, only the chains that passed the filter."""
        from potstill.storage import parquet

        chains, verdicts = self._finished("sample") / "chains.parquet", self._finished("filter") / "verdicts.parquet"
        for chain, verdict in parquet.chains_with_verdicts(chains, verdicts):
            if verdict.kept or not kept:
                yield chain, verdict

    def targets(self) -> Iterator[tuple[Chain, Target]]:
        """Every kept chain with its target: the teacher's distributions in the student's vocabulary."""
        from potstill.alignment.target_store import TargetStore
        from potstill.training.examples import targets_folder

        self._finished("align")
        store = TargetStore(targets_folder(self.run_dir, self.recipe))
        for chain, _ in self.chains(kept=True):
            if store.find(chain.key) is not None:
                yield chain, store.get(chain)

    def scores(self, split: Literal["validation", "test"]) -> list[Score]:
        """The scores of every checkpoint that was evaluated on a split, one score for each set, format and decoding."""
        from potstill.evaluation import checkpoint

        folder, scores = self._evaluated(split), []
        for answered in checkpoint.list_answered_checkpoints(folder):
            scores += checkpoint.read_scores(folder, answered)
        return scores

    def labels(self, split: Literal["validation", "test"]) -> list[LabelTable]:
        """The confusion matrices of every checkpoint on a split, for sets with `labels`."""
        from potstill.evaluation import checkpoint, label_tables

        folder = self._evaluated(split)
        return [
            table
            for answered in checkpoint.list_answered_checkpoints(folder)
            for table in label_tables.read_tables(folder, answered)
        ]

    def predictions(
        self,
        split: Literal["validation", "test"],
        checkpoint: Checkpoint | int | None = None,
        *,
        format: str | None = None,
        decoding: str | None = None,
    ) -> Iterator[Prediction]:
        """The graded answers of a checkpoint, which is by default the selected one; 0 is the base.

        format, decoding  by default `select.format`, and the first of `evaluate.decodings`

        A run without a teacher has only the base. Raises `UserError` if the run has no such answers; the message names
        those that it has.
        """
        from potstill.evaluation.checkpoint import list_answers, read_predictions

        folder, answered = self._evaluated(split), self._checkpoint(checkpoint)
        format, decoding = format or self.recipe.select.format, decoding or self.recipe.evaluate.decodings[0]
        wanted, answers = f"{answered.name}/{format}.{decoding}", list_answers(folder)
        if wanted not in answers:
            what, hint = "there are no such answers", f"CHECKPOINT/FORMAT.DECODING is one of {', '.join(answers)}"
            raise UserError(what, code="E-run-no-answers", where=folder, found=wanted, hint=hint)
        yield from read_predictions(folder, answered, format, decoding)

    @property
    def choice(self) -> Checkpoint:
        """The checkpoint that the stage `select` chose by accuracy on validation questions, by `select.rule`."""
        from potstill.evaluation.checkpoint import read_choice

        self._finished("select")
        return read_choice(self.run_dir).checkpoint

    def student(self, checkpoint: Checkpoint | int | None = None) -> Student:
        """The student of a checkpoint, which is by default the selected one; 0 is the base. It is ready for inference.

        `student.model` is the Hugging Face model, and `student.tokenizer` is the tokenizer. The weights are those of
        training, in float32. The folder `student` has them in the dtype of the base, with the rounding that was measured.
        """
        from potstill.evaluation.checkpoint import open_checkpoint

        return open_checkpoint(self.run_dir, self.recipe, self._checkpoint(checkpoint), rounded=False)

    def _checkpoint(self, checkpoint: Checkpoint | int | None) -> Checkpoint:
        if checkpoint is None:
            return self.choice if self.recipe.has_teacher else BASE
        return Checkpoint(checkpoint) if isinstance(checkpoint, int) else checkpoint

    def _evaluated(self, split: str) -> Path:
        if split not in STAGE_OF:
            raise self._unknown_split(split, "validation or test")
        return self._finished(STAGE_OF[split])

    def _unknown_split(self, split: object, names: str) -> UserError:
        what, hint = "there is nothing for this split", f"give {names}"
        return UserError(what, code="E-run-unknown-split", where=self.run_dir, found=repr(split), hint=hint)

    def _finished(self, stage: str) -> Path:
        """The folder of a stage that has finished."""
        from potstill.storage import manifest

        folder = self.run_dir / stage
        if manifest.read_finished(folder) is None:
            what, hint = f"the stage {stage} has not finished", f"run the recipe until {stage}"
            raise UserError(what, code="E-run-stage-not-finished", where=self.run_dir, hint=hint)
        return folder


__all__ = ["BASE", "Run", "open_run", "run"]
