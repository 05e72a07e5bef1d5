"""An odd piece in a vocabulary changes nothing where it is not written; otherwise the rule `text` keeps its definition."""

from __future__ import annotations

import math
import os
import re
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import text_rule_definition
from potstill.alignment.cross_tokenizer import transfer
from potstill.alignment.pre_tokens import get_pre_tokens
from potstill.alignment.text_rule_completions import completions
from potstill.records import END, Chain, End, Target
from potstill.tokenization import Tokenizer
from tokenizer_kinds import KINDS, ONE_WORD, gemma_of, opened, with_added, with_piece

# With a space, a newline, several; white space at its end; a digit and a letter; signs across words; the letter behind
# which words are looked at; a whole stretch of words.
ODD = [
    *("> </", ".\n", ").\n\n", "s a", "a ", "a\n", "2x"),
    *("), ", ".\nSo", "\n\n4", "e ear", "4 * 1", "é b", "  \n", "$1"),
]
EVERY = (*KINDS, ONE_WORD)
EXAMPLES = int(os.environ.get("POTSTILL_EXAMPLES", "20"))
WRITTEN = b"So| 4| |1|2|0|.|\n| so| earns| a|n|s|>| <|/|)|).|,|  |\n\n| *|2x|e|$|$1| She|\xc3\xa9|\xc3|\xff| </|.\n| \n"
TOKENS = st.sampled_from(WRITTEN.split(b"|"))


@cache
def odd(kind: str, piece: str) -> Tokenizer:
    return with_piece(kind, piece)


@st.composite
def runs(draw: st.DrawFn) -> list[Chain]:
    """Some chains of one question and another that often begin alike."""
    made = []
    trunk = draw(st.lists(TOKENS, max_size=5))
    for index in range(draw(st.integers(1, 3))):
        tokens = [*trunk[: draw(st.integers(0, 5))], *draw(st.lists(TOKENS, max_size=6))]
        rows = []
        for token in [*tokens, END] if draw(st.booleans()) else tokens:
            others = draw(st.lists(st.one_of(TOKENS, st.just(END)), max_size=3, unique=True))
            shown = list(dict.fromkeys([token, *others]))
            mass = [draw(st.sampled_from([0.5, 0.2, 0.1])) for _ in shown]
            total = sum(mass) * draw(st.sampled_from([1.0, 1.25]))
            rows.append([(what, math.log(p / total)) for what, p in zip(shown, mass, strict=True)])
        stop = draw(st.sampled_from(["end", "cut", "length"]))
        made.append(Chain.from_tokens(draw(st.sampled_from(["p", "q"])), index, tokens, rows, stop))
    return made


def said(target: Target, tokenizer: Tokenizer) -> list[tuple[str, dict[bytes | End, float]]]:
    """The rows of a target by what their tokens mean: ids of two vocabularies may differ."""
    names: dict[int, bytes | End] = {tokenizer.eos: END}
    for token in {*target.candidate_ids}:
        data = tokenizer.token_bytes(token) or b"unknown" * (token == tokenizer.vocabulary.unk)
        names.setdefault(token, data + b" as byte" * (token in tokenizer.vocabulary.fallback))
    assert len(set(names.values())) == len(names)
    rows = [{names[token]: p for token, p in target.distribution(position).items()} for position in range(len(target))]
    return list(zip(target.kinds, rows, strict=True))


