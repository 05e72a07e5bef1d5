"""Coverage: how much of what the teacher showed reached the student's positions, by kind and by what they hold.

    >>> from potstill.tokenization.encoder import Encoder
    >>> from potstill.tokenization.vocabulary import Vocabulary
    >>> class Letters:  # stands in for the library of a tokenizer: one token a letter, 2 for what it does not know
    ...     ids, offsets = [0, 2], [(0, 1), (1, 2)]
    ...     def encode(self, text, add_special_tokens):
    ...         return self
    >>> coder = Encoder(Vocabulary((b"1", b"2", None), {"<unk>": 2}, None, None, 2, False, ""), Letters())
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
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, get_args

import numpy as np

from potstill.alignment.exact_rules import encode_chain_text, step_distributions, tokens_in_spans
from potstill.errors import UserError
from potstill.records import Chain, Target, TargetKind
from potstill.tokenization.encoder import get_encoder

pass  # nothing left to import

Part = Literal["all", "digits", "line starts", "unknown", "rewritten"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)
POSITION_KINDS: Final = get_args(TargetKind)
WHOLE_TOKEN_KINDS: Final = ("same", "merged")  # kinds that stand on whole tokens of the teacher
MAX_LISTED_CHARACTERS: Final = 20  # characters that are unknown, of which a manifest tells how often they stood there
_LINE_START: Final = re.compile(rb"(?:\A|\n)\s*(?=\S)")


class Coverage:
    """Counts over many targets. Parts: `all` positions; those whose token holds `digits`; `line starts`, whose token
    holds the first visible character of a line; `unknown`, where the student would write its unknown token;
    `rewritten`, which a rewriting made certain: nothing was promised there.

    tokenizer  the student's: potstill's, or any that `vocabulary.fast` takes
    share      of positions other than the end that have the teacher's distribution, over chains whose source says that
               it gives probabilities; None where none does
    shown      the probability that the teacher's candidates hold together at a step, on the mean; None without steps
    """

    def __init__(self, tokenizer: Any) -> None:
        self.coder = get_encoder(tokenizer)
        self.chains = self.hard_chains = self.bare_chains = 0
        self.promised = self.soft = 0
        self._steps, self._shown = 0, 0.0
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
        rows = step_distributions(chain)
        self._steps += len(rows)
        self._shown += sum(sum(row.values()) for row in rows)
        written = tokens_in_spans(encode_chain_text(chain, self.coder)[1], certain) if certain else set[int]()
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
            _add_position(self._rows["all"], kind, mass)
            for part, places in found.items():
                if place in places:
                    _add_position(self._rows[part], kind, mass)

    @property
    def share(self) -> float | None:
        return self.soft / self.promised if self.promised else None

    @property
    def shown(self) -> float | None:
        return self._shown / self._steps if self._steps else None

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
            hint="check that the teacher gives the bytes and the log-probabilities of its tokens (`potstill show RUN "
            "--chain KEY`), choose another transfer.rule, or consent with the rule one-hot or a lower bound",
        )

    def as_json(self) -> dict[str, Any]:
        counted = {part: _rows_as_json(table) for part, table in self._rows.items()}
        share, shown = self.share, self.shown
        return {
            "chains": self.chains,
            "chains without probabilities": self.hard_chains,
            "positions": sum(row["positions"] for row in counted["all"].values()),
            "covered": None if share is None else round(share, 6),
            "shown": None if shown is None else round(shown, 6),
            "coverage": counted,
            "unknown characters": dict(
                sorted(self.characters.most_common(MAX_LISTED_CHARACTERS), key=lambda row: (-row[1], row[0]))
            ),
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
        return set(_line_start_tokens(data, encoding.spans))


def low_mass_warning(counts: Mapping[str, Any], least: float) -> str | None:
    """A warning where positions have the teacher's distribution, but hardly any of its probability reached them; None
    where enough did, where nobody gave probabilities, and of counts from before they held what was shown.

    counts  as `Coverage.as_json` gives them
    least   of the mass at positions on one of the teacher's tokens or on several (`same`, `merged`): its share of what
            the teacher's candidates held at a step. Positions inside a teacher's token are certain by themselves.

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
        f"Little of the teacher's probability reached the student: {mass:.3f} on the mean at the {positions} positions"
        f" that stand on whole tokens of the teacher; its candidates held {shown:.3f} (transfer.least_mass: {least:g})."
        " The rest is the tail, from which nothing is learnt. `potstill show RUN --chain KEY` shows where it is lost."
    )


def _line_start_tokens(data: bytes, spans: list[tuple[int, int]]) -> Iterator[int]:
    """The tokens that hold the first visible byte of each line."""
    starts = [start for start, _ in spans]
    for line in _LINE_START.finditer(data):
        place = bisect_right(starts, line.end()) - 1
        if place >= 0 and spans[place][1] > line.end():
            yield place


def _add_position(table: dict[str, list[float]], kind: str, mass: float) -> None:
    row = table.setdefault(kind, [0.0, 0.0])
    row[0] += 1.0
    row[1] += mass


def _rows_as_json(table: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    return {
        kind: {"positions": int(positions), "mass": round(mass / positions, 6)}
        for kind, (positions, mass) in sorted(table.items(), key=lambda row: POSITION_KINDS.index(row[0]))
    }
