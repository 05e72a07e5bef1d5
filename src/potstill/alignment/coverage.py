"""Coverage: how much of the teacher's probability reached the student's positions, by their kind and their content.

    >>> from tokenizers import Tokenizer, models
    >>> student = Tokenizer(models.BPE({"1": 0, "2": 1, "<unk>": 2}, [], unk_token="<unk>"))
    >>> chain = Chain.from_tokens("q", 0, [b"1", b"x"], [[(b"1", -0.5), (b"2", -1.0)], [(b"x", 0.0)]])
    >>> coverage = Coverage(student)
    >>> coverage.add(chain, Target((0, 2), (0, 2, 3), (0, 1, 2), (0.6, 0.3, 1.0), ("same", "hard")))
    >>> coverage.as_json()["coverage"]["digits"], coverage.share, dict(coverage.unknown_characters)
    ({'same': {'positions': 1, 'mass': 0.9}}, 0.5, {'x': 1})

The mass of a position is the sum of the probabilities of its candidates. The tail is 1 minus the mass.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, get_args

import numpy as np

from potstill.alignment.exact_rules import encode_chain_text, step_distributions, tokens_in_spans
from potstill.errors import UserError
from potstill.records import Chain, Target, TargetKind
from potstill.tokenization.encoder import get_encoder

Part = Literal["all", "digits", "line starts", "unknown", "rewritten"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)
POSITION_KINDS: Final[tuple[TargetKind, ...]] = get_args(TargetKind)
WHOLE_TOKEN_KINDS: Final = ("same", "merged")  # kinds of positions on whole teacher tokens
COUNTERS: Final = ("chains", "hard_chains", "bare_chains", "promised", "soft", "_steps", "_shown")
MAX_LISTED_CHARACTERS: Final = 20  # unknown characters that a manifest lists with their counts
_DIGIT: Final = re.compile(rb"[0-9]")
_LINE_START: Final = re.compile(rb"(?:\A|\n)\s*(?=\S)")


class Coverage:
    """Counts over many targets.

    The positions are counted in five parts, which may overlap: `all` positions; `digits`, if the token has a digit;
    `line starts`, if the token has the first visible character of a line; `unknown`, if the token is the student's
    unknown token; `rewritten`, if a rewriting of the chain made the token certain, so that it needs no distribution.

    tokenizer    the student's: potstill's, or any that `get_encoder` accepts
    share        the share of positions with the teacher's distribution, without the end positions and the rewritten
                 ones, over the chains whose `semantics` promise probabilities; None without such chains
    shown_mass   the mean over the teacher's steps of the sum of the candidates' probabilities; None without steps
    """

    def __init__(self, tokenizer: Any) -> None:
        self.encoder = get_encoder(tokenizer)
        self.chains = self.hard_chains = self.bare_chains = 0
        self.promised = self.soft = 0
        self._steps, self._shown = 0, 0.0
        self.unknown_characters: Counter[str] = Counter()
        self._positions: Counter[tuple[Part, TargetKind]] = Counter()
        self._mass: dict[tuple[Part, TargetKind], float] = defaultdict(float)

    def add(self, chain: Chain, target: Target, certain: Sequence[tuple[int, int]] = ()) -> None:
        """Count one chain, as it was aligned, with its target. `certain` are the spans of its content, in bytes, that a
        rewriting wrote."""
        self.chains += 1
        self.hard_chains += not chain.candidates
        self.bare_chains += not chain.candidates and chain.semantics != "none"
        if len(target) == 0:
            return
        rows = step_distributions(chain)
        self._steps += len(rows)
        self._shown += sum(sum(row.values()) for row in rows)
        vocabulary = self.encoder.vocabulary
        written = tokens_in_spans(encode_chain_text(chain, self.encoder)[1], certain) if certain else set[int]()
        if chain.semantics != "none":
            self.promised += len(target) - target.kinds.count("end") - len(written)
            self.soft += sum(kind not in ("hard", "end") for kind in target.kinds)
        parts: dict[Part, set[int]] = {
            "all": set(range(len(target))),
            "digits": {i for i, token in enumerate(target.ids) if _DIGIT.search(vocabulary.bytes_of(token) or b"")},
            "line starts": self._line_starts(chain.text),
            "unknown": {i for i, token in enumerate(target.ids) if token == vocabulary.unk},
            "rewritten": written,
        }
        if parts["unknown"]:
            self._count_unknown_characters(chain.text)
        masses = np.add.reduceat(np.asarray(target.probabilities, np.float64), np.asarray(target.offsets[:-1])).tolist()
        for position, (kind, mass) in enumerate(zip(target.kinds, masses, strict=True)):
            for part, positions in parts.items():
                if position in positions:
                    self._positions[part, kind] += 1
                    self._mass[part, kind] += mass

    def counts(self) -> dict[str, Any]:
        """All counts as plain JSON, for `add_counts`."""
        return {
            "counters": [getattr(self, name) for name in COUNTERS],
            "unknown characters": dict(self.unknown_characters),
            "positions": [[*key, count, self._mass[key]] for key, count in self._positions.items()],
        }

    def add_counts(self, counts: Mapping[str, Any]) -> None:
        """Add the counts of other targets, as `counts` returns them."""
        for name, value in zip(COUNTERS, counts["counters"], strict=True):
            setattr(self, name, getattr(self, name) + value)
        self.unknown_characters.update(counts["unknown characters"])
        for part, kind, count, mass in counts["positions"]:
            self._positions[part, kind] += count
            self._mass[part, kind] += mass

    @property
    def share(self) -> float | None:
        return self.soft / self.promised if self.promised else None

    @property
    def shown_mass(self) -> float | None:
        return self._shown / self._steps if self._steps else None

    def check(self, least: float, rule: str) -> None:
        """Raises UserError if the share is below `least`: the student would learn hard targets without notice.

        The rule `one-hot` and sources without probabilities always pass, because their hard targets are a choice.
        """
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
        characters = self.unknown_characters.most_common(MAX_LISTED_CHARACTERS)
        return {
            "chains": self.chains,
            "chains without probabilities": self.hard_chains,
            "positions": sum(count for (part, _), count in self._positions.items() if part == "all"),
            "covered": None if self.share is None else round(self.share, 6),
            "shown": None if self.shown_mass is None else round(self.shown_mass, 6),
            "coverage": {
                part: {
                    kind: {"positions": count, "mass": round(self._mass[part, kind] / count, 6)}
                    for kind in POSITION_KINDS
                    if (count := self._positions[part, kind])
                }
                for part in PARTS
            },
            "unknown characters": dict(sorted(characters, key=lambda row: (-row[1], row[0]))),
        }

    def _line_starts(self, text: str) -> set[int]:
        """The positions whose tokens contain the first visible byte of a line."""
        spans = self.encoder.encode(text).spans
        starts = [start for start, _ in spans]
        lines = [match.end() for match in _LINE_START.finditer(text.encode("utf-8"))]
        tokens = [(bisect_right(starts, line) - 1, line) for line in lines]
        return {token for token, line in tokens if token >= 0 and spans[token][1] > line}

    def _count_unknown_characters(self, text: str) -> None:
        data, encoding = text.encode("utf-8"), self.encoder.encode(text)
        for token, (start, end) in zip(encoding.ids, encoding.spans, strict=True):
            if token == self.encoder.vocabulary.unk:
                self.unknown_characters.update("".join(data[start:end].decode("utf-8", "replace").split()))


def low_mass_warning(counts: Mapping[str, Any], least: float) -> str | None:
    """A warning if positions have the teacher's distribution, but hardly any of its probability reached them.

    None if enough probability reached them, if the teacher gave no probabilities, and for counts of an older version,
    which lack `shown`.

    counts  as `Coverage.as_json` returns them
    least   the bound: the mean mass of the positions on whole teacher tokens (`same`, `merged`) must be at least this
            share of the mean mass of the teacher's candidates. Positions inside a teacher token do not count: they are
            nearly certain in any case
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
        f" on whole teacher tokens, compared with {shown:.3f} for the teacher's own candidates"
        f" (transfer.min_transferred_probability: {least:g}). The rest is the tail, from which the student learns"
        " nothing. `potstill show RUN --chain KEY` shows where the probability is lost."
    )
