"""The state of a study, which may be running: how far each of its runs is, and the command that continues it.

    status = read_study_status(Path("runs/findings"))
    [run.name for run in status.runs if run.state != "done"]

`potstill status` prints it for the folder of a study. Like `run_status`, this module imports neither torch nor the stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from potstill import storage
from potstill.errors import UserError
from potstill.run_reader import STUDY_FILE
from potstill.run_status import RunStatus, State, read_status
from potstill.storage import manifest

LAST_STAGE: Final = "report"


@dataclass(frozen=True, slots=True)
class StudyRunStatus:
    """The state of a run of a study.

    state  done: all stages are finished; running: a process works on it now; unfinished: no process is known to work on
           it; waiting: it has not begun; broken: a file of it cannot be read
    text   its first stage that is not done, and how far that is
    log    the file of its messages; None if no `potstill study` has begun it
    """

    name: str
    state: State
    text: str
    log: str | None


@dataclass(frozen=True, slots=True)
class StudyStatus:
    """The state of a study.

    runs    in the order of the study file
    resume  the command that continues it; None if all runs are done
    """

    folder: str
    name: str
    runs: tuple[StudyRunStatus, ...]
    resume: str | None


def log_path(folder: Path, name: str) -> Path:
    """The file of the messages of a run, in the folder of its study."""
    return folder / "logs" / f"{name}.log"


def read_study_status(folder: Path) -> StudyStatus:
    """The state of a study. Raises UserError if its file of runs cannot be read."""
    study: dict[str, Any] = storage.read_json(folder / STUDY_FILE)
    runs = tuple(_read_run(folder, run["name"]) for run in study["runs"])
    resume = None if all(run.state == "done" for run in runs) else study.get("command", "potstill study STUDY")
    return StudyStatus(str(folder), study["name"], runs, resume)


def _read_run(folder: Path, name: str) -> StudyRunStatus:
    log = log_path(folder, name)
    messages = str(log) if log.is_file() else None
    if not (folder / name / "recipe.yaml").is_file():
        return StudyRunStatus(name, "waiting", "", messages)
    if (folder / name / LAST_STAGE / manifest.MANIFEST_FILE).is_file():  # a stage that is made again removes it
        return StudyRunStatus(name, "done", "", messages)
    try:
        status = read_status(folder / name)
    except UserError as error:
        return StudyRunStatus(name, "broken", str(error), messages)
    return StudyRunStatus(name, *describe_run(status), messages)


def describe_run(status: RunStatus) -> tuple[State, str]:
    """The state of a run as a whole, and its first stage that is not done.

    >>> from potstill.run_status import StageStatus
    >>> stages = (StageStatus("align", "done", {}, ""), StageStatus("train", "unfinished", {}, "step 3 of 9"))
    >>> describe_run(RunStatus("runs/a", "a", stages, (), {}, {}, (), None))
    ('unfinished', 'train: step 3 of 9')
    """
    stage = next((stage for stage in status.stages if stage.state != "done"), None)
    if stage is None:
        return "done", ""
    state: State = "broken" if stage.state == "broken" else "running" if status.processes else "unfinished"
    return state, f"{stage.stage}: {stage.text}" if stage.text else stage.stage
