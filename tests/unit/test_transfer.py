"""Targets have the tokenizer's ids and the teacher's probability; what has no token counts as missing."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import tokenizers as library
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill import tokenization
from potstill.alignment import RULES, completions, dtw, transfer
from potstill.errors import UserError
from potstill.records import END, Candidate, Chain, End, StopReason, Target
from potstill.tokenization import Tokenizer
from tools.toy_models.tokenizer_training import train_bpe, train_unigram

TEXTS = ["She earns $12.50 for 3 hours.\nSo 4 * 12 = 48.", "Weng has 7 apples, naïve café", "The answer is 10 so"] * 4


@cache
def small(kind: str) -> Tokenizer:
    return train_bpe(TEXTS, 330) if kind == "bpe" else train_unigram(TEXTS, 110)


@cache
def real(folder: Path, name: str) -> Tokenizer:
    return tokenization.load_tokenizer(folder / "tokenizers" / name)


def certain(*tokens: bytes, stop: StopReason = "end", last: list[Candidate] | None = None) -> Chain:
    steps: list[list[Candidate]] = [[(token, math.log(0.75))] for token in tokens]
    return Chain.from_tokens("q", 0, list(tokens), steps + ([last] if last else []), stop)


def logs(step: dict[bytes | End, float]) -> list[Candidate]:
    return [(what, math.log(probability)) for what, probability in step.items()]


def texts(target: Target, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.token_bytes(token).decode() for token in target.ids]


def test_one_hot_is_certain_of_everything() -> None:
    student = small("unigram")
    human = Chain.from_text("q", 0, "So 4 *", source="human")
    for target in (transfer(certain(b"So", b" 4", b" *"), student, "one-hot"), transfer(human, student, "span")):
        assert target.kinds == ("hard",) * (len(target) - 1) + ("end",)
        assert [target.distribution(position) for position in range(len(target))] == [
            {token: 1.0} for token in target.ids
        ]
        assert target.ids[-1] == student.eos


def test_span_maps_candidates_in_their_context() -> None:
    student = small("unigram")
    step = logs({b" answer": 0.5, b" so": 0.2, b"zz": 0.1, b" wins": 0.1, END: 0.05})
    first = logs({b"The": 0.6, b"So": 0.3, b" So": 0.05, b"\xff": 0.05})
    target = transfer(Chain.from_tokens("q", 0, [b"The", b" answer"], [first, step]), student, "span")
    assert target.kinds == ("same", "same", "end") and texts(target, student) == [" The", " answer", ""]
    so = student.vocabulary.find(b" So")
    assert target.distribution(0) == pytest.approx({target.ids[0]: 0.6, so: 0.35}), "both are ▁So at the start"
    found = target.distribution(1)
    assert found[target.ids[1]] == pytest.approx(0.5) and found[student.eos] == pytest.approx(0.05)
    assert student.vocabulary.find(b" so") in found and target.tail(1) == pytest.approx(0.25)


def test_span_is_hard_where_tokens_differ() -> None:
    student = small("unigram")
    target = transfer(certain(b"The ans", b"wer", b"\n", b" so"), student, "span")
    assert texts(target, student) == [" The", " answer", " so", ""]
    assert target.kinds == ("hard", "hard", "hard", "end"), "the newline decides what ▁so is too"


def test_the_end() -> None:
    student = small("unigram")
    last: list[Candidate] = [(END, math.log(0.5)), (b" so", math.log(0.25)), (b"\nQ", math.log(0.125))]
    target = transfer(certain(b"The", last=last), student, "span")
    so = student.vocabulary.find(b" so")
    assert target.kind(1) == "end" and target.distribution(1) == pytest.approx({student.eos: 0.5, so: 0.25})
    hard = {student.eos: 1.0}
    assert transfer(certain(b"The"), student, "span").distribution(1) == hard, "nobody said how likely the end was"
    assert transfer(certain(b"The", b"\n", last=last), student, "span").distribution(1) == hard, "so does the newline"
    assert transfer(certain(b"The", last=last, stop="cut"), student, "span").distribution(1) == hard, (
        "it was we who stopped"
    )
    assert transfer(certain(b"The", last=last), student, "paper").distribution(1) == hard
    assert len(transfer(certain(b"The", stop="length"), student)) == 1, "a text out of budget has no end"


def test_probabilities_never_exceed_one_and_the_unlikely_is_tail() -> None:
    student = small("unigram")
    step: list[Candidate] = [(b"The", 1e-4), (b"So", math.log(1e-4)), (b"She", -9999.0)]
    target = transfer(Chain.from_tokens("q", 0, [b"The"], [step]), student, "span")
    assert sum(target.distribution(0).values()) <= 1.0 and len(target.distribution(0)) == 2
    missing: list[Candidate] = [(b"So", math.log(0.5))]
    target = transfer(Chain.from_tokens("q", 0, [b"The"], [missing]), student, "span")
    own = {student.vocabulary.find(b" So"): 0.5}
    assert target.distribution(0) == pytest.approx(own), "how likely The was is unknown: tail"
    nothing: list[Candidate] = [(b"xyz", math.log(0.5))]
    assert transfer(Chain.from_tokens("q", 0, [b"The"], [nothing]), student, "span").kinds == ("hard", "end")


def test_a_chain_of_nothing_and_of_white_space() -> None:
    for student in (small("bpe"), small("unigram")):
        for rule in RULES:
            target = transfer(Chain.from_text("q", 0, "", source="human"), student, rule)
            assert (target.ids, target.kinds) == ((student.eos,), ("end",))
            assert target.distribution(0) == {student.eos: 1.0}
            transfer(certain(b" ", b"\n"), student, rule)
    assert transfer(certain(b" ", b"\n"), small("unigram")).ids == (1,)
    empty = Chain.from_tokens("q", 0, [], [[(END, math.log(0.5)), (b"So", math.log(0.25))]])
    target = transfer(empty, small("unigram"), "span")
    assert target.distribution(0) == pytest.approx({1: 0.5, small("unigram").vocabulary.find(b" So"): 0.25})


def test_names_of_special_tokens_are_text() -> None:
    for student, name in ((small("bpe"), "<|endoftext|>"), (small("unigram"), "</s>")):
        target = transfer(certain(b"The ", name.encode(), b" so"), student)
        assert target.ids.count(student.eos) == 1 == (target.ids[-1] == student.eos)


def test_bytes_that_are_no_text() -> None:
    chain = certain(b"So", b"\xff", b"\xe2\x82", b" so", "é".encode())
    target = transfer(chain, small("bpe"), "span")
    assert target.ids[:-1] == tuple(small("bpe").encode("So\ufffd\ufffd soé").ids)
    assert target.kinds[:2] == ("same", "hard")
    assert target.kinds[-3:-1] == ("same", "same"), "later tokens keep their places"


def test_errors() -> None:
    chain = certain(b"So")
    with pytest.raises(UserError) as error:
        transfer(chain, small("bpe"), "words")
    assert (error.value.code, error.value.found) == ("E-align-unknown-rule", "words")
    for rule in ("span", "paper", "text"):
        with pytest.raises(UserError, match="E-align-not-a-log-probability") as error:
            transfer(Chain.from_tokens("q", 0, [b"So"], [[(b"So", 0.6), (b" 4", 0.3)]]), small("bpe"), rule)
        assert error.value.where == "chain ('q', 'teacher', 0) step 0"
    with pytest.raises(UserError, match="E-align-not-a-number"):
        transfer(Chain.from_tokens("q", 0, [b"So"], [[(b"So", math.nan)]]), small("bpe"))
    with pytest.raises(UserError, match="E-align-unused-argument"):
        transfer(chain, small("bpe"), "span", completions=completions([], small("bpe")))
    endless = library.Tokenizer(library.models.BPE({"a": 0}, []))
    with pytest.raises(UserError, match="E-tokenizer-no-eos"):
        transfer(chain, endless, "span")


def test_the_same_tokenizer_on_both_sides_is_the_identity() -> None:
    student = small("bpe")
    text = "Weng has 7 apples, naïve 日 café\n\n4 * 12"
    tokens = student.split(student.encode(text).ids)
    steps: list[list[Candidate]] = [[(token, math.log(0.6)), (b" has", math.log(0.3))] for token in tokens]
    target = transfer(Chain.from_tokens("q", 0, tokens, [*steps, [(END, -0.5)]]), student, "span")
    assert set(target.kinds[:-1]) == {"same"} and target.distribution(len(tokens)) == {student.eos: math.exp(-0.5)}
    has = student.vocabulary.find(b" has")
    for position, token in enumerate(target.ids[:-1]):
        assert target.distribution(position) == pytest.approx({has: 0.9} if token == has else {token: 0.6, has: 0.3})


def test_paper_reproduces_the_authors_example(data: Path) -> None:
    golden = json.loads((data / "golden" / "codex_to_t5_dtw.json").read_text())
    tokens = [token.encode() for token in golden["gpt_tokens"]]
    steps = [logs({token: 0.9, b" the": 0.05, b"zzz": 0.02}) for token in tokens]
    student = real(data, "t5")
    target = transfer(Chain.from_tokens("q", 0, tokens, steps), student, "paper")
    assert texts(target, student)[:-1] == [token.replace("▁", " ") for token in golden["t5_tokens"]]
    assert [kind == "same" for kind in target.kinds[:-1]] == golden["soft"]
    the = student.vocabulary.find(b" the")
    for position, soft in enumerate(golden["soft"]):
        wanted = {target.ids[position]: 0.9, the: 0.05} if soft else {target.ids[position]: 1.0}
        assert target.distribution(position) == pytest.approx(wanted), "raw, not renormalised"
    spans = transfer(Chain.from_tokens("q", 0, tokens, steps), student, "span")
    assert spans.ids == target.ids and spans.kinds.count("same") >= golden["n_soft"]


def test_span_to_t5_at_the_start_of_lines(data: Path) -> None:
    student = real(data, "t5")
    target = transfer(certain(b"She", b" earned", b"\n", b"50", b" minutes", b"."), student, "span")
    assert texts(target, student) == [" She", " earned", " 50", " minutes", ".", ""]
    assert target.kinds == ("same", "same", "hard", "same", "same", "end")


PIECES = st.one_of(
    st.binary(max_size=3),
    st.text(max_size=4).map(str.encode),
    st.sampled_from(
        [b" ", b"\n", b"\r\n", b"The", b" so", b" 12", b"1", b"</s>", b"<|endoftext|>", b"\xc2\xbd", b"\xe2\x96"]
    ),
)


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    tokens = draw(st.lists(PIECES, max_size=10))
    stop = draw(st.sampled_from(["end", "length", "cut"]))
    steps = []
    for token in [*tokens, END] if draw(st.booleans()) else tokens:
        others = draw(st.lists(st.one_of(PIECES, st.just(END)), max_size=4))
        mass = draw(st.floats(0.1, 1.0)) / (len(others) + 1)
        steps.append([(what, math.log(mass)) for what in [token, *others]])
    return Chain.from_tokens("q", 0, tokens, steps if draw(st.booleans()) else [], stop)


def check(chain: Chain, student: Tokenizer, rule: str) -> None:
    target = transfer(chain, student, rule)
    own = student.encode(chain.content.decode("utf-8", "replace")).ids
    assert list(target.ids) == own + [student.eos] * (chain.stop != "length"), "the tokenizer's own ids"
    assert len(target.offsets) == len(target.kinds) + 1 == len(target) + 1
    masses = [math.fsum(math.exp(value) for _, value in step) for step in chain.candidates]
    for position, kind in enumerate(target.kinds):
        row = target.distribution(position)
        assert len(row) == target.offsets[position + 1] - target.offsets[position], "no token twice"
        assert all(0 < p <= 1 and 0 <= token < student.size for token, p in row.items())
        assert sum(row.values()) + target.tail(position) == pytest.approx(1.0)
        assert (kind == "end") == (position == len(own))
        if kind == "hard":
            assert row == {target.ids[position]: 1.0}
        elif row != {target.ids[position]: 1.0}:
            assert rule != "one-hot"
            # `text` speaks under a condition (the pieces so far), so that its mass is no step's: see test_text_rule.
            assert rule == "text" or any(sum(row.values()) <= mass + 1e-9 for mass in masses), "mass in, mass out"


@settings(max_examples=150, deadline=None)
@given(chains(), st.sampled_from(RULES))
def test_any_chain(chain: Chain, rule: str) -> None:
    for kind in ("bpe", "unigram"):
        check(chain, small(kind), rule)


@pytest.mark.parametrize("name", ["t5", "mistral", "cl100k_base"])
def test_any_chain_under_real_tokenizers(data: Path, name: str) -> None:
    @settings(max_examples=100, deadline=None)
    @given(chains(), st.sampled_from(RULES))
    def any_chain(chain: Chain, rule: str) -> None:
        check(chain, real(data, name), rule)

    any_chain()


def test_any_fast_tokenizer_will_do(data: Path) -> None:
    from transformers import AutoTokenizer

    folder = data / "tokenizers" / "t5"
    chain = certain(b"She", b" earned", b" $", b"12", b".", last=[(END, -0.1)])
    wanted = transfer(chain, real(data, "t5"))
    assert transfer(chain, library.Tokenizer.from_file(str(folder / "tokenizer.json"))) == wanted
    assert transfer(chain, AutoTokenizer.from_pretrained(folder)) == wanted


def test_an_invalid_byte_misaligns_nothing_after_it(data: Path) -> None:
    teacher, student = real(data, "cl100k_base"), real(data, "t5")
    text = "So she earned 12 dollars for every hour of the day. " * 40
    tokens = [b"\xff", b"\xf0\x9f", *teacher.split(teacher.encode(text).ids)]
    target = transfer(certain(*tokens), student, "span")
    clean = transfer(certain(*tokens[2:]), student, "span")
    assert target.kinds[-400:] == clean.kinds[-400:] and clean.kinds.count("same") > 0.9 * len(clean)


WRONG_TYPES = {
    "a.transfer('So', bpe)": "E-align-not-a-chain",
    "a.completions(['So'], bpe)": "E-align-not-a-chain",
    "a.transfer(chain, bpe, completions=[chain])": "E-align-not-completions",
    "a.transfer(chain, 't5-small')": "E-tokenizer-not-fast",
    "a.spans([0, 2, 4], [(0, 4)])": "E-align-offsets",
    "a.spans([(0.0, 4.0)], [(0, 4)])": "E-align-offsets",
    "a.align_pieces(['4'], [b'4'])": "E-align-text-for-bytes",
    "a.dtw(['4'], [b'4'])": "E-align-not-strings",
    "a.dtw('4', ['4'])": "E-align-not-strings",
    "bpe.encode(b'So')": "E-tokenizer-not-text",
}


def test_wrong_types_get_a_message() -> None:
    """In a process of its own: here the type hints are checked before any message."""
    code = f"""
