"""The questions of the page, as its template shows them: anchors and commands, filters, and chains in pieces.

A chain is shown in pieces, with the probability that its source gave to each piece:

    >>> chain = Chain.from_tokens("q", 0, [b"12", b" eggs"], [[(b"12", -0.7), (b"15", -0.9)], [(b" eggs", -0.01)]])
    >>> [(piece.text, round(piece.probability, 2), piece.shade) for piece in split_into_pieces(chain)]
    [('12', 0.5, 3), (' eggs', 0.99, 0)]
    >>> [(other.text, round(other.probability, 2)) for other in split_into_pieces(chain)[0].candidates]
    [('12', 0.5), ('15', 0.41)]
"""

from __future__ import annotations

import codecs
import math
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from potstill.records import END, Candidate, Chain, End, Verdict
from potstill.report import summary
from potstill.report.model import OUTCOMES, Outcome, ReportData, ReportExample

# A piece is one shade darker for each bound that is above its probability.
SHADE_BOUNDS: Final = (0.95, 0.8, 0.6, 0.4, 0.2)
MAX_CANDIDATES: Final = 6  # candidates shown for a piece


@dataclass(frozen=True, slots=True)
class QuestionView:
    """A question of the page.

    anchor    its id in the page
    kind      the CSS class of its outcome: taught, won, lost, still-wrong, still-right, is-right or not-right
    set_kind  the CSS class of its set, such as set-0
    command   the command that shows it in the terminal
    chains    the chains with their verdicts, and their pieces
    """

    example: ReportExample
    anchor: str
    kind: str
    set_kind: str
    command: str
    chains: tuple[tuple[Chain, Verdict, list[TextPiece]], ...]


@dataclass(frozen=True, slots=True)
class FilterChoice:
    """A choice of a filter: the CSS class that it shows, its name, and the number of its questions."""

    kind: str
    name: str
    count: int


def view_questions(data: ReportData) -> list[QuestionView]:
    """The questions of the page, in order."""
    sets, seen = _shown_sets(data), Counter[str]()
    views = []
    for example in data.examples:
        question = example.question
        anchor = "q-" + re.sub(r"[^A-Za-z0-9]+", "-", question.id).strip("-")
        seen[anchor] += 1
        anchor += f"_{seen[anchor]}" if seen[anchor] > 1 else ""  # no other anchor has a "_"
        kind = _css_class(summary.outcome_of(example.before, example.after))
        key = f"{question.id}#{example.chains[0][0].index}" if example.chains else question.id
        option = "--chain" if example.chains else "--prediction"
        command = f"potstill show {run_path(data)} {option} {shlex.quote(key)}"
        chains = tuple((chain, verdict, split_into_pieces(chain)) for chain, verdict in example.chains)
        views.append(QuestionView(example, anchor, kind, f"set-{sets.index(question.set)}", command, chains))
    return views


def run_path(data: ReportData) -> str:
    """The run's folder where `potstill run` makes it, quoted for a shell."""
    return shlex.quote(f"runs/{data.name}")


def recipe_path(name: str) -> str:
    """The recipe in a run's folder, quoted for a shell."""
    return shlex.quote(f"runs/{name}/recipe.yaml")


def outcome_choices(data: ReportData, views: Sequence[QuestionView]) -> list[FilterChoice]:
    """The choices of the filter by outcome. Outcomes without questions are left out."""
    kinds = [view.kind for view in views]
    names = [("taught", "teacher’s chains")] + [
        (outcome.replace(" ", "-"), outcome) for outcome in (*OUTCOMES, "right", "not right")
    ]
    return _choices([(kind, name) for kind, name in names if kind in kinds], kinds)


def set_choices(data: ReportData, views: Sequence[QuestionView]) -> list[FilterChoice]:
    """The choices of the filter by set."""
    names = [(f"set-{number}", name) for number, name in enumerate(_shown_sets(data))]
    return _choices(names, [view.set_kind for view in views])


