"""A run: nine stages, one after the other, each in its folder. Also the Python API.

    from potstill import recipe, run
    folder = run.run(recipe.load(Path("recipes/gsm8k-human.yaml")))

Stages meet only in files. A stage that is finished and still fits the recipe is not made again; one that was
interrupted goes on; one that was made from something else is an error that names the keys, and `redo` consents.
"""

from __future__ import annotations

import importlib
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from potstill import files, processes, progress, recipe
from potstill.errors import UserError
from potstill.files import integrity, ledger, manifest, run_folder, segments, tables
from potstill.files.segments import Shard
from potstill.recipe import Recipe

if TYPE_CHECKING:
    from potstill.training.team import Team

STAGES: Final = ("collect", "sample", "filter", "align", "train", "evaluate", "select", "test", "report")

REPAIRED: Final = (*STAGES[:7], "repair", *STAGES[7:])  # of a recipe that asks for it; the order of all that there are

MEASURED: Final = ("collect", "test")  # of a recipe that trains nothing

SLOW: Final = 1 << 30  # bytes that take longer than two seconds to read, so that a bar is shown
Consent = bool | Callable[[str], bool]

PATIENCE: Final = 600.0  # seconds that a shard waits for another to collect the questions


def stages(plan: Recipe) -> tuple[str, ...]:
    """The stages that a recipe has: without a teacher nothing is trained, chosen or reported, only measured."""
    if plan.teacher.kind == "none":
        return MEASURED
    return STAGES if plan.repair is None else REPAIRED


def folder_of(plan: Recipe) -> Path:
    """Where a recipe's run lies: `runs/<name>` under the working folder."""
    return Path("runs") / plan.name


def run(
    plan: Recipe,
    folder: Path | None = None,
    *,
    redo: str | None = None,
    until: str = STAGES[-1],
    yes: Consent = False,
) -> Path:
    """Make every stage up to `until` that is not made yet, and return the run's folder.

    redo    a stage whose folder, and those of all later stages, are removed first
    yes     whether chains of a server may be removed by that; or a function that is told what would be lost, and
            answers
    Raises UserError for everything that only the user can mend; nothing that was finished is lost by it, and what is
    wrong with earlier stages, or with what the redone ones read from outside, is said before anything is removed.
    """
    folder = folder or folder_of(plan)
    own = stages(plan)
    until = own[-1] if until == STAGES[-1] else until
    for stage in (redo, until):
        if stage is not None and stage not in own:
            what = f"a recipe without {'repair' if stage == 'repair' else 'a teacher'} has no such stage"
            what = what if stage in REPAIRED else "no such stage"
            raise UserError(what, where=stage, do=f"one of {', '.join(own)}")
    with _team(folder, plan) as (first, team):
        if first:
            _run(plan, folder, own, redo, until, team, yes)
    return folder


def _run(
    plan: Recipe, folder: Path, own: tuple[str, ...], redo: str | None, until: str, team: Team | None, yes: Consent
) -> None:
    with run_folder.locked(folder):
        files.sweep(folder)
        ledger.adopt(folder)
        if redo is None:
            _check(folder, plan, own)
        else:
            _check(folder, plan, own[: own.index(redo)])
            remade = own[own.index(redo) : own.index(until) + 1]  # none, where `until` is before `redo`
            for stage in remade:
                _outside(folder, plan, _module(stage))
            if remade:
                _foresee(None, plan, remade, until)
            _verify(folder, plan, redo)
            _may_remove(folder, redo, yes)
            _remove(folder, redo)
        missing = [stage for stage in own[: own.index(until) + 1] if manifest.finished(folder / stage) is None]
        for stage in missing[:1]:
            _verify(folder, plan, stage)  # before anything is read to look ahead
        _foresee(folder, plan, own, until)
        _write_recipe(folder, plan)
        run_folder.log(folder, "start", **_machine())
        for stage in own[: own.index(until) + 1]:
            make(folder, plan, stage, team)


