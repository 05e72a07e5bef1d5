"""The runs of a study, each in a process of its own, several at a time.

    command = [sys.executable, "-m", "potstill", "study", "studies/findings.yaml", "--run"]
    results = make_runs(open_study(Path("studies/findings.yaml")), command, jobs=2)
    [result.name for result in results if not result.ok]

Every process writes its messages into `runs/STUDY/logs/RUN.log`. A run that fails does not stop the others. Interrupted
runs continue when the study is made again, and finished runs are not made again.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from potstill import demo, progress, runner, storage
from potstill.errors import UserError
from potstill.recipe import load_recipe
from potstill.recipe.study import load_study
from potstill.run_reader import STUDY_FILE
from potstill.study.grid import DEMO, Study, StudyRun
from potstill.study.shared_stages import call_when_unlocked, share_stages
from potstill.study_status import log_path

FILE_LOCK_SECONDS: Final = 600.0  # maximum wait for another shard that writes the tables and the page
REPORT_SECONDS: Final = 15.0  # between two lines about the runs in progress


@dataclass(frozen=True, slots=True)
class RunResult:
    """What became of a run.

    exit_code  of its process, 0 for a finished run
    message    its error in one line; `hint` and `code`: of a UserError
    """

    name: str
    exit_code: int
    message: str
    log: Path
    hint: str = ""
    code: str = ""

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


def make_run(study: Study, run: StudyRun, *, redo_outdated: bool = False) -> Path:
    """Make one run in this process: copy the stages that other runs share, and make the rest. Returns its folder.

    redo_outdated  whether to make stages again that were made from another recipe or by another version of potstill;
                   chains that cost money are never removed

    Raises UserError as `runner.run` does.
    """
    if study.recipe == DEMO:
        demo.copy_data_once()

    def make() -> None:
        redo = runner.find_outdated_stage(run.recipe, run.run_dir) if redo_outdated else None
        if redo is None:
            share_stages(study, run)
        runner.run(run.recipe, run.run_dir, redo=redo)

    call_when_unlocked(make, f"waiting for another process that works on {run.name}")
    return run.run_dir


def check_folder(study: Study) -> None:
    """Raise UserError if another study file that still exists has the same name, because both would write one folder."""
    path = study.folder / STUDY_FILE
    file = storage.read_json(path).get("file") if path.is_file() else None
    other = Path(file) if isinstance(file, str) else study.path
    if not other.is_file() or other.resolve() == study.path.resolve():
        return
    if storage.read_bytes(other) == storage.read_bytes(study.path):
        return
    try:
        name = load_study(other).name
    except UserError:
        return  # it is no study any more
    if name in (study.name, study.name.removesuffix("-quick")):
        what, hint = "the folder of the study is that of another study file", "give one of them another name"
        raise UserError(what, code="E-study-folder", where=study.path, found=f"{study.folder}: {other}", hint=hint)


def make_runs(
    study: Study, command: Sequence[str], *, jobs: int = 1, shard: tuple[int, int] = (1, 1)
) -> list[RunResult]:
    """Make the runs of a study that are not finished. Returns the results in the order of the runs.

    command  the command of one run, without the run's name, which becomes its last word
    jobs     number of runs at a time, which share the cores
    shard    (i, n): make only every n-th run, from the i-th; other processes may make the other shards

    Raises UserError if another study file has the same name.
    """
    number, count = shard
    runs = study.runs[number - 1 :: count]
    check_folder(study)
    with lock_files(study):
        storage.write_json(study.folder / STUDY_FILE, study_to_json(study))
    unfinished = [run for run in runs if not is_finished(run)]
    progress.print_line(f"finished: {len(runs) - len(unfinished)} of {len(runs)} runs; folder: {study.folder}", "dim")
    results = {run.name: RunResult(run.name, 0, "", log_path(study.folder, run.name)) for run in runs}
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with ThreadPoolExecutor(jobs) as pool, _reporting(study, processes), _ending(pool, processes):
        started = [pool.submit(_run_process, study, run, command, jobs, processes) for run in unfinished]
        for index, future in enumerate(as_completed(started)):
            result = future.result()
            results[result.name] = result
            done = f"({index + 1} of {len(unfinished)})"
            if result.ok:
                progress.print_line(f"{result.name}: finished {done}", "green")
            else:
                progress.print_line(f"{result.name}: failed {done}: {result.message}; messages: {result.log}", "red")
    return [results[run.name] for run in runs]


def lock_files(study: Study) -> contextlib.AbstractContextManager[None]:
    """Lock the files of a study that are about all of its runs, because two shards may write them at the same time."""
    message = "another process is writing the files of this study"
    return storage.hold_lock(study.folder, ".lock", FILE_LOCK_SECONDS, message)


def study_to_json(study: Study) -> dict[str, object]:
    """The experiments and runs of a study as plain JSON, for programs that read its folder."""
    return {
        "name": study.name,
        "file": str(study.path),
        "command": shlex.join(["potstill", *study.words]),
        "title": study.title,
        "experiments": [
            {
                "name": one.name,
                "title": one.title,
                "axes": list(one.axes),
                "runs": [{"name": name, "choices": dict(choices)} for name, choices in one.choices.items()],
            }
            for one in study.experiments
        ],
        "runs": [{"name": run.name, "changes": list(run.changes)} for run in study.runs],
    }


def is_finished(run: StudyRun) -> bool:
    """Whether all stages of a run are finished, with the recipe and the files that it has now.

    A run that was made from others is not: its process says what differs. The stored recipe may differ in keys on which no
    stage depends, such as evaluate.cache, and lack keys that came later.
    """
    try:
        load_recipe(run.run_dir / "recipe.yaml")
    except UserError:  # there is none, or an earlier version wrote it
        return False
    return all(plan.action == "keep" for plan in runner.plan_stages(run.recipe, run.run_dir))


def find_finished(study: Study) -> frozenset[str]:
    """The names of the finished runs of a study. Reads the inputs of every run, so it is called once and passed on."""
    return frozenset(run.name for run in study.runs if is_finished(run))


def _run_process(
    study: Study, run: StudyRun, command: Sequence[str], jobs: int, processes: dict[str, subprocess.Popen[bytes]]
) -> RunResult:
    path = log_path(study.folder, run.name)
    environment = dict(os.environ)
    threads = max(1, len(os.sched_getaffinity(0)) // jobs) if hasattr(os, "sched_getaffinity") else 1
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    with storage.open_message_file(path) as log:
        process = processes[run.name] = _start([*command, run.name], environment, log)
        code = process.wait()
    del processes[run.name]
    message, hint, error = ("", "", "") if code == 0 else _describe_error(path)
    return RunResult(run.name, code, message, path, hint, error)


def _start(command: Sequence[str], environment: dict[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        list(command), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
    )


@contextlib.contextmanager
def _ending(pool: ThreadPoolExecutor, processes: dict[str, subprocess.Popen[bytes]]) -> Iterator[None]:
    """End the processes of the runs when this one is interrupted. What they have finished stays."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(processes.values()):
            process.terminate()
        raise


