"""The rule `text` against its definition, on a finite language whose truth is known, and in its corner cases."""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import oracle
import text_rule_definition
from potstill import tokenization
from potstill.alignment.cross_tokenizer import transfer
from potstill.alignment.text_rule_completions import Completions, completions
from potstill.errors import UserError
from potstill.records import END, Candidate, Chain, Target
from potstill.tokenization import Tokenizer
from tools.toy_models.tokenizer_training import train_bpe, train_unigram

TEXTS = ["She earns $12.50 for 3 hours.\nSo 4 * 12 = 48.", "Weng has 7 apples, naïve café", "The answer is 10 so"] * 4

EXAMPLES = int(os.environ.get("POTSTILL_EXAMPLES", "40"))


@cache
def small(kind: str) -> Tokenizer:
    return train_bpe(TEXTS, 330) if kind == "bpe" else train_unigram(TEXTS, 110)


@pytest.fixture
def unpruned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left out for speed, so that the two agree to the last digit. Both use the same completions."""
    monkeypatch.setattr("potstill.alignment.text_rule.MIN_BRANCH_PROBABILITY", 0.0)
    monkeypatch.setattr("potstill.alignment.text_rule.MIN_OPEN_PROBABILITY", 0.0)
    monkeypatch.setattr("potstill.alignment.text_rule.MIN_GUESS_PROBABILITY", 0.0)
    monkeypatch.setattr("potstill.alignment.text_rule.COMMON_PROBABILITY", 0.0)
    monkeypatch.setattr("potstill.alignment.text_rule.MIN_SHARE", 0.0)
    monkeypatch.setattr("potstill.alignment.text_rule.MIN_TARGET_PROBABILITY", 0.0)


def agree(chain: Chain, student: Tokenizer, run=None, teacher: Tokenizer | None = None) -> Target:
    target = transfer(chain, student, "text", run, teacher)
    wanted = text_rule_definition.distributions(chain, student, run, teacher)
    for position, row in enumerate(wanted):
        found = target.distribution(position)
        assert set(found) == set(row or {target.ids[position]}), (position, found, row)
        assert found == pytest.approx(row or {target.ids[position]: 1.0}, abs=1e-9), position
    return target


TOKENS = b"So| 4| |1|2|0|.|\n| so|apples| The| answer| is|s|7 |  | 1|, |\xc3\xa9|\xc3|\xff".split(b"|")
PIECES = st.sampled_from(TOKENS)


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
            shown = list(dict.fromkeys([token, *others]))[: draw(st.integers(1, 4))]
            mass = [draw(st.sampled_from([0.5, 0.2, 0.1])) for _ in shown]
            total = sum(mass) * draw(st.sampled_from([1.0, 1.25]))
            rows.append([(what, math.log(p / total)) for what, p in zip(shown, mass, strict=True)])
        stop = draw(st.sampled_from(["end", "cut", "length"]))
        made.append(Chain.from_tokens(draw(st.sampled_from(["p", "q"])), index, tokens, rows, stop))
    return made


@pytest.mark.usefixtures("unpruned")
@settings(max_examples=EXAMPLES, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(runs(), st.booleans(), st.booleans())
def test_the_rule_is_its_definition(chains: list[Chain], known: bool, teacher: bool) -> None:
    for kind, other in (("unigram", "bpe"), ("bpe", "unigram")):
        student = small(kind)
        run = completions(chains, student) if known else None
        for chain in chains:
            agree(chain, student, run, small(other) if teacher and kind == "unigram" else None)


@cache
def world(texts: int = 150) -> tuple[list[oracle.AnswerTexts], Tokenizer, Tokenizer]:
    """A small language, a teacher's byte-level tokenizer and a student's Unigram one, both trained on it."""
    language = oracle.make(seed=5, questions=2, texts=texts)
    spoken = [text for answers in language for text in answers.texts]
    return language, train_bpe(spoken, 600), train_unigram(spoken, 400)


def mean_distance(truth: oracle.Oracle, chains: list[tuple[int, int, Chain]], rule: str, options: dict) -> float:
    found = []
    for question, text_id, chain in chains:
        target = transfer(chain, truth.student, rule, **options)
        rows = truth.exact(question, text_id)
        assert len(rows) == len(target), "the student's tokens and its end"
        found += [
            oracle.variation(target.distribution(position), row, truth.unigram) for position, row in enumerate(rows)
        ]
    return sum(found) / len(found)


def drawn(truth: oracle.Oracle, k: int | None, n: int) -> list[tuple[int, int, Chain]]:
    return [
        (question, text_id, truth.chain(question, text_id, index, k))
        for question, answers in enumerate(truth.language)
        for index, text_id in enumerate(oracle.sampled(answers, n, question))
    ]


def test_the_same_tokenizer_on_both_sides_is_the_identity() -> None:
    language, teacher, student = world()
    for tokenizer in (teacher, student):
        truth = oracle.Oracle(language, tokenizer, tokenizer)
        for question, text_id, chain in drawn(truth, None, 3):
            target = transfer(chain, tokenizer, teacher=tokenizer)
            assert set(target.kinds) == {"same", "end"}
            for position, row in enumerate(truth.exact(question, text_id)):
                assert target.distribution(position) == pytest.approx(row)


def test_what_is_shown_and_known_whole_is_exact() -> None:
    """Every outcome shown, every text of the language among the chains, and a student that tells all texts apart."""
    language, teacher, _ = world(60)
    student = train_bpe(list(language[1].texts), 340)
    truth = oracle.Oracle(language, teacher, student)
    every = [truth.chain(0, text_id, text_id, None) for text_id in range(len(truth.language[0].texts))]
    options = {"completions": completions(every, student), "teacher": teacher}
    pieces = 0
    for text_id, chain in enumerate(every[:20]):
        target = transfer(chain, student, **options)
        pieces += target.kinds.count("split") + target.kinds.count("mixed")
        for position, row in enumerate(truth.exact(0, text_id)):
            assert oracle.variation(target.distribution(position), row, truth.unigram) < 0.01, (text_id, position)
    assert pieces > 100, "the two do cut differently"


def test_text_is_nearer_to_the_truth_than_the_other_rules() -> None:
    language, teacher, student = world()
    truth = oracle.Oracle(language, teacher, student)
    for k in (1, 5, None):
        chains = drawn(truth, k, 8)
        run = completions([chain for _, _, chain in chains], student)
        text = mean_distance(truth, chains, "text", {"completions": run, "teacher": teacher})
        bytes_only = mean_distance(truth, chains, "text", {"completions": run})
        for other in ("span", "paper", "one-hot"):
            assert text < mean_distance(truth, chains, other, {})
        assert bytes_only < mean_distance(truth, chains, "span", {})


@pytest.mark.parametrize("pair", [("p50k_base", "t5"), ("gpt2", "mistral"), ("t5", "cl100k_base")])
def test_text_is_nearer_between_real_tokenizers(data: Path, pair: tuple[str, str]) -> None:
    teacher, student = (tokenization.load_tokenizer(data / "tokenizers" / name) for name in pair)
    truth = oracle.Oracle(oracle.make(seed=5, questions=1, texts=150), teacher, student)
    chains = drawn(truth, 5, 8)
    options = {"completions": completions([chain for _, _, chain in chains], student), "teacher": teacher}
    text = mean_distance(truth, chains, "text", options)
    assert text < 0.6 * mean_distance(truth, chains, "span", {}), "at least 40 % of the error of spans is gone"


@pytest.mark.parametrize("pair", [("p50k_base", "t5"), ("cl100k_base", "t5")])
def test_most_of_the_gap_is_closed_where_numbers_may_be_any_of_many(data: Path, pair: tuple[str, str]) -> None:
    teacher, student = (tokenization.load_tokenizer(data / "tokenizers" / name) for name in pair)
    truth = oracle.Oracle(oracle.make(seed=3, questions=1, texts=3000, language="shop"), teacher, student)
    chains = drawn(truth, 5, 60)
    options = {"completions": completions([chain for _, _, chain in chains], student), "teacher": teacher}
    measured, ceiling = chains[:6], []
    for question, text_id, _ in measured:
        rows = zip(truth.ceiling(question, text_id, 5), truth.exact(question, text_id), strict=True)
        ceiling += [oracle.variation(row, exact, truth.unigram) for row, exact in rows]
    paper, text = mean_distance(truth, measured, "paper", {}), mean_distance(truth, measured, "text", options)
    assert (paper - text) / (paper - sum(ceiling) / len(ceiling)) > 0.75


def test_what_was_not_shown_continues_as_in_other_chains() -> None:
    """Half of a step is unseen. In other chains, 15 and 47 follow ` `, and the student writes ` 47` as ` 4` and `7`."""
    pieces = {piece: index for index, piece in enumerate([*" 12457", " 4", "</s>"])}
    student = tokenizers.Tokenizer(tokenizers.models.BPE(pieces, [(" ", "4")]))
    student.add_special_tokens(["</s>"])
    names = {index: piece for piece, index in pieces.items()}

    def distributions(completions: Completions | None) -> list[dict[str, float]]:
        target = transfer(chain, student, completions=completions)
        return [{names[t]: p for t, p in target.distribution(position).items()} for position in range(3)]

    chain = Chain.from_tokens("q", 0, [b" ", b"12"], [logs({b" ": 1.0}), logs({b"12": 0.5})])
    others = [Chain.from_tokens("q", 1, [b" ", b"15"]), Chain.from_tokens("q", 2, [b" ", b"47"])]
    # The step after the token ` ` begins after the first position, so guesses vote there. Behind ` ` the guess 47 is
    # impossible, and the guess 15 is tail; behind ` 1` the guess 15 is still possible.
    assert distributions(completions([chain, *others], student)) == [
        pytest.approx({" ": 0.75, " 4": 0.25}),
        pytest.approx({"1": 0.5 / 0.75}),
        pytest.approx({"2": 0.5 / 0.75}),
    ]
    assert distributions(None)[:2] == [pytest.approx({" ": 1.0}), pytest.approx({"1": 0.5})]


def logs(step: dict) -> list[Candidate]:
    return [(what, math.log(p)) for what, p in step.items()]


def readable(target: Target, position: int, tokenizer: Tokenizer) -> dict[str, float]:
    row = target.distribution(position)
    return {"END" if t == tokenizer.eos else tokenizer.token_bytes(t).decode(): round(p, 3) for t, p in row.items()}


def test_kinds() -> None:
    student = small("unigram")
    tokens = [b"She", b" ea", b"rns", b" answer", b"\n", b"12 so"]
    target = transfer(Chain.from_tokens("q", 0, tokens, [logs({token: 0.9}) for token in tokens]), student)
    shown = [student.token_bytes(token).decode() for token in target.ids]
    assert shown == [" She", " earns", " answer", " 12", " so", ""]
    assert target.kinds == ("same", "merged", "same", "mixed", "mixed", "end")
    human = transfer(Chain.from_text("q", 0, "She earns", source="human"), student)
    assert human.kinds == ("hard", "hard", "end")


def test_a_merged_piece_has_the_product_of_its_parts() -> None:
    student = small("unigram")
    steps = [logs({b" ea": 0.5, b" so": 0.25}), logs({b"rns": 0.8, b"s": 0.1}), logs({END: 1.0})]
    chain = Chain.from_tokens("q", 0, [b"So", b" ea", b"rns"], [logs({b"So": 1.0}), *steps])
    row = readable(transfer(chain, student, completions=completions([chain], student)), 1, student)
    # 0.5 is ` ea`; what follows it is shown but for a tenth, which is shared out: 0.5 * 0.8 / 0.9.
    assert row[" earns"] == pytest.approx(0.444, abs=1e-3) and row[" so"] == 0.25


def test_earlier_outcomes_that_reach_as_far_have_their_share() -> None:
    student = small("bpe")
    steps = [logs({b"So": 1.0}), logs({b" 1": 0.6, b" 12": 0.4}), logs({b" so": 1.0}), logs({END: 1.0})]
    chain = Chain.from_tokens("q", 0, [b"So", b" 1", b" so"], steps)
    twelve = Chain.from_tokens("q", 1, [b"So", b" 12", b" so"], steps)
    run = completions([chain, twelve], student)
    target = transfer(chain, student, completions=run)
    assert [student.token_bytes(token) for token in target.ids[:4]] == [b"So", b" ", b"1", b" so"]
    # Behind "So 1" the text is 12 in 0.4 of all cases, though no outcome of that step says so.
    assert readable(target, 3, student) == {" so": 0.6, "2": 0.4}


def test_the_end_is_where_sampling_cuts() -> None:
    student = small("unigram")
    tokens = [b"The", b" answer", b" is", b" 10"]
    steps = [logs({token: 1.0}) for token in tokens[:3]]
    steps += [logs({b" 10": 0.7, b"\n": 0.2, END: 0.1}), logs({END: 0.5, b"\nQ": 0.25, b".\n": 0.2})]
    chain = Chain.from_tokens("q", 0, tokens, steps, "cut")
    target = transfer(chain, student)
    assert readable(target, 3, student) == {" 10": 0.7, "END": 0.3}, "a newline ends the text, and so does END"
    assert readable(target, 4, student) == {"END": 0.75, ".": 0.2}, "so it does behind a full stop"
    elsewhere = Chain.from_tokens("q", 0, [b"So", b" 10"], [logs({b"So": 1.0}), logs({b" 10": 0.7, b"\nSo": 0.3})])
    assert "END" not in readable(transfer(elsewhere, student), 1, student), "in other lines a newline is a space"


def test_no_end_inside_a_token_and_none_where_the_budget_ran_out() -> None:
    student = small("bpe")
    steps = [logs({b" 12": 0.6, END: 0.4}), logs({END: 1.0})]
    chain = Chain.from_tokens("q", 0, [b" 12"], steps)
    target = transfer(chain, student)
    assert [student.token_bytes(token) for token in target.ids] == [b" ", b"1", b"2", b""]
    assert readable(target, 0, student)["END"] == pytest.approx(0.4)
    assert "END" not in readable(target, 1, student) and "END" not in readable(target, 2, student)
    cut = Chain.from_tokens("q", 0, [b" 12"], steps[:1], "length")
    assert student.eos not in transfer(cut, student).ids


def test_names_of_special_tokens_are_text() -> None:
    student = small("bpe")
    chain = Chain.from_tokens("q", 0, [b"So"], [logs({b"So": 0.6, b"<|endoftext|>": 0.3, END: 0.1})])
    row = transfer(chain, student, completions=completions([chain], student)).distribution(0)
    assert row[student.eos] == pytest.approx(0.1), "the name is not the end"


def test_what_has_no_piece_is_unknown_not_lost(data: Path) -> None:
    student = tokenization.load_tokenizer(data / "tokenizers" / "t5")
    steps = [logs({b"4": 1.0}), logs({b" \xc3\x97": 0.8, b" *": 0.2}), logs({b" 3": 1.0}), logs({END: 1.0})]
    chain = Chain.from_tokens("q", 0, [b"4", " ×".encode(), b" 3"], steps)
    target = transfer(chain, student, completions=completions([chain], student))
    unknown = student.vocabulary.unk
    assert unknown in target.ids
    position = target.ids.index(unknown)
    assert target.distribution(position)[unknown] == pytest.approx(
        0.8 if student.token_bytes(target.ids[position - 1]) != b" " else 1.0, abs=0.25
    )


def test_the_teachers_tokenizer_rules_ways_out() -> None:
    """` 12` and then ` 3`: a teacher that has the token `123` would not have said `12` before a 3."""
    student, teacher = small("bpe"), train_bpe(["123 12 1"] * 9, 262)
    assert len(teacher.encode("12").ids) == 2 and len(teacher.encode("1").ids) == 1
    chains = [
        Chain.from_tokens(
            "q", 0, [b"So", b" ", b"1"], [logs({b"So": 0.5, b"1": 0.5}), logs({b" ": 1.0}), logs({b"1": 1.0})]
        ),
        Chain.from_tokens("p", 0, [b"12"]),
    ]
    run = completions(chains, student)
    agree(chains[0], student, run, teacher)
    transfer(chains[0], student, completions=run, teacher=teacher)


def test_completions_belong_to_a_tokenizer_and_to_the_rule() -> None:
    chain = Chain.from_tokens("q", 0, [b"So"], [logs({b"So": 1.0})])
    run = completions([chain], small("bpe"))
    with pytest.raises(UserError, match="E-align-other-tokenizer"):
        transfer(chain, small("unigram"), completions=run)
    with pytest.raises(UserError, match="E-align-unused-argument"):
        transfer(chain, small("bpe"), "paper", completions=run)


def test_the_order_of_chains_changes_nothing() -> None:
    language, teacher, student = world()
    chains = [chain for _, _, chain in drawn(oracle.Oracle(language, teacher, student), 5, 4)]
    run = completions(chains, student)
    forth = [transfer(chain, student, completions=run) for chain in chains]
    back = [transfer(chain, student, completions=run) for chain in reversed(chains)]
    assert forth == back[::-1]


def test_completions_need_not_keep_the_chains() -> None:
    """Counted from texts alone, with the chains of one question at a time, as the stage `align` does."""
    language, teacher, student = world()
    chains = [chain for _, _, chain in drawn(oracle.Oracle(language, teacher, student), 5, 4)]
    kept = completions(chains, student)
    unkept = completions((replace(chain, candidates=()) for chain in chains), student, keep=False)
    for question, group in itertools.groupby(chains, key=lambda chain: chain.question):
        own = list(group)
        unkept.set_question(question, own)
        for chain in own:
            assert transfer(chain, student, completions=unkept) == transfer(chain, student, completions=kept)
