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

from potstill import process, progress, storage
from potstill.errors import UserError
from potstill.recipe import Recipe, flatten_keys, recipe_to_yaml
from potstill.storage import ledger, manifest, parquet, run_folder, segments
from potstill.storage.segments import Shard

if TYPE_CHECKING:
    from potstill.training.distributed import ProcessGroup

STAGES: Final = ("collect", "sample", "filter", "align", "train", "evaluate", "select", "test", "report")

ALL_STAGES: Final = (
    *STAGES[:7],
    "repair",
    *STAGES[7:],
)  # of a recipe that asks for it; the order of all that there are

EVALUATION_STAGES: Final = ("collect", "test")  # of a recipe that trains nothing

SLOW_VERIFY_BYTES: Final = 1 << 30  # bytes that take longer than two seconds to read, so that a bar is shown
Consent = bool | Callable[[str], bool]

SHARD_LOCK_TIMEOUT: Final = 600.0  # seconds that a shard waits for another to collect the questions


def recipe_stages(recipe: Recipe) -> tuple[str, ...]:
    """The stages that a recipe has: without a teacher nothing is trained, chosen or reported, only measured."""
    if recipe.teacher.kind == "none":
        return EVALUATION_STAGES
    return STAGES if recipe.on_policy is None else ALL_STAGES


def default_run_dir(recipe: Recipe) -> Path:
    """Where a recipe's run lies: `runs/<name>` under the working folder."""
    return Path("runs") / recipe.name


