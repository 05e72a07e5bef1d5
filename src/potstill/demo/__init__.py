"""The demo: word problems, a tiny teacher, a tiny base student, a recipe and two control runs.

    from potstill.demo import run_demo
    run_dir = run_demo()      # runs/demo; also runs/miniature, runs/demo-answers, runs/demo-rationales

The package contains the question sets and the models; `tools/toy_models` in the repository made them from seeds.
"""

from __future__ import annotations

import contextlib
import lzma
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Final

from potstill import progress, storage
from potstill.storage import manifest, run_folder

if TYPE_CHECKING:
    from potstill.recipe import Recipe

DATA: Final = Path(__file__).parent
RECIPE: Final = DATA / "demo.yaml"
DATA_FOLDER: Final = Path("runs") / "miniature"  # of the copies of sets and models
COPY_LOCK_SECONDS: Final = 60.0  # maximum wait for another process that copies them
MODELS: Final = ("teacher", "student")
# Overrides for the recipes of the control runs, which have no teacher and train on the solutions of the sets. They may lose
# any ability, so that they always have a result.
CONTROLS: Final = (
    (
        "name=demo-answers",
        "teacher={kind: human}",
        "train.formats={zero-shot-answer: 1}",
        "evaluate.formats=[zero-shot-answer]",
        "select.format=zero-shot-answer",
        "select.retain=null",
        "report.controls=[]",
    ),
    ("name=demo-rationales", "teacher={kind: human}", "select.retain=null", "report.controls=[]"),
)


def run_demo(*changes: str) -> Path:
    """Run the demo's recipe and its two controls. Returns the run directory.

    changes  overrides for all three recipes, in the form of `--set`

    If an older version of potstill made the runs with other sets or models, the stages that depend on them run again.
    """
    from potstill import runner
    from potstill.recipe import parse_recipe

    copy_data_once()
    text = RECIPE.read_text("utf-8")

    def read_recipe(*overrides: str) -> Recipe:
        return parse_recipe(text, RECIPE.name, [f"data={DATA_FOLDER.parent}", *changes, *overrides])

    recipe, controls = read_recipe(), [read_recipe(*overrides) for overrides in CONTROLS]
    # The controls do not use the teacher, so a second core runs them at the same time.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        names = " and ".join(control.name for control in controls)
        progress.print_line(f"control runs in the background: {names}", "dim")
        futures = [pool.submit(_run_control, control) for control in controls]
        # The report needs the finished controls. The first call below therefore runs a recipe without controls, so that
        # the runner does not report them as missing; it is skipped if the report has already begun.
        if manifest.read_begun(runner.default_run_dir(recipe) / "report") is None:
            outdated = runner.find_outdated_stage(recipe)
            runner.run(read_recipe("report.controls=[]"), redo=outdated, until="test")
        with progress.bar("controls", len(futures)) as advance:
            for future in futures:
                future.result()
                advance()
    return runner.run(recipe, redo=runner.find_outdated_stage(recipe))


def copy_data_once() -> None:
    """Copy the data to `DATA_FOLDER`, which other processes may be doing, too."""
    with run_folder.lock_run(DATA_FOLDER, wait=COPY_LOCK_SECONDS):
        copy_data(DATA_FOLDER)


def copy_data(folder: Path) -> None:
    """Copy the question sets, the teacher and the base student into a folder. Equal files are not written again."""
    for path in sorted((DATA / "sets").glob("*.jsonl.xz")):
        copy, content = folder / "sets" / path.stem, lzma.decompress(path.read_bytes())
        if not copy.is_file() or copy.read_bytes() != content:
            storage.write_file(copy, content)
    for name in MODELS:
        source, target = DATA / "models" / name, folder / name
        if not target.is_dir() or storage.folder_fingerprint(target) != storage.folder_fingerprint(source):
            with storage.write_folder(target) as new_folder:
                for path in sorted(source.iterdir()):
                    storage.write_file(new_folder / path.name, path.read_bytes())


def _run_control(recipe: Recipe) -> None:
    """Run a control in a separate process, without output. Its events are in log.jsonl of its run directory."""
    from potstill import runner

    Thread(target=_exit_with_parent, daemon=True).start()
    with Path(os.devnull).open("w") as devnull, contextlib.redirect_stderr(devnull):
        runner.run(recipe, redo=runner.find_outdated_stage(recipe), until="test")


def _exit_with_parent() -> None:
    """Let this process end when the demo's process ends, because a killed demo must not leave locks on its runs."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
