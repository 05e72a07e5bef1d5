"""The stages of a run: the protocol that each implements, and one table of all of them in their order.

    >>> list(TABLE)[:3], TABLE["sample"].summary
    (['collect', 'sample', 'filter'], "Stage 2: sample the teacher's chains.")
    >>> open_stage("filter").after
    ('collect', 'sample')

A stage reads the files of earlier stages and writes files into its own folder of the run; stages share nothing else.
To add one, write a module with a `Stage` in this package and add it to `TABLE`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from potstill.recipe import Recipe


class StageResult(NamedTuple):
    """What a stage made: the files that its manifest covers, and counts for the manifest and the summary line."""

    outputs: list[Path]
    counts: dict[str, Any]


class Stage(Protocol):
    """One stage of a run. Everything that determines its output is in `reads`, `after`, `versions` and `inputs`; if any
    of that changes, the stage has to be made again.

    reads        the recipe keys that it reads, or the sections of them
    after        the earlier stages whose files it reads
    distributed  whether all processes that torchrun or srun started make it together
    """

    reads: ClassVar[tuple[str, ...]]
    after: ClassVar[tuple[str, ...]]
    distributed: ClassVar[bool] = False

    def versions(self) -> dict[str, int]:
        """The versions of the packages that determine its output, by the name that the manifest uses."""
        ...

    def make(self, run_dir: Path, recipe: Recipe) -> StageResult:
        """Make the stage, or resume an interrupted one. The stages in `after` are finished.

        Raises UserError for everything that only the user can fix.
        """
        ...

    def inputs(self, recipe: Recipe, run_dir: Path | None = None) -> dict[str, str]:
        """Digests of what it reads from outside of the run, by name. Raises UserError if something is missing.

        run_dir  of the run, for other runs next to it; None: only what the recipe names
        """
        return {}

    def free(self, recipe: Recipe) -> Collection[str]:
        """The keys among `reads` that do not change the output of this recipe, so that they may change at any time."""
        return ()

    def grown(self, recipe: Recipe, counts: Mapping[str, Any]) -> bool:
        """Whether the finished stage has to continue because the recipe asks for more. counts: of its manifest.

        Raises UserError if the recipe asks for less than the stage has made.
        """
        return False

    def unread(self, run_dir: Path, recipe: Recipe) -> tuple[str, ...]:
        """Prefixes of the names of files of earlier stages that it does not read, so that nothing verifies them."""
        return ()

    def keeps_inputs(self, run_dir: Path, recipe: Recipe) -> bool:
        """Whether the finished stage stays valid if its inputs are missing, as they may be in a copied run."""
        return True


class StageEntry(NamedTuple):
    """A row of the table: module and class, the help of the command, and the section that a recipe must have for the
    stage to run."""

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
EVALUATION_STAGES: Final = ("collect", "test")  # of a recipe without a teacher, which trains nothing


def open_stage(name: str) -> Stage:
    """The stage of a name. Its module, with the libraries that it needs, is imported only now."""
    return pkgutil.resolve_name(f"{__name__}.{TABLE[name].path}")()


def recipe_stages(recipe: Recipe) -> tuple[str, ...]:
    """The stages of a recipe. Without a teacher there are only those that evaluate the base."""
    if not recipe.has_teacher:
        return EVALUATION_STAGES
    return tuple(
        name for name, entry in TABLE.items() if not entry.section or getattr(recipe, entry.section) is not None
    )


def stages_from(name: str) -> tuple[str, ...]:
    """The stage and all later ones."""
    return ALL_STAGES[ALL_STAGES.index(name) :]