def run(
    recipe: Recipe,
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
    folder = folder or default_run_dir(recipe)
    own = recipe_stages(recipe)
    until = own[-1] if until == STAGES[-1] else until
    for stage in (redo, until):
        if stage is not None and stage not in own:
            what = f"a recipe without {'repair' if stage == 'repair' else 'a teacher'} has no such stage"
            what = what if stage in ALL_STAGES else "no such stage"
            raise UserError(what, where=stage, hint=f"one of {', '.join(own)}")
    with _process_group(folder, recipe) as (first, team):
        if first:
            _run_stages(recipe, folder, own, redo, until, team, yes)
    return folder


def _run_stages(
    recipe: Recipe,
    folder: Path,
    own: tuple[str, ...],
    redo: str | None,
    until: str,
    team: ProcessGroup | None,
    yes: Consent,
) -> None:
    with run_folder.lock_run(folder):
        storage.delete_partial_files(folder)
        ledger.move_old_ledgers(folder)
        if redo is None:
            _check_begun(folder, recipe, own)
        else:
            _check_begun(folder, recipe, own[: own.index(redo)])
            remade = own[own.index(redo) : own.index(until) + 1]  # none, where `until` is before `redo`
            for stage in remade:
                _external_inputs(folder, recipe, _stage_module(stage))
            if remade:
                _check_ahead(None, recipe, remade, until)
            _verify_inputs(folder, recipe, redo)
            _confirm_removal(folder, redo, yes)
            _remove_stages(folder, redo)
        missing = [stage for stage in own[: own.index(until) + 1] if manifest.read_finished(folder / stage) is None]
        for stage in missing[:1]:
            _verify_inputs(folder, recipe, stage)  # before anything is read to look ahead
        _check_ahead(folder, recipe, own, until)
        _write_recipe(folder, recipe)
        run_folder.append_log(folder, "start", **_machine_info())
        for stage in own[: own.index(until) + 1]:
            make_stage(folder, recipe, stage, team)


def _check_ahead(folder: Path | None, recipe: Recipe, own: tuple[str, ...], until: str) -> None:
    """Before anything is made or removed: what would stop the run at a later stage, in the plan's words. Raises
    UserError for the first of the stages that are to be made now; those of others are said.

    folder  of the run, whose finished stages are passed over; None where all of these stages are made again
    """
    from potstill import preflight

    begun = folder is None or parquet.has_stored_chains(folder / "sample")
    now, first = own[: own.index(until) + 1], None
    for problem in preflight.find_problems(recipe, own, folder, weights=not begun):
        if problem.stage in now and not problem.later:
            first = first or problem.fault
        else:
            progress.print_line(f"later, at {problem.stage}: {problem.fault}", "yellow")
    if first is not None:
        raise first


@contextmanager
def _process_group(folder: Path, recipe: Recipe) -> Iterator[tuple[bool, ProcessGroup | None]]:
    """Where torchrun or srun started several processes: the first one runs, the others make with it the stage to
    which it calls them. Yields whether this is the first, and the team, None for one process."""
    place = process.read_process_rank()
    if place.world == 1:
        yield True, None
        return
    from potstill.training.distributed import ProcessGroup

    team = ProcessGroup(place)
    if place.is_main:
        try:
            yield True, team
        finally:
            team.dismiss()
        return
    with progress.muted(), team.follow(recipe_to_yaml(recipe)) as called:
        if called:
            _stage_module("train").make(folder, recipe)
    yield False, team


def run_shard(recipe: Recipe, part: Shard, *, folder: Path | None = None) -> Path:
    """Sample one shard of a run, beside other processes that sample the others; `run` then makes what is missing and
    seals. Collects the questions first, where no shard has yet.

    Raises UserError as `run` does, and if another process samples this shard.
    """
    folder = folder or default_run_dir(recipe)
    with ExitStack() as held:
        with run_folder.lock_run(folder, wait=SHARD_LOCK_TIMEOUT, beside_shards=True):
            ledger.move_old_ledgers(folder)
            sample, done = _begin_sample(folder, recipe)
            if done:
                return folder
            _check_ahead(folder, recipe, recipe_stages(recipe), "sample")
            held.enter_context(run_folder.lock_shard(folder, part.number, part.count))
            run_folder.append_log(folder, "start", shard=str(part), **_machine_info())
            if recipe.teacher.kind == "openai":
                ledger.split_budget(folder, part)
        began = time.monotonic()
        stored = sample.gather(folder, recipe, part)
        run_folder.append_log(
            folder, "shard", shard=str(part), chains=stored, seconds=round(time.monotonic() - began, 3)
        )
    progress.print_line(f"shard {part}: done, {stored} chains stored now  ({time.monotonic() - began:.1f} s)", "green")
    progress.print_line(f"when all {part.count} are done: potstill sample {folder}    (seals them into one table)")
    return folder


def run_batch(
    recipe: Recipe, results: Sequence[Path] = (), out: Path | None = None, *, folder: Path | None = None
) -> Path:
    """Ask the teacher through files: store what results hold, and seal if nothing is missing then; else write the
    requests for it into `out`. Raises UserError as `run` does, and for results that are not of this run."""
    folder = folder or default_run_dir(recipe)
    with run_folder.lock_run(folder):
        storage.delete_partial_files(folder)
        ledger.move_old_ledgers(folder)
        sample, done = _begin_sample(folder, recipe)
        if done:
            return folder
        _check_ahead(folder, recipe, recipe_stages(recipe), "sample")
        run_folder.append_log(folder, "start", batch=True, **_machine_info())
        if sample.sealed(folder) or (results and sample.batch_in(folder, recipe, results)):
            make_stage(folder, recipe, "sample")
        elif out is not None:
            sample.batch_out(folder, recipe, out)
    return folder


def _begin_sample(folder: Path, recipe: Recipe) -> tuple[ModuleType, bool]:
    """The stage `sample`, begun in a locked run whose questions are collected; and whether it is finished."""
    _check_begun(folder, recipe, recipe_stages(recipe))
    _write_recipe(folder, recipe)
    make_stage(folder, recipe, "collect")
    sample = _stage_module("sample")
    done = manifest.begin_stage(
        folder / "sample", _stage_identity(folder, recipe, "sample", sample), redone=stages_from("sample")
    )
    if done is not None:
        progress.print_line("sample    is there: everything is sealed", "dim")
    else:
        _verify_inputs(folder, recipe, "sample")
    return sample, done is not None


def find_outdated_stage(recipe: Recipe) -> str | None:
    """The first stage of a run that another version of the program has made, or that was made from something else."""
    for stage, before, now in _iter_begun(default_run_dir(recipe), recipe, recipe_stages(recipe)):
        if manifest.identity_differences(before, now):
            progress.print_line(
                f"this version makes {recipe.name} differently: {stage} and what follows is made anew", "dim"
            )
            return stage
    return None


def make_stage(folder: Path, recipe: Recipe, stage: str, team: ProcessGroup | None = None) -> manifest.Manifest:
    """One stage, in a locked run whose earlier stages are finished. team: other processes that can help with it."""
    module = _stage_module(stage)
    at = folder / stage
    identity = _stage_identity(folder, recipe, stage, module)
    done = manifest.begin_stage(at, identity, redone=stages_from(stage))
    if done is not None and not _needs_more(module, done, recipe):
        progress.print_line(f"{stage:<9} is there", "dim")
        return done
    _verify_inputs(folder, recipe, stage)
    if done is not None:
        _reopen_stage(folder, stage)
    began = time.monotonic()
    with team.call(recipe_to_yaml(recipe)) if team and hasattr(module, "TOGETHER") else nullcontext():
        outputs, counts = module.make(folder, recipe)
    made = manifest.finish_stage(at, identity, outputs, counts)
    seconds = time.monotonic() - began
    took = {"seconds": round(seconds, 3), "peak_memory_mib": process.peak_memory() >> 20}
    run_folder.append_log(folder, "done", stage=stage, **took)
    progress.print_line(f"{stage:<9} {_summarize_counts(counts)}  ({seconds:.1f} s)", "green")
    return made


def stages_from(stage: str) -> tuple[str, ...]:
    """The stage and all after it."""
    return ALL_STAGES[ALL_STAGES.index(stage) :]


def _stage_identity(folder: Path, recipe: Recipe, stage: str, module: ModuleType) -> manifest.Identity:
    inputs = _recorded_inputs(folder, recipe, stage, module)
    for before in (each for each in module.AFTER if each in recipe_stages(recipe)):
        finished = manifest.read_finished(folder / before)
        if finished is None:
            raise UserError(
                f"{stage} needs {before}, which is not finished", where=folder, hint=f"run `potstill {before}` first"
            )
        inputs[before] = finished.digest
    return manifest.Identity(stage, module.VERSIONS, _recipe_keys(recipe, module), inputs)


def _verify_inputs(folder: Path, recipe: Recipe, stage: str) -> None:
    """Before a stage runs: are the files that it reads, and those that it continues from, what their stages wrote?"""
    module = _stage_module(stage)
    among = [before for before in module.AFTER if before in recipe_stages(recipe)] + [stage]
    finished = [done for before in among if (done := manifest.read_finished(folder / before)) is not None]
    unread = module.unread(folder, recipe) if hasattr(module, "unread") else ()
    total = sum(manifest.unverified_bytes(folder, done.outputs, unread) for done in finished)
    with progress.bar("verify", total >> 20, "MiB") if total > SLOW_VERIFY_BYTES else nullcontext() as tick:
        for done in finished:
            manifest.verify_files(folder, done, unread, manifest.mebibyte_counter(tick))


def _external_inputs(folder: Path, recipe: Recipe, module: ModuleType) -> dict[str, str]:
    """Digests of what a stage reads from outside of this run: files that the recipe names, runs beside it."""
    named = dict(module.inputs(recipe)) if hasattr(module, "inputs") else {}
    return {**named, **(module.beside(folder, recipe) if hasattr(module, "beside") else {})}


def _recorded_inputs(folder: Path, recipe: Recipe, stage: str, module: ModuleType) -> dict[str, str]:
    """As `_outside`; but what a finished stage was made from need not be there any more: a run that was copied to
    another place brings what it made along, and not what it was made from."""
    try:
        return _external_inputs(folder, recipe, module)
    except UserError as fault:
        before = manifest.read_begun(folder / stage) if (folder / stage / manifest.MANIFEST_FILE).exists() else None
        controls = hasattr(module, "beside") and any((folder.parent / name).exists() for name in recipe.report.controls)
        if before is None or controls:  # a control that is there and not finished will be another one
            raise
        progress.print_line(f"{stage:<9} stays as it was made; not here now: {fault.where} ({fault.what})", "yellow")
        return {name: value for name, value in before.inputs.items() if name not in module.AFTER}


def _recipe_keys(recipe: Recipe, module: ModuleType) -> dict[str, Any]:
    free = module.free(recipe) if hasattr(module, "free") else ()
    return {key: value for key, value in flatten_keys(recipe, *module.READS).items() if key not in free}


def _iter_begun(
    folder: Path, recipe: Recipe, among: tuple[str, ...]
) -> Iterator[tuple[str, manifest.Identity, manifest.Identity]]:
    """Those stages that have made something: each with the identity it began with, and the one it would have now.

    Of its inputs those from outside are looked at, and which stages it reads; these are checked themselves.
    """
    for stage in among:
        before = manifest.read_begun(folder / stage)
        if before is not None and not manifest.is_stage_empty(folder / stage):
            module = _stage_module(stage)
            read = {name: before.inputs.get(name, "") for name in module.AFTER if name in recipe_stages(recipe)}
            inputs = {**read, **_recorded_inputs(folder, recipe, stage, module)}
            yield stage, before, manifest.Identity(stage, module.VERSIONS, _recipe_keys(recipe, module), inputs)


def _check_begun(folder: Path, recipe: Recipe, stages: tuple[str, ...]) -> None:
    """Before anything is changed: does every stage that was begun still fit the recipe, its files and the versions?"""
    for stage, before, now in _iter_begun(folder, recipe, stages):
        manifest.check_identity(folder / stage, before, now, stages_from(stage))
        done = manifest.read_finished(folder / stage)
        if done is not None:
            _needs_more(_stage_module(stage), done, recipe)  # a stage that can grow refuses to shrink


def _needs_more(module: ModuleType, done: manifest.Manifest, recipe: Recipe) -> bool:
    return hasattr(module, "grown") and module.grown(done.counts, recipe)


def _reopen_stage(folder: Path, stage: str) -> None:
    """A finished stage goes on: what was concluded from it is taken back, what was measured on its parts stays.

    The stage itself keeps what it was begun with: should this stop half way, another recipe must not go on with it.
    `evaluate` keeps the folders of its steps, each of which has a manifest of its own.
    """
    storage.remove(folder / "student")
    for after in reversed(stages_from(stage)):
        if after == stage:
            storage.remove(folder / after / manifest.MANIFEST_FILE)
        elif after == "evaluate":
            storage.remove(folder / after / manifest.MANIFEST_FILE)
            storage.remove(folder / after / manifest.BEGUN_FILE)
        else:
            storage.remove(folder / after)


def _confirm_removal(folder: Path, stage: str, yes: Consent) -> None:
    """Raises UserError where a redo would remove chains of a server and nobody consented."""
    lost = describe_paid_chains(folder) if "sample" in stages_from(stage) else ""
    if not lost or yes is True:
        return
    if yes is not False and yes(f"--redo {stage} removes {lost}"):
        return
    raise UserError(
        f"--redo {stage} would remove what a teacher behind a server wrote",
        where=folder / "sample",
        found=lost,
        hint="nothing was removed: give the recipe another name to keep both, or add --yes if these may go",
    )


def describe_paid_chains(folder: Path) -> str:
    """The chains of a server that a run holds, and what the run has paid, in words; empty where it holds none."""
    sample = folder / "sample"
    if not (manifest.has_server_chains(folder) or (sample / "server.json").exists()):
        return ""
    table = sample / "chains.parquet"
    chains = parquet.count_rows(table) if table.exists() else len(segments.stored_keys(segments.segment_paths(sample)))
    paid = ledger.describe_usage(folder)
    return f"{chains} chains; recorded for this run so far: {paid}" if chains else ""


def _remove_stages(folder: Path, stage: str) -> None:
    for after in reversed(stages_from(stage)):
        storage.remove(folder / after)
    storage.remove(folder / "student")  # of the report, which is always among the later ones


def _write_recipe(folder: Path, recipe: Recipe) -> None:
    path, text = folder / "recipe.yaml", recipe_to_yaml(recipe).encode()
    if not path.exists() or storage.read_bytes(path) != text:
        storage.write_file(path, text)


def _stage_module(stage: str) -> ModuleType:
    return importlib.import_module(f"potstill.stages.{stage}")


def _machine_info() -> dict[str, Any]:
    from importlib.metadata import version

    names = ("potstill", "torch", "transformers", "tokenizers", "numpy", "pyarrow")
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }


def _summarize_counts(counts: dict[str, Any]) -> str:
    """The counts of a stage in one line: numbers first-level, the rest left to `potstill status`."""
    return ", ".join(f"{key} {value}" for key, value in counts.items() if isinstance(value, int | float | str))
