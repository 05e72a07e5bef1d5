"""A run: nine stages, one after the other, each in its folder. Also the Python API.

    from potstill import recipe, run
    folder = run.run(recipe.load(Path("recipes/gsm8k-human.yaml")))

Stages meet only in files. A stage that is finished and still fits the recipe is not made again; one that was
interrupted goes on; one that was made from something else is an error that names the keys, and `redo` consents.
"""

from __future__ import annotations

import importlib
import platform
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from potstill import files, progress, recipe
from potstill.errors import UserError
from potstill.files import manifest, run_folder
from potstill.recipe import Recipe

STAGES: Final = ("collect", "sample", "filter", "align", "train", "evaluate", "select", "test", "report")


def folder_of(plan: Recipe) -> Path:
    """Where a recipe's run lies: `runs/<name>` under the working folder."""
    return Path("runs") / plan.name


def run(plan: Recipe, *, folder: Path | None = None, redo: str | None = None, until: str = STAGES[-1]) -> Path:
    """Make every stage up to `until` that is not made yet, and return the run's folder.

    redo    a stage whose folder, and those of all later stages, are removed first
    Raises UserError for everything that only the user can mend; nothing that was finished is lost by it.
    """
    folder = folder or folder_of(plan)
    for stage in (redo, until):
        if stage is not None and stage not in STAGES:
            raise UserError("no such stage", where=stage, do=f"one of {', '.join(STAGES)}")
    with run_folder.locked(folder):
        if redo is not None:
            _remove(folder, redo)
        _check(folder, plan)
        _write_recipe(folder, plan)
        run_folder.log(folder, "start", **_machine())
        for stage in STAGES[: STAGES.index(until) + 1]:
            make(folder, plan, stage)
    return folder


def demo() -> Path:
    """The embedded main job: the package's models and sets laid out in `runs/miniature`, then the recipe.

    If this version brings other ones, what an older version ran on them is made anew.
    """
    from importlib import resources

    from potstill.miniature import build

    world = Path("runs") / "miniature"
    with run_folder.locked(world):
        build.build(world)
    text = resources.files("potstill.miniature").joinpath("demo.yaml").read_text("utf-8")
    plan = recipe.parse(text, "demo.yaml", [f"data={world.parent}"])
    stale = next(
        (stage for stage, before, now in _begun(folder_of(plan), plan) if manifest.differences(before, now)), None
    )
    if stale is not None:
        progress.say(f"this version makes the demo differently: {stale} and what follows is made anew", "dim")
    return run(plan, redo=stale)


def make(folder: Path, plan: Recipe, stage: str) -> manifest.Manifest:
    """One stage, in a locked run whose earlier stages are finished."""
    module = _module(stage)
    at = folder / stage
    identity = _identity(folder, plan, stage, module)
    done = manifest.begin(at, identity, redone=later(stage))
    if done is not None and not _grown(module, done, plan):
        progress.say(f"{stage:<9} is there", "dim")
        return done
    if done is not None:
        _reopen(folder, stage)
        manifest.begin(at, identity)
    began = time.monotonic()
    outputs, counts = module.make(folder, plan)
    made = manifest.finish(at, identity, outputs, counts)
    seconds = time.monotonic() - began
    run_folder.log(folder, "done", stage=stage, seconds=round(seconds, 3), peak_memory_mib=_peak())
    progress.say(f"{stage:<9} {_summary(counts)}  ({seconds:.1f} s)", "green")
    return made


def later(stage: str) -> tuple[str, ...]:
    """The stage and all after it."""
    return STAGES[STAGES.index(stage) :]


def _identity(folder: Path, plan: Recipe, stage: str, module: ModuleType) -> manifest.Identity:
    inputs = dict(module.inputs(plan)) if hasattr(module, "inputs") else {}
    for before in module.AFTER:
        finished = manifest.finished(folder / before)
        if finished is None:
            raise UserError(
                f"{stage} needs {before}, which is not finished", where=folder, do=f"run `potstill {before}` first"
            )
        inputs[before] = finished.digest
    return manifest.Identity(stage, module.VERSIONS, _recipe_keys(plan, module), inputs)


def _recipe_keys(plan: Recipe, module: ModuleType) -> dict[str, Any]:
    free = module.free(plan) if hasattr(module, "free") else ()
    return {key: value for key, value in recipe.flat(plan, *module.READS).items() if key not in free}


def _begun(folder: Path, plan: Recipe) -> Iterator[tuple[str, manifest.Identity, manifest.Identity]]:
    """The stages that have made something: each with the identity it began with, and the one it would have now.

    Of its inputs those from outside are looked at; the stages before it are checked themselves.
    """
    for stage in STAGES:
        before = manifest.begun(folder / stage)
        if before is not None and not manifest.is_bare(folder / stage):
            module = _module(stage)
            outside = dict(module.inputs(plan)) if hasattr(module, "inputs") else {}
            inputs = {**before.inputs, **outside}
            yield stage, before, manifest.Identity(stage, module.VERSIONS, _recipe_keys(plan, module), inputs)


def _check(folder: Path, plan: Recipe) -> None:
    """Before anything is changed: does every stage that was begun still fit the recipe, its files and the versions?"""
    for stage, before, now in _begun(folder, plan):
        manifest.check(folder / stage, before, now, later(stage))


def _grown(module: ModuleType, done: manifest.Manifest, plan: Recipe) -> bool:
    return hasattr(module, "grown") and module.grown(done.counts, plan)


def _reopen(folder: Path, stage: str) -> None:
    """A finished stage goes on: what was concluded from it is taken back, what was measured on its parts stays.

    `evaluate` keeps the folders of its steps, each of which has a manifest of its own.
    """
    for after in reversed(later(stage)):
        if after in (stage, "evaluate"):
            files.remove(folder / after / manifest.MANIFEST)
            files.remove(folder / after / manifest.BEGUN)
        else:
            files.remove(folder / after)


def _remove(folder: Path, stage: str) -> None:
    for after in reversed(later(stage)):
        files.remove(folder / after)
    if "report" in later(stage):
        files.remove(folder / "student")


def _write_recipe(folder: Path, plan: Recipe) -> None:
    path, text = folder / "recipe.yaml", recipe.resolved(plan).encode()
    if not path.exists() or files.read_bytes(path) != text:
        files.write(path, text)


def _module(stage: str) -> ModuleType:
    return importlib.import_module(f"potstill.stages.{stage}")


def _machine() -> dict[str, Any]:
    from importlib.metadata import version

    names = ("potstill", "torch", "transformers", "tokenizers", "numpy", "pyarrow")
    return {
        "host": platform.node(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }


def _peak() -> int:
    """The most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _summary(counts: dict[str, Any]) -> str:
    """The counts of a stage in one line: numbers first-level, the rest left to `potstill status`."""
    return ", ".join(f"{key} {value}" for key, value in counts.items() if isinstance(value, int | float | str))
