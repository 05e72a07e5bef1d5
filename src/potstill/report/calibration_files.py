"""Reads the samples of a run's teacher and students, and measures their confidence and entropy.

    measure_teacher(files)      # one Calibration for each source of chains that was sampled
    measure_students(files)     # the base and the chosen checkpoint, if test answers were sampled

A run has samples of its students only if `evaluate.decodings` or `evaluate.test_decodings` names a decoding that samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from potstill import storage
from potstill.data import splits
from potstill.records import BASE, Prediction
from potstill.report.calibration import Sample, calibration_error, chain_surprise, confidence_bins
from potstill.report.model import Calibration
from potstill.report.run_files import RunFiles
from potstill.storage import parquet

MAX_QUESTIONS: Final = 200  # training questions whose chains are read for the entropy: those with the lowest digests


def measure_teacher(files: RunFiles) -> Iterator[Calibration]:
    """The confidence of each source with several chains per question, on all its training questions."""
    samples: dict[str, dict[str, list[Sample]]] = {}
    for (question, source, _), verdict in parquet.read_verdicts(files.run_dir / "filter" / "verdicts.parquet"):
        samples.setdefault(source, {}).setdefault(question, []).append((verdict.answer, verdict.grade == "right"))
    surprises = _teacher_surprises(files, set().union(*samples.values()) if samples else set())
    for source, by_question in sorted(samples.items()):
        bins = confidence_bins(by_question.values())
        bits, entropy = surprises.get(source, (None, None))
        if bins or bits is not None:
            yield Calibration("teacher", source, bins, calibration_error(bins), bits, entropy)


def _teacher_surprises(files: RunFiles, asked: set[str]) -> dict[str, tuple[float, float]]:
    """(bits per byte, entropy in nats per token) of each source with candidates, on up to MAX_QUESTIONS questions."""
    questions = [question for question in files.training_questions if question.id in asked]
    read = {question.id for question in splits.sample_by_hash(questions, MAX_QUESTIONS)}
    totals: dict[str, list[float]] = {}
    for chain in parquet.read_chains(files.run_dir / "sample" / "chains.parquet", read):
        if found := chain_surprise(chain):
            total = totals.setdefault(chain.source, [0.0, 0.0, 0.0, 0.0])
            for index, value in enumerate((*found, chain.spans[-1][1] if chain.spans else 0)):
                total[index] += value
    return {
        source: (bits / size, entropy / tokens)
        for source, (bits, entropy, tokens, size) in totals.items()
        if tokens and size
    }


def measure_students(files: RunFiles) -> Iterator[Calibration]:
    """The confidence of the base and of the chosen checkpoint on test, in the format of the choice."""
    for who, checkpoint in zip(("base", "chosen"), files.both, strict=True):
        path = files.run_dir / "test" / checkpoint.name / f"{files.main_format}.samples.jsonl"
        if not path.exists() or (who == "chosen" and checkpoint == BASE):
            continue
        rows = list(storage.iter_records(Prediction, path))
        for name in files.groups:
            samples: dict[str, list[Sample]] = {}
            for row in rows:
                if row.set == name:
                    samples.setdefault(row.question, []).append((row.answer, row.grade == "right"))
            known = [row for row in rows if row.set == name and row.likelihood is not None]
            size = sum(len(row.text.encode("utf-8", "surrogatepass")) for row in known)
            nats = math.fsum(-(row.likelihood or 0.0) for row in known)
            bins = confidence_bins(samples.values())
            if bins:
                bits = nats / math.log(2) / size if size else None
                yield Calibration(who, name, bins, calibration_error(bins), bits)
