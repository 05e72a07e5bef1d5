"""align: every kept chain in the student's vocabulary, once, whatever the formats.

Writes flat arrays into `align/<tokenizer>-<rule>/`; the manifest holds the coverage: positions and kept mass by kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy

from potstill import lessons, progress, students, targets, tokenizers, transfer
from potstill.files import manifest, tables
from potstill.recipe import Recipe
from potstill.records import Chain, Target

READS = ("transfer", "student.model", "student.tokenizer")
AFTER = ("sample", "filter")
VERSIONS = {"transfer": transfer.VERSION}


def inputs(plan: Recipe) -> dict[str, str]:
    return {"student.tokenizer": tokenizers.open(students.tokenizer_folder(plan)).digest}


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    tokenizer = tokenizers.open(students.tokenizer_folder(plan))
    coverage = _Coverage(tokenizer)
    out = lessons.targets_folder(run, plan)
    paths = []
    for name, array in targets.pack(_aligned(run, plan, tokenizer, coverage)).items():
        paths.append(out / f"{name}.npy")
        tables.write_array(paths[-1], array)
    return paths, coverage.as_json()


def _aligned(
    run: Path, plan: Recipe, tokenizer: tokenizers.Tokenizer, coverage: _Coverage
) -> Iterator[tuple[tuple[str, str, int], Target]]:
    """The targets of the kept chains, one after the other."""
    filtered = manifest.finished(run / "filter")
    assert filtered is not None, "filter is finished before its verdicts are read"
    judged = tables.judged(run / "sample" / "chains.parquet", run / "filter" / "verdicts.parquet")
    with progress.bar("align", filtered.counts["kept"], "chains") as tick:
        for chain, verdict in judged:
            if verdict.kept:
                target = transfer.transfer(chain, tokenizer, plan.transfer.rule)
                coverage.add(chain, target)
                yield chain.key, target
                tick()


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
