"""The runner: makes the stages of a run in order, each in its own folder.

    from potstill import recipe, runner
    run_dir = runner.run(recipe.load_recipe(Path("recipes/gsm8k-human.yaml")))

A finished stage that still matches the recipe is not made again. An interrupted stage is resumed. If a stage was made
from other inputs, an error lists the differences; `redo` allows making the stage again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from potstill import models, process, progress, shared_work, storage, teachers
from potstill.errors import UserError
from potstill.recipe import Recipe, flatten_keys, recipe_to_yaml
from potstill.stages import ALL_STAGES, STAGES, open_stage, recipe_stages, stages_from
from potstill.stages.counts import describe_counts
from potstill.storage import atomic, ledger, manifest, parquet, run_folder, segments
from potstill.storage.manifest import (
    SLOW_VERIFY_BYTES,
    Identity,
    Manifest,
    StageState,
    mebibyte_counter,
    unverified_bytes,
    verify_files,
)
from potstill.storage.segments import Shard

if TYPE_CHECKING:
    from potstill.training.process_group import ProcessGroup

SHARD_LOCK_TIMEOUT: Final = 600.0  # seconds that a shard waits while another process begins or merges the stage
Consent = bool | Callable[[str], bool]

# Keys that are not part of an identity: the commit of a revision is an input of its stages instead.
REVISION_KEYS: Final = ("student.revision", "teacher.revision", "teacher.score.revision", "on_policy.scorer_revision")
# Keys that are part of an identity only if they are set.
OPTIONAL_KEYS: Final = (
    *("student.chat_template_kwargs", "student.system_prompt"),
    *("teacher.chat_template_kwargs", "teacher.system_prompt"),
    *("teacher.seed", "train.seed", "evaluate.seed"),
    *("train.checkpoints", "select.weights", "select.retain", "select.also", "teachers"),
)
# Stage -> the key that replaces `seed` for it.
SEED_KEYS: Final = {
    "sample": "teacher.seed",
    **dict.fromkeys(("train", "repair"), "train.seed"),
    **dict.fromkeys(("evaluate", "test"), "evaluate.seed"),
}


def identity_keys(recipe: Recipe, name: str) -> dict[str, Any]:
    """The recipe keys, with their values, on which the output of a stage depends directly."""
    stage = open_stage(name)
    keys, free = flatten_keys(recipe, *stage.reads), {*stage.free(recipe)}
    for source in recipe.sources:
        free |= {teachers.key_of_source(key, source) for key in REVISION_KEYS}
        optional = [teachers.key_of_source(key, source) for key in OPTIONAL_KEYS]
        free |= {key for key in optional if keys.get(key) is None}
    if recipe.teachers is not None:  # the section `teacher` then has only defaults
        free |= {key for key in keys if key.startswith("teacher.")}
    own = SEED_KEYS.get(name, "")
    if keys.get(own) == recipe.seed:
        free.add(own)
    elif keys.get(own) is not None and (name == "sample" or recipe.student.model is not None):
        free.add("seed")  # random weights also depend on `seed`
    return {key: keys[key] for key in keys if key not in free}


def default_run_dir(recipe: Recipe) -> Path:
    """The folder of a recipe's run: `runs/<name>` in the working folder."""
    return Path("runs") / recipe.name


def run(
    recipe: Recipe,
    run_dir: Path | None = None,
    *,
    redo: str | None = None,
    until: str = STAGES[-1],
    yes: Consent = False,
) -> Path:
    """Make every missing stage up to `until`, and return the run's folder.

    redo  a stage to make again: its folder and the folders of all later stages are removed first
    yes   whether `redo` may remove chains of a server; or a function from a description of these chains to the decision

    Raises UserError for every error that only the user can fix; all finished work is kept. Problems of earlier stages and
    of external inputs of the redone stages are found before anything is removed.
    """
    process.limit_kernel_caches()
    run_dir = run_dir or default_run_dir(recipe)
    names = recipe_stages(recipe)
    until = names[-1] if until == STAGES[-1] else until
    for name in (redo, until):
        _check_stage(name, names)
    with shared_work.process_group(run_dir, recipe) as (is_main, group):
        if is_main:
            with run_folder.lock_run(run_dir):
                storage.delete_partial_files(run_dir)
                _Run(run_dir, recipe, group).make_all(until, redo, yes)
    return run_dir


def _check_stage(name: str | None, names: Sequence[str]) -> None:
    """Raise UserError if a name, if there is one, is not among the stages of a recipe."""
    if name is not None and name not in names:
        what = "this recipe has no such stage" if name in ALL_STAGES else "no such stage"
        raise UserError(what, code="E-run-unknown-stage", where=name, hint=f"name one of {', '.join(names)}")


