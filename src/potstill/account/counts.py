"""Counts: what a run cost. Numbers that are the same on every machine, and apart from them what the machine measured.

Counts come from manifests and metrics and stand on the page. Seconds and memory come from `log.jsonl`, which no digest
covers, and go to a page of their own that no manifest covers: a run that was interrupted has other times and the same
report.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill import files, story
from potstill.files import manifest
from potstill.lessons import replayed
from potstill.recipe import Recipe
from potstill.records import Score


def costs(
    run: Path,
    plan: Recipe,
    metrics: Sequence[Mapping[str, Any]],
    chosen: int,
    validation: Sequence[Score],
    comparisons: Sequence[story.Comparison],
) -> Iterator[story.Cost]:
    """What each stage counted, in the order of the stages. Tokens are those of the model that read or wrote them."""
    sampled, aligned = (manifest.finished(run / stage) for stage in ("sample", "align"))
    assert sampled is not None and aligned is not None
    yield story.Cost("sample", "chains", sampled.counts["chains"])
    if sampled.counts["tokens"]:
        yield story.Cost("sample", "tokens written by the teacher", sampled.counts["tokens"])
    yield story.Cost("align", "chains brought into the student's vocabulary", aligned.counts["chains"])
    yield story.Cost("align", "positions with a target", aligned.counts["positions"])
    yield story.Cost("train", "steps", len(metrics))
    if 0 < chosen < len(metrics):
        yield story.Cost("train", "steps up to the chosen checkpoint", chosen)
    yield story.Cost("train", "tokens read", sum(row["tokens"] for row in metrics))
    yield story.Cost("train", "positions learnt from", sum(row["positions"] for row in metrics))
    yield from _replayed(metrics)
    yield story.Cost("evaluate", "answers on validation", sum(score.n for score in validation))
    if plan.repair is not None:
        repaired = manifest.finished(run / "repair")
        assert repaired is not None
        yield story.Cost("repair", "steps", repaired.counts["steps"])
        yield story.Cost("repair", "tokens of its own learnt from", repaired.counts["positions"])
    scores = [score for row in comparisons for score in (row.base, row.chosen)]
    own = {(score.contender, score.set, score.format, score.decoding): score.n for score in scores}
    yield story.Cost("test", "answers on test", sum(own.values()))


def _replayed(metrics: Sequence[Mapping[str, Any]]) -> Iterator[story.Cost]:
    """What was really trained, by format, where generic rows were mixed in."""
    taught = Counter[str]()
    for row in metrics:
        taught.update(row["taught"])
    if replayed.NAME in taught:
        for name, positions in sorted(taught.items(), key=lambda pair: (pair[0] == replayed.NAME, pair[0])):
            yield story.Cost("train", f"of these positions: {name}", positions)


def speed(run: Path) -> story.Speed | None:
    """What training took, by the medians of its steps; None where no step was measured."""
    path = run / "train" / "speed.jsonl"
    rows = [row for _, row in files.read_jsonl(path)] if path.exists() else []
    if not rows:
        return None
    used = [row["utilisation"] for row in rows if row["utilisation"] is not None]
    return story.Speed(
        len(rows),
        statistics.median(row["tokens_per_second"] for row in rows),
        statistics.median(row["operations"] / row["seconds"] for row in rows),
        statistics.median(used) if used else None,
    )


def times(run: Path) -> tuple[story.Time, ...]:
    """Of every stage, what the log says of the process that finished it last, in the order of the stages' first end."""
    found: dict[str, story.Time] = {}
    for _, row in files.read_jsonl(run / "log.jsonl"):
        if row["event"] == "done":
            found[row["stage"]] = story.Time(row["stage"], row["seconds"], row["peak_memory_mib"])
    return tuple(found.values())
