"""Coverage: how much of the teacher's probability reached the student's positions, by kind and by what they hold.

    >>> class Letters:  # stands in for the library of a tokenizer: one token a letter, 2 for what it does not know
    ...     ids, offsets = [0, 2], [(0, 1), (1, 2)]
    ...     def encode(self, text, add_special_tokens):
    ...         return self
    >>> from potstill.tokenization.encoder import Encoder
    >>> from potstill.tokenization.vocabulary import Vocabulary
    >>> student = Encoder(Vocabulary((b"1", b"2", None), {"<unk>": 2}, None, None, 2, False, ""), Letters())
    >>> chain = Chain.from_tokens("q", 0, [b"1", b"x"], [[(b"1", -0.5), (b"2", -1.0)], [(b"x", 0.0)]])
    >>> coverage = Coverage(student)
    >>> coverage.add(chain, Target((0, 2), (0, 2, 3), (0, 1, 2), (0.6, 0.3, 1.0), ("same", "hard")))
    >>> coverage.as_json()["coverage"]["digits"], coverage.share, dict(coverage.unknown_characters)
    ({'same': {'positions': 1, 'mass': 0.9}}, 0.5, {'x': 1})

The mass of a position is the probability that its candidates have together; what is missing to 1 is the tail.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, get_args

import numpy as np

from potstill.alignment.exact_rules import encode_chain_text, step_distributions, tokens_in_spans
from potstill.errors import UserError
from potstill.records import Chain, Target, TargetKind
from potstill.tokenization.encoder import get_encoder

Part = Literal["all", "digits", "line starts", "unknown", "rewritten"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)
POSITION_KINDS: Final = get_args(TargetKind)
WHOLE_TOKEN_KINDS: Final = ("same", "merged")  # kinds of positions on whole teacher tokens
MAX_LISTED_CHARACTERS: Final = 20  # unknown characters that a manifest lists with their counts
_LINE_START: Final = re.compile(rb"(?:\A|\n)\s*(?=\S)")


class Coverage:
    """Counts over many targets.

    Parts: `all` positions; those whose token holds `digits`; `line starts`, whose token holds the first visible
    character of a line; `unknown`, where the student would write its unknown token; `rewritten`, which a rewriting made
    certain, so that they need no distribution.

    tokenizer    the student's: potstill's, or any that `get_encoder` takes
    share        of positions other than the end, those that have the teacher's distribution; over chains whose source
                 says that it gives probabilities; None where none does
    shown_mass   the probability that the teacher's candidates have together at a step, mean; None without steps
    """

    def __init__(self, tokenizer: Any) -> None:
        self.encoder = get_encoder(tokenizer)
        self.chains = self.hard_chains = self.bare_chains = 0
        self.promised = self.soft = 0
        self._steps, self._shown = 0, 0.0
        self.unknown_characters: Counter[str] = Counter()
        self._tables: dict[Part, dict[str, list[float]]] = {part: {} for part in PARTS}
        self._has_digit: dict[int, bool] = {}

    def add(self, chain: Chain, target: Target, certain: Sequence[tuple[int, int]] = ()) -> None:
        """Count one chain, as it was aligned, with its target and the spans that were written into it, in bytes."""
        self.chains += 1
        self.hard_chains += not chain.candidates
        self.bare_chains += not chain.candidates and chain.semantics != "none"
        if len(target) == 0:
            return
        rows = step_distributions(chain)
        self._steps += len(rows)
        self._shown += sum(sum(row.values()) for row in rows)
        written = tokens_in_spans(encode_chain_text(chain, self.encoder)[1], certain) if certain else set[int]()
        if chain.semantics != "none":
            self.promised += len(target) - target.kinds.count("end") - len(written)
            self.soft += sum(kind not in ("hard", "end") for kind in target.kinds)
        masses = np.add.reduceat(np.asarray(target.probabilities, np.float64), np.asarray(target.offsets[:-1])).tolist()
        unknown = self.encoder.vocabulary.unk
        parts: dict[Part, set[int]] = {
            "digits": {i for i, token in enumerate(target.ids) if self._holds_digit(token)},
            "line starts": self._scan_text(chain.text, unknown in target.ids),
            "unknown": {i for i, token in enumerate(target.ids) if token == unknown},
            "rewritten": written,
        }
        for position, (kind, mass) in enumerate(zip(target.kinds, masses, strict=True)):
            _add_position(self._tables["all"], kind, mass)
            for part, positions in parts.items():
                if position in positions:
                    _add_position(self._tables[part], kind, mass)

    @property
    def share(self) -> float | None:
        return self.soft / self.promised if self.promised else None

    @property
    def shown_mass(self) -> float | None:
        return self._shown / self._steps if self._steps else None

    def check(self, least: float, rule: str) -> None:
        """Raises UserError where the share is below a bound: the student would learn hard targets unnoticed. Sources
        without probabilities, and the rule `one-hot`, give hard targets by choice."""
        if rule == "one-hot" or self.share is None or self.share >= least:
            return
        found = f"{100 * self.share:.1f} % of {self.promised} positions, under {100 * least:g} %, by the rule `{rule}`"
        if self.bare_chains:
            found += f"; {self.bare_chains} of {self.chains} chains have no candidates at all"
        raise UserError(
            "too few positions of the student have the teacher's distribution",
            code="E-align-low-coverage",
            where="transfer.min_coverage",
            found=found,
            hint="check that the teacher gives the bytes and the log-probabilities of its tokens (`potstill show RUN "
            "--chain KEY`), choose another transfer.rule, or accept hard targets with the rule one-hot or a lower bound",
        )

    def as_json(self) -> dict[str, Any]:
        tables = {part: _rows_as_json(table) for part, table in self._tables.items()}
        share, shown = self.share, self.shown_mass
        characters = self.unknown_characters.most_common(MAX_LISTED_CHARACTERS)
        return {
            "chains": self.chains,
            "chains without probabilities": self.hard_chains,
            "positions": sum(row["positions"] for row in tables["all"].values()),
            "covered": None if share is None else round(share, 6),
            "shown": None if shown is None else round(shown, 6),
            "coverage": tables,
            "unknown characters": dict(sorted(characters, key=lambda row: (-row[1], row[0]))),
        }

    def _holds_digit(self, token: int) -> bool:
        cached = self._has_digit.get(token)
        if cached is None:
            data = self.encoder.vocabulary.bytes_of(token) or b""
            cached = self._has_digit[token] = any(48 <= byte <= 57 for byte in data)
        return cached

    def _scan_text(self, text: str, unknown: bool) -> set[int]:
        """The positions at line starts; if `unknown`, the characters of unknown tokens are counted on the way."""
        data = text.encode("utf-8")
        encoding = self.encoder.encode(text)
        if unknown:
            for token, (start, end) in zip(encoding.ids, encoding.spans, strict=True):
                if token == self.encoder.vocabulary.unk:
                    self.unknown_characters.update("".join(data[start:end].decode("utf-8", "replace").split()))
        return set(_line_start_tokens(data, encoding.spans))


def low_mass_warning(counts: Mapping[str, Any], least: float) -> str | None:
    """A warning where positions have the teacher's distribution, but hardly any of its probability reached them; None
    where enough did, where the teacher gave no probabilities, and for counts of an older version without `shown`.

    counts  as `Coverage.as_json` returns them
    least   bound on the mass at positions on one teacher token or on several (`same`, `merged`), as a share of what the
            teacher's candidates had together at a step. Positions inside a teacher token are certain by themselves

    >>> rows = {"same": {"positions": 3, "mass": 0.1}, "split": {"positions": 9, "mass": 1.0}}
    >>> counts = {"shown": 0.8, "coverage": {"all": rows}}
    >>> low_mass_warning(counts, 0.1), low_mass_warning(counts, 0.5)[:55]
    (None, "Little of the teacher's probability reached the student")
    """
    shown = counts.get("shown")
    rows = [counts["coverage"]["all"][kind] for kind in WHOLE_TOKEN_KINDS if kind in counts["coverage"]["all"]]
    positions = sum(row["positions"] for row in rows)
    if not shown or not positions:
        return None
    mass = sum(row["positions"] * row["mass"] for row in rows) / positions
    if mass >= least * shown:
        return None
    return (
        f"Little of the teacher's probability reached the student: on average {mass:.3f} at the {positions} positions"
        f" on whole teacher tokens, where the teacher's candidates have {shown:.3f}"
        f" (transfer.min_transferred_probability: {least:g}). The rest is the tail, from which the"
        " student learns nothing. `potstill show RUN --chain KEY` shows where it"
        " is lost."
    )


def _line_start_tokens(data: bytes, spans: list[tuple[int, int]]) -> Iterator[int]:
    """The tokens that hold the first visible byte of each line."""
    starts = [start for start, _ in spans]
    for line in _LINE_START.finditer(data):
        token = bisect_right(starts, line.end()) - 1
        if token >= 0 and spans[token][1] > line.end():
            yield token


def _add_position(table: dict[str, list[float]], kind: str, mass: float) -> None:
    row = table.setdefault(kind, [0.0, 0.0])
    row[0] += 1.0
    row[1] += mass


def _rows_as_json(table: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    return {
        kind: {"positions": int(positions), "mass": round(mass / positions, 6)}
        for kind, (positions, mass) in sorted(table.items(), key=lambda row: POSITION_KINDS.index(row[0]))
    }