import potstill.alignment as a
from potstill import errors, records
from tools.toy_models.tokenizer_training import train_bpe
chain, bpe = records.Chain.from_tokens("q", 0, [b"So"]), train_bpe(["So"], 260)
for call in {list(WRONG_TYPES)!r}:
    try:
        print(eval(call))
    except errors.UserError as error:
        print(error.code)
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == list(WRONG_TYPES.values())


def test_tensors_are_the_inputs_of_the_loss() -> None:
    import torch

    from potstill.losses import sparse_kl

    rows: tuple[dict[int, float], ...] = ({7: 0.25, 5: 0.5, 6: 0.125}, {3: 1.0})
    target = Target((5, 3), (0, 3, 4), (7, 5, 6, 3), (0.25, 0.5, 0.125, 1.0), ("same", "hard"))
    ids, probabilities = target.tensors(k=2)
    assert ids.tolist() == [[5, 7], [3, 0]] and probabilities.tolist() == [[0.5, 0.25], [1.0, 0.0]]
    assert (ids.dtype, probabilities.dtype) == (torch.int64, torch.float32)
    ids, probabilities = target.tensors()
    for position, row in enumerate(rows):
        pairs = zip(ids[position].tolist(), probabilities[position].tolist(), strict=True)
        assert {token: p for token, p in pairs if p > 0} == row
    assert target.tensors(k=8)[0].shape == (2, 8) and Target((), (0,), (), (), ()).tensors(k=8)[0].shape == (0, 8)
    assert sparse_kl(torch.randn(2, 4), torch.randn(9, 4), *target.tensors(k=8)).shape == (2,)


def test_reprs_are_short(data: Path) -> None:
    student = real(data, "t5")
    chain = certain(*[b" so"] * 400)
    for value in (
        student,
        student.encoder,
        student.vocabulary,
        student.encode(chain.text),
        dtw(["a"] * 99, ["a"] * 99),
        chain,
        transfer(chain, student),
        completions([chain], student),
    ):
        assert len(repr(value)) < 180
