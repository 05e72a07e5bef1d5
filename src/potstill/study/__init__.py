"""Studies: many runs of one recipe, which share every stage that they can.

    from potstill import study
    plan = study.open_study(Path("studies/findings.yaml"))
    [run.name for run in plan.runs]         # one name for each combination of the grid's choices
    study.make_runs(plan, jobs=2)           # runs/findings/<run>, each in a process of its own

`grid` expands a study file into runs. `shared_stages` decides which run makes a stage for the others, and `processes` makes
the runs.
"""

from potstill.study.grid import Experiment, Study, StudyRun, open_study
from potstill.study.processes import RunResult, is_finished, make_run, make_runs
from potstill.study.shared_stages import count_shared, stage_keys

__all__ = [
    "Experiment",
    "RunResult",
    "Study",
    "StudyRun",
    "count_shared",
    "is_finished",
    "make_run",
    "make_runs",
    "open_study",
    "stage_keys",
]
