"""The displayed pieces of a chain are its text, whole and in order, even where a token cuts a character."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as some

from potstill.records import END, Chain
from potstill.report.question_views import SHADE_BOUNDS, split_into_pieces

token = some.one_of(some.binary(min_size=1, max_size=4), some.text(min_size=1, max_size=3).map(lambda t: t.encode()))


@given(some.lists(some.tuples(token, some.floats(-9, 0)), min_size=1, max_size=12))
def test_the_pieces_make_the_text(drawn: list[tuple[bytes, float]]) -> None:
    chain = Chain.from_tokens("q", 0, [content for content, _ in drawn], [[each, (END, -9.5)] for each in drawn])
    found = split_into_pieces(chain)
    assert "".join(piece.text for piece in found) == chain.text
    told = math.prod(piece.probability for piece in found if piece.probability is not None)
    assert told == pytest.approx(math.exp(sum(value for _, value in drawn)), rel=1e-6)
    assert all(piece.text for piece in found)


def test_a_character_in_two_tokens_is_one_piece_with_the_odds_of_both() -> None:
    cut = [b"\xe2\x82", b"\xac", b"5"]
    chain = Chain.from_tokens("q", 0, cut, [[(each, math.log(0.5)), (b" ", -3.0)] for each in cut])
    assert [(piece.text, round(piece.probability or 0, 2)) for piece in split_into_pieces(chain)] == [
        ("€", 0.25),
        ("5", 0.5),
    ]
    assert [other.text for other in split_into_pieces(chain)[0].candidates] == ["E2 82", "␣"]


def test_shades_deepen_as_the_probability_falls() -> None:
    shares = [0.99, *(bound - 0.01 for bound in SHADE_BOUNDS)]
    chain = Chain.from_tokens("q", 0, [b"a"] * 6, [[(b"a", math.log(share))] for share in shares])
    assert [piece.shade for piece in split_into_pieces(chain)] == [0, 1, 2, 3, 4, 5]


def test_the_end_is_a_piece_where_its_probability_is_known() -> None:
    chain = Chain.from_tokens("q", 0, [b"a"], [[(b"a", -0.1)], [(END, -1.0), (b".", -0.6)]])
    end = split_into_pieces(chain)[-1]
    assert (end.text, [(other.text, other.drawn) for other in end.candidates]) == ("", [(".", False), ("end", True)])


def test_a_text_between_tokens_and_a_chain_without_candidates_stay_whole() -> None:
    spaced = Chain("q", "s", 0, b"a b!", (b"a", b"b"), ((0, 1), (2, 3)), (((b"a", -0.1),), ((b"b", -0.2),)))
    assert [piece.text for piece in split_into_pieces(spaced)] == ["a", " ", "b", "!"]
    assert [piece.text for piece in split_into_pieces(Chain.from_text("q", 0, "a b", source="human"))] == ["a b"]
