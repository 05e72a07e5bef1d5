"""The chain filter: each rule drops the chains that it names, in the order of the rules, and no others."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.data import contamination
from potstill.data.chain_filter import ChainFilter, FilterRules, foreign_letter_share

TEXTS = st.lists(st.tuples(st.sampled_from(["a b c d e f g", "a b c d e f h", "x", "y z", "да"]), st.booleans()))


@settings(deadline=None)
@given(TEXTS, st.one_of(st.none(), st.integers(1, 3)), st.booleans())
def test_duplicates_and_the_cap(rows, cap, drop) -> None:
    sieve, seen, kept = ChainFilter(FilterRules(duplicates=drop, max_per_question=cap)), set(), 0
    for text, right in rows:
        expected = (
            "duplicate" if drop and text in seen else "cap" if right and cap is not None and kept >= cap else None
        )
        assert sieve.drop_reason(text, right) == expected
        seen.add(text)
        kept += right and expected is None
    assert sieve.kept == kept


def test_the_first_rule_that_holds_gives_the_reason() -> None:
    rules = FilterRules(near_duplicate_threshold=0.5, max_per_question=1, min_chars=3, max_chars=20, script="latin")
    sieve = ChainFilter(rules)
    assert sieve.drop_reason("ab", True) == sieve.drop_reason("a" * 21, True) == "length"
    assert sieve.drop_reason("да да", True) == "language"
    assert sieve.drop_reason("a b c d e f", False) is None  # wrong, and no reason to drop it
    assert sieve.drop_reason("a b c d e f", True) == "duplicate"
    assert sieve.drop_reason("A b c d e f g", True) is None
    assert sieve.drop_reason("a b c d e f h", True) == "near duplicate"  # two of its three runs of five words
    assert sieve.drop_reason("a b c d e f h", False) == "duplicate"
    assert sieve.drop_reason("one two three", True) == "cap"
    assert ChainFilter(rules, contaminated=True).drop_reason("ab", True) == "contaminated"


def test_a_length_in_tokens_is_counted_by_the_student() -> None:
    rules = FilterRules(min_tokens=2, max_tokens=4)
    sieve = ChainFilter(rules, count_tokens=lambda text: len(text.split()))
    assert [sieve.drop_reason(text, True) for text in ("one", "one two", "1 2 3 4", "1 2 3 4 5")] == [
        "length", None, None, "length"
    ]  # fmt: skip
    assert not FilterRules().counts_tokens and FilterRules(max_tokens=1).counts_tokens


def test_how_much_is_foreign() -> None:
    assert foreign_letter_share("1 + 1 = 2", "latin") == 0 and foreign_letter_share("éa ж", "latin") == pytest.approx(
        1 / 3
    )
    assert foreign_letter_share("答案是四", "cjk") == 0 and foreign_letter_share("naïve", "latin") == 0


def test_overlap_is_with_one_text_not_with_all_together() -> None:
    asked = {"a": "one two three four five six", "b": "seven", "c": "new words only here"}
    held = ["One, two three four!", "three four five six", "SEVEN"]
    assert contamination.overlap_shares(asked, held, 3) == {"a": 0.5, "b": 1.0}
    assert contamination.overlap_shares(asked, [], 3) == {}
