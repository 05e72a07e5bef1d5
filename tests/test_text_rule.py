"""The rule `text` against its definition, on a finite language whose truth is known, and in its corner cases."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import definition
import oracle
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from potstill import tokenizers
from potstill.errors import UserError
from potstill.records import END, Candidate, Chain, Target
from potstill.tokenizers import Tokenizer
from potstill.transfer import completions, transfer

TEXTS = ["She earns $12.50 for 3 hours.\nSo 4 * 12 = 48.", "Weng has 7 apples, naïve café", "The answer is 10 so"] * 4


@cache
def small(kind: str) -> Tokenizer:
    return tokenizers.train_bpe(TEXTS, 330) if kind == "bpe" else tokenizers.train_unigram(TEXTS, 110)


@pytest.fixture(autouse=True)
def unpruned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left out for speed, so that the two agree to the last digit."""
    monkeypatch.setattr("potstill.transfer.text.SLIGHT", 0.0)
    monkeypatch.setattr("potstill.transfer.text.RARE", 0.0)
    monkeypatch.setattr("potstill.transfer.text.FAINT", 0.0)
    monkeypatch.setattr("potstill.transfer.continuations.RARE", 0.0)


def agree(chain: Chain, student: Tokenizer, run=None, teacher: Tokenizer | None = None) -> Target:
    target = transfer(chain, student, "text", run, teacher)
    wanted = definition.distributions(chain, student, run, teacher)
    for place, row in enumerate(wanted):
        found = target.distribution(place)
        assert set(found) == set(row or {target.ids[place]}), (place, found, row)
        assert found == pytest.approx(row or {target.ids[place]: 1.0}, abs=1e-9), place
    return target


PIECES = st.sampled_from([b"So", b" 4", b" ", b"1", b"2", b"0", b".", b"\n", b" so", b"apples", b" The", b" answer", b" is",
                          "é".encode(), b"\xc3", b"\xff", b"s", b"7 ", b"  ", b" 1", b", "])  # fmt: skip


@st.composite
def runs(draw: st.DrawFn) -> list[Chain]:
    """A few chains of two questions whose texts often begin alike."""
    made = []
    trunk = draw(st.lists(PIECES, max_size=4))
    for index in range(draw(st.integers(1, 4))):
        tokens = [*trunk[: draw(st.integers(0, 4))], *draw(st.lists(PIECES, max_size=5))]
        rows = []
        for token in [*tokens, END] if draw(st.booleans()) else tokens:
            others = draw(st.lists(st.one_of(PIECES, st.just(END)), max_size=3, unique=True))
            shown = [what for what in dict.fromkeys([token, *others])][: draw(st.integers(1, 4))]
            mass = [draw(st.sampled_from([0.5, 0.2, 0.1])) for _ in shown]
            total = sum(mass) * draw(st.sampled_from([1.0, 1.25]))
            rows.append([(what, math.log(p / total)) for what, p in zip(shown, mass, strict=True)])
        stop = draw(st.sampled_from(["end", "cut", "length"]))
        made.append(Chain.from_tokens(draw(st.sampled_from(["p", "q"])), index, tokens, rows, stop))
    return made


@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(runs(), st.booleans(), st.booleans())
def test_the_rule_is_its_definition(chains: list[Chain], known: bool, teacher: bool) -> None:
    for kind, other in (("unigram", "bpe"), ("bpe", "unigram")):
        student = small(kind)
        run = completions(chains, student) if known else None
        for chain in chains:
            agree(chain, student, run, small(other) if teacher and kind == "unigram" else None)
