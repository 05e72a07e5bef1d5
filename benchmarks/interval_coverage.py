"""How often intervals over seeds and questions contain the truth, in simulated studies.

    python benchmarks/interval_coverage.py [--studies 2000] [--level 0.95] [--numbers "share right" ...] [--spreads 0.2 ...]
    python benchmarks/interval_coverage.py --runs RUN RUN RUN RUN RUN RUN     # instead: false claims between real runs

A study asks students with several seeds the same questions. The log-odds of a right answer are the sum of a level, the
difficulty of the question (normal, 1.5), the student's own strength on it (normal, 0.5) and the seed's strength (normal,
0, 0.2 or 0.5: a seed's share right varies by about 0, 4 and 10 points in the middle of the scale). The truth is the mean
over all seeds and questions, by quadrature. The numbers are the share right of one student, its difference from its base,
whose weights no seed decided, the difference of two students, and the same if the seeds of the second do not differ.

Prints three Markdown tables. The first has, for each number, spread of seeds and number of seeds, the lowest coverage over
the numbers of questions (50, 200, 500) and levels, with where it is, and the median half width in points at 200
questions. The second compares ways to make the interval of a share, at 200 questions. The third counts false claims: six
seeds of one recipe are split into three and three in all ten ways, and a difference is claimed if its interval is without 0.

With --runs, prints this third table for six real runs of one recipe, with a row for each set and for each mean over sets.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np
from scipy import stats

from potstill.evaluation import intervals
from potstill.report import group_files, group_scores

DIFFICULTY: Final = 1.5  # standard deviations of log-odds
OWN_STRENGTH: Final = 0.5
SPREADS: Final = (0.0, 0.2, 0.5)
SEEDS: Final = (2, 3, 5)
QUESTIONS: Final = (50, 200, 500)
SHARES: Final = (0.05, 0.3, 0.6)
CHANGES: Final = {0.05: 0.02, 0.3: 0.3, 0.6: 0.45}  # share of the first -> share of the base or the second student

NUMBERS: Final = ("share right", "difference from the base", "difference of two students", "the second's seeds agree")

Interval = tuple[float, float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--level", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--numbers", nargs="+", default=NUMBERS, choices=NUMBERS)
    parser.add_argument("--spreads", nargs="+", type=float, default=SPREADS)
    parser.add_argument(
        "--runs", nargs=6, type=Path, help="real runs of one recipe with six seeds, instead of simulated ones"
    )
    args = parser.parse_args()
    if args.runs:
        print("\n".join(write_claims_of_runs(args.runs, args.level)))
        return
    print("\n".join(write_coverage(args.numbers, args.spreads, args.studies, args.level, args.seed)), flush=True)
    print()
    print("\n".join(write_alternatives(args.studies, args.level, args.seed)), flush=True)
    print()
    print("\n".join(write_false_claims(args.studies, args.level, args.seed)), flush=True)


def write_coverage(
    numbers: Sequence[str], spreads: Sequence[float], studies: int, level: float, seed: int
) -> Iterator[str]:
    yield "| number | spread of seeds | seeds | lowest coverage | where | highest | half width, 200 questions |"
    yield "|---|---|---|---|---|---|---|"
    for number in numbers:
        for spread in spreads:
            for seeds in SEEDS:
                found: list[tuple[float, str]] = []
                halves: list[float] = []
                for share in SHARES:
                    for questions in QUESTIONS:
                        generator = np.random.default_rng([seed, seeds, questions, round(100 * share)])
                        covered, half = cover(number, share, spread, seeds, questions, studies, level, generator)
                        found.append((covered, f"{100 * share:.0f} %, {questions} questions"))
                        halves += [half] if questions == 200 else []
                lowest, where = min(found)
                cells = f"{100 * lowest:.1f} % | {where} | {100 * max(found)[0]:.1f} %"
                widths = ", ".join(f"{100 * half:.1f}" for half in halves)
                yield f"| {number} | {spread} | {seeds} | {cells} | {widths} |"


def cover(
    number: str,
    share: float,
    spread: float,
    seeds: int,
    questions: int,
    studies: int,
    level: float,
    generator: np.random.Generator,
) -> tuple[float, float]:
    """The coverage of one number's interval, and the median of half its width."""
    hits, halves = 0, []
    other = CHANGES[share]
    for _ in range(studies):
        difficulty = generator.normal(0, DIFFICULTY, questions)
        first = answer(generator, share, spread, seeds, difficulty)
        if number == "share right":
            truth, (_, low, high) = share, intervals.seeds_share(first, level)
        elif number == "difference from the base":
            base = answer(generator, other, 0.0, 1, difficulty)
            truth, (_, low, high) = share - other, intervals.seeds_difference(first, base, level)
        else:
            second = answer(generator, other, spread if number == NUMBERS[2] else 0.0, seeds, difficulty)
            truth, (_, low, high) = share - other, intervals.seeds_difference(first, second, level)
        hits += low <= truth <= high
        halves.append((high - low) / 2)
    return hits / studies, float(np.median(halves))


