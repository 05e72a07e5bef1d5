"""The demo on a pretrained model (`make demo-real`): several seeds, two controls, and one table of them.

    python tools/real_demo.py --seeds 1 2 3      # runs/smollm2-*; the table in runs/smollm2-table.md

Every run is an ordinary `potstill run` in a process of its own, so an interrupted demo continues where it stopped. One run
at a time uses all cores and the least memory; with `--jobs 2`, two runs share the cores, which takes less time and twice the
memory. Words after `--` go to every run:

    python tools/real_demo.py --seeds 1 2 -- --set train.steps=2 --set questions.limit.test=4
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import potstill as ps
from potstill.evaluation import checkpoint as checkpoints
from potstill.evaluation.intervals import ratio_bootstrap, seeds_interval, wilson_interval
from potstill.records import BASE, Checkpoint
from potstill.report.summary import format_bits, format_points, percent_number

RECIPE = Path("recipes") / "smollm2.yaml"
NAME = "smollm2"
TABLE = Path("runs") / f"{NAME}-table.md"
# Changes of the recipe. Both controls answer the same test questions as the students.
BARE_ANSWERS = (
    "train.formats={zero-shot-answer: 1}",
    "evaluate.formats=[zero-shot-answer]",
    "evaluate.test_decodings=[]",
    "evaluate.max_tokens=32",
    "evaluate.texts=null",
    "select.format=zero-shot-answer",
)
FEW_SHOT = (
    "teacher={kind: none}",
    "evaluate.formats=[few-shot-rationale]",
    "evaluate.demonstrations=prompts/prompt_simple_4_cases.txt",
    "select.format=few-shot-rationale",
    "evaluate.texts=null",
)
DECODINGS = ("greedy", "greedy+calculator")


@dataclass(frozen=True)
class Row:
    """A line of the table: the test answers of one student, or of several seeds of it.

    right  set -> for each seed, whether each answer is right, in the order of the questions
    """

    title: str
    right: Mapping[str, Sequence[Sequence[bool]]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at a time, which share the cores")
    parser.add_argument("rest", nargs="*", help="arguments of every run, after --")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    run_all(options.seeds, options.jobs, options.rest)
    table = "\n".join(write_table(options.seeds))
    TABLE.write_text(table + "\n", "utf-8")
    suffixes = [*(f"seed-{seed}" for seed in options.seeds), "answers", "few-shot"]
    peak = max(peak_memory(run_dir(suffix)) for suffix in suffixes)
    minutes = (time.monotonic() - start) / 60
    print(f"\n{table}\n\n{minutes:.1f} minutes; the largest run used {peak:.1f} GiB of memory")
    print(f"table: {TABLE}; pages:")
    for seed in options.seeds:
        print(f"  {run_dir(f'seed-{seed}') / 'report' / 'index.html'}")


def run_dir(suffix: str) -> Path:
    return Path("runs") / f"{NAME}-{suffix}"


def run_all(seeds: Sequence[int], jobs: int, rest: Sequence[str]) -> None:
    """All runs, `jobs` at a time. The page of the first seed shows the control, so the control is made before it."""
    first, *others = seeds
    with ThreadPoolExecutor(jobs) as pool:
        threads = max(1, len(os.sched_getaffinity(0)) // jobs)

        def submit(suffix: str, changes: Sequence[str]) -> Future[None]:
            return pool.submit(run, suffix, changes, rest, threads)

        control = submit("answers", [f"seed={first}", *BARE_ANSWERS])
        runs = [submit(f"seed-{seed}", [f"seed={seed}"]) for seed in others[: jobs - 1]]
        control.result()
        runs.append(submit(f"seed-{first}", [f"seed={first}", f"report.controls=[{NAME}-answers]"]))
        runs += [submit(f"seed-{seed}", [f"seed={seed}"]) for seed in others[jobs - 1 :]]
        runs.append(submit("few-shot", [f"seed={first}", *FEW_SHOT]))
        for future in runs:
            future.result()


def run(suffix: str, changes: Sequence[str], rest: Sequence[str], threads: int, until: str = "run") -> None:
    """One run, up to the stage `until`. Its messages are in runs/smollm2-*.log; the last ones are printed if it fails."""
    overrides = [argument for change in (f"name={NAME}-{suffix}", *changes) for argument in ("--set", change)]
    command = [sys.executable, "-m", "potstill", until, str(RECIPE), *overrides, *rest]
    log = run_dir(suffix).with_suffix(".log")
    log.parent.mkdir(exist_ok=True)
    start = time.monotonic()
    print(f"{NAME}-{suffix} begins; its messages are in {log}", flush=True)
    with log.open("ab") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        finished = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    if finished.returncode:
        tail = "\n".join(log.read_text("utf-8").splitlines()[-20:])
        raise SystemExit(f"{NAME}-{suffix} stopped:\n{tail}")
    print(f"{NAME}-{suffix} is finished, after {(time.monotonic() - start) / 60:.1f} minutes", flush=True)


# The table


def write_table(seeds: Sequence[int]) -> Iterator[str]:
    """The lines of a Markdown table: percent right, and for students of several seeds the change against the base."""
    rows = list(collect_rows(seeds))
    base, named = rows[0].right, ps.open_run(run_dir(f"seed-{seeds[0]}")).recipe.questions
    sets = [*named.in_distribution, *named.out_of_distribution, *named.generic]
    yield f"| | {' | '.join(f'{name} ({len(base[name][0])})' for name in sets)} |"
    yield f"|---|{'---|' * len(sets)}"
    for row in rows:
        cells = [format_cell(row.right[name], None if row is rows[0] else base[name][0]) for name in sets]
        yield f"| {row.title} | {' | '.join(cells)} |"
    yield ""
    yield from write_curve(seeds)
    yield ""
    yield from describe_texts(seeds)


def collect_rows(seeds: Sequence[int]) -> Iterator[Row]:
    """The base first. Sets that several students answer have the same questions, which is checked."""
    runs = [ps.open_run(run_dir(f"seed-{seed}")) for seed in seeds]
    for decoding in DECODINGS:
        with_calculator = "" if decoding == "greedy" else ", calculator"
        yield Row(f"base{with_calculator}", read_right(runs[:1], BASE, "zero-shot-rationale", decoding))
    few_shot = ps.open_run(run_dir("few-shot"))
    for decoding in DECODINGS:
        with_calculator = "" if decoding == "greedy" else ", calculator"
        yield Row(
            f"base, 4 demonstrations{with_calculator}", read_right([few_shot], BASE, "few-shot-rationale", decoding)
        )
    answers = ps.open_run(run_dir("answers"))
    yield Row("control: bare answers", read_right([answers], None, "zero-shot-answer", "greedy"))
    for decoding in DECODINGS:
        with_calculator = "" if decoding == "greedy" else ", calculator"
        title = f"specialized{with_calculator}, {len(seeds)} seeds"
        yield Row(title, read_right(runs, None, "zero-shot-rationale", decoding))


def read_right(
    runs: Sequence[ps.Run], checkpoint: Checkpoint | None, format: str, decoding: str
) -> dict[str, list[list[bool]]]:
    """Set -> for each run, whether each answer is right, sorted by question."""
    tables: dict[str, list[list[bool]]] = {}
    questions: dict[str, list[str]] = {}
    for opened in runs:
        by_set: dict[str, dict[str, bool]] = {}
        for answer in opened.predictions("test", checkpoint, format=format, decoding=decoding):
            by_set.setdefault(answer.set, {})[answer.question] = answer.grade == "right"
        for name, right in by_set.items():
            assert questions.setdefault(name, sorted(right)) == sorted(right), (
                f"{name}: the runs answered other questions"
            )
            tables.setdefault(name, []).append([right[question] for question in sorted(right)])
    return tables


def format_cell(right: Sequence[Sequence[bool]], base: Sequence[bool] | None) -> str:
    """Percent right, the mean over seeds. One seed: with its interval over questions. Several: the change against the
    base, with its interval over seeds and questions."""
    share = statistics.fmean(statistics.fmean(row) for row in right)
    if len(right) == 1 or base is None:
        low, high = wilson_interval(sum(right[0]), len(right[0]))
        return f"{percent_number(share)} ({percent_number(low)} to {percent_number(high)})"
    changes = [[float(now) - float(was) for now, was in zip(row, base, strict=True)] for row in right]
    mean, low, high = seeds_interval(changes)
    seeds = ", ".join(percent_number(statistics.fmean(row)) for row in right)
    change = f"{format_points(mean)}, {format_points(max(low, -1))} to {format_points(min(high, 1))}"
    return f"**{percent_number(share)}** ({change}; seeds: {seeds})"


def write_curve(seeds: Sequence[int]) -> Iterator[str]:
    """Right validation answers of every checkpoint, the mean over seeds, beside the training time until it was saved."""
    runs = [ps.open_run(run_dir(f"seed-{seed}")) for seed in seeds]
    named = runs[0].recipe.questions
    sets = [*named.in_distribution, *named.out_of_distribution, *named.generic]
    scores = [row for opened in runs for row in opened.scores("validation") if row.decoding == "greedy"]
    counts = {row.set: row.n for row in scores}
    yield f"| validation, step | minutes | {' | '.join(f'{name} ({counts[name]})' for name in sets)} |"
    yield f"|---|---|{'---|' * len(sets)}"
    for checkpoint in sorted({row.checkpoint for row in scores}, key=lambda checkpoint: checkpoint.step):
        minutes = statistics.fmean(training_minutes(opened, checkpoint.step) for opened in runs)
        shares = [
            statistics.fmean(row.accuracy for row in scores if row.checkpoint == checkpoint and row.set == name)
            for name in sets
        ]
        yield f"| {checkpoint.label} | {minutes:.1f} | {' | '.join(map(percent_number, shares))} |"


def peak_memory(run_dir: Path) -> float:
    """The largest memory of a run's processes in GiB, from its log, which also has the processes of earlier calls."""
    events = map(json.loads, (run_dir / "log.jsonl").read_text("utf-8").splitlines())
    return max(event.get("peak_memory_mib", 0) for event in events) / 1024


def training_minutes(opened: ps.Run, step: int) -> float:
    rows = map(json.loads, (opened.run_dir / "train" / "speed.jsonl").read_text("utf-8").splitlines())
    return sum(row["seconds"] for row in rows if row["step"] <= step) / 60


def describe_texts(seeds: Sequence[int]) -> Iterator[str]:
    """Bits per byte before and after, of each seed."""
    for seed in seeds:
        opened = ps.open_run(run_dir(f"seed-{seed}"))
        before, after = (checkpoints.read_text_scores(opened.run_dir / "test", row) for row in (BASE, opened.choice))
        for old, new in zip(before, after, strict=True):
            change = [format_bits(bound, signed=True) for bound in ratio_bootstrap(new.bits, old.bits, new.bytes)]
            yield (
                f"- seed {seed}, step {opened.choice.label}, bits per byte of {old.name}: {format_bits(old.bits_per_byte)}"
                f" before, {format_bits(new.bits_per_byte)} after ({change[0]}, {change[1]} to {change[2]})"
            )


if __name__ == "__main__":
    main()