@contextlib.contextmanager
def _reporting(study: Study, processes: dict[str, subprocess.Popen[bytes]]) -> Iterator[None]:
    """Print the last message of every run in progress now and then."""
    stop = threading.Event()

    said: dict[str, str] = {}

    def report() -> None:
        while not stop.wait(REPORT_SECONDS):
            for name in list(processes):
                line = last_line(log_path(study.folder, name))
                if line and said.get(name) != line:  # a process that has said nothing new gets no line
                    progress.print_line(f"{name}: {line}", "dim")
                    said[name] = line

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def last_line(path: Path) -> str:
    """The last line of a file of messages; empty without one."""
    with contextlib.suppress(OSError):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""


def find_failures(study: Study, unfinished: Collection[str]) -> dict[str, str]:
    """The error of the last process of each run that is not finished, in one line; empty if it did not end with one."""
    failures = {}
    for name in unfinished:
        path = log_path(study.folder, name)
        failures[name] = _describe_error(path)[0] if last_line(path).startswith("code: E-") else ""
    return failures


def _describe_error(path: Path) -> tuple[str, str, str]:
    """The message, the hint and the code of the last error in a file of messages. Of a traceback, only the last line."""
    text = storage.read_bytes(path)[-20_000:].decode("utf-8", "replace")
    errors = re.findall(r"^(\S.*)\n((?: {2}.*\n)*?) {2}code: (E-\S+)", text, re.MULTILINE)
    if not errors:
        return last_line(path), "", ""
    message, lines, code = errors[-1]
    found = {part: rest for part, _, rest in (line.strip().partition(": ") for line in lines.splitlines())}
    message += f" ({found['found']})" if "found" in found else ""
    return message, found.get("hint", ""), code