def run_shard(recipe: Recipe, shard: Shard, stage: str = "sample", *, run_dir: Path | None = None) -> Path:
    """Make one shard of a stage. Other processes may make the other shards at the same time.

    The process that finishes last merges all shards. For `sample`, the process that starts first collects the questions;
    for other stages, the earlier stages are finished. Raises UserError as `run` does, and if another process is working on
    this shard.
    """
    process.limit_kernel_caches()
    run_dir = run_dir or default_run_dir(recipe)
    _check_stage(stage, recipe_stages(recipe))
    folder = run_dir / stage
    with ExitStack() as stack:
        with run_folder.lock_run(run_dir, wait=SHARD_LOCK_TIMEOUT, allow_shards=True):
            if _Run(run_dir, recipe).begin_shard(stage, shard):
                return run_dir
            stack.enter_context(run_folder.lock_shard(run_dir, shard.number, shard.count))
            run_folder.append_log(run_dir, "start", shard=str(shard), stage=stage, **process.machine_info())
        stack.enter_context(shared_work.explain_failure(stage, run_dir))
        start = time.monotonic()
        if stage == "sample" or not shared_work.is_done(folder, shard):  # a raised budget allows more chains
            open_stage(stage).make_shard(run_dir, recipe, shard)
            shared_work.mark_done(folder, shard)
        seconds = time.monotonic() - start
        run_folder.append_log(run_dir, "shard", shard=str(shard), stage=stage, seconds=round(seconds, 3))
    progress.print_line(f"{stage:<9} shard {shard} done  ({seconds:.1f} s)", "green")
    if missing := _merge_shards(run_dir, recipe, stage, shard.count):
        numbers = ", ".join(map(str, missing)) if len(missing) <= 20 else f"{len(missing)} shards"
        progress.print_line(f"{stage:<9} the shard that finishes last merges all of them; not done yet: {numbers}")
        command = shared_work.completing_command(stage, run_dir)
        progress.print_line(f"{stage:<9} if a process has died: {command} makes what is missing and merges")
    return run_dir


def _merge_shards(run_dir: Path, recipe: Recipe, stage: str, count: int) -> list[int]:
    """Finish a stage if all of its shards are done. Otherwise, or if a process works on one, returns the missing shards."""
    try:
        with run_folder.lock_run(run_dir, wait=SHARD_LOCK_TIMEOUT):
            if (run_dir / stage / manifest.MANIFEST_FILE).exists():
                return []
            if not (missing := shared_work.list_missing(run_dir / stage, count)):
                _Run(run_dir, recipe).make(stage, verified=True)
            return missing
    except UserError as fault:
        if fault.code != "E-run-locked":
            raise
        return shared_work.list_missing(run_dir / stage, count)


