"""Calculator annotations: inserted into chains where the calculator agrees, removed, and never kept from the teacher."""

from __future__ import annotations

import json
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from potstill import calculator, tokenization
from potstill.alignment.coverage import Coverage
from potstill.alignment.cross_tokenizer import RULES, transfer
from potstill.alignment.rewrite import edit_calculator_annotations, prepare_chain
from potstill.alignment.text_rule_completions import completions
from potstill.calculator import equations
from potstill.calculator.equations import (
    MARK_PATTERN,
    apply_edits,
    find_equations,
    find_mark_insertions,
    find_mark_removals,
    find_wrong_equations,
)
from potstill.data.chain_filter import ChainFilter, FilterRules
from potstill.errors import UserError
from potstill.records import END, Chain
from tools.toy_models.tokenizer_training import train_bpe

WRITTEN = [
    ("48/2 = 24 clips", "48/2 = <<48/2=24>>24 clips"),
    ("48/2=24.", "48/2=<<48/2=24>>24."),
    ("$12 × 2 = $24", "$12 × 2 = $<<12*2=24>>24"),
    ("1,200 / 5 = 240", "1,200 / 5 = <<1200/5=240>>240"),
    ("3 - 5 = -2", "3 - 5 = <<3-5=-2>>-2"),
    ("5/20*100 = 25%", "5/20*100 = <<5/20*100=25>>25%"),
    ("7/2 = 3.50", "7/2 = <<7/2=3.5>>3.50"),
    ("2 + 2 = 4 + 1 = 5", "2 + 2 = 4 + 1 = <<4+1=5>>5"),  # behind the first stands no number alone
    ("3 * 4 = 13", None),
    ("10 / 3 = 3.33", None),
    ("1/2 + 1/4 = 3/4", None),
    ("x = 4", None),
    ("<<3 + 4 = 7", None),  # an open mark is somebody else's
    ("48/2 = <<48/2=24>>24", None),
]


@pytest.mark.parametrize("text, made", WRITTEN)
def test_where_a_mark_belongs(text: str, made: str | None) -> None:
    assert apply_edits(text, find_mark_insertions(text)) == (made or text)


@pytest.mark.parametrize(
    "text, faults",
    [
        ("3 * 4 = 13", 1),
        ("3 * 4 = $13, then 13 + 1 = 14", 1),
        ("3 * 4 = 12.5", 1),
        ("10 / 3 = 3.33", 0),
        ("10 / 3 = 3", 0),
        ("1/2 = 50%", 0),
        ("2 + 2 = 5 - 1", 0),
        ("2x + 3 = 7", 0),
        ("3 apples + 4 = 7", 0),
        ("a - 3 + 4 = 5", 0),
        ("12:00 - 3 = 9", 0),
        ("2 / 1/5 = 10", 0),
        ("3 * 500 = 1.5 thousand", 0),
        ("3 * 4 = 12 1/2", 0),
    ],
)
def test_only_a_plain_sum_is_called_wrong(text: str, faults: int) -> None:
    assert len(find_wrong_equations(text)) == faults


PIECES = ["3", "12", "4.50", "1,200", " ", " ", "+", "*", "/", "×", "-", "=", "=", " = ", "$", "%", "(", ")", ".", ":"]
PIECES += ["<<", ">>", "<", "48/2 = 24", "2 * 3 = $6", "So ", "é", "\n", "<<1+1=2>>2", "x"]
texts = st.lists(st.sampled_from(PIECES), max_size=24).map("".join)


@settings(deadline=None)
@given(texts)
def test_what_was_put_in_comes_out_again_and_nothing_is_put_in_twice(text: str) -> None:
    made = apply_edits(text, find_mark_insertions(text))
    assert apply_edits(made, find_mark_insertions(made)) == made
    if not MARK_PATTERN.search(text):
        assert apply_edits(made, find_mark_removals(made)) == text
    for edit in find_mark_insertions(text):
        opened, result = edit.text[2:-2].split("=")
        assert (
            calculator.complete_after_equals(f"<<{opened}=") == f"{result}>>"
            and calculator.evaluate_expression(opened) is not None
        )


MARKS = st.sampled_from(["insert", "remove"])


@settings(deadline=None)
@given(texts, st.lists(st.integers(0, 60), max_size=12), st.booleans(), st.booleans(), MARKS)
def test_any_cut_of_any_text_stays_in_step(text: str, cuts: list[int], seen: bool, last: bool, marks) -> None:
    data = text.encode()
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    tokens = [data[a:b] for a, b in pairwise(places)]
    steps = [[(token, -0.5), (b"other", -1.5)] for token in tokens] + ([[(END, -0.1)]] if last else [])
    chain = Chain.from_tokens("q", 0, tokens, steps if seen else [])
    made, certain = edit_calculator_annotations(chain, marks)
    assert (made is chain) == (made.content == data) and (made is not chain or certain == ())
    assert edit_calculator_annotations(made, marks)[0] is made, "once is enough"
    if marks == "insert":
        assert made.text == apply_edits(text, find_mark_insertions(text))
    else:
        assert not MARK_PATTERN.search(made.text)
    assert b"".join(made.tokens) == made.content
    assert all(made.content[a:b] == token for (a, b), token in zip(made.spans, made.tokens, strict=True))
    assert len(made.candidates) == (len(made.tokens) + last if seen else 0)
    assert all(low < high <= len(made.content) for low, high in certain) and list(certain) == sorted(certain)
    for (low, high), token, step in zip(made.spans, made.tokens, made.candidates, strict=False):
        written = any(low < stop and high > start for start, stop in certain)
        assert step == (((token, 0.0),) if written else ((token, -0.5), (b"other", -1.5)))
    assert made.candidates[len(made.tokens) :] == chain.candidates[len(tokens) :]


