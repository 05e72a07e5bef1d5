"""A chain as its teacher tokenizes it above the same chain as the student does, for the terminal.

    W│eng   earns    $  12   every
    ▁We│ng  ▁earn│s  ▁$12    ▁every

Colours are kinds of positions. A bar separates the tokens within one block, the shortest stretch of text that ends at a
token boundary on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final, Literal, cast

from rich.table import Table
from rich.text import Text

from potstill.alignment import spans
from potstill.alignment.exact_rules import encode_chain_text
from potstill.errors import escape_hidden
from potstill.records import END, Chain, End, Target, TargetKind
from potstill.report.formatting import readable_token
from potstill.tokenization import Tokenizer

KIND_COLOURS: Final = {
    "same": "green",
    "merged": "cyan",
    "split": "blue",
    "mixed": "magenta",
    "hard": "yellow",
    "end": "bright_black",
}
KIND_MEANINGS: Final = {
    "same": "one token each",
    "merged": "several of the teacher's tokens, one of the student's",
    "split": "one of the teacher's tokens, several of the student's",
    "mixed": "several tokens each",
    "hard": "one candidate, no teacher distribution",
    "end": "the end",
}
MAX_CANDIDATES: Final = 5  # per row
MIN_PROBABILITY: Final = 0.0005  # the least that three decimals can show


@dataclass(frozen=True, slots=True)
class AlignedBlock:
    """A block: steps of the teacher, positions of the student, and its kind.

    The last step and the end token are a block of their own.
    """

    steps: range
    positions: range
    kind: TargetKind


def aligned_blocks(chain: Chain, target: Target, tokenizer: Tokenizer) -> list[AlignedBlock]:
    """The blocks of a chain and its target, in order; every step and every position is in one."""
    _, offsets = encode_chain_text(chain, tokenizer.encoder)
    blocks = []
    for span in spans(chain.spans, offsets):
        kinds: set[TargetKind] = {target.kind(position) for position in span.student}
        kind = kinds.pop() if len(kinds) == 1 else cast(TargetKind, span.kind)
        blocks.append(AlignedBlock(span.teacher, span.student, kind))
    steps = range(len(chain.tokens), max(len(chain.tokens), len(chain.candidates)))
    positions = range(len(offsets), len(target))
    return [*blocks, AlignedBlock(steps, positions, "end")] if len(steps) or len(positions) else blocks


def interlinear_lines(chain: Chain, target: Target, tokenizer: Tokenizer, width: int) -> Iterator[Text]:
    """Pairs of lines, the teacher's tokens above the student's, with an empty line after each pair."""
    above, below = Text(), Text()
    for block in aligned_blocks(chain, target, tokenizer):
        teacher = Text("│".join(token_text(_step_token(chain, step)) for step in block.steps), KIND_COLOURS[block.kind])
        student = Text("│").join(
            Text(student_token_text(tokenizer, target.ids[position]), KIND_COLOURS[target.kind(position)])
            for position in block.positions
        )
        columns = max(teacher.cell_len, student.cell_len)
        if above.cell_len and above.cell_len + columns > width:
            yield from (above, below, Text())
            above, below = Text(), Text()
        above.append_text(teacher).append(" " * (columns - teacher.cell_len + 2))
        below.append_text(student).append(" " * (columns - student.cell_len + 2))
    if above.cell_len:
        yield from (above, below, Text())


def kind_legend(target: Target) -> Text:
    """The kinds that a target has, in their colours, with the number of positions of each."""
    parts = [
        Text(f"{kind} {target.kinds.count(kind)}", colour).append(f" ({KIND_MEANINGS[kind]})", "dim")
        for kind, colour in KIND_COLOURS.items()
        if kind in target.kinds
    ]
    return Text("   ").join(parts)


def candidate_table(chain: Chain, target: Target, tokenizer: Tokenizer) -> Table:
    """Every block with its candidates: the teacher's alternatives, and the student's target distribution."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    columns: tuple[tuple[str, Literal["left", "right"]], ...] = (
        ("teacher", "left"),
        ("p", "right"),
        ("others", "left"),
        ("student", "left"),
        ("kind", "left"),
    )
    for name, justify in columns:
        table.add_column(name, justify=justify, no_wrap=name != "others")
    table.add_column("target", ratio=1)
    table.add_column("tail", justify="right", no_wrap=True)
    for block in aligned_blocks(chain, target, tokenizer):
        steps = [teacher_cells(chain, step) for step in block.steps]
        positions = [_student_cells(target, tokenizer, position) for position in block.positions]
        for step, position in zip_longest(steps, positions):
            table.add_row(*(step or (Text(), "", Text())), *(position or (Text(), Text(), Text(), "")))
    return table


def teacher_cells(chain: Chain, step: int) -> tuple[Text, str, Text]:
    """A step of the teacher: its token, its probability if known, and the other candidates."""
    drawn = _step_token(chain, step)
    candidates = chain.candidates[step] if step < len(chain.candidates) else ()
    log = next((value for token, value in candidates if token == drawn), None)
    others = sorted(
        ((token, math.exp(value)) for token, value in candidates if token != drawn), key=lambda other: -other[1]
    )
    shares = "  ".join(f"{token_text(token)} {p:.3f}" for token, p in others[:MAX_CANDIDATES] if p >= MIN_PROBABILITY)
    probability = "" if log is None else f"{math.exp(log):.3f}"
    return Text(token_text(drawn), _probability_colour(log)), probability, Text(shares, "dim")


def _student_cells(target: Target, tokenizer: Tokenizer, position: int) -> tuple[Text, Text, Text, str]:
    kind, distribution, tail = target.kind(position), target.distribution(position), target.tail(position)
    shares = sorted(((p, token) for token, p in distribution.items() if p >= MIN_PROBABILITY), reverse=True)
    texts = "  ".join(f"{student_token_text(tokenizer, token)} {p:.3f}" for p, token in shares[: MAX_CANDIDATES + 1])
    return (
        Text(student_token_text(tokenizer, target.ids[position]), KIND_COLOURS[kind]),
        Text(kind, KIND_COLOURS[kind]),
        Text("" if len(distribution) == 1 and not tail else texts),
        f"{tail:.3f}" if tail else "",
    )


def student_token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token of the student in a table: its bytes, or its name if it has none."""
    data = tokenizer.token_bytes(token)
    return token_text(data) if data else next((n for n, i in tokenizer.vocabulary.specials.items() if i == token), "∅")


def token_text(token: bytes | End) -> str:
    """A token in a table, with visible spaces and line ends."""
    return "END" if token is END else escape_hidden(readable_token(token))


def _step_token(chain: Chain, step: int) -> bytes | End:
    return chain.tokens[step] if step < len(chain.tokens) else END


def _probability_colour(log: float | None) -> str:
    if log is None:
        return ""
    return "green" if log > math.log(0.9) else "yellow" if log > math.log(0.5) else "red"