def run_batch(
    recipe: Recipe, results: Sequence[Path] = (), out: Path | None = None, *, run_dir: Path | None = None
) -> Path:
    """Sample through batch files.

    Store the chains of `results`. If no chain is missing then, finish the stage; otherwise write the requests for the
    missing chains into `out`. The recipe has one teacher. Raises UserError as `run` does, and for results of another run.
    """
    assert recipe.teachers is None, "batch files need a recipe with one teacher"
    run_dir = run_dir or default_run_dir(recipe)
    with run_folder.lock_run(run_dir):
        storage.delete_partial_files(run_dir)
        current = _Run(run_dir, recipe)
        if current.begin_sample():
            return run_dir
        run_folder.append_log(run_dir, "start", batch=True, **process.machine_info())
        from potstill.stages import sample

        if sample.is_sealed(run_dir) or (results and sample.read_batch_results(run_dir, recipe, results)):
            current.make("sample")
        elif out is not None:
            sample.write_batch_requests(run_dir, recipe, out)
    return run_dir


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What `run` would do with a stage.

    action  keep: it is up to date; resume: it was interrupted; extend: it is finished and continues, because the recipe or an
            earlier stage requires more; make: from the beginning; refuse: the run stops; blocked: an earlier stage is refused
    fault   the error of a refused stage
    """

    stage: str
    action: Literal["keep", "resume", "extend", "make", "refuse", "blocked"]
    fault: UserError | None = None


def plan_stages(recipe: Recipe, run_dir: Path, redo: str | None = None) -> list[StagePlan]:
    """What `run` would do with each stage of a run, without a lock and without a change.

    The error of a stage is in its plan. Raises UserError only if `redo` is not a stage of the recipe.
    """
    current, plans = _Run(run_dir, recipe), list[StagePlan]()
    _check_stage(redo, current.stages)
    for name in current.stages:
        actions = {plan.action for plan in plans}
        if "refuse" in actions or (redo is not None and name in stages_from(redo)):
            plans.append(StagePlan(name, "blocked" if "refuse" in actions else "make"))
            continue
        try:
            current.check([name])
            state = current.state(name)
            if state.begun is None or state.is_empty:
                plans.append(StagePlan(name, "make"))
            elif state.manifest is None:
                plans.append(StagePlan(name, "resume"))
            else:
                extends = open_stage(name).grown(recipe, state.manifest.counts)
                if "extend" in actions and name != "evaluate":  # `reopen` removes its results
                    plans.append(StagePlan(name, "make"))
                else:
                    plans.append(StagePlan(name, "extend" if extends or "extend" in actions else "keep"))
        except UserError as fault:
            unknown = fault.code == models.NOT_DOWNLOADED  # as in a copied run: its weights cannot be compared
            plans.append(StagePlan(name, "resume") if unknown else StagePlan(name, "refuse", fault))
    return plans


def read_next_identity(recipe: Recipe, run_dir: Path, name: str) -> Identity | None:
    """The identity with which a stage would begin; None if it has begun already, or an earlier stage is not finished."""
    current = _Run(run_dir, recipe)
    if not current.state(name).is_empty or any(
        current.state(before).manifest is None for before in current.earlier(name)
    ):
        return None
    return current.identity(name)


def find_outdated_stage(recipe: Recipe, run_dir: Path | None = None) -> str | None:
    """The first stage of a run that does not match the recipe or this version of potstill; None if all stages match."""
    current = _Run(run_dir or default_run_dir(recipe), recipe)
    for name, before, now in current.iter_begun(current.stages):
        if manifest.identity_differences(before, now):
            progress.print_line(f"{recipe.name} is outdated from {name} on: these stages are made again", "dim")
            return name
    return None


def describe_paid_chains(run_dir: Path) -> str:
    """A phrase with the number of server chains in a run, and the run's usage; empty without server chains."""
    folder = run_dir / "sample"
    if not (manifest.has_server_chains(run_dir) or any(folder.glob("server*.json"))):
        return ""
    table = folder / "chains.parquet"
    chains = parquet.count_rows(table) if table.exists() else len(segments.stored_keys(segments.segment_paths(folder)))
    return f"{chains} chains; this run has used {ledger.describe_usage(run_dir)}" if chains else ""


