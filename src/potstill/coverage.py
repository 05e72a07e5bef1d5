"""Coverage: how much of what the teacher showed reached the student's positions, by kind and by what they hold.

    >>> from potstill.vocabulary import Fast, Vocabulary
    >>> class Letters:  # stands in for the library of a tokenizer: one token a letter, 2 for what it does not know
    ...     ids, offsets = [0, 2], [(0, 1), (1, 2)]
    ...     def encode(self, text, add_special_tokens):
    ...         return self
    >>> coder = Fast(Vocabulary((b"1", b"2", None), {"<unk>": 2}, None, None, 2, False, ""), Letters())
    >>> chain = Chain.from_tokens("q", 0, [b"1", b"x"], [[(b"1", -0.5), (b"2", -1.0)], [(b"x", 0.0)]])
    >>> coverage = Coverage(coder)
    >>> coverage.add(chain, Target((0, 2), (0, 2, 3), (0, 1, 2), (0.6, 0.3, 1.0), ("same", "hard")))
    >>> coverage.as_json()["coverage"]["digits"], coverage.share, dict(coverage.characters)
    ({'same': {'positions': 1, 'mass': 0.9}}, 0.5, {'x': 1})

Mass is the probability that a position's candidates hold together, on the mean; what is missing to 1 is the tail.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, get_args

import numpy as np

from potstill.errors import UserError
from potstill.records import Chain, Kind, Target
from potstill.transfer.places import encoded, touching
from potstill.vocabulary import fast

Part = Literal["all", "digits", "line starts", "unknown", "rewritten"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)
KINDS: Final = get_args(Kind)
SHOWN: Final = 20  # characters that are unknown, of which a manifest tells how often they stood there
_LINE: Final = re.compile(rb"(?:\A|\n)\s*(?=\S)")


class Coverage:
    """Counts over many targets. Parts: `all` positions; those whose token holds `digits`; `line starts`, whose token
    holds the first visible character of a line; `unknown`, where the student would write its unknown token;
    `rewritten`, which a rewriting made certain: nothing was promised there.

    tokenizer  the student's: potstill's, or any that `vocabulary.fast` takes
    share      of positions other than the end that have the teacher's distribution, over chains whose source says that
               it gives probabilities; None where none does
    """

    def __init__(self, tokenizer: Any) -> None:
        self.coder = fast(tokenizer)
        self.chains = self.hard_chains = self.bare_chains = 0
        self.promised = self.soft = 0
        self.characters: Counter[str] = Counter()
        self._rows: dict[Part, dict[str, list[float]]] = {part: {} for part in PARTS}
        self._digit: dict[int, bool] = {}

    def add(self, chain: Chain, target: Target, certain: Sequence[tuple[int, int]] = ()) -> None:
        """Count one chain, as it was aligned, with its target and the stretches that were written into it, in bytes."""
        self.chains += 1
        self.hard_chains += not chain.candidates
        self.bare_chains += not chain.candidates and chain.semantics != "none"
        if len(target) == 0:
            return
        written = touching(encoded(chain, self.coder)[1], certain) if certain else set[int]()
        if chain.semantics != "none":
            self.promised += len(target) - target.kinds.count("end") - len(written)
            self.soft += sum(kind not in ("hard", "end") for kind in target.kinds)
        masses = np.add.reduceat(np.asarray(target.probabilities, np.float64), np.asarray(target.offsets[:-1])).tolist()
        unknown = self.coder.vocabulary.unk
        found: dict[Part, set[int]] = {
            "digits": {place for place, token in enumerate(target.ids) if self._holds_digit(token)},
            "line starts": self._look(chain.text, unknown in target.ids),
            "unknown": {place for place, token in enumerate(target.ids) if token == unknown},
            "rewritten": written,
        }
        for place, (kind, mass) in enumerate(zip(target.kinds, masses, strict=True)):
            _count(self._rows["all"], kind, mass)
            for part, places in found.items():
                if place in places:
                    _count(self._rows[part], kind, mass)

    @property
    def share(self) -> float | None:
        return self.soft / self.promised if self.promised else None

    def check(self, least: float, rule: str) -> None:
        """Raises UserError where the share is below a bound: then the student would learn hard targets, and nobody
        would know. Sources that give no probabilities, and the rule `one-hot`, are hard by choice."""
        if rule == "one-hot" or self.share is None or self.share >= least:
            return
        found = f"{100 * self.share:.1f} % of {self.promised} positions, under {100 * least:g} %, by the rule `{rule}`"
        if self.bare_chains:
            found += f"; {self.bare_chains} of {self.chains} chains have no candidates at all"
        raise UserError(
            "too few positions of the student have the teacher's distribution",
            where="transfer.least_coverage",
            found=found,
            do="check that the teacher gives the bytes and the log-probabilities of its tokens (`potstill show RUN "
            "--chain KEY`), choose another transfer.rule, or consent with the rule one-hot or a lower bound",
        )

    def as_json(self) -> dict[str, Any]:
        counted = {part: _rows(table) for part, table in self._rows.items()}
        share = self.share
        return {
            "chains": self.chains,
            "chains without probabilities": self.hard_chains,
            "positions": sum(row["positions"] for row in counted["all"].values()),
            "covered": None if share is None else round(share, 6),
            "coverage": counted,
            "unknown characters": dict(sorted(self.characters.most_common(SHOWN), key=lambda row: (-row[1], row[0]))),
        }

    def _holds_digit(self, token: int) -> bool:
        known = self._digit.get(token)
        if known is None:
            data = self.coder.vocabulary.bytes_of(token) or b""
            known = self._digit[token] = any(48 <= byte <= 57 for byte in data)
        return known

    def _look(self, text: str, unknown: bool) -> set[int]:
        """The positions at line starts; and on the way the characters that are unknown."""
        data = text.encode("utf-8")
        encoding = self.coder.encode(text)
        if unknown:
            for token, (start, end) in zip(encoding.ids, encoding.spans, strict=True):
                if token == self.coder.vocabulary.unk:
                    self.characters.update("".join(data[start:end].decode("utf-8", "replace").split()))
        return set(_holders(data, encoding.spans))


def _holders(data: bytes, spans: list[tuple[int, int]]) -> Iterator[int]:
    """The tokens that hold the first visible byte of each line."""
    starts = [start for start, _ in spans]
    for line in _LINE.finditer(data):
        place = bisect_right(starts, line.end()) - 1
        if place >= 0 and spans[place][1] > line.end():
            yield place


def _count(table: dict[str, list[float]], kind: str, mass: float) -> None:
    row = table.setdefault(kind, [0.0, 0.0])
    row[0] += 1.0
    row[1] += mass


def _rows(table: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    return {
        kind: {"positions": int(positions), "mass": round(mass / positions, 6)}
        for kind, (positions, mass) in sorted(table.items(), key=lambda row: KINDS.index(row[0]))
    }
