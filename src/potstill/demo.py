"""The demo: the package's models and sets, two controls, and the recipe of the embedded world.

from potstill import demo
folder = demo.demo()        # runs/demo, and beside it runs/miniature, runs/demo-answers, runs/demo-rationales
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Final

from potstill import progress, runner
from potstill.recipe import Recipe, parse_recipe
from potstill.storage import manifest, run_folder

# The controls of the demo: how their recipes differ from its own. Neither asks the teacher; what one learns from stands
# in the sets.
CONTROLS: Final = (
    (
        "name=demo-answers",
        "teacher={kind: human}",
        "train.formats={zero-shot-answer: 1}",
        "evaluate.formats=[zero-shot-answer]",
        "select.format=zero-shot-answer",
        "report.controls=[]",
    ),
    ("name=demo-rationales", "teacher={kind: human}", "report.controls=[]"),
)


def run_demo(*changes: str) -> Path:
    """The embedded main job: the package's models and sets laid out in `runs/miniature`, two controls, then the recipe.

    changes  of the recipe and its controls, as `--set` takes them
    If this version brings other ones, what an older version ran on them is made anew.
    """
    from importlib import resources

    from potstill.miniature import build

    world = Path("runs") / "miniature"
    with run_folder.lock_run(world):
        build.lay_out(world)
    text = resources.files("potstill.miniature").joinpath("demo.yaml").read_text("utf-8")
    recipe, *controls = (
        parse_recipe(text, "demo.yaml", [f"data={world.parent}", *changes, *own]) for own in ((), *CONTROLS)
    )
    # Controls ask no teacher, so they need not wait for it: on a second core they take none of the demo's time.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as beside:
        progress.print_line(f"beside it, unseen: {' and '.join(control.name for control in controls)}", "dim")
        made = [beside.submit(_run_control, control) for control in controls]
        # A report that was begun reads the controls already: then they come first.
        if manifest.read_begun(runner.default_run_dir(recipe) / "report") is None:
            runner.run(recipe, redo=runner.find_outdated_stage(recipe), until="test")
        with progress.bar("controls", len(made)) as tick:
            for each in made:
                each.result()
                tick()
    return runner.run(recipe, redo=runner.find_outdated_stage(recipe))


def _run_control(recipe: Recipe) -> None:
    """A control of the demo, in a process of its own, which shows nothing: its log.jsonl has what it did."""
    Thread(target=_exit_with_parent, daemon=True).start()
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        runner.run(recipe, redo=runner.find_outdated_stage(recipe), until="test")


def _exit_with_parent() -> None:
    """A demo that was killed must not leave a process behind that still holds its runs."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
