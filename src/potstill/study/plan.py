"""The plan of a study: how often each stage is made, what the teachers are asked, and how long the rest takes.

    print("\n".join(describe_study(study, find_problems(study))))   # what `potstill study STUDY --dry-run` prints

Estimates are those of `potstill run --dry-run`, for the runs that are not finished. A stage that several runs share counts
once. Runs that differ only in seeds have the same estimate, which is made once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from potstill import demo, models, progress, run_cost, runner, teachers
from potstill.data import assemble
from potstill.dry_run import format_duration
from potstill.errors import UserError
from potstill.existing_run import Progress, read_progress
from potstill.recipe import Recipe
from potstill.stages import recipe_stages
from potstill.storage import ledger
from potstill.study.grid import DEMO, Study, StudyRun
from potstill.study.problems import SEEDS, StudyProblem
from potstill.study.processes import is_finished
from potstill.study.shared_stages import count_shared, find_maker, has_made, stage_keys

OVERHEAD_SECONDS: Final = 15.0  # the processor time of a run of four steps: loading the libraries, and the page


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """Seconds that a run takes alone on this machine; None: no estimate, for the reason in `problem`."""

    training: float | None
    answering: float | None
    problem: str = ""


def describe_study(study: Study, problems: Sequence[StudyProblem]) -> Iterator[str]:
    """The plan as lines of text, with the problems of its runs.

    Nothing is written, except the demo's data if the base recipe is the demo.
    """
    if study.recipe == DEMO:
        demo.copy_data_once()
    writes = f"only the demo's data, into {demo.DATA_FOLDER}" if study.recipe == DEMO else "nothing"
    yield f"plan of {study.name} (writes {writes}); folder: {study.folder}"
    for experiment in study.experiments:
        yield ""
        yield f"{experiment.name}: {experiment.title or 'one grid'}"
        for axis in experiment.axes:
            names = dict.fromkeys(choices[axis] for choices in experiment.choices.values())
            yield f"  {axis:<30} {', '.join(names)}"
        yield f"  {'runs':<30} {len(experiment.runs)}"
    left = [run for run in study.runs if not is_finished(run)]
    yield ""
    done = len(study.runs) - len(left)
    yield f"{len(study.runs)} different runs, of which {done} {'is' if done == 1 else 'are'} finished"
    stages = Counter(name for run in study.runs for name in recipe_stages(run.recipe))
    for name, made in count_shared(study).items():
        yield f"  {name:<10} {'once' if made == 1 else f'{made} times'} for {stages[name]} runs"
    yield from describe_problems(study, problems)
    yield from _describe_rest(study, left)


def describe_problems(study: Study, problems: Sequence[StudyProblem]) -> Iterator[str]:
    """Each problem: a line with its number of runs, and its message."""
    for problem in problems:
        names = problem.runs
        some = f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        first, *rest = str(problem.fault).split("\n")
        yield ""
        yield f"{'later' if problem.later else 'problem':<11}{len(names)} of {len(study.runs)} runs: {some}"
        yield f"  at {problem.stage}: {first}"
        yield from (f"  {line}" for line in rest)


def _describe_rest(study: Study, left: Sequence[StudyRun]) -> Iterator[str]:
    """What is left: the lines of every teacher that is asked, and the time of all runs together."""
    spent = [run for run in study.runs if ledger.ledger_paths(run.run_dir)]
    for run in spent:
        yield f"  spent      {run.name}: {ledger.describe_usage(run.run_dir)}"
    if not left:
        return
    with models.without_weights():
        read_sets = _SetReader()
        for run in find_samplers(study, left):
            yield ""
            yield from _describe_teachers(run, read_sets)
        estimates: dict[str, RunEstimate] = {}
        of_run = []
        with progress.bar("estimates", len(left)) as advance:
            for run in left:
                key = run.recipe.model_dump_json(exclude=SEEDS)  # type: ignore[arg-type]
                if key not in estimates:
                    estimates[key] = _estimate_run(run, read_sets)
                of_run.append(estimates[key])
                advance()
    yield ""
    training, answering = _share_times(study, left, of_run)
    times = f"{format_duration(training)} for training and {format_duration(answering)} for answers"
    yield f"time         about {format_duration(training + answering)} on this machine, one run at a time: {times}"
    yield "             it counts the base's answers for every run, though they are made once; it does not count local"
    yield f"             teachers, alignment, and about {format_duration(OVERHEAD_SECONDS)} for each run's start and report"
    for problem, number in Counter(one.problem for one in of_run if one.problem).items():
        yield f"             without {number} of {len(left)} runs: {problem}"


class _SetReader:
    """Reads the questions of a recipe, once for all recipes that collect the same ones."""

    def __init__(self) -> None:
        self._sets: dict[str | None, run_cost.Sets] = {}

    def __call__(self, recipe: Recipe) -> run_cost.Sets:
        key = stage_keys(recipe).get("collect")
        if key not in self._sets:
            self._sets[key] = assemble.assemble_questions(recipe).questions
        return self._sets[key]


def find_samplers(study: Study, left: Sequence[StudyRun]) -> list[StudyRun]:
    """The runs that ask a teacher: for every sampling that some run still needs, the run that makes it."""
    keys = {run.name: stage_keys(run.recipe).get("sample") for run in study.runs}
    samplers: dict[str, StudyRun] = {}
    for run in left:
        key = keys[run.name]
        if key is None or key in samplers:
            continue
        maker = find_maker([other for other in study.runs if keys[other.name] == key], "sample")
        if not has_made(maker, "sample"):
            samplers[key] = maker
    return list(samplers.values())


def _estimate_run(run: StudyRun, read_sets: _SetReader) -> RunEstimate:
    """The time of what is left of a run."""
    try:
        recipe, sets = run.recipe, read_sets(run.recipe)
        cost = run_cost.estimate_cost(recipe, run_cost.plan_step(recipe, sets), sets, _read_progress(run))
    except UserError as fault:
        return RunEstimate(None, None, f"{fault.where}: {fault.what}")
    if cost is None:
        return RunEstimate(None, None, "the model has another architecture, or its size is unknown")
    return RunEstimate(cost.training_seconds + cost.own_seconds, cost.answering_seconds)


def _read_progress(run: StudyRun) -> Progress:
    if not (run.run_dir / "recipe.yaml").is_file():
        return Progress()
    return read_progress(run.recipe, run.run_dir, runner.plan_stages(run.recipe, run.run_dir))


def _describe_teachers(run: StudyRun, read_sets: _SetReader) -> Iterator[str]:
    """The lines of `potstill run --dry-run` about the chains that a run samples, for itself and for others."""
    recipe = run.recipe
    try:
        train = assemble.training_questions(recipe.questions.train, read_sets(recipe))
        so_far = _read_progress(run)
        for name, source in recipe.sources.items():
            with teachers.name_source(name):
                kept = so_far.of_source(run.run_dir, name)
                first, *lines = teachers.from_recipe(source).forecast(train, kept.stored, kept.scores)
            yield f"{first}  (in {run.name})"
            yield from lines
    except UserError as fault:
        yield f"teacher           no estimate: {fault.where}: {fault.what}"


def _share_times(study: Study, left: Sequence[StudyRun], of_run: Sequence[RunEstimate]) -> tuple[float, float]:
    """Seconds of training and of answers, where runs that share a stage count once."""
    totals = {"train": 0.0, "evaluate": 0.0}
    seen = set[str]()
    finished = {
        key
        for run in study.runs
        for name, key in stage_keys(run.recipe).items()
        if name in totals and has_made(run, name)
    }
    for run, estimate in zip(left, of_run, strict=True):
        for name, key in stage_keys(run.recipe).items():
            if name in totals and key not in seen | finished:
                seen.add(key)
                totals[name] += (estimate.training if name == "train" else estimate.answering) or 0.0
    return totals["train"], totals["evaluate"]
