"""How near do transferred targets come to the truth? Rules between tokenizers, on a language whose truth is known.

    POTSTILL_DATA=... python benchmarks/fidelity.py [--pairs p50k_base:t5 ...] [--shown 1 5 20 all] [--seed 1]

One JSON line a case. A case is a pair of tokenizers and how many outcomes the teacher shows; of each rule it has, over
all positions and over those of pieces with a digit and at the start of lines:

    variation  total variation from the student's exact distribution, the tail filled by how often tokens come
    divergence Kullback-Leibler divergence of the exact distribution from the filled one, nats
    kept       mass that is not tail
    share      of the reachable gap closed: (paper - rule) / (paper - ceiling), by variation

`text` knows the run's chains and the teacher's tokenizer, `text, bytes` the chains alone, `text, alone` neither. The
ceiling knows perfectly how each shown outcome goes on. The language is `tests/support/oracle.py`; rules were tuned on seed 0.
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
import oracle
from potstill import tokenization
from potstill.alignment.cross_tokenizer import transfer
from potstill.alignment.text_rule_completions import completions
from potstill.tokenization import Tokenizer

PAIRS = ("p50k_base:t5", "cl100k_base:t5", "gpt2:mistral", "mistral:t5", "t5:cl100k_base")
RULES = ("one-hot", "paper", "span", "text", "text, bytes", "text, alone", "ceiling")
PLACES = ("all", "digits", "line starts")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--pairs", nargs="+", default=PAIRS, help="teacher:student, folders under tokenizers/")
    asked.add_argument("--shown", nargs="+", default=["1", "5", "20", "all"], help="outcomes that the teacher shows")
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--questions", type=int, default=8)
    asked.add_argument("--texts", type=int, default=3000, help="of each question")
    asked.add_argument("--samples", type=int, default=40, help="chains of each question in the run")
    asked.add_argument("--measured", type=int, default=6, help="of them")
    told = asked.parse_args()
    folder = Path(os.environ["POTSTILL_DATA"]) / "tokenizers"
    language = oracle.make(told.seed, told.questions, told.texts)
    for pair in told.pairs:
        teacher, student = (tokenization.load_tokenizer(folder / name) for name in pair.split(":"))
        truth = oracle.Oracle(language, teacher, student)
        for shown in told.shown:
            k = None if shown == "all" else int(shown)
            rows = measured(truth, k, told.samples, told.measured, told.seed)
            case = {"name": "fidelity", "pair": pair, "shown": shown, "seed": told.seed, "chains": told.samples}
            print(json.dumps({**case, **summary(rows)}), flush=True)


def measured(
    truth: oracle.Oracle, k: int | None, samples: int, n: int, seed: int
) -> dict[tuple[str, str], list[tuple[float, float, float]]]:
    """(rule, place) to variation, divergence and kept mass of each position."""
    drawn = [
        (question, place, truth.chain(question, place, index, k))
        for question, said in enumerate(truth.language)
        for index, place in enumerate(oracle.sampled(said, samples, (seed, question)))
    ]
    run = completions([chain for _, _, chain in drawn], truth.student)
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = defaultdict(list)
    for question, place, chain in drawn:
        if chain.index >= n:
            continue
        known: dict[str, dict[str, Any]] = {
            "text": {"completions": run, "teacher": truth.teacher},
            "text, bytes": {"completions": run},
        }
        targets = {
            rule: transfer(chain, truth.student, rule.split(",")[0], **known.get(rule, {})) for rule in RULES[:-1]
        }
        ceiling = truth.ceiling(question, place, k)
        kinds = list(_kinds(truth, question, place))
        for position, exact in enumerate(truth.exact(question, place)):
            for rule in RULES:
                row = ceiling[position] if rule == "ceiling" else targets[rule].distribution(position)
                values = (
                    oracle.variation(row, exact, truth.unigram),
                    oracle.divergence(row, exact, truth.unigram),
                    sum(row.values()),
                )
                for kind in kinds[position]:
                    found[rule, kind].append(values)
    return found


def _kinds(truth: oracle.Oracle, question: int, place: int) -> Iterator[list[str]]:
    """At each position of a text: which of PLACES it belongs to."""
    tree = truth.tree(question, student=True)
    text = truth.language[question].texts[place].encode()
    reached = 0
    for position, token in enumerate(tree.ids[place]):
        piece = _piece(truth.student, token)
        start, end = tree.spans[place][position] if position < len(tree.spans[place]) else (len(text), len(text))
        first = position == 0 or (b"\n" in text[reached:end] and bool(piece.strip()))
        reached = max(reached, end) if piece.strip() or end > start else reached
        digit = any(48 <= byte <= 57 for byte in piece)
        yield ["all", *(["digits"] if digit else []), *(["line starts"] if first else [])]


def _piece(tokenizer: Tokenizer, token: int) -> bytes:
    return tokenizer.token_bytes(token)


def summary(rows: dict[tuple[str, str], list[tuple[float, float, float]]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for place in PLACES:
        means = {rule: np.array(rows[rule, place]).mean(axis=0) for rule in RULES}
        paper, ceiling = means["paper"][0], means["ceiling"][0]
        made[place] = {"positions": len(rows["paper", place])} | {
            rule: {
                "variation": round(float(mean[0]), 4),
                "divergence": round(float(mean[1]), 4),
                "kept": round(float(mean[2]), 4),
                "share": round(float((paper - mean[0]) / (paper - ceiling)), 3),
            }
            for rule, mean in means.items()
        }
    return made


if __name__ == "__main__":
    main()
