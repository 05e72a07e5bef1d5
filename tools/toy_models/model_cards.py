"""The card of a toy model, as JSON and as Markdown: shape, training data and results of the acceptance tests.

>>> row = {"name": "facts", "n": 600, "right": 597, "low": 0.9855, "high": 0.9983, "at_least": 0.99, "at_most": 1}
>>> print(format_result({**row, "passed": True}))
| facts | 600 | 99.5 % | 98.6 to 99.8 % | at least 99 % | yes |
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from potstill import models, storage
from tools.toy_models import acceptance, teacher_entropy
from tools.toy_models.acceptance import AcceptanceTest
from tools.toy_models.curricula import Curriculum
from tools.toy_models.problem import World


def make_card(
    name: str,
    curriculum: Curriculum,
    seed: str,
    toy_world: World,
    made: Mapping[str, Any],
    passed: Iterable[AcceptanceTest],
    **more: Any,
) -> dict[str, Any]:
    """The card as JSON. `more` are the entries that only some models have."""
    rows = [gate.row for gate in passed]
    everything = models.count_parameters(curriculum.shape)
    return {
        "name": name,
        "seed": seed,
        "gates_version": acceptance.VERSION,
        "parameters": everything,
        "parameters_without_embeddings": everything - 2 * curriculum.shape.vocabulary * curriculum.shape.d_model,
        "shape": asdict(curriculum.shape),
        "world": asdict(toy_world),
        "phases": [asdict(phase) for phase in curriculum.phases],
        "peak": curriculum.peak,
        "steps": made["step"],
        "seconds": made["seconds"],
        "hardware": hardware(),
        "passed": all(row["passed"] for row in rows) and entropy_passes(more),
        "gates": rows,
        **more,
        "curves": made["curves"],
    }


def entropy_passes(card: Mapping[str, Any]) -> bool:
    """Whether a teacher is uncertain enough where several sentences are right; True for a card without entropies."""
    return "entropy" not in card or card["entropy"]["sentences"] >= teacher_entropy.MIN_SENTENCE_ENTROPY


def hardware() -> str:
    """The machine of the training, without its name."""
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return f"{platform.machine()} CPU, {threads} thread, torch {version('torch').split('+')[0]}"


def card_markdown(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    shape, toy_world = card["shape"], card["world"]
    kind = "encoder-decoder (T5 v1.1)" if shape["family"] == "t5" else "decoder-only (Llama kind)"
    failed = [row["name"] for row in card["gates"] if not row["passed"]] + ["entropy"] * (not entropy_passes(card))
    verdict = "It passes all acceptance tests." if not failed else f"It does **not** pass: {', '.join(failed)}."
    parts = [
        f"# {card['name']}",
        f"A model of potstill's toy task: {kind}, {card['parameters']:,} parameters, of them "
        f"{card['parameters_without_embeddings']:,} outside the embeddings. Made from the seed `{card['seed']}` by "
        f"`python -m tools.toy_models` in {card['steps']} steps and {card['seconds']:.0f} seconds "
        f"({card['hardware']}, shared with other work). Weights in bfloat16. {verdict}",
        "## Data",
        f"Numbers up to {toy_world['largest']}; rows of each task per step, by phase (`tools/toy_models/task_mix.py`). "
        "No question of an out-of-distribution family, of validation or of test.",
        "\n".join(
            f"- {phase['steps']} steps: {', '.join(f'{task} {n}' for task, n in phase['rows'].items())}"
            for phase in card["phases"]
        ),
        "## Acceptance tests",
        "Greedy decoding unless stated otherwise; 95 % Wilson intervals over the questions of one seed. In-distribution "
        "(`steps`) and generic questions are validation ones.",
        "| what | n | right | interval | wanted | passed |\n|---|---|---|---|---|---|\n"
        + "\n".join(map(format_result, card["gates"])),
    ]
    if "entropy" in card:
        values = ", ".join(f"{name} {value:.3f}" for name, value in card["entropy"].items())
        wanted = f"wanted: at least {teacher_entropy.MIN_SENTENCE_ENTROPY} where a sentence begins"
        parts += ["## Entropy", f"Mean entropy in nats of its samples: {values}; {wanted}."]
    if card["curves"]:
        parts += [f"Weights after the first steps of training: sha256 `{card['first_digest']}`."]
        parts += ["## Curves", "Shares right of 64 each, in percent.", _curves(card["curves"])]
    return "\n\n".join(parts) + "\n"


def format_result(row: Mapping[str, Any]) -> str:
    """A test as a row of the table."""
    bounds = []
    if row["at_least"] > 0:
        bounds.append(f"at least {100 * row['at_least']:g} %")
    if row["at_most"] < 1:
        bounds.append(f"at most {100 * row['at_most']:g} %")
    passed = ("yes" if row["passed"] else "**no**") if bounds else ""
    interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f} %"
    share = f"{100 * row['right'] / row['n']:.1f} %"
    return f"| {row['name']} | {row['n']} | {share} | {interval} | {' and '.join(bounds)} | {passed} |"


def _curves(points: Iterable[Mapping[str, Any]]) -> str:
    points = list(points)
    names = list(points[0]["shares"])
    lines = [f"| step | seconds | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for point in points:
        shares = " | ".join(f"{100 * point['shares'][name]:.0f}" for name in names)
        lines.append(f"| {point['step']} | {point['seconds']:.0f} | {shares} |")
    return "\n".join(lines)


def read_card(folder: Path) -> dict[str, Any]:
    """The card in a model's folder."""
    return storage.read_json(folder / "card.json")
