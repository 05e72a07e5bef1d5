"""Answers that were cut inside a thought, because the model used up its tokens for thinking.

    >>> cut = Prediction("s/1", "s", "number", "<think>1 + 1 is", "length", "truncated", None)
    >>> count_cut_thoughts({"zero-shot-rationale.greedy": iter([cut])}, chat=None)
    {'cut_in_thought': {'zero-shot-rationale.greedy': [1, 1]}}

The manifest of an evaluated checkpoint has the counts, if there are such answers. `thoughts` describes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from potstill import thoughts
from potstill.records import BASE, Prediction
from potstill.storage import manifest
from potstill.thoughts import CUT_KEY, SWITCH_KEY, describe_cut_thoughts

if TYPE_CHECKING:
    from potstill.models import ChatTemplate


def is_cut_in_thought(prediction: Prediction, *, opened: bool) -> bool:
    """Whether an answer was cut inside a thought. opened: whether the prompt opens a thought."""
    return thoughts.is_cut_in_thought(prediction.text, prediction.stop, opened=opened)


def count_cut_thoughts(
    answers: Mapping[str, Iterator[Prediction]], chat: ChatTemplate | None
) -> dict[str, dict[str, list[int]] | str]:
    """The counts of a checkpoint for its manifest; empty if no answer was cut inside a thought.

    For every FORMAT.DECODING, they are the number of answers that were cut inside a thought, and the number of all answers.

    answers  FORMAT.DECODING -> answers
    chat     the student's chat template; None for plain prompts
    """
    opened = chat is not None and chat.opens_thought
    counts: dict[str, list[int]] = {}
    for name, predictions in answers.items():
        cut = [is_cut_in_thought(prediction, opened=opened) for prediction in predictions]
        if any(cut):
            counts[name] = [sum(cut), len(cut)]
    if not counts:
        return {}
    switch = None if chat is None else chat.thinking_switch
    return {CUT_KEY: counts, **({SWITCH_KEY: switch} if switch else {})}


def read_warnings(run_dir: Path) -> Iterator[str]:
    """The warnings about the checkpoints that answered the test questions; before `test`, about the base on validation."""
    tested = sorted((run_dir / "test").glob(f"[0-9]*/{manifest.MANIFEST_FILE}"))
    paths = tested or [run_dir / "evaluate" / BASE.name / manifest.MANIFEST_FILE]
    for path in paths:
        if path.exists():
            warning = describe_cut_thoughts(manifest.read_manifest(path).counts, is_base=path.parent.name == BASE.name)
            if warning:
                yield warning
