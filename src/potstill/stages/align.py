"""align: every kept chain in the student's vocabulary, once, whatever the formats.

Writes flat arrays into `align/<tokenizer>-<rule>/`; the manifest holds the coverage: positions and kept mass by kind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy

from potstill import lessons, progress, recipe, students, targets, tokenizers, transfer
from potstill.files import tables
from potstill.recipe import Recipe
from potstill.records import Chain, Target

READS = ("transfer", "student.model", "student.tokenizer", "teacher.kind", "teacher.model")
AFTER = ("sample", "filter")
VERSIONS = {"transfer": transfer.VERSION}


def inputs(plan: Recipe) -> dict[str, str]:
    teacher = _teacher(plan)
    own = {} if teacher is None else {"teacher.tokenizer": teacher.digest}
    return {"student.tokenizer": tokenizers.open(students.tokenizer_folder(plan)).digest, **own}


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    tokenizer = tokenizers.open(students.tokenizer_folder(plan))
    verdicts = tables.read_verdicts(run / "filter" / "verdicts.parquet")
    kept = [c for c in tables.read_chains(run / "sample" / "chains.parquet") if verdicts[c.key].kept]
    aligned: list[tuple[tuple[str, str, int], Target]] = []
    coverage = _Coverage(tokenizer)
    told: dict[str, Any] = {}
    if plan.transfer.rule == "text":
        told = {"completions": transfer.completions(kept, tokenizer), "teacher": _teacher(plan)}
    with progress.bar("align", len(kept), "chains") as tick:
        for chain in kept:
            target = transfer.transfer(chain, tokenizer, plan.transfer.rule, **told)
            aligned.append((chain.key, target))
            coverage.add(chain, target)
            tick()
    out = lessons.targets_folder(run, plan)
    paths = []
    for name, array in targets.pack(aligned).items():
        paths.append(out / f"{name}.npy")
        tables.write_array(paths[-1], array)
    return paths, coverage.as_json()


def _teacher(plan: Recipe) -> tokenizers.Tokenizer | None:
    """The teacher's tokenizer, where the rule reads it and the teacher is a folder. Other teachers show only bytes."""
    if plan.transfer.rule != "text" or plan.teacher.kind != "local":
        return None
    assert plan.teacher.model is not None, "a local teacher has a model"
    return tokenizers.open(recipe.find(plan, plan.teacher.model, "teacher.model"))


class _Coverage:
    """Positions and kept mass by kind, over all positions and over those whose piece holds a digit."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.chains = self.hard_chains = 0
        self.all: dict[str, list[float]] = {}
        self.digits: dict[str, list[float]] = {}
        self._digit: dict[int, bool] = {}

    def add(self, chain: Chain, target: Target) -> None:
        self.chains += 1
        self.hard_chains += not chain.candidates
        if len(target) == 0:
            return
        masses = numpy.add.reduceat(
            numpy.asarray(target.probabilities, numpy.float64), numpy.asarray(target.offsets[:-1])
        )
        for token, kind, mass in zip(target.ids, target.kinds, masses.tolist(), strict=True):
            _count(self.all, kind, mass)
            if self._is_digit(token):
                _count(self.digits, kind, mass)

    def _is_digit(self, token: int) -> bool:
        known = self._digit.get(token)
        if known is None:
            known = self._digit[token] = any(48 <= byte <= 57 for byte in self.tokenizer.bytes(token))
        return known

    def as_json(self) -> dict[str, Any]:
        return {
            "chains": self.chains,
            "chains without probabilities": self.hard_chains,
            "positions": int(sum(positions for positions, _ in self.all.values())),
            "coverage": _rows(self.all),
            "digits": _rows(self.digits),
        }


def _count(table: dict[str, list[float]], kind: str, mass: float) -> None:
    row = table.setdefault(kind, [0, 0.0])
    row[0] += 1
    row[1] += mass


def _rows(table: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        kind: {"positions": int(positions), "mass": round(mass / positions, 6)}
        for kind, (positions, mass) in sorted(table.items())
    }
