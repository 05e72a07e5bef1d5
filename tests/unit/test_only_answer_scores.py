"""`part: answer` of a scorer: thoughts between tags have no scores, also where the tags are special tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from potstill.inference.transformers import hard_example
from potstill.models import Example
from potstill.records import END, Chain, Prompt, Turn
from potstill.tokenization import Tokenizer
from potstill.training.scorers import only_answer_scores, transfer_scores
from special_tags import XML, ids_of, with_tags


@pytest.fixture(scope="module")
def special(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return with_tags(tmp_path_factory.mktemp("a") / "special", special=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The same tokens with the same ids, but not special: decoding keeps them as text."""
    return with_tags(tmp_path_factory.mktemp("b") / "plain", special=False)


def row_of(
    tokenizer: Tokenizer, pieces: Sequence[str], *, ended: bool = True, prompt: Sequence[str] = ("Q",)
) -> Example:
    """A text with the distribution {token: 1} at every position."""
    end = tokenizer.eos if ended else None
    return hard_example(ids_of(tokenizer, prompt), ids_of(tokenizer, pieces), end, "a", "own")


def scored(row: Example) -> list[bool]:
    return [sum(row.target.distribution(position).values()) > 0 for position in range(len(row.target))]


def test_special_tags_are_dropped_by_decoding(special: Tokenizer, plain: Tokenizer) -> None:
    """So the tags cannot be found in the text alone."""
    ids = ids_of(special, (*XML, "5"))
    assert special.decode(ids) == "5" and plain.decode(ids) == "<think></think>5"
    assert b"".join(special.spell(ids)) == b"".join(plain.spell(ids)) == b"<think></think>5"


def test_the_thought_and_its_tags_have_no_scores(special: Tokenizer) -> None:
    thought, answer = ("<think>", "2 + 3 = 5", "</think>"), "The answer is 5"
    row = row_of(special, (*thought, answer))
    found = only_answer_scores(row, special)
    count = len(ids_of(special, thought))
    assert scored(found) == [False] * count + [True] * (len(row.target) - count)
    assert found.target.ids == row.target.ids and found.target.kinds == row.target.kinds
    untagged = row_of(special, (answer,))
    assert only_answer_scores(untagged, special) is untagged


def test_channels_are_tags_of_several_special_tokens(special: Tokenizer) -> None:
    thought = ("<|channel|>", "analysis", "<|message|>", "2 + 3", "<|end|>", "<|start|>", "assistant")
    thought += ("<|channel|>", "final", "<|message|>")
    found = scored(only_answer_scores(row_of(special, (*thought, "The answer is 5")), special))
    count = len(ids_of(special, thought))
    assert found == [False] * count + [True] * (len(found) - count)


def test_a_thought_that_the_prompt_opened_and_nothing_closed_has_no_scores(special: Tokenizer) -> None:
    cut = row_of(special, ("2 + 3 is",), ended=False, prompt=("Q", "<think>"))
    assert not any(scored(only_answer_scores(cut, special)))
    closed = row_of(special, ("2 + 3", "</think>", "5"), prompt=("Q", "<think>"))
    assert (
        scored(only_answer_scores(closed, special))
        == [False] * len(ids_of(special, ("2 + 3", "</think>"))) + [True] * 2
    )
    without = row_of(special, ("2 + 3 is",), ended=False, prompt=("Q", *XML))
    assert all(scored(only_answer_scores(without, special))), "the template turned thoughts off"


PIECES = some.lists(some.sampled_from([*XML, "2 + 3", " = 5", "\n\n", "The answer is 5", "é", "<b"]), max_size=8)


@settings(max_examples=200, deadline=None)
@given(PIECES, PIECES, some.booleans())
def test_special_and_plain_tags_are_the_same(
    special: Tokenizer, plain: Tokenizer, prompt: list[str], pieces: list[str], ended: bool
) -> None:
    """The same ids have scores at the same positions, whether decoding drops the tags or not."""
    row = row_of(special, [*pieces, "x"], ended=ended, prompt=prompt)
    assert scored(only_answer_scores(row, special)) == scored(only_answer_scores(row, plain))


def by_letters(seen: list[str], rows: Sequence[tuple[Prompt, Chain]]) -> list[Chain]:
    """A scorer whose tokens are letters, each with probability 1/2."""
    chains = []
    for _, chain in rows:
        seen.append(chain.text)
        pieces = [letter.encode() for letter in chain.text]
        steps = [[(piece, math.log(0.5))] for piece in pieces] + (
            [[(END, math.log(0.5))]] if chain.stop == "end" else []
        )
        made = Chain.from_tokens(chain.question, chain.index, pieces, steps, chain.stop, source=chain.source)
        chains.append(made)
    return chains


