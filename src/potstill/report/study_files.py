"""Reads the runs of a study for its page: every run once, also if several experiments have it.

    runs = read_study([Experiment("rules", "", ("transfer.rule",), [("span.1", {"transfer.rule": "span"}, run_dir)])])
    runs["span.1"].curve, runs["span.1"].seconds["train"], runs["span.1"].fault

Only answers and files of finished stages are read. No split is opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from potstill import storage
from potstill.errors import UserError
from potstill.models import count_stored_parameters
from potstill.recipe import Recipe, flatten_keys, load_recipe
from potstill.records import BASE
from potstill.report.group_files import read_run
from potstill.report.model import ReportData
from potstill.report.rule_choices import collect_rule_choices
from potstill.report.run_files import RunFiles
from potstill.report.study_model import Experiment, StudyRun
from potstill.report.summary import scores_by_checkpoint
from potstill.storage import ledger, manifest

# What the loss of training compares: between runs that differ in one of these, its values cannot be compared.
OBJECTIVE_KEYS: Final = (
    "transfer.rule",
    "transfer.rewrite",
    "transfer.calculator_marks",
    "transfer.min_probability",
    "train.divergence",
    "train.divergence_beta",
    "train.missing_probability",
    "train.formats",
    "train.loss_weights",
    "train.negatives",
    "train.replay",
    "train.sources",
    "train.lengths",
)


def read_study(
    experiments: Iterable[Experiment], unfinished: Mapping[str, str] = MappingProxyType({})
) -> dict[str, StudyRun]:
    """The runs of all experiments by name. A run that is unfinished, or cannot be read, has a `fault`.

    unfinished  run -> why, if it is known
    """
    folders = {name: run_dir for experiment in experiments for name, _, run_dir in experiment.runs}
    return {name: read_study_run(name, run_dir, unfinished.get(name)) for name, run_dir in folders.items()}


def read_study_run(name: str, run_dir: Path, unfinished: str | None = None) -> StudyRun:
    """One run. Its costs are read also if it has not finished. unfinished: why, if it is known; None: it has finished"""
    run = StudyRun(name, run_dir.name)
    if not run_dir.is_dir():
        return replace(run, fault="it has not begun")
    try:
        run = _read_costs(run, run_dir)
        if unfinished is not None:
            return replace(run, fault=unfinished or "it has not finished, or its recipe has changed since")
        return _read_results(run, run_dir, load_recipe(run_dir / "recipe.yaml"))
    except UserError as fault:
        return replace(run, fault=fault.what)


def _read_results(run: StudyRun, run_dir: Path, recipe: Recipe) -> StudyRun:
    answers, base = read_run(run_dir, name=run.name), read_run(run_dir, BASE, name=run.name, as_base=True)
    files = RunFiles(run_dir, recipe)
    run = replace(
        run,
        answers=answers,
        base=base,
        main=f"{files.main_format}.{files.main_decoding}",
        formats=tuple(recipe.evaluate.formats),
        parameters=_count_parameters(run_dir),
    )
    if not recipe.has_teacher:
        return run
    choice = files.choice
    scores = ReportData(
        recipe.name, "", "", files.groups, "", choice=choice, validation=files.validation_scores
    )  # only its validation scores are used
    return replace(
        run,
        trained_on={name: quota for name, quota in recipe.train.formats.items() if quota},
        chosen=choice.checkpoint,
        curve=scores_by_checkpoint(scores),
        losses=tuple((row["step"], row["loss"]) for row in files.metrics),
        objective=_describe_objective(run_dir, recipe),
        rules=tuple(collect_rule_choices(files)),
    )


def _count_parameters(run_dir: Path) -> int | None:
    """The number of parameters of the student that the run wrote, from the headers of its weights; None without one."""
    folder = run_dir / "student"
    return count_stored_parameters(folder) if folder.is_dir() else None


def _describe_objective(run_dir: Path, recipe: Recipe) -> dict[str, Any]:
    """The keys of the objective, and the digest of the tokenizer: a loss per token depends on what a token is."""
    aligned = manifest.read_finished(run_dir / "align")
    tokenizer = aligned.identity.inputs.get("student.tokenizer") if aligned else None
    return {**flatten_keys(recipe, *OBJECTIVE_KEYS), "student.tokenizer": tokenizer}


def _read_costs(run: StudyRun, run_dir: Path) -> StudyRun:
    """The costs of the stages that the run made itself."""
    seconds: dict[str, float] = {}
    copied: dict[str, str] = {}
    if (run_dir / "log.jsonl").is_file():
        for row in storage.read_complete_lines(run_dir / "log.jsonl"):
            if row["event"] == "done":
                seconds[row["stage"]] = seconds.get(row["stage"], 0.0) + row["seconds"]
                copied.pop(row["stage"], None)
            elif row["event"] == "copied":
                copied[row["stage"]] = row["run"]
    tokens, money = 0, 0.0
    if "sample" not in copied:
        money = ledger.total_usage(run_dir)["money"]
        finished = manifest.read_finished(run_dir / "sample")
        tokens = finished.counts["tokens"] if finished else 0
    return replace(run, seconds=seconds, copied=copied, tokens=tokens or 0, money=money)