def may_write(chains: list[Chain], tokenizer: Tokenizer, other: Tokenizer) -> bool:
    """Whether a text of these chains, or one that their source might have said, holds a piece that only one of two
    tokenizers has, or ends with the beginning of one and goes on."""
    pieces = [
        {piece for token, piece in enumerate(one.vocabulary.table) if token not in one.vocabulary.fallback}
        for one in (tokenizer, other)
    ]
    new = pieces[1] - pieces[0] - {None}
    dummy = b" " if tokenizer.vocabulary.dummy else b""
    for chain in chains:
        starts = [start for start, _ in chain.spans] + [len(chain.content)]
        texts = [dummy + chain.content]
        for start, step in zip(starts, chain.candidates, strict=False):
            texts += [dummy + chain.content[:start] + what for what, _ in step if not isinstance(what, End)]
        for piece in new:
            if any(piece in text for text in texts):
                return True
            # A newline counts as a space where a beginning is looked at: T5 writes it as one.
            ends = [text.replace(b"\n", b" ") for text in texts[1:]] + texts[1:]
            if any(text.endswith(piece[:n]) for text in ends for n in range(1, len(piece))):
                return True
    return False


@pytest.mark.parametrize("kind", EVERY)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(runs(), st.sampled_from(ODD), st.booleans())
def test_a_piece_that_is_not_written_changes_nothing(kind: str, chains: list[Chain], piece: str, known: bool) -> None:
    before, after = opened(kind), odd(kind, piece)
    assume(not may_write(chains, before, after))
    runs_of = [completions(chains, one) if known else None for one in (before, after)]
    for chain in chains:
        found = [
            said(transfer(chain, one, "text", run), one) for one, run in zip((before, after), runs_of, strict=True)
        ]
        assert found[0] == found[1]


# WordPiece leaves white space out: `so.so` and `so. so` are the same tokens, and the rule counts them as two texts.
@pytest.mark.parametrize("kind", [kind for kind in EVERY if kind != "bert"])
@pytest.mark.usefixtures("unpruned")
@settings(max_examples=EXAMPLES, deadline=None)
@given(runs(), st.sampled_from(ODD), st.booleans(), st.booleans())
def test_the_rule_is_its_definition(kind: str, chains: list[Chain], piece: str, known: bool, teacher: bool) -> None:
    student = odd(kind, piece)
    run = completions(chains, student) if known else None
    theirs = odd("qwen" if kind == "gemma" else "gemma", piece) if teacher else None
    for chain in chains:
        target = transfer(chain, student, "text", run, theirs)
        for position, row in enumerate(text_rule_definition.distributions(chain, student, run, theirs)):
            found = target.distribution(position)
            assert set(found) == set(row or {target.ids[position]}), (position, found, row)
            assert found == pytest.approx(row or {target.ids[position]: 1.0}, abs=1e-9), position


ADDED = st.sampled_from([b"<b>", b" <b>", b"so a", b" so", b" a", b" ", b"4", b"<", b"b>", b" b", b"\n", b" 4 ", b"s"])


# With both flags a space is in no token, so that two texts are the same tokens: the same limit as WordPiece's.
@pytest.mark.parametrize("flags", [{}, {"rstrip": True}, {"lstrip": True}])
@pytest.mark.parametrize("kind", ["gpt2", "qwen", "gemma"])
@pytest.mark.usefixtures("unpruned")
@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(ADDED, min_size=1, max_size=7), ADDED, st.booleans())
def test_added_tokens_that_overlap_a_text(
    kind: str, flags: dict, tokens: list[bytes], other: bytes, known: bool
) -> None:
    student = with_added(kind, **flags)
    chain = Chain.from_tokens(
        "q", 0, tokens, [[(one, -0.5), *([(other, -1.5)] if other != one else [])] for one in tokens]
    )
    run = completions([chain], student) if known else None
    target = transfer(chain, student, "text", run)
    for position, row in enumerate(text_rule_definition.distributions(chain, student, run)):
        assert target.distribution(position) == pytest.approx(row or {target.ids[position]: 1.0}, abs=1e-9), position