def test_bytes_that_are_no_text_stay_and_texts_without_tokens_are_rewritten_too() -> None:
    broken = Chain.from_tokens("q", 0, [b"\xff 2+2 = ", b"4\xe2"])
    assert edit_calculator_annotations(broken, "insert")[0].content == b"\xff 2+2 = <<2+2=4>>4\xe2"
    human = Chain.from_text("q", 0, "2 × 3 = 6", source="human")
    assert prepare_chain(human, {"×": "*"}, "insert")[0].text == "2 * 3 = <<2*3=6>>6"
    assert prepare_chain(human, {}, None) == (human, ())


SOLVED = "Tom has 3 * 4 = 12 pens.\nHe buys $5 + 7 = $12 of them. The answer is 12."


@cache
def student() -> tokenization.Tokenizer:
    return train_bpe([SOLVED + apply_edits(SOLVED, find_mark_insertions(SOLVED)), "<<=>>"] * 4, 330)


def solved() -> Chain:
    tokens = [piece.encode() for piece in re.findall(r" ?\w+| ?[^\w\s]|\s", SOLVED)]
    return Chain.from_tokens("q", 0, tokens, [[(token, -0.25), (b" 9", -2.0)] for token in tokens])


@pytest.mark.parametrize("rule", RULES)
def test_the_student_is_taught_marks_as_certain_and_the_rest_as_before(rule: str) -> None:
    chain, coder = solved(), student()
    made, certain = edit_calculator_annotations(chain, "insert")
    told = {"completions": completions([made], coder)} if rule == "text" else {}
    target = transfer(made, coder, rule, certain=certain, **told)
    coverage = Coverage(coder)
    coverage.add(made, target, certain)
    spans = coder.encode(made.text).spans
    inside = {p for p, (a, b) in enumerate(spans) if any(a < high and b > low for low, high in certain)}
    assert "".join(coder.token_bytes(target.ids[position]).decode() for position in sorted(inside)).count("<<") == 2
    for position in inside:
        assert target.kind(position) == "hard" and target.distribution(position) == {target.ids[position]: 1.0}
    told = coverage.as_json()["coverage"]["rewritten"]
    assert told == {"hard": {"positions": len(inside), "mass": 1.0}}
    soft = sum(kind not in ("hard", "end") for kind in target.kinds)
    assert coverage.share == soft / (len(target) - 1 - len(inside))
    assert (soft > 10) == (rule != "one-hot")


def test_the_filter_drops_right_chains_with_wrong_sums_if_it_is_asked_to() -> None:
    text = "3 * 4 = 13. The answer is 12."
    assert ChainFilter(FilterRules()).drop_reason(text, True) is None
    assert ChainFilter(FilterRules(drop_wrong_equations=True)).drop_reason(text, True) == "wrong sum"
    assert ChainFilter(FilterRules(drop_wrong_equations=True)).drop_reason(SOLVED, True) is None
    assert ChainFilter(FilterRules(drop_wrong_equations=True)).drop_reason(text, False) is None, (
        "a wrong answer is reason enough"
    )