class _Run:
    """A run whose lock this process holds. The state of each stage is read from the disk once."""

    def __init__(self, run_dir: Path, recipe: Recipe, group: ProcessGroup | None = None) -> None:
        self.run_dir, self.recipe, self.group = run_dir, recipe, group
        self.stages = recipe_stages(recipe)
        self._states: dict[str, StageState] = {}

    def state(self, name: str) -> StageState:
        if name not in self._states:
            self._states[name] = manifest.read_state(self.run_dir / name)
        return self._states[name]

    def forget_states(self, name: str) -> None:
        """Forget the cached states of a stage and of all later stages.

        Making a stage may also change the folders of later stages: `train` may evaluate its checkpoints.
        """
        for later in stages_from(name):
            self._states.pop(later, None)

    def make_all(self, until: str, redo: str | None, yes: Consent) -> None:
        wanted = self.stages[: self.stages.index(until) + 1]
        if redo is None:
            self.check(self.stages)
        else:
            self.check(self.stages[: self.stages.index(redo)])
            redone = wanted[self.stages.index(redo) :]  # empty if `until` is before `redo`
            for name in redone:
                open_stage(name).inputs(self.recipe, self.run_dir)
            if redone:
                self.check_ahead(redone, until, all_missing=True)
            self.verify(redo)
            self.confirm_removal(redo, yes)
            for folder in (*reversed(stages_from(redo)), "student"):  # `report`, the last stage, makes `student`
                storage.remove(self.run_dir / folder)
            self.forget_states(redo)
        first_missing = next((name for name in wanted if self.state(name).manifest is None), None)
        if first_missing is not None:
            self.verify(first_missing)  # before the checks read any of these files
        self.check_ahead(self.stages, until)
        self.write_recipe()
        run_folder.append_log(self.run_dir, "start", **process.machine_info())
        for name in wanted:
            self.make(name)

    def make(self, name: str, *, verified: bool = False) -> None:
        """Make a stage whose earlier stages are finished. verified: whether their files were verified for its shards."""
        stage, folder = open_stage(name), self.run_dir / name
        identity = self.identity(name)
        done = manifest.begin_stage(folder, identity, self.stages_from(name), self.state(name))
        if done is not None and not stage.grown(self.recipe, done.counts):
            storage.remove(folder / shared_work.SHARDS_FOLDER)
            progress.print_line(f"{name:<9} up to date", "dim")
            return
        if not verified:
            self.verify(name, done)
        if done is not None:
            self.reopen(name)
        start = time.monotonic()
        if self.group is not None and stage.distributed:
            outputs, counts = shared_work.make_together(self.group, self.run_dir, self.recipe, name)
        else:
            if self.group is not None and stage.shared:
                shared_work.share_stage(self.group, self.run_dir, self.recipe, name)
            outputs, counts = stage.make(self.run_dir, self.recipe)
        manifest.finish_stage(folder, identity, outputs, counts)
        storage.remove(folder / shared_work.SHARDS_FOLDER)
        self.forget_states(name)
        seconds = time.monotonic() - start
        usage = {"seconds": round(seconds, 3), "peak_memory_mib": process.peak_memory() >> 20}
        run_folder.append_log(self.run_dir, "done", stage=name, **usage)
        progress.print_line(f"{name:<9} {describe_counts(name, counts)}  ({seconds:.1f} s)", "green")

    def begin_sample(self) -> bool:
        """Collect the questions, check the later stages, and begin `sample`. Returns whether it is already finished."""
        self.check(self.stages)
        self.write_recipe()
        self.make("collect")
        done = manifest.begin_stage(self.run_dir / "sample", self.identity("sample"), self.stages_from("sample"))
        if done is not None:
            progress.print_line("sample    up to date: all chains are stored", "dim")
            return True
        self.verify("sample")
        self.check_ahead(self.stages, "sample")
        return False

    def begin_shard(self, name: str, shard: Shard) -> bool:
        """Begin a stage for a shard. Returns whether the stage is already finished. The first shard verifies all files."""
        stage, folder = open_stage(name), self.run_dir / name
        others = [
            other for other in run_folder.running_shards(self.run_dir) if not other.endswith(f"-of-{shard.count}")
        ]
        if others and name != "sample":
            what, hint = "another process is working on a shard of another number of shards", "wait until it ends"
            raise UserError(what, code="E-run-locked", where=self.run_dir, found=", ".join(others), hint=hint)
        if name == "sample":
            if self.begin_sample():
                return True
        else:
            self.check(self.stages)
            self.write_recipe()
            done = manifest.begin_stage(folder, self.identity(name), self.stages_from(name), self.state(name))
            if done is not None and not stage.grown(self.recipe, done.counts):
                progress.print_line(f"{name:<9} up to date", "dim")
                return True
            if not (folder / shared_work.SHARDS_FOLDER).is_dir():
                self.verify(name, done)
                self.check_ahead(self.stages, name)
                if done is not None:
                    self.reopen(name)
        atomic.make_folder(folder / shared_work.SHARDS_FOLDER)
        stage.begin_shards(self.run_dir, self.recipe, shard)
        return False

    def check(self, names: Collection[str]) -> None:
        """Raise UserError if a stage that has begun no longer matches the recipe, its inputs or the versions."""
        for name, before, now in self.iter_begun(names):
            manifest.check_identity(self.run_dir / name, before, now, self.stages_from(name))
            done = self.state(name).manifest
            if done is not None:
                manifest.check_sizes(self.run_dir, done)
                open_stage(name).grown(self.recipe, done.counts)  # raises if the recipe requires less

    def check_ahead(self, names: Sequence[str], until: str, *, all_missing: bool = False) -> None:
        """Check the stages for problems before anything is made or removed.

        Raises UserError for the first problem of a stage up to `until`, and prints the problems of later stages.

        all_missing  whether to check finished stages, too, because they will be made again
        """
        from potstill import preflight

        run_dir = None if all_missing else self.run_dir
        weights = not all_missing and not parquet.has_stored_chains(self.run_dir / "sample")
        wanted, first = names[: names.index(until) + 1], None
        for problem in preflight.find_problems(self.recipe, names, run_dir, weights=weights):
            if problem.stage in wanted and not problem.later:
                first = first or problem.fault
            else:
                progress.print_line(f"later, at {problem.stage}: {problem.fault}", "yellow")
        if first is not None:
            raise first

    def verify(self, name: str, done: Manifest | None = None) -> None:
        """Raise UserError if files that a stage reads differ from what earlier stages wrote.

        done  the stage's own manifest, if the stage continues from its own files, which are then checked, too
        """
        manifests = [self.state(before).manifest for before in self.earlier(name)] + [done]
        finished = [manifest for manifest in manifests if manifest is not None]
        unread = open_stage(name).unread(self.run_dir, self.recipe)
        total = sum(unverified_bytes(self.run_dir, manifest.outputs, unread) for manifest in finished)
        with progress.bar("verify", total >> 20, "MiB") if total > SLOW_VERIFY_BYTES else nullcontext() as tick:
            for done in finished:
                verify_files(self.run_dir, done, unread, mebibyte_counter(tick))

    def iter_begun(self, names: Collection[str]) -> Iterator[tuple[str, Identity, Identity]]:
        """Every stage that has made files, with the identity at its start and its current identity.

        The current identity has the earlier stages' digests from the start, because `check` checks those stages directly.
        """
        for name in names:
            state = self.state(name)
            if state.begun is not None and not state.is_empty:
                earlier = {before: state.begun.inputs.get(before, "") for before in self.earlier(name)}
                yield name, state.begun, self.identity(name, earlier)

    def stages_from(self, name: str) -> tuple[str, ...]:
        """The stage and the later stages that the recipe has."""
        return tuple(later for later in stages_from(name) if later in self.stages)

    def earlier(self, name: str) -> list[str]:
        """The stages of this run whose files a stage reads."""
        return [before for before in open_stage(name).after if before in self.stages]

    def identity(self, name: str, earlier: Mapping[str, str] | None = None) -> Identity:
        """The current identity of a stage. earlier: digests of the earlier stages; None: the digests of their manifests."""
        if earlier is None:
            earlier = {before: self.digest(before, name) for before in self.earlier(name)}
        inputs = {**self.inputs(name), **earlier}
        return Identity(name, open_stage(name).versions(), identity_keys(self.recipe, name), inputs)

    def digest(self, name: str, reader: str) -> str:
        """The digest of a finished stage. Raises UserError if it is not finished. reader: the stage that needs it."""
        done = self.state(name).manifest
        if done is None:
            what, hint = f"{reader} needs {name}, which is not finished", f"run `potstill {name}` first"
            raise UserError(what, code="E-run-stage-missing", where=self.run_dir, hint=hint)
        return done.digest

    def inputs(self, name: str) -> dict[str, str]:
        """Name -> digest, for the inputs of a stage from outside the run.

        If an input is missing, as in a copied run, a finished stage keeps the digests that it recorded.
        """
        stage = open_stage(name)
        try:
            return stage.inputs(self.recipe, self.run_dir)
        except UserError as fault:
            state = self.state(name)
            if state.begun is None or state.manifest is None or not stage.keeps_inputs(self.run_dir, self.recipe):
                raise
            progress.print_line(f"{name:<9} kept, although an input is missing: {fault.where} ({fault.what})", "yellow")
            return {key: value for key, value in state.begun.inputs.items() if key not in stage.after}

    def reopen(self, name: str) -> None:
        """Continue a finished stage. Remove the conclusions of later stages, and keep their measurements.

        The stage keeps the identity with which it began, so that an interruption cannot mix two recipes. `evaluate` keeps
        the folders of its checkpoints, which have separate manifests.
        """
        storage.remove(self.run_dir / "student")
        begun = [manifest.MANIFEST_FILE, manifest.BEGUN_FILE, shared_work.SHARDS_FOLDER]
        partly = {"evaluate": begun, name: [manifest.MANIFEST_FILE]}
        for later in reversed(stages_from(name)):
            for removed in partly.get(later, [""]):  # "": the whole folder
                storage.remove(self.run_dir / later / removed)

    def confirm_removal(self, name: str, yes: Consent) -> None:
        """Raise UserError if a redo would remove chains of a server, unless the user agrees."""
        paid = describe_paid_chains(self.run_dir) if "sample" in stages_from(name) else ""
        if not paid or yes is True or (yes is not False and yes(f"--redo {name} removes {paid}")):
            return
        what = f"--redo {name} would remove the chains of a server"
        hint = "nothing was removed: give the recipe another name to keep both, or add --yes to remove them"
        raise UserError(what, code="E-run-removes-paid-chains", where=self.run_dir / "sample", found=paid, hint=hint)

    def write_recipe(self) -> None:
        path, text = self.run_dir / "recipe.yaml", recipe_to_yaml(self.recipe).encode()
        if not path.exists() or storage.read_bytes(path) != text:
            storage.write_file(path, text)