def answer(
    generator: np.random.Generator, share: float, spread: float, seeds: int, difficulty: np.ndarray
) -> np.ndarray:
    """Answers of a student whose share right is `share` over all seeds and questions: 1 for right, one row per seed."""
    odds = level_of(share, spread) + difficulty + generator.normal(0, OWN_STRENGTH, len(difficulty))
    odds = odds[None, :] + generator.normal(0, spread, (seeds, 1))
    return (generator.random(odds.shape) < 1 / (1 + np.exp(-odds))).astype(float)


@cache
def level_of(share: float, spread: float) -> float:
    """The level at which the share right, over all seeds and questions, is `share`."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    effects = nodes * math.sqrt(DIFFICULTY**2 + OWN_STRENGTH**2 + spread**2)
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        found = float((weights / (1 + np.exp(-middle - effects))).sum() / weights.sum())
        low, high = (middle, high) if found < share else (low, middle)
    return middle


# Other ways to make the interval


def write_alternatives(studies: int, level: float, seed: int) -> Iterator[str]:
    ways = {
        "potstill": lambda table: intervals.seeds_share(table, level),
        "one t quantile, Satterthwaite": lambda table: satterthwaite(table, level),
        "bootstrap over seeds and questions": lambda table: bootstrap(table, level),
        "questions only, all answers pooled": lambda table: pooled(table, level),
    }
    yield f"| spread of seeds | seeds | {' | '.join(ways)} |"
    yield f"|---|---|{'---|' * len(ways)}"
    for spread in SPREADS:
        for seeds in SEEDS:
            generator = np.random.default_rng([seed, seeds])
            hits, halves = np.zeros(len(ways)), np.zeros((len(ways), studies))
            for study in range(studies):
                table = answer(generator, 0.3, spread, seeds, generator.normal(0, DIFFICULTY, 200))
                for way, interval in enumerate(ways.values()):
                    _, low, high = interval(table)
                    hits[way] += low <= 0.3 <= high
                    halves[way, study] = (high - low) / 2
            cells = [
                f"{100 * hit / studies:.1f} % (±{100 * half:.1f})"
                for hit, half in zip(hits, np.median(halves, axis=1), strict=True)
            ]
            yield f"| {spread} | {seeds} | {' | '.join(cells)} |"


def satterthwaite(table: np.ndarray, level: float) -> Interval:
    """The mean with its variance of random effects, as of a mixed model, and one quantile of Student's t."""
    seeds, questions = table.shape
    mean = float(table.mean())
    rest = table - table.mean(1)[:, None] - table.mean(0)[None, :] + mean
    parts = [
        float(table.mean(1).var(ddof=1)) / seeds,
        float(table.mean(0).var(ddof=1)) / questions,
        float((rest**2).sum()) / ((seeds - 1) * (questions - 1)) / table.size,
    ]
    variance = max(parts[0] + parts[1] - parts[2], parts[0], parts[1], 0.5 / questions**2)
    counts = (seeds - 1, questions - 1, (seeds - 1) * (questions - 1))
    freedom = variance**2 / max(sum(part**2 / count for part, count in zip(parts, counts, strict=True)), 1e-12)
    half = float(stats.t.ppf(0.5 + level / 2, freedom)) * math.sqrt(variance)
    return mean, mean - half, mean + half


