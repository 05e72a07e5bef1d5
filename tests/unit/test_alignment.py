"""Dynamic time warping is compared with its definition, and spans with a plain loop."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from potstill.alignment import CHUNK_KINDS, MAX_DTW_CELLS, SpanAlignment, align_pieces, dtw, normalize_text, spans
from potstill.alignment.char_spans import align_spans
from potstill.errors import UserError
from potstill.records import token_spans


def plain_dtw(teacher: list[str], student: list[str]) -> tuple[float, list[tuple[int, ...]]]:
    """The recurrence as it is written."""
    rows, columns = len(teacher), len(student)
    least = [[math.inf] * (columns + 1) for _ in range(rows + 1)]
    least[0][0] = 0.0
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            cost = Levenshtein.distance(teacher[i - 1].replace(" ", ""), student[j - 1].replace("▁", ""))
            least[i][j] = cost + min(least[i - 1][j], least[i][j - 1], least[i - 1][j - 1])
    groups: list[list[int]] = [[] for _ in student]
    i, j = rows, columns
    while i and j:
        groups[j - 1].insert(0, i - 1)
        before = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]  # min takes the first of equals
        i, j = min(before, key=lambda at: least[at[0]][at[1]])
    return least[rows][columns], [tuple(group) for group in groups]


# Few letters: many equal costs, so many ties.
TOKENS = st.lists(st.text("ab ▁é", max_size=3), max_size=9)


@settings(max_examples=400, deadline=None)
@given(TOKENS, TOKENS)
def test_dtw_is_its_definition_ties_included(teacher: list[str], student: list[str]) -> None:
    warping = dtw(teacher, student)
    cost, groups = plain_dtw(teacher, student)
    assert (warping.cost, list(warping.groups)) == (cost, groups)


def test_dtw_reproduces_the_authors_example(data: Path) -> None:
    golden = json.loads((data / "golden" / "codex_to_t5_dtw.json").read_text())
    warping = dtw(golden["gpt_tokens"], golden["t5_tokens"])
    assert warping.cost == golden["dtw_cost"] == 31.0
    assert [list(group) for group in warping.groups] == golden["t5_to_gpt"]


def test_dtw_of_long_strings_does_not_overflow() -> None:
    long = ["a" * 50_000, "b" * 50_000] * 3
    assert dtw(long, [token.swapcase() for token in long]).cost == 6 * 50_000
    assert dtw(["a" * 30_000] * 200, ["b" * 30_000] * 200).cost == 200 * 30_000


def test_dtw_refuses_what_does_not_fit() -> None:
    side = math.isqrt(MAX_DTW_CELLS) + 1
    with pytest.raises(UserError, match="E-align-too-long") as caught:
        dtw(["a"] * side, ["a"] * side)
    assert f"found: {side} x {side} tokens" in str(caught.value)


def shown(chunks: SpanAlignment) -> list[tuple[list[int], list[int], str]]:
    return [(list(chunk.teacher), list(chunk.student), chunk.kind) for chunk in chunks]


def aligned(teacher: list[str], student: list[tuple[int, int]]) -> list[tuple[list[int], list[int], str]]:
    return shown(spans(token_spans([token.encode() for token in teacher]), student))


def test_kinds() -> None:
    assert aligned(["ab", "cd", "e", "f"], [(0, 1), (1, 2), (2, 4), (4, 6)]) == [
        ([0], [0, 1], "split"),
        ([1], [2], "same"),
        ([2, 3], [3], "merged"),
    ]
    assert aligned(["abc", "d"], [(0, 1), (1, 4)]) == [([0, 1], [0, 1], "mixed")]


def test_what_the_student_drops_leads_to_the_next_token() -> None:
    # "so.\n She": T5's `▁She` covers " She"; the newline is nowhere, and decides what `▁She` is too.
    assert aligned(["so", ".", "\n", " She"], [(0, 2), (2, 3), (4, 8)]) == [
        ([0], [0], "same"),
        ([1], [1], "same"),
        ([2, 3], [2], "merged"),
    ]
    # The space in front of a word is dropped inside a token: the token is still the word.
    assert aligned(["so", " She"], [(0, 2), (3, 6)]) == [([0], [0], "same"), ([1], [1], "same")]
    # At the end there is nothing that it leads to.
    assert aligned(["so", "\n"], [(0, 2)]) == [([0], [0], "same"), ([1], [], "mixed")]
    assert aligned(["\n", " "], []) == [([0, 1], [], "mixed")]


def test_a_dummy_space_leads_to_the_token_after_it() -> None:
    assert aligned(["125", " +"], [(0, 0), (0, 3), (3, 5)]) == [([0], [0, 1], "split"), ([1], [2], "same")]


def test_tokens_that_share_a_character_stay_together() -> None:
    # "½" is `1 ⁄ 2` to the student, all at one character of two bytes; the teacher cuts it in two.
    assert shown(spans([(0, 1), (1, 2), (2, 3)], [(0, 2), (0, 2), (0, 2), (2, 3)])) == [
        ([0, 1], [0, 1, 2], "mixed"),
        ([2], [3], "same"),
    ]


def test_a_hole_in_the_teachers_tokens_is_nobodys() -> None:
    assert shown(spans([(0, 2), (5, 7)], [(0, 2), (2, 5), (5, 7)])) == [
        ([0], [0], "same"),
        ([], [1], "mixed"),
        ([1], [2], "same"),
    ]
    assert shown(spans([(0, 2), (5, 7)], [(0, 5), (5, 7)])) == [([0], [0], "mixed"), ([1], [1], "same")]
    assert shown(spans([(2, 4)], [(0, 2), (2, 4), (4, 6)])) == [
        ([], [0], "mixed"),
        ([0], [1], "same"),
        ([], [2], "mixed"),
    ]


def test_nothing_against_nothing() -> None:
    assert shown(spans([], [])) == []
    assert shown(spans([], [(0, 1), (1, 2)])) == [([], [0, 1], "mixed")]
    assert shown(spans(token_spans([b"", b""]), [])) == [([0, 1], [], "mixed")]


Spans = list[tuple[int, int]]


def plain_spans(teacher: Spans, student: Spans) -> list[tuple[list[int], list[int], str]]:
    """Two tokenizations without holes of one text: walk both, cut where both have a border."""
    chunks = []
    i = j = 0
    while i < len(teacher) or j < len(student):
        first, second = i, j
        own = theirs = teacher[i][0] if i < len(teacher) else student[j][0]
        while True:
            if own <= theirs and i < len(teacher) and (own < theirs or own == teacher[first][0]):
                own, i = teacher[i][1], i + 1
            elif j < len(student):
                theirs, j = student[j][1], j + 1
            if own == theirs and i > first and j > second:
                break
        counts = (i - first, j - second)
        kind = {(1, 1): "same"}.get(counts) or ("split" if counts[0] == 1 else "merged" if counts[1] == 1 else "mixed")
        chunks.append((list(range(first, i)), list(range(second, j)), kind))
    return chunks


LENGTHS = st.lists(st.integers(1, 4), min_size=1, max_size=30)


@settings(max_examples=300, deadline=None)
@given(LENGTHS, LENGTHS)
def test_spans_without_holes_are_a_plain_walk(own: list[int], theirs: list[int]) -> None:
    longer, shorter = (own, theirs) if sum(own) > sum(theirs) else (theirs, own)
    if sum(longer) > sum(shorter):
        shorter.append(sum(longer) - sum(shorter))
    teacher, student = (list(token_spans([b"x" * n for n in lengths])) for lengths in (own, theirs))
    assert shown(spans(teacher, student)) == plain_spans(teacher, student)


SPAN = st.builds(lambda start, width: (start, start + width), st.integers(0, 20), st.integers(0, 4))
ANY = st.lists(SPAN, max_size=12)


@settings(max_examples=400, deadline=None)
@given(ANY, ANY, st.booleans())
def test_any_spans_are_cut_into_chunks_that_hold_everything_once(teacher: Spans, student: Spans, ordered: bool) -> None:
    if ordered:
        teacher, student = sorted(teacher), sorted(student)
    chunks = align_spans(*(np.array(side, np.int64).reshape(-1, 2) for side in (teacher, student)))
    assert [token for chunk in chunks for token in chunk.teacher] == list(range(len(teacher)))
    assert [token for chunk in chunks for token in chunk.student] == list(range(len(student)))
    for chunk in chunks:
        assert len(chunk.teacher) + len(chunk.student) > 0
        assert chunk.kind in CHUNK_KINDS
        if chunk.kind == "same":
            assert len(chunk.teacher) == len(chunk.student) == 1
        if ordered and chunk.kind == "same":
            (start, end), (low, high) = teacher[chunk.teacher[0]], student[chunk.student[0]]
            assert set(range(start, end)) & set(range(low, high)), "a match has width"


def test_a_long_text_takes_one_pass() -> None:
    ends = np.arange(200_001)
    teacher = np.stack([ends[:-1], ends[1:]], axis=1)
    student = np.stack([ends[:-1:2], ends[2::2]], axis=1)
    chunks = spans(teacher, student)
    assert len(chunks) == 100_000 and set(chunks.kinds.tolist()) == {CHUNK_KINDS.index("merged")}


def by_bytes(teacher: list[str], student: list[str | None]) -> list[tuple[list[int], list[int], str]]:
    return shown(align_pieces([t.encode() for t in teacher], [None if s is None else s.encode() for s in student]))


def test_the_canonical_text_keeps_the_way_back() -> None:
    found = normalize_text("Ｗeng’s ▁½\r\n é\u0301!".encode() + b"\xff")
    assert found.text == "weng’s1⁄2e!\ufffd"
    data = "Ｗeng’s ▁½\r\n é\u0301!".encode() + b"\xff"
    said = [data[a:b].decode("utf-8", "replace") for a, b in zip(found.starts, found.ends, strict=True)]
    assert said == ["Ｗ", "e", "n", "g", "’", "s", "½", "½", "½", "é", "!", "\ufffd"]


def test_pieces_of_a_lower_casing_student() -> None:
    assert by_bytes(["She", " earns", " $", "12"], [" she", " earn", "s", " $", " 12"]) == [
        ([0], [0], "same"),
        ([1], [1, 2], "split"),
        ([2], [3], "same"),
        ([3], [4], "same"),
    ]


def test_pieces_of_one_side_with_bos_and_of_unknown_tokens() -> None:
    assert by_bytes(["4", " ×", " 3"], ["", " 4", None, " 3"]) == [
        ([0], [0, 1], "split"),
        ([1], [2], "same"),
        ([2], [3], "same"),
    ]
    assert by_bytes(["So", " ", "日", "本", " 3"], [" So", None, " 3"])[-1] == ([4], [2], "same")


def test_a_letter_in_two_tokens_keeps_them_together() -> None:
    euro = "€".encode()
    made = shown(align_pieces([b"1", euro[:1], euro[1:], b"2"], [b"1", euro[:2], euro[2:], b"2"]))
    assert made[0] == ([0], [0], "same") and made[-1] == ([3], [3], "same")
    assert [kind for _, _, kind in made[1:-1]] == ["mixed"]


def test_nothing_is_lost_behind_a_mismatch_however_long_the_text() -> None:
    """A peer never recovers after the first difference: 72 % of pairs at 830 tokens."""
    words = [f" word{i % 83}" for i in range(830)]
    teacher = [word if i % 90 else " ﬁﬂ×" for i, word in enumerate(words)]
    student = [word.upper() if i % 90 else None for i, word in enumerate(words)]
    made = by_bytes(teacher, list(student))
    assert sum(kind == "same" for _, _, kind in made) == 830
    invalid = [t.encode() for t in words]
    invalid[5] = b"\xff\xfe"
    read: list[bytes | None] = [t.encode() for t in words]
    read[5] = "\ufffd\ufffd".encode()
    assert [kind for _, _, kind in shown(align_pieces(invalid, read))] == ["same"] * 830


def test_a_gap_does_not_reach_beyond_itself() -> None:
    same = [f" w{i}" for i in range(50)]
    teacher = [*same, " completely", " different", " here", *same]
    student = [*same, " qqq", *same]
    made = by_bytes(teacher, list(student))
    assert made[:50] == [([i], [i], "same") for i in range(50)]
    assert made[-50:] == [([53 + i], [51 + i], "same") for i in range(50)]


LETTERS = st.text("abAB ½é\u0301\n1", max_size=3)


@settings(max_examples=200, deadline=None)
@given(st.lists(LETTERS, max_size=12), st.lists(st.one_of(LETTERS, st.none()), max_size=12))
def test_any_pieces_lie_in_one_chunk_each(teacher: list[str], student: list[str | None]) -> None:
    made = by_bytes(teacher, student)
    assert [token for own, _, _ in made for token in own] == list(range(len(teacher)))
    assert [token for _, theirs, _ in made for token in theirs] == list(range(len(student)))


@settings(max_examples=200, deadline=None)
@given(LENGTHS, LENGTHS)
def test_pieces_of_one_text_are_its_spans(own: list[int], theirs: list[int]) -> None:
    text = "".join(chr(97 + i * i % 26) for i in range(sum(own)))
    teacher = [text[a:b].encode() for a, b in token_spans([b"x" * n for n in own])]
    student, at = [], 0
    for width in [*theirs, len(text)]:
        student += [text[at : at + width].encode()] if text[at : at + width] else []
        at += width
    assert shown(align_pieces(teacher, student)) == shown(spans(token_spans(teacher), token_spans(student)))


@pytest.mark.parametrize(
    "teacher, code, where",
    [
        ([(0, 0), (0, 2), (2, 4), (0, 0)], "E-align-special-token", "token 3 of the teacher"),
        ([(0, 2), (4, 3)], "E-align-offsets", "token 1 of the teacher"),
        ([(0, 2), (-1, 3)], "E-align-offsets", "token 1 of the teacher"),
    ],
)
def test_wrong_offsets_get_a_message(teacher: list, code: str, where: str) -> None:
    with pytest.raises(UserError) as error:
        spans(teacher, [(0, 2), (2, 4)])
    assert (error.value.code, error.value.where) == (code, where)


def test_reprs_are_short() -> None:
    assert (
        repr(spans([(0, 1)] * 500, [(0, 1)] * 400)) == "SpanAlignment(1 chunks: 500 teacher tokens, 400 student tokens)"
    )
