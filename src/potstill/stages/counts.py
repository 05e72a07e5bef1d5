"""The counts of a finished stage in one line, for its message and for the status.

>>> describe_counts("filter", {"verdicts": {"right": 6, "wrong": 4}, "kept": 5, "questions with a kept chain": 3})
'6 of 10 chains right; 5 kept, for 3 questions'
>>> describe_counts("filter", {"verdicts": {"right": 6}, "dropped": {"cap": 1, "duplicate": 2}, "kept": 3,
...                            "questions with a kept chain": 3})
'6 of 6 chains right; 3 kept, for 3 questions; dropped: 1 above filter.max_per_question, 2 duplicate'
>>> describe_counts("collect", {"questions": {"sums.train": 40, "more.train": 2, "sums.test": 9}, "left out as leaks": 0})
'questions: 42 train, 9 test'
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

DROPPED: Final = {"cap": "above filter.max_per_question"}  # reasons that need more words


def describe_counts(stage: str, counts: Mapping[str, Any]) -> str:
    """The counts of a finished stage's manifest, in one line."""
    match stage:
        case "collect":
            by_split = Counter[str]()
            for name, number in counts["questions"].items():
                by_split[name.rpartition(".")[2]] += number
            leaks = counts.get("left out as leaks")
            left_out = f"; {leaks} left out because the test questions have them, too" if leaks else ""
            return "questions: " + ", ".join(f"{number} {split}" for split, number in by_split.items()) + left_out
        case "sample":
            return f"{counts['chains']} chains, {counts['tokens']} tokens"
        case "filter":
            verdicts = counts["verdicts"]
            right = f"{verdicts.get('right', 0)} of {sum(verdicts.values())} chains right"
            kept = f"{counts['kept']} kept, for {counts['questions with a kept chain']} questions"
            dropped = counts.get("dropped") or {}
            reasons = ", ".join(f"{number} {DROPPED.get(reason, reason)}" for reason, number in dropped.items())
            exact = sum(dropped.values()) == verdicts.get("right", 0) - counts["kept"]
            return f"{right}; {kept}" + (
                f"; dropped{'' if exact else ', right or wrong'}: {reasons}" if reasons else ""
            )
        case "align":
            covered = "" if counts["covered"] is None else f", {counts['covered']:.1%} with the teacher's distribution"
            return f"{counts['chains']} chains, {counts['positions']} positions{covered}"
        case "train" | "repair":
            stopped = " (stopped early)" if counts.get("stopped") else ""
            return f"{counts['steps']} steps{stopped}, {len(counts['checkpoints'])} checkpoints"
        case "evaluate" | "test":
            return f"{len(counts['steps'])} checkpoints: {', '.join(map(str, counts['steps']))}"
        case "select":
            excluded = f"; {counts['excluded']} excluded by select.retain" if counts.get("excluded") else ""
            return f"step {counts['step']}{excluded}"
        case _:
            return f"{counts['files']} files"
