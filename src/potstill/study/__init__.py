"""Studies: many runs of one recipe, which share every stage that they can.

    from potstill import study
    plan = study.open_study(Path("studies/findings.yaml"))
    [run.name for run in plan.runs]         # one name for each combination of the grid's choices
    study.make_runs(plan, jobs=2)           # runs/findings/<run>, each in a process of its own

`grid` expands a study file into runs. `problems` finds what would stop them at once. `shared_stages` decides which run makes
a stage for the others, `processes` makes the runs, and `results` writes the tables and the page.
"""

from potstill.study.grid import Experiment, Study, StudyRun, open_study
from potstill.study.problems import StudyProblem, find_problems
from potstill.study.processes import (
    RunResult,
    check_folder,
    find_failures,
    find_finished,
    is_finished,
    lock_files,
    make_run,
    make_runs,
)
from potstill.study.results import ExperimentTable, read_tables, remove_stale_files, write_page, write_table
from potstill.study.shared_stages import count_shared, stage_keys

__all__ = [
    "Experiment",
    "ExperimentTable",
    "RunResult",
    "Study",
    "StudyProblem",
    "StudyRun",
    "check_folder",
    "count_shared",
    "find_failures",
    "find_finished",
    "find_problems",
    "is_finished",
    "lock_files",
    "make_run",
    "make_runs",
    "open_study",
    "read_tables",
    "remove_stale_files",
    "stage_keys",
    "write_page",
    "write_table",
]
