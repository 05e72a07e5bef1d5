"""Stages that several runs of a study share: who makes them, and which runs wait for it.

Two runs share a stage if everything that determines its output is equal: the recipe keys that it and the stages before it
read, and the tokenizer for the targets. Another replay set changes the collected questions, but not those that are
sampled. One of these runs, the maker, makes the stage in its own folder, and the others copy it (`copy_finished_stage`
compares the identities again, with the digests of all inputs). So a teacher is asked once, and a budget counts once.

    >>> from potstill.recipe.study import parse_study
    >>> from potstill.study.grid import expand_study
    >>> text = "{name: rules, recipe: demo, grid: {transfer.rule: [one-hot, span], train.seed: [1, 2]}}"
    >>> count_shared(expand_study(parse_study(text, "rules.yaml")))
    {'collect': 1, 'sample': 1, 'filter': 1, 'align': 2, 'train': 4, 'evaluate': 4, 'select': 4, 'test': 4, 'report': 4}
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from potstill import progress, runner
from potstill.errors import UserError
from potstill.recipe import Recipe, flatten_keys, load_recipe
from potstill.stages import Stage, open_stage, recipe_stages
from potstill.storage import manifest, run_folder
from potstill.storage.manifest import Identity
from potstill.study.grid import Study, StudyRun

POLL_SECONDS: Final = 0.5  # between two looks at a stage that another process makes


def stage_keys(recipe: Recipe) -> dict[str, str]:
    """Stage -> a text that is equal for two runs if they share the stage. Stages of a recipe that only evaluates, too."""
    own: dict[str, dict[str, Any]] = {}
    before: dict[str, set[str]] = {}
    names = recipe_stages(recipe)
    for name in names:
        stage = open_stage(name)
        keys = {
            **runner.identity_keys(recipe, name),
            **flatten_keys(recipe, *stage.growing),
            **_input_keys(recipe, stage),
        }
        if stage.digested:
            try:
                inputs = stage.inputs(recipe)
                keys = {key: value for key, value in keys.items() if key not in stage.digested} | inputs
            except UserError:
                pass  # a file is missing: the run says so when it starts; until then, equal keys share the stage
        own[name] = keys
        before[name] = {name}.union(*(before[earlier] for earlier in stage.after if earlier in before))
    return {name: _write_keys(name, {part: own[part] for part in names if part in before[name]}) for name in names}


def _input_keys(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """Keys that name inputs of a stage, whose digests are in its identity: a revision on the hub, and the data folder."""
    read = flatten_keys(recipe, *stage.reads)
    return {"data": recipe.data} | {key: value for key, value in read.items() if key.endswith("revision")}


def _write_keys(name: str, keys: Mapping[str, Mapping[str, Any]]) -> str:
    """The keys of a stage and of the stages before it, as far as they change what the stage reads."""
    unaffected = open_stage(name).unaffected
    sections = tuple(f"{key}." for key in unaffected)
    return json.dumps(
        {
            part: {key: value for key, value in of.items() if key not in unaffected and not key.startswith(sections)}
            for part, of in keys.items()
        },
        sort_keys=True,
    )


def count_shared(study: Study) -> dict[str, int]:
    """Stage -> how often it is made, for all runs together."""
    different: dict[str, set[str]] = {}
    for run in study.runs:
        for name, key in stage_keys(run.recipe).items():
            different.setdefault(name, set()).add(key)
    return {name: len(keys) for name, keys in different.items()}


def find_maker(runs: Sequence[StudyRun], name: str) -> StudyRun:
    """The run that makes a stage for runs that share it: one that has made it, or has begun, or else the first."""
    for has in (has_made, _has_begun):
        for run in runs:
            if has(run, name):
                return run
    return runs[0]


def has_made(run: StudyRun, name: str) -> bool:
    """Whether a run has finished a stage and all stages before it, with the keys that its recipe has now."""
    names = recipe_stages(run.recipe)
    for part in names[: names.index(name) + 1]:
        done = manifest.read_state(run.run_dir / part).manifest
        if done is None or not _has_keys(done.identity, run.recipe):
            return False
    return True


def _has_begun(run: StudyRun, name: str) -> bool:
    """Whether a run has made a part of a stage, with the keys that its recipe has now."""
    state = manifest.read_state(run.run_dir / name)
    return not state.is_empty and state.begun is not None and _has_keys(state.begun, run.recipe)


def _has_keys(identity: Identity, recipe: Recipe) -> bool:
    return dict(identity.recipe) == runner.identity_keys(recipe, identity.stage)


def share_stages(study: Study, run: StudyRun) -> None:
    """Copy every stage that another run has made, or makes, for this run. Wait for runs that are making one.

    If nobody makes the stage, this process makes it in the maker's folder, and shares the stages before it, too. Raises
    UserError as `runner.run` does.
    """
    keys = {other.name: stage_keys(other.recipe) for other in study.runs}
    _share(study, keys, run, list(keys[run.name]))


def _share(study: Study, keys: Mapping[str, Mapping[str, str]], run: StudyRun, names: Sequence[str]) -> None:
    """Copy or make the named stages of a run; see `share_stages`. keys: the stage keys of every run, by its name"""
    left = [name for name in names if manifest.read_state(run.run_dir / name).manifest is None]
    makers = {
        name: find_maker([other for other in study.runs if keys[other.name].get(name) == keys[run.name][name]], name)
        for name in left
    }
    for number, name in enumerate(left):
        maker = makers[name]
        if maker.name != run.name:
            _wait_or_make(study, keys, maker, name)
        sources = [maker.run_dir, *_finished_folders(study.folder, name)]
        source = copy_finished_stage(run.recipe, run.run_dir, name, sources)
        if source is not None:
            progress.print_line(f"{name:<9} copied from {source.name}", "dim")
        elif all(makers[later].name == run.name for later in left[number:]):
            return  # the rest is only this run's
        else:
            runner.run(run.recipe, run.run_dir, until=name)


def copy_finished_stage(recipe: Recipe, run_dir: Path, name: str, sources: Iterable[Path]) -> Path | None:
    """Make a stage from the first of other runs that has made the same, and return that run's folder; None without one.

    The earlier stages of this run are finished. A stage that has begun here is left as it is.
    """
    with run_folder.lock_run(run_dir):
        stage, identity = open_stage(name), runner.read_next_identity(recipe, run_dir, name)
        if identity is None:
            return None
        for source in sources:
            done = manifest.read_state(source / name).manifest
            if done is None or not all(path.startswith(f"{name}/") for path in done.outputs):
                continue  # `report` also writes the student's folder
            if not (source / "recipe.yaml").exists():
                continue  # another process is still copying the first stages of this run
            its_recipe = load_recipe(source / "recipe.yaml")
            if flatten_keys(its_recipe, *stage.growing) != flatten_keys(recipe, *stage.growing):
                continue
            same_files = _same_files(run_dir, source, stage.after, stage.read_files(recipe))
            ignored = {*stage.digested, *(stage.after if same_files else ())}
            if manifest.identity_differences(*(_without(one, ignored) for one in (done.identity, identity))):
                continue
            manifest.check_sizes(source, done)
            folders = (stage.subfolder(its_recipe), stage.subfolder(recipe))
            manifest.copy_stage(source / name, run_dir / name, identity, folders)
            run_folder.append_log(run_dir, "copied", stage=name, run=source.name)
            return source
    return None


def _same_files(run_dir: Path, other: Path, stages: Sequence[str], read: Sequence[str] | None) -> bool:
    """Whether all files that a stage reads of earlier stages are equal in two runs. read: None for all files"""

    def digests(folder: Path) -> list[str | None]:
        outputs: dict[str, str] = {}
        for name in stages:
            done = manifest.read_state(folder / name).manifest
            outputs |= {path: row["sha256"] for path, row in done.outputs.items()} if done is not None else {}
        return [outputs.get(path) for path in read or ()]

    ours, theirs = digests(run_dir), digests(other)
    return bool(ours) and None not in ours and ours == theirs


def _without(identity: Identity, ignored: Collection[str]) -> Identity:
    """The identity without keys and inputs that were compared in another way."""
    return replace(
        identity,
        recipe={key: value for key, value in identity.recipe.items() if key not in ignored},
        inputs={name: digest for name, digest in identity.inputs.items() if name not in ignored},
    )


def _wait_or_make(study: Study, keys: Mapping[str, Mapping[str, str]], maker: StudyRun, name: str) -> None:
    """Return when the maker's stage is finished. If no process makes it, make it here."""
    names = list(keys[maker.name])

    def make() -> None:
        # The maker may not have begun: others have its first stages.
        _share(study, keys, maker, names[: names.index(name) + 1])
        runner.run(maker.recipe, maker.run_dir, until=name)

    def is_done() -> bool:
        return manifest.read_state(maker.run_dir / name).manifest is not None

    call_when_unlocked(make, f"{name:<9} waiting for {maker.name}, which makes it for this run", is_done)


def call_when_unlocked(call: Callable[[], None], note: str, is_done: Callable[[], bool] = lambda: False) -> None:
    """Call a function, and again as long as another process holds the lock of a run that it needs.

    Another run of the study may be making a shared stage in this run's folder. note: a line that is printed once, if this
    process waits; is_done: whether the call is no longer needed
    """
    waiting = False
    while not is_done():
        try:
            call()
        except UserError as fault:
            if fault.code != "E-run-locked":
                raise
            if not waiting:
                progress.print_line(note, "dim")
            waiting = True
            time.sleep(POLL_SECONDS)
        else:
            return


def _finished_folders(folder: Path, name: str) -> list[Path]:
    """The folders of runs in a study's folder that have finished a stage, those of earlier versions of the grid, too."""
    return sorted(path.parent.parent for path in folder.glob(f"*/{name}/{manifest.MANIFEST_FILE}"))
