"""The state of a run, which may be running: how far each stage is, what was spent, and the command that continues it.

    print(read_status(Path("runs/demo")).resume)    # `potstill run runs/demo`; None if all stages are done

`potstill status` prints it. This module imports neither torch nor the modules of the stages, so it is read in a third of a
second. Nothing is written.
"""

from __future__ import annotations

import glob
import json
import shlex
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from potstill import cut_thoughts, storage
from potstill.errors import UserError
from potstill.recipe import Recipe
from potstill.run_reader import open_run
from potstill.stages import recipe_stages
from potstill.stages.counts import describe_counts
from potstill.storage import ledger, manifest, run_folder, segments

RECENT_STEPS: Final = 20  # steps whose own texts the status counts
State = Literal["done", "running", "unfinished", "waiting", "broken"]


@dataclass(frozen=True, slots=True)
class StageStatus:
    """The state of a stage.

    state   running: a process works on it now; unfinished: it has begun, and no process is known to work on it
    counts  the counts of its manifest; before it is done, its counts so far
    text    the same in one line for a reader, or the error of a broken stage
    """

    stage: str
    state: State
    counts: Mapping[str, Any]
    text: str


@dataclass(frozen=True, slots=True)
class RunStatus:
    """The state of a run.

    stages     the stages of its recipe, in order
    processes  the processes that work on it now
    usage      what its teacher's server has used: requests, tokens, and money by the prices of the recipe
    budget     the limits of tokens and money in its recipe; None: no limit
    resume     the command that continues the run; None if all stages are done
    """

    run_dir: str
    name: str
    stages: tuple[StageStatus, ...]
    processes: tuple[str, ...]
    usage: Mapping[str, float]
    budget: Mapping[str, float | None]
    warnings: tuple[str, ...]
    resume: str | None


def read_status(run_dir: Path) -> RunStatus:
    """The state of a run, which may be running. Raises UserError if the folder is not a run."""
    recipe = open_run(run_dir).recipe
    names = recipe_stages(recipe)
    unfinished = [name for name in names if not (run_dir / name / manifest.MANIFEST_FILE).exists()]
    processes = tuple(run_folder.working_processes(run_dir)) if unfinished else ()
    stages = tuple(_read_stage(run_dir, recipe, name, running=bool(processes)) for name in names)
    budgets = [source.teacher.budget for source in recipe.sources.values() if source.teacher.is_billed]
    return RunStatus(
        run_dir=str(run_dir),
        name=recipe.name,
        stages=stages,
        processes=processes,
        usage=ledger.total_usage(run_dir) if ledger.ledger_paths(run_dir) else {},
        budget={"tokens": _add_limits(b.tokens for b in budgets), "money": _add_limits(b.money for b in budgets)},
        warnings=tuple(cut_thoughts.read_warnings(run_dir)),
        resume=f"potstill run {shlex.quote(str(run_dir))}" if unfinished else None,
    )


def _add_limits(limits: Iterable[float | None]) -> float | None:
    """The sum of the limits of all paid teachers; None if one of them has no limit, or there is none."""
    known = list(limits)
    return None if not known or None in known else sum(limit for limit in known if limit is not None)


def _read_stage(run_dir: Path, recipe: Recipe, name: str, *, running: bool) -> StageStatus:
    folder = run_dir / name
    try:
        finished, begun = manifest.read_finished(folder), manifest.read_begun(folder)
        if finished is not None:
            try:
                text = describe_counts(name, finished.counts)
            except (KeyError, TypeError, AttributeError):  # another version of potstill wrote other counts
                text = json.dumps(finished.counts, ensure_ascii=False)[1:-1]
            return StageStatus(name, "done", finished.counts, text)
        if begun is None:
            return StageStatus(name, "waiting", {}, "")
        counts = count_so_far(run_dir, recipe, name)
    except UserError as error:
        return StageStatus(name, "broken", {}, str(error))
    return StageStatus(name, "running" if running else "unfinished", counts, describe_progress(counts))


# Finished stages


# Stages in progress