def _foresee(folder: Path | None, plan: Recipe, own: tuple[str, ...], until: str) -> None:
    """Before anything is made or removed: what would stop the run at a later stage, in the plan's words. Raises
    UserError for the first of the stages that are to be made now; those of others are said.

    folder  of the run, whose finished stages are passed over; None where all of these stages are made again
    """
    from potstill import checks

    begun = folder is None or tables.any_stored(folder / "sample")
    now, first = own[: own.index(until) + 1], None
    for problem in checks.problems(plan, own, folder, weights=not begun):
        if problem.stage in now and not problem.later:
            first = first or problem.fault
        else:
            progress.say(f"later, at {problem.stage}: {problem.fault}", "yellow")
    if first is not None:
        raise first


@contextmanager
def _team(folder: Path, plan: Recipe) -> Iterator[tuple[bool, Team | None]]:
    """Where torchrun or srun started several processes: the first one runs, the others make with it the stage to
    which it calls them. Yields whether this is the first, and the team, None for one process."""
    place = processes.here()
    if place.world == 1:
        yield True, None
        return
    from potstill.training.team import Team

    team = Team(place)
    if place.first:
        try:
            yield True, team
        finally:
            team.dismiss()
        return
    with progress.muted(), team.follow(recipe.resolved(plan)) as called:
        if called:
            _module("train").make(folder, plan)
    yield False, team


def shard(plan: Recipe, part: Shard, *, folder: Path | None = None) -> Path:
    """Sample one shard of a run, beside other processes that sample the others; `run` then makes what is missing and
    seals. Collects the questions first, where no shard has yet.

    Raises UserError as `run` does, and if another process samples this shard.
    """
    folder = folder or folder_of(plan)
    with ExitStack() as held:
        with run_folder.locked(folder, wait=PATIENCE, beside_shards=True):
            ledger.adopt(folder)
            sample, done = _sampling(folder, plan)
            if done:
                return folder
            _foresee(folder, plan, stages(plan), "sample")
            held.enter_context(run_folder.shard_locked(folder, part.number, part.count))
            run_folder.log(folder, "start", shard=str(part), **_machine())
            if plan.teacher.kind == "openai":
                ledger.share(folder, part)
        began = time.monotonic()
        stored = sample.gather(folder, plan, part)
        run_folder.log(folder, "shard", shard=str(part), chains=stored, seconds=round(time.monotonic() - began, 3))
    progress.say(f"shard {part}: done, {stored} chains stored now  ({time.monotonic() - began:.1f} s)", "green")
    progress.say(f"when all {part.count} are done: potstill sample {folder}    (seals them into one table)")
    return folder


def batch(plan: Recipe, results: Sequence[Path] = (), out: Path | None = None, *, folder: Path | None = None) -> Path:
    """Ask the teacher through files: store what results hold, and seal if nothing is missing then; else write the
    requests for it into `out`. Raises UserError as `run` does, and for results that are not of this run."""
    folder = folder or folder_of(plan)
    with run_folder.locked(folder):
        files.sweep(folder)
        ledger.adopt(folder)
        sample, done = _sampling(folder, plan)
        if done:
            return folder
        _foresee(folder, plan, stages(plan), "sample")
        run_folder.log(folder, "start", batch=True, **_machine())
        if sample.sealed(folder) or (results and sample.batch_in(folder, plan, results)):
            make(folder, plan, "sample")
        elif out is not None:
            sample.batch_out(folder, plan, out)
    return folder


def _sampling(folder: Path, plan: Recipe) -> tuple[ModuleType, bool]:
    """The stage `sample`, begun in a locked run whose questions are collected; and whether it is finished."""
    _check(folder, plan, stages(plan))
    _write_recipe(folder, plan)
    make(folder, plan, "collect")
    sample = _module("sample")
    done = manifest.begin(folder / "sample", _identity(folder, plan, "sample", sample), redone=later("sample"))
    if done is not None:
        progress.say("sample    is there: everything is sealed", "dim")
    else:
        _verify(folder, plan, "sample")
    return sample, done is not None


