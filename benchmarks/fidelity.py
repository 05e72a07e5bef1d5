"""Distance of transferred targets from exact distributions, on synthetic languages in which these are known.

    POTSTILL_DATA=... python benchmarks/fidelity.py [--languages shop ...] [--pairs p50k_base:t5 ...] [--shown 1 5 all]

Prints one JSON line for each case: a language, a pair of tokenizers, and the number of candidates that the teacher
shows. For each rule, over all positions, over those of pieces with a digit, and over those at the start of lines:

    variation   total variation distance from the student's exact distribution; the tail is filled by token frequency
    divergence  Kullback-Leibler divergence of the exact distribution from the filled one, in nats
    kept        probability that is not tail
    share       share of the possible gain: (paper - rule) / (paper - ceiling), by variation

The rule `text` uses the run's chains and the teacher's tokenizer, `text, bytes` only the chains, `text, alone` neither.
The ceiling knows exactly how each candidate continues. `tests/support/languages.py` has the languages, and says
which of them were used for development.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
import languages  # type: ignore[import-not-found]
import oracle  # type: ignore[import-not-found]
from potstill import tokenization
from potstill.alignment.cross_tokenizer import transfer
from potstill.alignment.text_rule_completions import completions

PAIRS = ("p50k_base:t5", "cl100k_base:t5", "gpt2:mistral", "mistral:t5", "t5:cl100k_base")
RULES = ("one-hot", "paper", "span", "text", "text, bytes", "text, alone", "ceiling")
POSITIONS = ("all", "digits", "line starts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--languages", nargs="+", default=list(languages.LANGUAGES), choices=languages.LANGUAGES)
    parser.add_argument("--pairs", nargs="+", default=PAIRS, help="teacher:student, folders under tokenizers/")
    parser.add_argument("--shown", nargs="+", default=["1", "5", "20", "all"], help="outcomes that the teacher shows")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--texts", type=int, default=3000, help="of each question")
    parser.add_argument("--samples", type=int, default=40, help="chains of each question in the run")
    parser.add_argument("--measured", type=int, default=6, help="of them")
    args = parser.parse_args()
    folder = Path(os.environ["POTSTILL_DATA"]) / "tokenizers"
    for name in args.languages:
        language = oracle.make(args.seed, args.questions, args.texts, name)
        for pair in args.pairs:
            teacher, student = (tokenization.load_tokenizer(folder / tokenizer) for tokenizer in pair.split(":"))
            truth = oracle.Oracle(language, teacher, student)
            for shown in args.shown:
                k = None if shown == "all" else int(shown)
                rows = measured(truth, k, args.samples, args.measured, args.seed)
                case = {"name": "fidelity", "language": name, "pair": pair, "shown": shown}
                case |= {"seed": args.seed, "chains": args.samples}
                print(json.dumps({**case, **summary(rows)}), flush=True)


def measured(
    truth: oracle.Oracle, k: int | None, samples: int, n: int, seed: int
) -> dict[tuple[str, str], list[tuple[float, float, float]]]:
    """(rule, kind of position) -> variation, divergence and kept probability of each position."""
    chosen = [
        (question, text_index, truth.chain(question, text_index, index, k))
        for question, texts in enumerate(truth.language)
        for index, text_index in enumerate(oracle.sampled(texts, samples, (seed, question)))
    ]
    run_completions = completions([chain for _, _, chain in chosen], truth.student)
    rows: dict[tuple[str, str], list[tuple[float, float, float]]] = defaultdict(list)
    for question, text_index, chain in chosen:
        if chain.index >= n:
            continue
        context: dict[str, dict[str, Any]] = {
            "text": {"completions": run_completions, "teacher": truth.teacher},
            "text, bytes": {"completions": run_completions},
        }
        targets = {
            rule: transfer(chain, truth.student, rule.split(",")[0], **context.get(rule, {})) for rule in RULES[:-1]
        }
        ceiling = truth.ceiling(question, text_index, k)
        kinds = list(position_kinds(truth, question, text_index))
        for position, exact in enumerate(truth.exact(question, text_index)):
            for rule in RULES:
                distribution = ceiling[position] if rule == "ceiling" else targets[rule].distribution(position)
                values = (
                    oracle.variation(distribution, exact, truth.unigram),
                    oracle.divergence(distribution, exact, truth.unigram),
                    sum(distribution.values()),
                )
                for kind in kinds[position]:
                    rows[rule, kind].append(values)
    return rows


def position_kinds(truth: oracle.Oracle, question: int, text_index: int) -> Iterator[list[str]]:
    """For each position of a text: the POSITIONS to which it belongs."""
    tree = truth.tree(question, student=True)
    text = truth.language[question].texts[text_index].encode()
    reached = 0
    for position, token in enumerate(tree.ids[text_index]):
        piece = truth.student.token_bytes(token)
        start, end = (
            tree.spans[text_index][position] if position < len(tree.spans[text_index]) else (len(text), len(text))
        )
        first = position == 0 or (b"\n" in text[reached:end] and bool(piece.strip()))
        reached = max(reached, end) if piece.strip() or end > start else reached
        digit = any(48 <= byte <= 57 for byte in piece)
        yield ["all", *(["digits"] if digit else []), *(["line starts"] if first else [])]


def summary(rows: dict[tuple[str, str], list[tuple[float, float, float]]]) -> dict[str, Any]:
    cases: dict[str, Any] = {}
    for place in POSITIONS:
        means = {rule: np.array(rows[rule, place]).mean(axis=0) for rule in RULES}
        paper, ceiling = means["paper"][0], means["ceiling"][0]
        cases[place] = {"positions": len(rows["paper", place])} | {
            rule: {
                "variation": round(float(mean[0]), 4),
                "divergence": round(float(mean[1]), 4),
                "kept": round(float(mean[2]), 4),
                "share": round(float((paper - mean[0]) / (paper - ceiling)), 3),
            }
            for rule, mean in means.items()
        }
    return cases


if __name__ == "__main__":
    main()