def count_so_far(run_dir: Path, recipe: Recipe, stage: str) -> dict[str, Any]:
    """The counts of a stage that is not finished; empty for stages that take little time.

    sample          chains; chains_at_most, if the teacher gives every question the same number of chains
    train, repair   step, steps, loss, and the saved checkpoints. Training continues from the last one. With
                    `train.on_policy`, own_right: the mean share of right own texts over the last RECENT_STEPS steps
    evaluate, test  the evaluated checkpoints; the number of checkpoints in all; the stored answers, also of shards; the
                    number of answers in all
    """
    folder = run_dir / stage
    if stage == "sample":
        counts: dict[str, Any] = {"chains": segments.count_lines(segments.segment_paths(folder))}
        collected = manifest.read_finished(run_dir / "collect")
        sampled = [source.teacher for source in recipe.sources.values()]
        if collected is not None and all(teacher.kind in ("local", "openai") for teacher in sampled):
            sizes = collected.counts["questions"]
            questions = sum(sizes.get(f"{name}.train", 0) for name in recipe.questions.train)
            counts["chains_at_most"] = questions * sum(teacher.samples for teacher in sampled)
        return counts
    if stage in ("train", "repair"):
        section = recipe.train if stage == "train" or recipe.on_policy is None else recipe.on_policy
        saved = storage.list_saved_steps(folder / "checkpoints")
        last: dict[str, Any] = {}
        right = deque[float](maxlen=RECENT_STEPS)
        for last in storage.read_complete_lines(folder / "metrics.jsonl"):
            written = last.get("written", {})
            right.extend([written["right"]] if "right" in written else [])
        measures = {"loss": last["loss"]} if "loss" in last else {}
        measures |= {"own_right": sum(right) / len(right)} if right else {}
        return {"step": last.get("step", 0), "steps": section.steps, **measures, "checkpoints": saved}
    if stage in ("evaluate", "test"):
        evaluated = sorted(path.parent.name for path in folder.glob(f"[0-9]*/{manifest.MANIFEST_FILE}"))
        checkpoints, expected = _count_checkpoints(run_dir, recipe, stage), _count_answers(run_dir, recipe, stage)
        under_way = [path for path in folder.glob("[0-9]*") if path.name not in evaluated]
        stored = sum(segments.count_lines(_answer_paths(path, recipe, stage)) for path in under_way)
        answers = min(len(evaluated), checkpoints) * expected + min(stored, len(under_way) * expected)
        return {
            "evaluated": evaluated,
            "checkpoints": checkpoints,
            "answers": answers,
            "answers_in_all": checkpoints * expected,
        }
    return {}


def generated_answers(recipe: Recipe, stage: str) -> dict[str, int]:
    """Name of a file of generated answers -> answers to each question. Decodings that choose among samples have no
    other answers (`evaluation.decoding`, which is not imported here, because it loads torch)."""
    names = [*recipe.evaluate.decodings, *(recipe.evaluate.test_decodings if stage == "test" else ())]
    samples: dict[str, int] = {}
    for name in names:
        first, plus, rest = name.partition("+")
        choice, _, number = first.partition("-")
        kind = f"{'greedy' if choice == 'greedy' else 'samples'}{plus}{rest}"
        samples[kind] = max(samples.get(kind, 1), int(number or 1))
    return {f"{format}.{kind}": n for format in recipe.evaluate.formats for kind, n in samples.items()}


def _count_answers(run_dir: Path, recipe: Recipe, stage: str) -> int:
    """The number of answers that a checkpoint gives in a stage."""
    collected, sets = manifest.read_finished(run_dir / "collect"), recipe.questions
    sizes = {} if collected is None else collected.counts["questions"]
    split = "test" if stage == "test" else "validation"
    names = dict.fromkeys([*sets.in_distribution, *sets.out_of_distribution, *sets.generic])
    questions = sum(sizes.get(f"{name}.{split}", 0) for name in names)
    return questions * sum(generated_answers(recipe, stage).values())


def _answer_paths(folder: Path, recipe: Recipe, stage: str) -> list[Path]:
    """The files with the answers of a checkpoint that is being evaluated, and of its shards."""
    paths = []
    for name in generated_answers(recipe, stage):
        whole = folder / f"{name}.jsonl"
        paths += [whole] if whole.exists() else []
        paths += (folder / "shards").glob(f"{glob.escape(name)}.[0-9]*-of-[0-9]*.jsonl")
    return paths


def _count_checkpoints(run_dir: Path, recipe: Recipe, stage: str) -> int:
    """The number of checkpoints that a stage evaluates, with the base."""
    if not recipe.has_teacher:
        return 1
    if stage == "test":
        if recipe.select.also and manifest.read_finished(run_dir / "select") is not None:
            from potstill.evaluation import choice  # only here, because it loads numpy

            return len(choice.list_checkpoints_to_test(run_dir, recipe))
        return 3 if recipe.on_policy else 2
    trained = manifest.read_finished(run_dir / "train")
    saved = 0 if trained is None else len(trained.counts["checkpoints"])
    return 1 + saved * len({*(recipe.evaluate.interpolate or ()), 1.0})


def describe_progress(counts: Mapping[str, Any]) -> str:
    """The counts of `count_so_far` in one line."""
    if "chains" in counts:
        most = counts.get("chains_at_most")
        share = f" of at most {most} chains ({counts['chains'] / most:.0%})" if most else " chains"
        return f"{counts['chains']}{share}"
    if "step" in counts:
        loss = f", loss {counts['loss']:.4f}" if "loss" in counts else ""
        loss += f", {counts['own_right']:.0%} of recent own texts right" if "own_right" in counts else ""
        saved = counts["checkpoints"]
        newest = f"last checkpoint: step {saved[-1]}" if saved else "no checkpoint yet"
        return f"step {counts['step']} of {counts['steps']}{loss}; {newest}"
    if "evaluated" in counts:
        answers = f"; {counts['answers']} of {counts['answers_in_all']} answers" if counts["answers_in_all"] else ""
        share = f" ({counts['answers'] / counts['answers_in_all']:.0%})" if answers else ""
        return f"{len(counts['evaluated'])} of {counts['checkpoints']} checkpoints evaluated{answers}{share}"
    return ""