def test_in_a_run_marks_reach_the_targets_the_terminal_and_the_page(world: Path, tmp_path: Path, capsys) -> None:
    from potstill.cli import show

    rows = tiny.rows("sums", 12)
    solved = {row["id"]: f"{row['rationale']} The answer is {row['answer']}" for row in rows}
    chains = [{"question": f"sums/{name}", "text": text} for name, text in solved.items()]
    (tmp_path / "chains.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chains))
    settings = (f"teacher={{kind: replay, chains: {tmp_path / 'chains.jsonl'}}}", "transfer.calculator_marks=insert")
    with pytest.raises(UserError, match="cannot write calculator marks"):
        tiny.make(world, tmp_path / "t5", *settings, until="align")
    own = "student={shape: {family: causal, d_model: 16, layers: 1, heads: 2, d_ff: 32}, tokenizer: teacher}"
    run_dir = tiny.make(
        world, tmp_path / "run", *settings, own, "train.steps=2", "evaluate.decodings=[greedy+calculator]"
    )
    counts = json.loads((run_dir / "align" / "manifest.json").read_text("utf-8"))["counts"]
    assert set(counts["coverage"]["rewritten"]) == {"hard"} and counts["covered"] is None
    assert "Calculator marks" in (run_dir / "report" / "index.html").read_text("utf-8")
    first = json.loads((run_dir / "collect" / "sums.train.jsonl").read_text().splitlines()[0])["id"]
    capsys.readouterr()
    show.print_chain(run_dir, first)
    assert "<<" in capsys.readouterr().out


def test_a_student_that_opens_a_mark_is_let_and_the_mark_is_completed() -> None:
    import torch

    from potstill.inference.sampling import CalculatorDecoding

    coder = student()
    for liked, kept in (("<<", False), (" <<", False), (" 12", True)):
        rows = CalculatorDecoding(1, coder, lambda token, position: coder.token_bytes(token))
        for token in coder.encode("Tom has 3 * 4 =").ids:
            rows.add(0, token, 0)
        logits = torch.zeros(1, coder.size)
        logits[0, coder.encode(liked).ids[0]] = 1.0
        assert bool(rows.forced_tokens(logits, [0])) == kept
    inside = CalculatorDecoding(1, coder, lambda token, position: coder.token_bytes(token))
    for token in coder.encode("Tom has 3 * 4 = <<3*4=").ids:
        inside.pending[0] = []
        inside.add(0, token, 0)
    logits[0, coder.encode("<<").ids[0]] = 2.0
    assert inside.forced_tokens(logits, [0]) and coder.decode(inside.pending[0]) == "12>>"


@pytest.mark.parametrize(
    "change, stage",
    [("filter.wrong_sums=drop", "filter"), ("transfer.calculator_marks=remove", "align"), ("seed=3", None)],
)
def test_what_sums_decided_is_made_anew_when_they_are_read_otherwise(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, stage: str | None
) -> None:
    settings = ("teacher={kind: human}", change)
    run_dir = tiny.make(world, tmp_path / "run", *settings, until="align")
    monkeypatch.setattr(equations, "VERSION", equations.VERSION + 1)
    if stage is None:
        tiny.make(world, run_dir, *settings, until="align")
        return
    with pytest.raises(UserError, match=rf"content of calculator sums\n.*--redo {stage} "):
        tiny.make(world, run_dir, *settings, until="align")


@pytest.mark.parametrize("asks, result", [("3 * 4 =", " 12"), ("$6*4=", "$24"), ("3 - 9 =", " -6")])
def test_a_mark_is_opened_before_a_number_and_never_within_it(asks: str, result: str) -> None:
    """GSM8K has marks behind the currency and before the sign: `= $<<6*4=24>>24`, `= <<3-9=-6>>-6`."""
    import torch

    from potstill.inference.sampling import CalculatorDecoding

    coder = train_bpe([], 258)  # a token a byte
    mark = torch.zeros(1, coder.size)
    mark[0, coder.encode("<").ids[0]] = 1.0
    for taken in range(len(result)):
        rows = CalculatorDecoding(1, coder, lambda token, position: coder.token_bytes(token))
        for token in coder.encode(asks).ids:
            rows.add(0, token, 0)
        assert coder.decode(rows.pending[0]) == result
        for _ in range(taken):
            rows.add(0, rows.pending[0][0], 0)
        assert bool(rows.forced_tokens(mark, [0])) == (result[:taken].strip(" $") != ""), taken


def test_a_vocabulary_is_looked_through_once_for_all_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    from potstill.inference.sampling import CalculatorDecoding

    coder, seen = train_bpe([SOLVED] * 4, 300), []
    plain = tokenization.Tokenizer.token_bytes
    monkeypatch.setattr(
        tokenization.Tokenizer, "token_bytes", lambda self, token: seen.append(token) or plain(self, token)
    )
    made = [CalculatorDecoding(1, coder, lambda token, position: b"") for _ in range(3)]
    assert sorted(seen) == list(range(coder.size))
    assert {plain(coder, token)[:1] for token in made[2].number_tokens.tolist()} == {
        b"%d" % digit for digit in range(10)
    }
    assert {plain(coder, token) for token in made[2].mark_tokens} == {b"<"}


def test_on_real_solutions(data: Path) -> None:
    """GSM8K's own marks taken out and put in again: most come back as its authors wrote them."""
    rows = [json.loads(line)["answer"] for line in (data / "gsm8k" / "train.jsonl").open()][:1500]
    theirs = ours = same = judged = faults = 0
    for text in rows:
        plain = apply_edits(text, find_mark_removals(text))
        made = apply_edits(plain, find_mark_insertions(plain))
        assert apply_edits(made, find_mark_removals(made)) == plain
        own, new = MARK_PATTERN.findall(text), MARK_PATTERN.findall(made)
        theirs, ours = theirs + len(own), ours + len(new)
        same += sum(mark in own for mark in new)
        judged += sum(1 for _ in find_equations(plain))
        faults += len(find_wrong_equations(plain))
    assert ours > 0.8 * theirs and same > 0.85 * ours and faults < 0.003 * judged
