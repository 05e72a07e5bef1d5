"""A question as its file has it, before it is known which split it belongs to.

>>> Raw(id="svamp/chal-1", text="How much?", gold="51", task="svamp", where="SVAMP.json record 0").split is None
True
"""

from __future__ import annotations

from dataclasses import dataclass

from potstill.records import Split


@dataclass(frozen=True, slots=True)
class Raw:
    """where: file and record, for messages. split: only where the file itself says it."""

    id: str
    text: str
    gold: str
    task: str
    where: str
    rationale: str | None = None
    split: Split | None = None