def empty_combinations(
    views: Sequence[QuestionView], outcomes: Sequence[FilterChoice], sets: Sequence[FilterChoice]
) -> list[tuple[str, str]]:
    """The choices of an outcome and a set that show no question."""
    shown = {(view.kind, view.set_kind) for view in views}
    return [(kind.kind, one.kind) for kind in outcomes[1:] for one in sets[1:] if (kind.kind, one.kind) not in shown]


def _css_class(outcome: Outcome | None) -> str:
    return "taught" if outcome is None else "is-right" if outcome == "right" else outcome.replace(" ", "-")


def _choices(names: Sequence[tuple[str, str]], kinds: Sequence[str]) -> list[FilterChoice]:
    return [
        FilterChoice("all", "all", len(kinds)),
        *(FilterChoice(kind, name, kinds.count(kind)) for kind, name in names),
    ]


def _shown_sets(data: ReportData) -> list[str]:
    """The sets of the shown questions, in the order of the groups of the recipe, then those that are only trained on."""
    shown = dict.fromkeys(example.question.set for example in data.examples)
    return [name for name in data.groups if name in shown] + [name for name in shown if name not in data.groups]


# Chains in pieces


@dataclass(frozen=True, slots=True)
class CandidateView:
    """A candidate: its text, its probability, and whether it was sampled."""

    text: str
    probability: float
    drawn: bool


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A readable piece of a chain. `probability` is None if the source gave none."""

    text: str
    probability: float | None = None
    candidates: tuple[CandidateView, ...] = ()

    @property
    def shade(self) -> int:
        """The number of `SHADE_BOUNDS` that are above the probability; 0 if there is no probability."""
        return 0 if self.probability is None else sum(self.probability < bound for bound in SHADE_BOUNDS)


def split_into_pieces(chain: Chain) -> list[TextPiece]:
    """The pieces of a chain in order, with an empty piece for the end if the end has a probability.

    A token may be part of a character. Tokens that are only readable together are one piece, with the candidates of the
    first token and the product of their probabilities.
    """
    if not chain.candidates:
        return [TextPiece(chain.text)]
    parts: list[tuple[bytes, TextPiece]] = []  # the bytes of each token, and the bytes between tokens
    position = 0
    for (start, end), token, step in zip(chain.spans, chain.tokens, chain.candidates, strict=False):
        if start > position:
            parts.append((chain.content[position:start], TextPiece("")))
        parts.append((chain.content[max(position, start) : end], _make_piece(token, step)))
        position = max(position, end)
    if position < len(chain.content):
        parts.append((chain.content[position:], TextPiece("")))
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces: list[TextPiece] = []
    waiting: TextPiece | None = None  # a piece whose bytes end inside a character
    for number, (content, piece) in enumerate(parts):
        text = decoder.decode(content, final=number == len(parts) - 1)
        if waiting is not None:
            known = [p for p in (waiting.probability, piece.probability) if p is not None]
            piece = replace(waiting, probability=math.prod(known) if known else None)
        waiting = None if text or not content else piece
        if waiting is None:
            pieces.append(replace(piece, text=text))
    if len(chain.candidates) > len(chain.tokens) and chain.stop == "end":
        pieces.append(_make_piece(END, chain.candidates[-1]))
    return pieces


def _make_piece(drawn: bytes | End, step: Sequence[Candidate]) -> TextPiece:
    ranked = sorted(step, key=lambda candidate: -candidate[1])
    shown = ranked[:MAX_CANDIDATES] + [candidate for candidate in ranked[MAX_CANDIDATES:] if candidate[0] == drawn]
    candidates = tuple(
        CandidateView(summary.readable_token(token), math.exp(log), token == drawn) for token, log in shown
    )
    probability = next((candidate.probability for candidate in candidates if candidate.drawn), None)
    return TextPiece("", probability, candidates)