def transferred(rows: list[Example], tokenizer: Tokenizer, *, only_answer: bool) -> tuple[list[Example], list[str]]:
    seen: list[str] = []
    prompt = Prompt((Turn("user", "Q"),))
    made = transfer_scores(
        lambda pairs: by_letters(seen, pairs), None, tokenizer, lambda _: prompt, rows, only_answer=only_answer
    )
    return made, seen


def test_a_scorer_with_other_tokens_reads_the_tags_and_the_student_keeps_its_tokens(special: Tokenizer) -> None:
    thought, answer = ("<think>", "2 + 3 = 5", "</think>"), "\n\nThe answer is 5"
    row, alone = row_of(special, (*thought, answer)), row_of(special, (answer,))
    [found, same], seen = transferred([row, alone], special, only_answer=True)
    assert seen == ["<think>2 + 3 = 5</think>\n\nThe answer is 5", "\n\nThe answer is 5"]
    assert found.target.ids == row.target.ids, "with the special tokens that it wrote"
    count = len(ids_of(special, thought))
    rest = [found.target.distribution(p) for p in range(count, len(found.target))]
    assert rest == [same.target.distribution(p) for p in range(len(same.target))] and any(rest)
    assert not any(scored(found)[:count])
    again = only_answer_scores(found, special)
    blank = len(ids_of(special, (*thought, "\n\n")))
    assert not any(scored(again)[:blank]) and scored(again)[blank:] == scored(found)[blank:]


def test_texts_that_end_in_a_thought_keep_their_tokens_without_scores(special: Tokenizer) -> None:
    rows = [
        row_of(special, ("<think>", "2 + 3"), ended=False),
        row_of(special, ("2 + 3",), ended=True, prompt=("Q", "<think>")),
    ]
    found, _ = transferred(rows, special, only_answer=True)
    for row, one in zip(rows, found, strict=True):
        assert one.target.ids == row.target.ids and not any(scored(only_answer_scores(one, special)))


def test_tags_in_the_text_are_scored_as_before(plain: Tokenizer) -> None:
    row = row_of(plain, ("<think>2 + 3</think>", "The answer is 5"))
    one, two = (transferred([row], plain, only_answer=only)[0][0] for only in (True, False))
    assert one == replace(two) and one.target.ids == two.target.ids


# --- The whole text ------------------------------------------------------------------------------------------------------


def test_a_scorer_with_other_tokens_reads_the_tags_of_a_text_that_is_scored_whole(special: Tokenizer) -> None:
    """The thought and the answer are scored; the tags keep the student's tokens, without distributions."""
    pieces = ("<think>", "2 + 3 = 5", "</think>", "\n\nThe answer is 5")
    row, thought, answer = (
        row_of(special, pieces),
        row_of(special, pieces[1:2], ended=False),
        row_of(special, pieces[3:]),
    )
    [found, *same], seen = transferred([row, thought, answer], special, only_answer=False)
    assert seen[0] == "".join(pieces) and found.target.ids == row.target.ids
    tags = [position for position, token in enumerate(row.target.ids) if token in special.vocabulary.thought_tags]
    assert len(tags) == 2 and not any(scored(found)[tag] for tag in tags)
    rest = [found.target.distribution(p) for p in range(len(found.target)) if p not in tags]
    assert rest == [one.target.distribution(p) for one in same for p in range(len(one.target))] and any(rest)


@settings(max_examples=100, deadline=None)
@given(PIECES, some.booleans(), some.booleans())
def test_special_tags_change_only_their_own_positions(
    special: Tokenizer, pieces: list[str], ended: bool, only: bool
) -> None:
    """The ids are those of the text between the tags, and a text without tags is scored as a whole."""
    row = row_of(special, [*pieces, "x"], ended=ended)
    [found], seen = transferred([row], special, only_answer=only)
    assert seen == ["".join([*pieces, "x"])]
    names = special.vocabulary.thought_tags
    for ids in (row.target.ids, found.target.ids):
        assert special.decode(ids) == "".join(piece for piece in [*pieces, "x"] if piece not in XML)
    assert [i for i in found.target.ids if i in names] == [i for i in row.target.ids if i in names]
    assert not any(has for token, has in zip(found.target.ids, scored(found), strict=True) if token in names)
    assert found.target.kinds[-1] == row.target.kinds[-1]
    if not only:
        first = min((p for p, token in enumerate(found.target.ids) if token not in names), default=None)
        assert first is None or any(scored(found))


def test_a_text_of_tags_alone_has_only_the_score_of_its_end(special: Tokenizer) -> None:
    [ended, cut], _ = transferred([row_of(special, XML), row_of(special, XML, ended=False)], special, only_answer=False)
    assert scored(ended) == [False, False, True] and scored(cut) == [False, False]
    assert ended.target.ids[:2] == cut.target.ids
