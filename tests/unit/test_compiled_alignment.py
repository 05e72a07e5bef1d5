"""The compiled functions give exactly the results of those that they replace, and say how to get Numba without it."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from potstill.alignment import SpanAlignment, compiled, dtw, spans, time_warping
from potstill.errors import UserError

# Small alphabets and widths, so that ties, equal tokens and common ends are frequent.
TOKENS = st.lists(st.text("ab ▁", max_size=3), max_size=12)
WIDTHS = st.lists(st.integers(1, 4), max_size=12)
OFFSETS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)).map(lambda pair: (pair[0], sum(pair))), max_size=8)


def same(ours: SpanAlignment, theirs: SpanAlignment) -> bool:
    sides = ((ours.teacher, theirs.teacher), (ours.student, theirs.student), (ours.kinds, theirs.kinds))
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in sides)


@given(TOKENS, TOKENS, st.sampled_from([1, 4, 30, 1 << 24]))
def test_dtw_compiled_is_dtw_whatever_is_kept(teacher: list[str], student: list[str], kept: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time_warping, "MAX_STORED_CELLS", kept)
        ours, theirs = compiled.dtw(teacher, student), dtw(teacher, student)
    assert ours == theirs == dtw(teacher, student)


def test_dtw_compiled_counts_beyond_32_bits() -> None:
    teacher, student = ["a" * 60_000] * 150, ["b" * 60_000] * 150
    ours = compiled.dtw(teacher, student)
    assert ours == dtw(teacher, student) and ours.cost == 150 * 60_000
    one_sided = compiled.dtw(teacher[:1], ["b" * 60_000] * 40_000)
    assert one_sided == dtw(teacher[:1], ["b" * 60_000] * 40_000) and one_sided.cost == 40_000 * 60_000 > 2**31


@given(WIDTHS, WIDTHS)
@example([], [])
@example([1, 2], [1])
def test_spans_compiled_are_spans(teacher: list[int], student: list[int]) -> None:
    sides = [list(pairwise(np.cumsum([0, *widths]).tolist())) for widths in (teacher, student)]
    short, _ = sorted(sides, key=lambda side: side[-1][1] if side else 0)
    assert same(compiled.spans(*sides), spans(*sides))
    assert same(compiled.spans(short, short[::1]), spans(short, short))


@given(OFFSETS, OFFSETS, st.booleans())
def test_spans_compiled_are_spans_with_gaps_and_overlaps(teacher, student, ordered) -> None:
    sides = [sorted(side) if ordered else side for side in (teacher, student)]
    try:
        expected: SpanAlignment | str = spans(*sides)
    except UserError as error:
        with pytest.raises(UserError) as raised:
            compiled.spans(*sides)
        assert str(raised.value) == str(error)
    else:
        assert same(compiled.spans(*sides), expected)


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.int64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_any_type_and_layout(dtype: type, order: str) -> None:
    teacher = np.array([(0, 2), (2, 4), (4, 5)], dtype, order=order)
    student = np.array([(0, 4), (4, 5)], dtype, order=order)
    assert same(compiled.spans(teacher, student), spans(teacher, student))
    assert same(compiled.spans(teacher[:2], student[:1]), spans(teacher[:2], student[:1]))
    teacher.flags.writeable = False
    assert same(compiled.spans(teacher, student), spans(teacher, student))


@pytest.mark.parametrize("teacher, student", [("ab", ["a"]), (["a"] * 70_000, ["a"] * 70_000)])
def test_what_dtw_refuses(teacher, student) -> None:
    with pytest.raises(UserError) as expected:
        dtw(teacher, student)
    with pytest.raises(UserError) as raised:
        compiled.dtw(teacher, student)
    assert raised.value.code == expected.value.code


def test_without_numba_one_message_names_the_extra() -> None:
    program = """
import sys
sys.modules["numba"] = None
from potstill.errors import UserError
try:
    from potstill.alignment import compiled
except UserError as error:
    assert error.code == "E-align-no-numba" and "potstill[compiled]" in error.hint, error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_package_does_not_load_numba() -> None:
    subprocess.run(
        [sys.executable, "-c", "import sys, potstill.alignment; assert 'numba' not in sys.modules"], check=True
    )