@pytest.fixture
def unpruned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left out for speed, so that the two agree to the last digit. Both use the same completions."""
    for name in (
        "MIN_BRANCH_PROBABILITY",
        "MIN_OPEN_PROBABILITY",
        "MIN_SHARE",
        "MIN_GUESS_PROBABILITY",
        "COMMON_PROBABILITY",
    ):
        monkeypatch.setattr(f"potstill.alignment.text_rule.{name}", 0.0)
    monkeypatch.setattr("potstill.alignment.text_rule.MIN_TARGET_PROBABILITY", 0.0)


LINES = [
    "Weng earns $12 an hour for babysitting.",
    "She did 50 minutes > <b> and 12/60 = $0.20 a minute.",
    "naïve café costs 1,250 dollars; 4 - 2 = 2",
]


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("piece", ODD)
def test_where_it_is_written_pre_tokens_further_away_stay_as_they_were(kind: str, piece: str) -> None:
    before, after = opened(kind), odd(kind, piece)
    lead, tail = "Weng did 7 times", "ten minutes for 120 coins."
    content = f"{lead} q{piece}b {tail}"
    tokens = [part.encode() for part in re.findall(r"\s?\S|\s", content)]
    steps = [[(token, math.log(0.6)), (b" for", math.log(0.2)), (b"q", math.log(0.1))] for token in tokens]
    chain = Chain.from_tokens("q", 0, tokens, steps)
    found = [said(transfer(chain, one, "text"), one) for one in (before, after)]
    head, foot = (
        len(before.encode(lead).ids) - 1,
        len(before.encode("a " + tail).ids) - len(before.encode("a ten").ids),
    )
    assert found[0][:head] == found[1][:head]
    assert found[0][-foot:] == found[1][-foot:]


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("piece", ODD)
def test_every_other_position_stays_a_boundary(kind: str, piece: str) -> None:
    changed, original = get_pre_tokens(odd(kind, piece)), get_pre_tokens(opened(kind))
    for line in LINES:
        content = line.encode()
        if piece not in line:
            assert changed.boundaries(content, first=True) == original.boundaries(content, first=True)


@pytest.mark.parametrize("piece", ["> </", "s a", "), x", ".\nSo"])
def test_a_piece_that_is_written_joins_its_pre_tokens(piece: str) -> None:
    """In every kind whose model sees words together; where a pre-tokenizer cuts, the piece is dead."""
    for kind in EVERY:
        tokenizer = odd(kind, piece)
        content = f"q{piece} b".encode()
        spanned = piece.encode() in tokenizer.split(tokenizer.encode(content.decode()).ids)
        assert spanned == (kind in ("llama-2", "mistral", "gemma") or (kind == ONE_WORD and "\n" not in piece)), kind
        space = 1 + piece.index(" " if " " in piece else "\n")
        cut, was = (get_pre_tokens(one).boundaries(content, first=True) for one in (tokenizer, opened(kind)))
        assert (space in cut) == (space in was and not spanned)


def test_gemmas_one_piece_costs_only_the_places_where_it_is(data: Path) -> None:
    """Before, no space behind a visible letter was a boundary for it, and a line was one pre-token."""
    student = gemma_of(data / "tokenizers" / "mistral")
    content = b"She earns 3 > 2 dollars.\nSo 4 <2> </p> now"
    assert b"> </" in student.split(student.encode(content.decode()).ids)
    places = [found.start() + 1 for found in re.finditer(rb"\S(?=\s)", content)]
    across = content.index(b" </p>")
    assert get_pre_tokens(student).boundaries(content, first=True) == [
        position for position in places if position != across
    ]


def test_a_long_line_of_odd_pieces_takes_linear_time() -> None:
    """A stretch of 150,000 bytes and 50,000 doubtful places, decided as one."""
    student = odd("gemma", "> </")
    pre_tokens = get_pre_tokens(student)
    for text in (b"> </b" * 30_000, b"> <" * 50_000, b"a " * 80_000):
        found = pre_tokens.boundaries(text, first=True)
        whole = student.encode(text.decode()).ids
        cut = [text[start:end] for start, end in zip([0, *found], [*found, len(text)], strict=True)]
        assert [token for position, word in enumerate(cut) for token in pre_tokens.ids(word, not position)] == whole