def stale(plan: Recipe) -> str | None:
    """The first stage of a run that another version of the program has made, or that was made from something else."""
    for stage, before, now in _begun(folder_of(plan), plan, stages(plan)):
        if manifest.differences(before, now):
            progress.say(f"this version makes {plan.name} differently: {stage} and what follows is made anew", "dim")
            return stage
    return None


def make(folder: Path, plan: Recipe, stage: str, team: Team | None = None) -> manifest.Manifest:
    """One stage, in a locked run whose earlier stages are finished. team: other processes that can help with it."""
    module = _module(stage)
    at = folder / stage
    identity = _identity(folder, plan, stage, module)
    done = manifest.begin(at, identity, redone=later(stage))
    if done is not None and not _grown(module, done, plan):
        progress.say(f"{stage:<9} is there", "dim")
        return done
    _verify(folder, plan, stage)
    if done is not None:
        _reopen(folder, stage)
    began = time.monotonic()
    with team.call(recipe.resolved(plan)) if team and hasattr(module, "TOGETHER") else nullcontext():
        outputs, counts = module.make(folder, plan)
    made = manifest.finish(at, identity, outputs, counts)
    seconds = time.monotonic() - began
    took = {"seconds": round(seconds, 3), "peak_memory_mib": processes.peak_memory() >> 20}
    run_folder.log(folder, "done", stage=stage, **took)
    progress.say(f"{stage:<9} {_summary(counts)}  ({seconds:.1f} s)", "green")
    return made


def later(stage: str) -> tuple[str, ...]:
    """The stage and all after it."""
    return REPAIRED[REPAIRED.index(stage) :]


def _identity(folder: Path, plan: Recipe, stage: str, module: ModuleType) -> manifest.Identity:
    inputs = _recorded(folder, plan, stage, module)
    for before in (each for each in module.AFTER if each in stages(plan)):
        finished = manifest.finished(folder / before)
        if finished is None:
            raise UserError(
                f"{stage} needs {before}, which is not finished", where=folder, do=f"run `potstill {before}` first"
            )
        inputs[before] = finished.digest
    return manifest.Identity(stage, module.VERSIONS, _recipe_keys(plan, module), inputs)


def _verify(folder: Path, plan: Recipe, stage: str) -> None:
    """Before a stage runs: are the files that it reads, and those that it continues from, what their stages wrote?"""
    module = _module(stage)
    among = [before for before in module.AFTER if before in stages(plan)] + [stage]
    finished = [done for before in among if (done := manifest.finished(folder / before)) is not None]
    unread = module.unread(folder, plan) if hasattr(module, "unread") else ()
    total = sum(integrity.unknown_bytes(folder, done.outputs, unread) for done in finished)
    with progress.bar("verify", total >> 20, "MiB") if total > SLOW else nullcontext() as tick:
        for done in finished:
            integrity.verify(folder, done, unread, integrity.mebibytes(tick))


def _outside(folder: Path, plan: Recipe, module: ModuleType) -> dict[str, str]:
    """Digests of what a stage reads from outside of this run: files that the recipe names, runs beside it."""
    named = dict(module.inputs(plan)) if hasattr(module, "inputs") else {}
    return {**named, **(module.beside(folder, plan) if hasattr(module, "beside") else {})}


def _recorded(folder: Path, plan: Recipe, stage: str, module: ModuleType) -> dict[str, str]:
    """As `_outside`; but what a finished stage was made from need not be there any more: a run that was copied to
    another place brings what it made along, and not what it was made from."""
    try:
        return _outside(folder, plan, module)
    except UserError as fault:
        before = manifest.begun(folder / stage) if (folder / stage / manifest.MANIFEST).exists() else None
        controls = hasattr(module, "beside") and any((folder.parent / name).exists() for name in plan.report.controls)
        if before is None or controls:  # a control that is there and not finished will be another one
            raise
        progress.say(f"{stage:<9} stays as it was made; not here now: {fault.where} ({fault.what})", "yellow")
        return {name: value for name, value in before.inputs.items() if name not in module.AFTER}


