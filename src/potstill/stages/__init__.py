"""The stages of a run: the protocol of a stage, and a table of all stages in order.

    >>> list(TABLE)[:3], TABLE["sample"].summary
    (['collect', 'sample', 'filter'], "Stage 2: sample the teacher's chains.")
    >>> open_stage("filter").after
    ('collect', 'sample')

A stage reads files of earlier stages and writes files into its own folder of the run. Stages share nothing else. To add
a stage, write a module with a `Stage` in this package and add it to `TABLE`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from potstill.recipe import Recipe
    from potstill.storage.segments import Shard


class StageResult(NamedTuple):
    """The result of a stage: the files that its manifest covers, and counts for the manifest and the summary line."""

    outputs: list[Path]
    counts: dict[str, Any]


class Stage(Protocol):
    """One stage of a run. `reads`, `after`, `versions` and `inputs` cover everything that determines its output.

    If any of them changes, the stage must be made again.

    reads        the recipe keys, or sections of keys, that it reads
    after        the earlier stages whose files it reads
    distributed  whether all processes that torchrun or srun started make the stage together
    shared       whether several processes can each make a shard of the stage's work (`begin_shards`, `make_shard`)
    digested     the keys among `reads` that change the content of the output only through the digests of `inputs`, so
                 that runs with different values may have the same output
    growing      the keys, or sections of keys, whose values may rise after the stage is finished, because it then
                 continues; runs with different values have different outputs
    unaffected   keys, or sections of keys, of earlier stages that do not change the files that this stage reads
                 (`read_files`)
    """

    reads: ClassVar[tuple[str, ...]]
    after: ClassVar[tuple[str, ...]]
    distributed: ClassVar[bool] = False
    shared: ClassVar[bool] = False
    digested: ClassVar[tuple[str, ...]] = ()
    growing: ClassVar[tuple[str, ...]] = ()
    unaffected: ClassVar[tuple[str, ...]] = ()

    def versions(self) -> dict[str, int]:
        """Name in the manifest -> version, for the packages that determine the output."""
        ...

    def make(self, run_dir: Path, recipe: Recipe) -> StageResult:
        """Make the stage, or resume it if it was interrupted. The stages in `after` are finished.

        For a shared stage, this also merges what shards have stored, and makes what is missing. The output does not
        depend on the shards. Raises UserError for every error that only the user can fix.
        """
        ...

    def begin_shards(self, run_dir: Path, recipe: Recipe, shard: Shard) -> None:
        """Prepare the stage's folder for a shard, while no other process prepares one or makes the stage."""

    def make_shard(self, run_dir: Path, recipe: Recipe, shard: Shard) -> None:
        """Make and store what is missing of one shard. Other processes may make other shards at the same time."""

    def launcher_conflict(self, recipe: Recipe) -> str:
        """Why the processes of torchrun or srun cannot share this stage, in a phrase; empty if they can."""
        return ""

    def inputs(self, recipe: Recipe, run_dir: Path | None = None) -> dict[str, str]:
        """Name -> digest, for the inputs from outside the run. Raises UserError if an input is missing.

        run_dir  the run's folder, to find other runs next to it; None: only the inputs that the recipe names
        """
        return {}

    def free(self, recipe: Recipe) -> Collection[str]:
        """The keys among `reads` that may change at any time, because the output of this recipe does not depend on them."""
        return ()

    def grown(self, recipe: Recipe, counts: Mapping[str, Any]) -> bool:
        """Whether the finished stage must continue because the recipe now requires more.

        counts  counts of the stage's manifest
        Raises UserError if the recipe requires less than the stage has made.
        """
        return False

    def unread(self, run_dir: Path, recipe: Recipe) -> tuple[str, ...]:
        """Prefixes of the names of files that this stage does not read, so that they are not verified for it."""
        return ()

    def read_files(self, recipe: Recipe) -> tuple[str, ...] | None:
        """The files of earlier stages that this stage reads, relative to the run's folder; None: it may read all."""
        return None

    def subfolder(self, recipe: Recipe) -> str:
        """The folder, within the stage's folder, whose name depends on the keys in `digested`; empty without one."""
        return ""

    def keeps_inputs(self, run_dir: Path, recipe: Recipe) -> bool:
        """Whether the finished stage stays valid although its inputs are missing, as in a copied run."""
        return True


class StageEntry(NamedTuple):
    """A row of the table of stages.

    path     module and class
    summary  help text of the command
    section  section that a recipe must have for the stage to run; empty: no condition
    """

    path: str
    summary: str
    section: str = ""


TABLE: Final[dict[str, StageEntry]] = {
    "collect": StageEntry("collect:Collect", "Stage 1: collect the questions and split them."),
    "sample": StageEntry("sample:Sample", "Stage 2: sample the teacher's chains."),
    "filter": StageEntry("filter:Filter", "Stage 3: grade and filter the chains."),
    "align": StageEntry("align:Align", "Stage 4: transfer the kept chains to the student's vocabulary."),
    "train": StageEntry("train:Train", "Stage 5: train the student."),
    "evaluate": StageEntry("evaluate:Evaluate", "Stage 6: evaluate every checkpoint on the validation questions."),
    "select": StageEntry("evaluate:Select", "Stage 7: choose the checkpoint."),
    "repair": StageEntry("repair:Repair", "After stage 7, optional: distil the student on-policy.", "on_policy"),
    "test": StageEntry("test:Test", "Stage 8: evaluate the base and the chosen checkpoint on test."),
    "report": StageEntry("report:Report", "Stage 9: write the report and the student's folder."),
}
ALL_STAGES: Final = tuple(TABLE)
STAGES: Final = tuple(name for name, entry in TABLE.items() if not entry.section)
EVALUATION_STAGES: Final = (
    "collect",
    "test",
    "report",
)  # of a recipe without a teacher, which only evaluates


def open_stage(name: str) -> Stage:
    """The stage with this name. Its module and the libraries that it needs are imported only now."""
    return pkgutil.resolve_name(f"{__name__}.{TABLE[name].path}")()


def recipe_stages(recipe: Recipe) -> tuple[str, ...]:
    """The names of a recipe's stages. A recipe without a teacher has only the stages that evaluate the base."""
    if not recipe.has_teacher:
        return EVALUATION_STAGES
    return tuple(
        name for name, entry in TABLE.items() if not entry.section or getattr(recipe, entry.section) is not None
    )


def stages_from(name: str) -> tuple[str, ...]:
    """The names of the stage and of all later stages."""
    return ALL_STAGES[ALL_STAGES.index(name) :]
