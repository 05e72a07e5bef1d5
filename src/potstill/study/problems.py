"""The problems that would stop runs of a study before they make anything, each problem once.

    for problem in find_problems(open_study(Path("studies/findings.yaml"))):
        print(problem.fault, problem.runs)

The weights of models are neither read nor downloaded, and runs that have not begun and differ only in seeds are checked
once: 63 runs take about 2 seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from potstill import demo, models, preflight, runner
from potstill.errors import UserError
from potstill.study.grid import DEMO, Study, StudyRun
from potstill.study.processes import is_finished

# Instead of the hint for a single run, which names an option that a study lacks.
OUTDATED_HINT: Final = (
    "restore the old values, give the study another name, or add --redo-outdated: it makes this stage and the later ones"
    " again, but never removes chains that cost money"
)
SEEDS: Final = {"seed": True, "teacher": {"seed"}, "train": {"seed"}, "evaluate": {"seed"}, "name": True}


@dataclass(frozen=True, slots=True)
class StudyProblem:
    """A problem of a stage. runs: names of the runs that it would stop; later: whether it may still be fixed until then"""

    stage: str
    fault: UserError
    runs: tuple[str, ...]
    later: bool = False


def find_problems(study: Study, *, redo_outdated: bool = False) -> list[StudyProblem]:
    """The problems of all runs that are not finished, those of the first run first.

    redo_outdated  whether stages that were made from another recipe will be made again; otherwise they are problems
    """
    if study.recipe == DEMO:
        demo.copy_data_once()
    found: dict[str, tuple[preflight.Problem, list[str]]] = {}
    of_recipe: dict[str, list[preflight.Problem]] = {}
    for run in study.runs:
        begun = run.run_dir.exists()
        if begun and is_finished(run):
            continue
        key = run.name if begun else "recipe: " + run.recipe.model_dump_json(exclude=SEEDS)  # type: ignore[arg-type]
        if key not in of_recipe:
            with models.without_weights():  # they are downloaded by the run that needs them first
                outdated = _find_outdated(run) if begun and not redo_outdated else ()
                of_recipe[key] = [*outdated, *preflight.list_problems(run.recipe, run.run_dir, weights=False)]
        for problem in of_recipe[key]:
            found.setdefault(f"{problem.stage} {problem.fault}", (problem, []))[1].append(run.name)
    return [StudyProblem(one.stage, one.fault, tuple(names), one.later) for one, names in found.values()]


def _find_outdated(run: StudyRun) -> list[preflight.Problem]:
    """The stages that do not match the recipe any more, which the run would refuse."""
    if not (run.run_dir / "recipe.yaml").is_file():
        return []
    return [
        preflight.Problem(
            plan.stage,
            UserError(fault.what, code=fault.code, where=fault.where, found=fault.found, hint=OUTDATED_HINT),
        )
        for plan in runner.plan_stages(run.recipe, run.run_dir)
        if (fault := plan.fault) is not None
    ]
