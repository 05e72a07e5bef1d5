"""A chain as its teacher cut it above the same chain as the student is taught it, for the terminal.

    W│eng   earns    $  12   every
    ▁We│ng  ▁earn│s  ▁$12    ▁every

Colours are kinds. A bar stands between the tokens of one stretch of text that both cut at its ends, and nowhere inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, cast

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from potstill.alignment import spans
from potstill.alignment.exact_rules import encode_chain_text
from potstill.errors import escape_hidden
from potstill.records import END, Chain, End, Target, TargetKind
from potstill.report.model import readable_token
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
    "merged": "several of the teacher's make one",
    "split": "one of the teacher's is several",
    "mixed": "cut otherwise",
    "hard": "certain, nothing transferred",
    "end": "the end",
}
MAX_CANDIDATES: Final = 5  # candidates of a row
MIN_PROBABILITY: Final = 0.0005  # that three digits can show


@dataclass(frozen=True, slots=True)
class AlignedBlock:
    """A stretch that both sides cut at its ends: steps of the teacher, positions of the student, and its kind.

    The last step and the end token, where both are there, are a block of their own.
    """

    steps: range
    positions: range
    kind: TargetKind


def aligned_blocks(chain: Chain, target: Target, tokenizer: Tokenizer) -> list[AlignedBlock]:
    """The blocks of a chain and its target, in order; every step and every position lies in one."""
    _, places = encode_chain_text(chain, tokenizer.encoder)
    found = []
    for chunk in spans(chain.spans, places):
        kinds: set[TargetKind] = {target.kind(position) for position in chunk.student}
        found.append(
            AlignedBlock(chunk.teacher, chunk.student, kinds.pop() if len(kinds) == 1 else cast(TargetKind, chunk.kind))
        )
    steps = range(len(chain.tokens), max(len(chain.tokens), len(chain.candidates)))
    rest = range(len(places), len(target))
    return [*found, AlignedBlock(steps, rest, "end")] if len(steps) or len(rest) else found


def interlinear_lines(chain: Chain, target: Target, tokenizer: Tokenizer, width: int) -> Iterator[Text]:
    """Pairs of lines, the teacher's tokens above the student's, with an empty line behind each pair."""
    above, below = Text(), Text()
    for block in aligned_blocks(chain, target, tokenizer):
        style = KIND_COLOURS[block.kind]
        mine = "│".join(token_text(_step_token(chain, step)) for step in block.steps)
        pieces = [
            (student_token_text(tokenizer, target.ids[position]), target.kind(position)) for position in block.positions
        ]
        theirs = Text("│").join(Text(text, KIND_COLOURS[kind]) for text, kind in pieces)
        wide = max(cell_len(mine), theirs.cell_len)
        if above.cell_len and above.cell_len + wide > width:
            yield from (above, below, Text())
            above, below = Text(), Text()
        above.append(mine + " " * (wide - cell_len(mine) + 2), style)
        below.append_text(theirs).append(" " * (wide - theirs.cell_len + 2))
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
    """Every block with its candidates: what the teacher might have written, what the student is taught instead."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, right in (("teacher", False), ("p", True), ("instead", False), ("student", False), ("kind", False)):
        made.add_column(name, justify="right" if right else "left", no_wrap=name != "instead")
    made.add_column("is taught", ratio=1)
    made.add_column("tail", justify="right", no_wrap=True)
    for block in aligned_blocks(chain, target, tokenizer):
        left = [teacher_cells(chain, step) for step in block.steps]
        right = [_student_cells(target, tokenizer, position) for position in block.positions]
        for row in range(max(len(left), len(right))):
            mine = left[row] if row < len(left) else (Text(), "", Text())
            theirs = right[row] if row < len(right) else (Text(), Text(), Text(), "")
            made.add_row(*mine, *theirs)
    return made


def teacher_cells(chain: Chain, step: int) -> tuple[Text, str, Text]:
    """A step of the teacher: its token, its probability where it is known, and the other candidates."""
    own = _step_token(chain, step)
    seen = chain.candidates[step] if step < len(chain.candidates) else ()
    chosen = next((value for what, value in seen if what == own), None)
    others = sorted(((what, value) for what, value in seen if what != own), key=lambda other: -other[1])
    shares = "  ".join(
        f"{token_text(what)} {math.exp(value):.3f}"
        for what, value in others[:MAX_CANDIDATES]
        if math.exp(value) >= MIN_PROBABILITY
    )
    return (
        Text(token_text(own), _probability_colour(chosen)),
        "" if chosen is None else f"{math.exp(chosen):.3f}",
        Text(shares, "dim"),
    )


def _student_cells(target: Target, tokenizer: Tokenizer, position: int) -> tuple[Text, Text, Text, str]:
    kind, own = target.kind(position), target.distribution(position)
    shares = sorted(((p, token) for token, p in own.items() if p >= MIN_PROBABILITY), reverse=True)
    taught = "  ".join(f"{student_token_text(tokenizer, token)} {p:.3f}" for p, token in shares[: MAX_CANDIDATES + 1])
    name = Text(student_token_text(tokenizer, target.ids[position]), KIND_COLOURS[kind])
    tail = target.tail(position)
    return (
        name,
        Text(kind, KIND_COLOURS[kind]),
        Text("" if len(own) == 1 and not tail else taught),
        f"{tail:.3f}" if tail else "",
    )


def student_token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token of the student in a table: its bytes, or its name where it has none."""
    data = tokenizer.token_bytes(token)
    return token_text(data) if data else next((n for n, i in tokenizer.vocabulary.specials.items() if i == token), "∅")


def token_text(what: bytes | End) -> str:
    """A token's bytes in a table: spaces and line ends visible."""
    return "END" if what is END else escape_hidden(readable_token(what))


def _step_token(chain: Chain, step: int) -> bytes | End:
    return chain.tokens[step] if step < len(chain.tokens) else END


def _probability_colour(value: float | None) -> str:
    if value is None:
        return ""
    shades: Sequence[tuple[float, str]] = ((0.9, "green"), (0.5, "yellow"))
    return next((style for bound, style in shades if value > math.log(bound)), "red")