def _recipe_keys(plan: Recipe, module: ModuleType) -> dict[str, Any]:
    free = module.free(plan) if hasattr(module, "free") else ()
    return {key: value for key, value in recipe.flat(plan, *module.READS).items() if key not in free}


def _begun(
    folder: Path, plan: Recipe, among: tuple[str, ...]
) -> Iterator[tuple[str, manifest.Identity, manifest.Identity]]:
    """Those stages that have made something: each with the identity it began with, and the one it would have now.

    Of its inputs those from outside are looked at, and which stages it reads; these are checked themselves.
    """
    for stage in among:
        before = manifest.begun(folder / stage)
        if before is not None and not manifest.is_bare(folder / stage):
            module = _module(stage)
            read = {name: before.inputs.get(name, "") for name in module.AFTER if name in stages(plan)}
            inputs = {**read, **_recorded(folder, plan, stage, module)}
            yield stage, before, manifest.Identity(stage, module.VERSIONS, _recipe_keys(plan, module), inputs)


def _check(folder: Path, plan: Recipe, stages: tuple[str, ...]) -> None:
    """Before anything is changed: does every stage that was begun still fit the recipe, its files and the versions?"""
    for stage, before, now in _begun(folder, plan, stages):
        manifest.check(folder / stage, before, now, later(stage))
        done = manifest.finished(folder / stage)
        if done is not None:
            _grown(_module(stage), done, plan)  # a stage that can grow refuses to shrink


def _grown(module: ModuleType, done: manifest.Manifest, plan: Recipe) -> bool:
    return hasattr(module, "grown") and module.grown(done.counts, plan)


def _reopen(folder: Path, stage: str) -> None:
    """A finished stage goes on: what was concluded from it is taken back, what was measured on its parts stays.

    The stage itself keeps what it was begun with: should this stop half way, another recipe must not go on with it.
    `evaluate` keeps the folders of its steps, each of which has a manifest of its own.
    """
    files.remove(folder / "student")
    for after in reversed(later(stage)):
        if after == stage:
            files.remove(folder / after / manifest.MANIFEST)
        elif after == "evaluate":
            files.remove(folder / after / manifest.MANIFEST)
            files.remove(folder / after / manifest.BEGUN)
        else:
            files.remove(folder / after)


def _may_remove(folder: Path, stage: str, yes: Consent) -> None:
    """Raises UserError where a redo would remove chains of a server and nobody consented."""
    lost = bought(folder) if "sample" in later(stage) else ""
    if not lost or yes is True:
        return
    if yes is not False and yes(f"--redo {stage} removes {lost}"):
        return
    raise UserError(
        f"--redo {stage} would remove what a teacher behind a server wrote",
        where=folder / "sample",
        found=lost,
        do="nothing was removed: give the recipe another name to keep both, or add --yes if these may go",
    )


def bought(folder: Path) -> str:
    """The chains of a server that a run holds, and what the run has paid, in words; empty where it holds none."""
    sample = folder / "sample"
    if not (manifest.from_server(folder) or (sample / "server.json").exists()):
        return ""
    table = sample / "chains.parquet"
    chains = tables.rows(table) if table.exists() else len(segments.keys(segments.paths(sample)))
    paid = ledger.told(folder)
    return f"{chains} chains; recorded for this run so far: {paid}" if chains else ""


def _remove(folder: Path, stage: str) -> None:
    for after in reversed(later(stage)):
        files.remove(folder / after)
    files.remove(folder / "student")  # of the report, which is always among the later ones


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
        "pid": os.getpid(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }


def _summary(counts: dict[str, Any]) -> str:
    """The counts of a stage in one line: numbers first-level, the rest left to `potstill status`."""
    return ", ".join(f"{key} {value}" for key, value in counts.items() if isinstance(value, int | float | str))
