"""Answers that were cut inside a thought, because the model used up its tokens for thinking.

    >>> counts = {"cut_in_thought": {"zero-shot-rationale.greedy": [61, 100]}, "thinking_switch": "enable_thinking"}
    >>> print(describe_cut_thoughts(counts, is_base=True))      # doctest: +NORMALIZE_WHITESPACE
    Warning: 61 of 100 answers of the base (zero-shot-rationale, greedy) were cut inside a thought. It did not get to
    its answer, so the gain looks larger than it is. Set student.chat_template_kwargs: {enable_thinking: false}, or
    raise evaluate.max_tokens.

The manifest of an evaluated checkpoint has the counts, if there are such answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from potstill.records import BASE, Prediction
from potstill.storage import manifest
from potstill.thoughts import ends_in_thought

if TYPE_CHECKING:
    from potstill.models import ChatTemplate

CUT_KEY: Final = "cut_in_thought"
SWITCH_KEY: Final = "thinking_switch"


def is_cut_in_thought(prediction: Prediction, *, opened: bool) -> bool:
    """Whether an answer was cut inside a thought.

    opened  whether the prompt opens a thought. A text that was stopped after its answer then counts only if it opened
            another thought
    """
    opened = opened and prediction.stop in ("length", "repeat")
    return prediction.stop != "end" and ends_in_thought(prediction.text, opened=opened)


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


def describe_cut_thoughts(counts: Mapping[str, Any], *, is_base: bool) -> str | None:
    """A warning for the page and the terminal; None if no answer was cut inside a thought."""
    if not counts.get(CUT_KEY):
        return None
    parts = [
        f"{cut} of {total} answers of the {'base' if is_base else 'student'} ({name.replace('.', ', ', 1)})"
        for name, (cut, total) in counts[CUT_KEY].items()
    ]
    effect = "so the gain looks larger than it is" if is_base else "so its score is lower than it could be"
    cut = f"Warning: {' and '.join(parts)} were cut inside a thought."
    return f"{cut} It did not get to its answer, {effect}. {advise(counts.get(SWITCH_KEY))}."


def advise(switch: str | None) -> str:
    """The advice in a warning, without a period. switch: the argument of the template that turns thoughts off, if any."""
    off = f"Set student.chat_template_kwargs: {{{switch}: false}}, or raise" if switch else "Raise"
    return f"{off} evaluate.max_tokens"


def read_warnings(run_dir: Path) -> Iterator[str]:
    """The warnings about the checkpoints that answered the test questions; before `test`, about the base on validation."""
    tested = sorted((run_dir / "test").glob(f"[0-9]*/{manifest.MANIFEST_FILE}"))
    paths = tested or [run_dir / "evaluate" / BASE.name / manifest.MANIFEST_FILE]
    for path in paths:
        if path.exists():
            warning = describe_cut_thoughts(manifest.read_manifest(path).counts, is_base=path.parent.name == BASE.name)
            if warning:
                yield warning
