"""Rewriting keeps text, tokens and candidates in step, and neither creates nor loses probability."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.alignment.rewrite import replace_characters
from potstill.records import END, Chain

TIMES = "×".encode()
RULES = {"×": "*", "÷": "/", "−": "-", "…": "..."}


def mass(step: tuple) -> float:
    return sum(math.exp(value) for _, value in step)


def test_nothing_to_do_gives_the_chain_itself() -> None:
    chain = Chain.from_tokens("q", 0, [b"3 * 4"], [[(b"3 * 4", -0.1)]])
    assert replace_characters(chain, {}) is chain and replace_characters(chain, RULES) is chain


def test_text_tokens_spans_and_candidates_go_together() -> None:
    steps = [[(b"3", -0.1), ("3…".encode(), -3.0)], [(b" " + TIMES, -0.7), (b" *", -0.9), (END, -4.0)], [(b"4", 0.0)]]
    chain = Chain.from_tokens("q", 0, [b"3", b" " + TIMES, b"4"], steps, stop="length")
    plain = replace_characters(chain, RULES)
    assert plain.text == "3 *4" and plain.tokens == (b"3", b" *", b"4") and plain.spans == ((0, 1), (1, 3), (3, 4))
    assert plain.candidates[0] == ((b"3", -0.1), (b"3...", -3.0))
    assert [what for what, _ in plain.candidates[1]] == [b" *", END], "the two are one outcome now"
    assert mass(plain.candidates[1]) == pytest.approx(mass(chain.candidates[1]))
    assert (plain.key, plain.stop, plain.semantics) == (chain.key, "length", "raw")


def test_a_character_that_two_tokens_share_makes_them_one_by_the_chain_rule() -> None:
    first, second = TIMES[:1], TIMES[1:]
    steps = [
        [(first, math.log(0.5)), (b"+", math.log(0.3)), (END, math.log(0.1))],
        [(second, math.log(0.8)), ("÷".encode()[1:], math.log(0.15)), (END, math.log(0.01))],
        [(b"4", 0.0)],
        [(END, 0.0)],
    ]
    plain = replace_characters(Chain.from_tokens("q", 0, [first, second, b"4"], steps), RULES)
    assert plain.text == "*4" and plain.tokens == (b"*", b"4") and plain.spans == ((0, 1), (1, 2))
    shown = {what: round(math.exp(value), 6) for what, value in plain.candidates[0]}
    assert shown == {b"+": 0.3, END: 0.1, b"*": 0.4, b"/": 0.075}, "a text cannot end inside a character: that is tail"
    assert plain.candidates[1:] == (((b"4", 0.0),), ((END, 0.0),))


def test_without_the_drawn_token_the_joined_step_shows_nothing() -> None:
    chain = Chain.from_tokens("q", 0, [TIMES[:1], TIMES[1:]], [[(b"+", -1.0)], [(TIMES[1:], -0.1)]])
    assert replace_characters(chain, RULES).candidates == ((),)


def test_a_chain_without_tokens_is_rewritten_too() -> None:
    chain = Chain.from_text("q", 0, "3 × 4 − 2", source="human")
    assert replace_characters(chain, RULES).text == "3 * 4 - 2"


def test_what_is_written_is_not_looked_through_again() -> None:
    chain = Chain.from_text("q", 0, "ab", source="human")
    assert replace_characters(chain, {"a": "b", "b": "a"}).text == "ba"


@given(st.text("3×÷… {a", max_size=12), st.lists(st.integers(0, 40), max_size=6), st.booleans())
def test_any_cut_of_any_text(text: str, cuts: list[int], seen: bool) -> None:
    data = text.encode()
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    tokens = [data[a:b] for a, b in pairwise(places)]
    steps = [[(token, -0.5), (b"x" + TIMES, -1.5), (END, -3.0)] for token in tokens] if seen else []
    plain = replace_characters(Chain.from_tokens("q", 0, tokens, steps), RULES)
    wanted = text
    for key, value in RULES.items():
        wanted = wanted.replace(key, value)
    assert plain.text == wanted and b"".join(plain.tokens) == plain.content
    assert all(plain.content[a:b] == token for (a, b), token in zip(plain.spans, plain.tokens, strict=True))
    assert len(plain.candidates) == (len(plain.tokens) if seen else 0)
    for token, step in zip(plain.tokens, plain.candidates, strict=False):
        assert token in [what for what, _ in step] and mass(step) <= 1 + 1e-9
        assert len({what for what, _ in step}) == len(step)


def test_a_hole_between_tokens_is_rewritten_and_tokens_stay_in_place() -> None:
    whole = Chain.from_tokens("q", 0, [b"3", b" ", TIMES, b" 4"])
    holed = replace(whole, tokens=(b"3", b" 4"), spans=((0, 1), (4, 6)))
    plain = replace_characters(holed, RULES)
    assert plain.text == "3 * 4" and plain.spans == ((0, 1), (3, 5)) and plain.tokens == (b"3", b" 4")
