"""Chains of many thousand tokens: what must take time in proportion to the length does not read any part of them twice.

Operations are counted, not timed. The results are those of the plain definitions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill import prompts
from potstill.alignment import dtw, rewrite, target_store, time_warping
from potstill.calculator import equations
from potstill.inference.sampling import AnswerDetector, CalculatorDecoding
from potstill.records import END, Chain, Target

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "long_chains.py"
PIECES = ["48/2 = 24", " 3 * 4 = 12", "3 * 4 = <<3*4=12>>12", "<<1+1=2>>2", " so", "×", "é", ".", " ", "\n", "= ", "5 "]
WORDS = ["answer is", "Answer is not", "the answer", " 4", ".", " ", "\n", ":", "is", "Q:", "not ", "an", "swer is 5."]


def chain_of(pieces: Sequence[str], cuts: Sequence[int]) -> Chain:
    """A chain of these pieces with tokens between the cuts, two candidates for each, and a last step."""
    content = "".join(pieces).encode()
    edges = sorted({min(cut, len(content)) for cut in cuts})
    spans = list(pairwise(edges))
    tokens = [content[start:end] for start, end in spans]
    steps = [((token, -0.1), (b"?", -2.5)) for token in tokens] + [((END, -0.1),)]
    return Chain("q", "teacher", 0, content, tuple(tokens), tuple(spans), tuple(steps) if tokens else ())


def apply_one_by_one(chain: Chain, find: Callable[[str], Sequence[equations.Edit]]) -> tuple[Chain, Any]:
    """The definition of `rewrite._apply_edits`: the edits are applied to the whole chain, the last one first."""
    text = chain.content.decode()
    certain: list[tuple[int, int]] = []
    for edit in reversed(find(text)):
        start, end, until = (len(text[:offset].encode()) for offset in (edit.start, edit.end, edit.number_end))
        chain, span = rewrite._apply_edit(chain, start, end, edit.text.encode(), until)
        shift = len(edit.text.encode()) - (end - start)
        certain = [span, *((max(low + shift, span[1]), high + shift) for low, high in certain)]
    return chain, tuple(sorted(span for span in certain if span[1] > span[0]))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12), st.lists(st.integers(0, 90), max_size=25))
def test_edits_of_pieces_are_those_of_the_whole_chain(pieces: list[str], cuts: list[int]) -> None:
    chain = chain_of(pieces, cuts)
    for find in (equations.find_mark_insertions, equations.find_mark_removals):
        assert rewrite._apply_edits(chain, find, ()) == apply_one_by_one(chain, find)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_equations_are_those_outside_every_mark(pieces: list[str]) -> None:
    text = "".join(pieces)
    marks = [match.span() for match in equations.MARK_PATTERN.finditer(text)]
    for equation in equations.find_equations(text):
        equals = text.index("=", equation.start + len(equation.expression))
        assert not any(start < equals < end for start, end in marks)


def counted_tokens(monkeypatch: pytest.MonkeyPatch, sentences: int, change: Callable[[Chain], object]) -> int:
    """The number of tokens of all chains that edits go through."""
    pieces = [" Tom", " has", " 2 +", " 3 =", " 5", " pe×", "ns", "."] * sentences
    tokens = [token.encode() for token in pieces]
    chain = Chain.from_tokens("q", 0, tokens, [[(token, -0.1)] for token in tokens])
    seen: list[int] = []
    splice = rewrite._splice_token

    def counted(chain: Chain, *arguments: Any) -> Chain:
        seen.append(len(chain.tokens) + len(chain.content))
        return splice(chain, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(rewrite, "_splice_token", counted)
        change(chain)
    return sum(seen)


def test_rewriting_takes_time_in_proportion_to_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    for change in (
        lambda chain: rewrite.prepare_chain(chain, {}, "insert"),
        lambda chain: rewrite.prepare_chain(rewrite.prepare_chain(chain, {}, "insert")[0], {}, "remove"),
        lambda chain: rewrite.replace_characters(chain, {"has 2": "had 2"}),
    ):
        short, long = (counted_tokens(monkeypatch, sentences, change) for sentences in (20, 80))
        assert short > 0 and long <= 4 * short


def find_answer(text: str, unit: str) -> int | None:
    """The definition of `AnswerDetector` for a text so far: the end of its answer; None if it may still grow."""
    if unit == "sentence":
        return prompts.find_answer_sentence_end(text)
    end = prompts.find_answer_end(text)
    return end if end is not None and end < len(text) else None


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=25), st.sampled_from(["line", "sentence"]))
def test_an_answer_is_found_as_in_the_whole_text_so_far(words: list[str], unit: Any) -> None:
    detector = AnswerDetector(1, lambda token, position: words[token].encode(), unit)
    ends = "\n" if unit == "line" else "\n :"
    expected = False
    for position, word in enumerate(words):
        so_far = "".join(words[: position + 1])
        expected = expected or (any(end in word for end in ends) and find_answer(so_far, unit) is not None)
        assert detector.add(0, position, position) == expected
    if expected:
        end = next(
            end
            for position in range(len(words))
            if (end := find_answer("".join(words[: position + 1]), unit)) is not None
        )
        length = detector.lengths[0]
        assert length is not None and len("".join(words[:length])) >= end


@pytest.mark.parametrize("unit", ["line", "sentence"])
def test_looking_for_an_answer_reads_a_text_once(unit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    for name in ("find_answer_end", "find_answer_sentence_end"):
        find = getattr(prompts, name)
        monkeypatch.setattr(prompts, name, lambda text, find=find: (read.append(len(text)), find(text))[1])
    words = [b" Tom", b" has", b" 4", b" pens", b".\n", b" The answer is not", b" 7", b".\n"]
    counts = []
    for sentences in (50, 200):
        read.clear()
        detector = AnswerDetector(1, lambda token, position: words[token % len(words)], unit)
        # With lines, "The answer is not 7." is an answer, so the lines that have it are left out.
        tokens = [token for token in range(len(words) * sentences) if unit == "sentence" or token % len(words) < 5]
        for position, token in enumerate(tokens):
            assert not detector.add(0, token, position)
        counts.append(sum(read))
    assert counts[1] <= 4.1 * counts[0]


def test_the_calculator_reads_the_end_of_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    from potstill import calculator
    from potstill.inference import sampling

    read: list[str] = []
    monkeypatch.setattr(calculator, "complete_after_equals", lambda text: read.append(text))
    monkeypatch.setattr(sampling, "_classify_tokens", lambda tokenizer: (frozenset(), None))
    words = [" é".encode(), b" 4", b" *", b" 5", b" ="]
    decoding = CalculatorDecoding(1, None, lambda token, position: words[token % 5])  # type: ignore[arg-type]
    for position in range(5000):
        decoding.add(0, position, position)
    assert len(read) == 1000 and max(map(len, read)) <= sampling.CALCULATOR_BYTES
    assert read[-1][-calculator.LOOKBACK_CHARS - 1 :] == (" é 4 * 5 =" * 100)[-calculator.LOOKBACK_CHARS - 1 :]


@settings(max_examples=100, deadline=None)
@given(*[st.lists(st.text("ab1 ▁", max_size=3), max_size=20)] * 2)
def test_dtw_with_few_stored_cells_is_the_same(teacher: list[str], student: list[str]) -> None:
    whole = dtw(teacher, student)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time_warping, "MAX_STORED_CELLS", 1)
        assert dtw(teacher, student) == whole


def test_dtw_stores_the_square_root_of_the_teachers_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_warping, "MAX_STORED_CELLS", 1 << 10)
    rows: list[int] = []
    fill = time_warping.CostTable.fill

    def counted(self: Any, before: Any, start: int, end: int) -> Any:
        rows.append(end - start)
        return fill(self, before, start, end)

    monkeypatch.setattr(time_warping.CostTable, "fill", counted)
    dtw(["a", "bc"] * 200, ["a", "b", "c"] * 130)
    assert max(rows) == 20 and sum(rows) <= 800


def test_targets_are_packed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """No list of targets exists: a target of 32,000 tokens takes about 10 MiB as Python objects."""
    events: list[str] = []
    pack = target_store._pack_target
    monkeypatch.setattr(target_store, "_pack_target", lambda *arguments: (events.append("packed"), pack(*arguments))[1])
    target = Target((7, 1), (0, 1, 2), (7, 1), (1.0, 1.0), ("hard", "end"))

    def targets() -> Iterator[tuple[Chain, Target]]:
        for index in range(3):
            events.append("made")
            yield Chain.from_text("q", index, "7", source="human"), target

    assert len(target_store.pack_targets(targets())["starts"]) == 4
    assert events == ["made", "packed"] * 3


@pytest.mark.slow
def test_the_benchmark_measures_every_part(data: Path) -> None:
    """`benchmarks/long_chains.py` at 64 tokens."""
    command = [sys.executable, str(BENCHMARK), "--tokens", "64", "--seconds", "100"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "POTSTILL_DATA": str(data)})
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(rows) > 25 and {row["status"] for row in rows} == {"ok"}, done.stdout + done.stderr
