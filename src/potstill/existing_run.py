"""What the folder of a run has stored, and what the run would do with it, for the plan of `potstill run --dry-run`.

plans = runner.plan_stages(recipe, run_dir)
describe_existing_run(run_dir, plans)     # lines of text
read_progress(recipe, run_dir, plans).trained     # the training step from which the run continues
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from potstill import run_status, runner, storage
from potstill.recipe import Recipe
from potstill.stages import sample
from potstill.storage import ledger, manifest, segments

INDENT: Final = " " * 18


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run has made already, and keeps.

    stored      question id -> number of stored chains; None: no chain is stored
    scores      folder of the scores that a server gave for chains that may not be stored yet; None: there are none
    sampled     whether all chains are stored
    trained     the training step from which the run continues
    evaluated   stage -> names of the checkpoints that it has evaluated
    """

    stored: Mapping[str, int] | None = None
    scores: Path | None = None
    sampled: bool = False
    trained: int = 0
    evaluated: Mapping[str, Collection[str]] = field(default_factory=dict)

    def of_source(self, run_dir: Path, source: str) -> Progress:
        """The same with the stored chains and scores of one source; its name is empty if the recipe has only one."""
        scores = None if self.scores is None or not (self.scores / source).is_dir() else self.scores / source
        stored = self.stored
        if source and stored is not None:
            stored = segments.count_by_question(segments.segment_paths(run_dir / "sample"), source)
        return replace(self, stored=stored, scores=scores)


def read_progress(recipe: Recipe, run_dir: Path, plans: Sequence[runner.StagePlan]) -> Progress:
    """What the run keeps of its folder, according to the plans of its stages."""
    action = {plan.stage: plan.action for plan in plans}

    def keeps(stage: str) -> bool:
        return action.get(stage) in ("keep", "resume", "extend")

    def begun(stage: str) -> bool:
        return (run_dir / stage / manifest.BEGUN_FILE).exists()

    paths = segments.segment_paths(run_dir / "sample") if keeps("sample") else []
    steps = storage.list_saved_steps(run_dir / "train" / "checkpoints") if keeps("train") else []
    evaluated = {
        stage: {path.parent.name for path in (run_dir / stage).glob(f"[0-9]*/{manifest.MANIFEST_FILE}")}
        for stage in ("evaluate", "test")
        if keeps(stage) or (action.get(stage) == "make" and not begun(stage) and keeps("train"))
    }
    stopped = action.get("train") == "keep"
    return Progress(
        stored=segments.count_by_question(paths) if paths else None,
        scores=run_dir / "sample" / sample.SCORES_FOLDER if keeps("sample") else None,
        sampled=action.get("sample") == "keep"
        or (keeps("sample") and (run_dir / "sample" / "chains.parquet").exists()),
        trained=recipe.train.steps if stopped else max(steps, default=0),
        evaluated=evaluated,
    )


ACTIONS: Final = {
    "keep": "up to date",
    "resume": "continues",
    "extend": "continues with what it has",
    "make": "to be made",
    "refuse": "the run would stop here",
    "blocked": "not reached",
}


def describe_existing_run(run_dir: Path, plans: Sequence[runner.StagePlan], redo: str | None = None) -> list[str]:
    """What the folder of the run contains, and what the run would do with it."""
    status = run_status.read_status(run_dir)
    texts = {stage.stage: stage.text for stage in status.stages}
    lines = [f"this run          {run_dir}"]
    for plan in plans:
        again = plan.action == "make" and bool(texts.get(plan.stage))
        doing = ("removed by --redo, then made again" if redo else "made again") if again else ACTIONS[plan.action]
        stored = f": {texts[plan.stage]}" if texts.get(plan.stage) else ""
        lines.append(f"  {plan.stage:<15} {doing}{stored}")
        if plan.fault is not None:
            first, *rest = str(plan.fault).splitlines()
            lines += [f"{INDENT}{first}", *(f"{INDENT}{line}" for line in rest)]
    if redo is not None and (paid := runner.describe_paid_chains(run_dir)) and redo in ("collect", "sample"):
        lines.append(f"  removed         {paid}; the run asks first, or needs --yes")
    if status.usage:
        lines.append(f"  spent           {ledger.describe_usage(run_dir)}")
    lines += [f"  working         {process}" for process in status.processes]
    if refused := next((plan.stage for plan in plans if plan.action == "refuse"), None):
        lines.append(f"  from here       the estimates below are for making {refused} and all later stages again")
    return [*lines, ""]