def bootstrap(table: np.ndarray, level: float, draws: int = 500) -> Interval:
    """Seeds and questions drawn again, both with replacement, and the quantiles of the means."""
    generator = np.random.default_rng(0)
    seeds = generator.multinomial(len(table), np.full(len(table), 1 / len(table)), size=draws) / len(table)
    counts = np.full(table.shape[1], 1 / table.shape[1])
    questions = generator.multinomial(table.shape[1], counts, size=draws) / table.shape[1]
    low, high = np.quantile(((seeds @ table) * questions).sum(1), [0.5 - level / 2, 0.5 + level / 2])
    return float(table.mean()), float(low), float(high)


def pooled(table: np.ndarray, level: float) -> Interval:
    """Wilson's interval, as if every answer were of a question of its own."""
    right, n = float(table.sum()), table.size
    return right / n, *intervals.wilson_interval(right, n, level)


# False claims


def write_false_claims(studies: int, level: float, seed: int) -> Iterator[str]:
    yield "| spread of seeds | claims, three seeds each | ten comparisons without a claim | claims, one seed each |"
    yield "|---|---|---|---|"
    for spread in SPREADS:
        generator = np.random.default_rng([seed, 6])
        claims = np.array([count_claims(generator, spread, level) for _ in range(studies)])
        shares = claims[:, 0].mean() / 10, (claims[:, 0] == 0).mean(), claims[:, 1].mean() / 10
        yield f"| {spread} | {' | '.join(f'{100 * share:.1f} %' for share in shares)} |"


def count_claims(generator: np.random.Generator, spread: float, level: float) -> tuple[int, int]:
    """How many of ten comparisons of one recipe claim a difference: of three seeds with three, and of one run with one."""
    table = answer(generator, 0.3, spread, 6, generator.normal(0, DIFFICULTY, 200))
    pairs = list(combinations(range(6), 2))[:10]
    return len(find_claims([table], level)), sum(claims_pair(table[a], table[b], level) for a, b in pairs)


def find_claims(tables: Sequence[np.ndarray], level: float) -> list[float]:
    """The differences that are claimed when six seeds are split into three and three in all ten ways.

    tables  a table for each set, (seeds, questions)
    """
    claimed = []
    splits = [split for split in combinations(range(6), 3) if 0 in split]  # ten: the other three are the second side
    for first in splits:
        second = [row for row in range(6) if row not in first]
        difference, low, high = intervals.seeds_mean_difference(
            [table[list(first)] for table in tables], [table[second] for table in tables], level
        )
        if low > 0 or high < 0:
            claimed.append(difference)
    return claimed


def claims_pair(first: np.ndarray, second: np.ndarray, level: float) -> bool:
    _, low, high = intervals.paired_difference(list(first > 0), list(second > 0), level)
    return low > 0 or high < 0


def write_claims_of_runs(runs: Sequence[Path], level: float) -> Iterator[str]:
    """The same comparisons for six real runs of one recipe, in their first format and decoding, on test."""
    answers = [group_files.read_run(run) for run in runs]
    assert len(answers) == 6 and len(group_scores.group_runs(answers)) == 1, "six runs that differ only in seeds"
    name = min(answers[0].right)
    asked = sorted(set.intersection(*(set(run.right[name]) for run in answers)))
    tables: dict[str, dict[str, np.ndarray]] = {}
    for set_name, group in answers[0].groups.items():
        of_set = [question for question in asked if answers[0].right[name][question][0] == set_name]
        table = np.array([[float(run.right[name][question][1]) for question in of_set] for run in answers])
        tables.setdefault(group, {})[set_name] = table
    yield f"{name}, test, seeds {', '.join(str(run.seeds['train.seed']) for run in answers)}"
    yield ""
    yield "| | questions | percent right, by seed | claims of 10, three seeds each | claims of 15, one seed each |"
    yield "|---|---|---|---|---|"
    for group, of_group in tables.items():
        rows = {set_name: [table] for set_name, table in of_group.items()}
        if len(rows) > 1:
            rows[f"mean of {len(rows)} sets {group}"] = list(of_group.values())
        for label, of_row in rows.items():
            shares = np.mean([table.mean(1) for table in of_row], 0)
            pairs = combinations(range(6), 2)
            single = sum(claims_pair(of_row[0][a], of_row[0][b], level) for a, b in pairs) if len(of_row) == 1 else "-"
            yield (
                f"| {label} | {sum(table.shape[1] for table in of_row)} | {', '.join(f'{100 * x:.1f}' for x in shares)} "
                f"| {len(find_claims(of_row, level))} | {single} |"
            )


if __name__ == "__main__":
    main()
