"""Coverage: positions and probability by kind; a run stops if the teacher covers too little."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import pytest

import tiny
from potstill import storage, tokenization
from potstill.alignment import target_store
from potstill.alignment.coverage import Coverage, low_mass_warning
from potstill.alignment.cross_tokenizer import transfer
from potstill.alignment.text_rule_completions import completions
from potstill.errors import UserError
from potstill.records import Chain
from potstill.serialization import to_json
from potstill.stages import open_stage
from potstill.storage import parquet
from potstill.tokenization import Tokenizer
from tools.toy_models.tokenizer_training import train_bpe, train_unigram

TEXTS = ["She earns $12 for 3 hours.\nSo 4 * 12 = 48.\nThe answer is 48"] * 4


@cache
def student() -> Tokenizer:
    return train_unigram(TEXTS, 90)


def chain(text: str, semantics: str = "raw", index: int = 0) -> Chain:
    tokens = [word.encode() for word in text.replace(" ", "\0 ").replace("\n", "\0\n\0").split("\0") if word]
    steps = [[(token, -0.25), (b" other", -2.0)] for token in tokens] if semantics == "raw" else []
    return Chain.from_tokens("q", index, tokens, steps, semantics=semantics)  # type: ignore[arg-type]


def counted(*chains: Chain, rule: str = "span") -> Coverage:
    coverage = Coverage(student())
    for chain in chains:
        coverage.add(chain, transfer(chain, student(), rule))
    return coverage


def total(rows: dict) -> int:
    return sum(row["positions"] for row in rows.values())


def test_parts_hold_what_they_say() -> None:
    text = "She earns $12\nSo 4 × 12\n\n The answer"
    target = transfer(chain(text), student(), "span")
    told = counted(chain(text)).as_json()
    pieces = [student().token_bytes(token).decode() for token in target.ids]
    assert total(told["coverage"]["all"]) == len(target) == told["positions"]
    assert total(told["coverage"]["digits"]) == sum(any(c.isdigit() for c in piece) for piece in pieces) > 0
    assert total(told["coverage"]["line starts"]) == 3
    assert total(told["coverage"]["unknown"]) == target.ids.count(student().vocabulary.unk) == 1
    assert told["unknown characters"] == {"×": 1}


def test_line_starts_are_tokens_of_the_first_visible_character() -> None:
    coverage = Coverage(train_bpe(TEXTS, 300))
    for text, lines in (("", 0), ("\n \n", 0), ("a", 1), ("\n  b c\n\nd", 2), ("a\r\nb", 2)):
        own = chain(text)
        before = total(coverage.as_json()["coverage"]["line starts"])
        coverage.add(own, transfer(own, coverage.encoder, "one-hot"))
        assert total(coverage.as_json()["coverage"]["line starts"]) - before == lines, text


def test_the_share_is_over_sources_that_promise_probabilities() -> None:
    assert counted(chain("She earns $12", "none")).share is None
    soft, mixed = counted(chain("She earns")), counted(chain("She earns"), chain("She earns", "none", 1))
    assert soft.share == mixed.share and soft.share is not None and soft.share > 0
    assert mixed.as_json()["chains without probabilities"] == 1 and mixed.as_json()["chains"] == 2


def test_too_little_of_the_teacher_stops_and_says_why() -> None:
    bare = Chain.from_tokens("q", 0, [b"She", b" earns"], semantics="raw")  # a server whose bytes are null
    with pytest.raises(UserError) as fault:
        counted(bare).check(0.2, "span")
    assert (fault.value.code, fault.value.where) == ("E-align-low-coverage", "transfer.min_coverage")
    assert fault.value.found.startswith("0.0 % of ") and "1 of 1 chains" in fault.value.found
    for fine in (counted(chain("She earns $12", "none")), counted(chain("She earns $12")), counted()):
        fine.check(0.2, "span")
    counted(bare).check(0.2, "one-hot")
    counted(bare).check(0.0, "span")


def test_little_of_the_teachers_probability_is_said_although_every_position_has_some() -> None:
    """Each step shows 0.9, and all but 0.05 of it is a text that the student cannot finish, so that it is tail."""
    tokens = [b"The", b" answer", b" is"]
    steps = [[(token, math.log(0.05)), (b" zq", math.log(0.85))] for token in tokens]
    own = counted(Chain.from_tokens("q", 0, tokens, steps), rule="span")
    own.check(0.2, "span")
    counts = own.as_json()
    assert own.share == 1.0 and counts["shown"] == pytest.approx(0.9)
    warning = low_mass_warning(counts, 0.5)
    assert warning is not None and "0.050 at the 3 positions" in warning and "compared with 0.900" in warning
    assert low_mass_warning(counts, 0.05) is None, "0.05 of 0.9 is more than 0.05"
    assert low_mass_warning(counted(chain("She earns $12")).as_json(), 0.5) is None
    assert low_mass_warning(counted(chain("She earns $12", "none")).as_json(), 1.0) is None, "nobody gave probabilities"
    assert low_mass_warning({key: value for key, value in counts.items() if key != "shown"}, 0.5) is None, (
        "counts of before"
    )


def test_a_flat_teacher_is_no_loss() -> None:
    """What the teacher itself did not show cannot arrive: the bound is a share of what it showed."""
    tokens = [b"The", b" answer", b" is"]
    flat = Chain.from_tokens("q", 0, tokens, [[(token, math.log(0.1))] for token in tokens])
    assert low_mass_warning(counted(flat).as_json(), 0.9) is None


def test_in_a_run_it_is_said_at_align_and_on_the_page(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tiny.make(world, tmp_path / "run", "transfer.min_transferred_probability=0")
    assert "Little of the teacher" not in capsys.readouterr().err + (run_dir / "report" / "index.html").read_text(
        "utf-8"
    )
    sampled = tiny.make(world, tmp_path / "sampled", until="sample")
    rows = [to_json(chain) for chain in parquet.read_chains(sampled / "sample" / "chains.parquet")]
    for row in rows:  # every step shows next to nothing but a text that nobody goes on with
        row["candidates"] = [[[token, math.log(0.05)], ["qzqz", math.log(0.9)]] for token in row["tokens"]]
    storage.write_jsonl(tmp_path / "odd.jsonl", rows)
    teacher = f"teacher={{kind: replay, chains: {tmp_path / 'odd.jsonl'}}}"
    run_dir = tiny.make(world, tmp_path / "odd", teacher, "transfer.rule=span", "transfer.min_coverage=0")
    assert "align: Little of the teacher" in capsys.readouterr().err
    assert "Little of the teacher" in (run_dir / "report" / "index.html").read_text("utf-8")


def test_a_local_scorers_tokenizer_serves_the_rule_text_as_a_local_teachers_does(world: Path, tmp_path: Path) -> None:
    own = tokenization.load_tokenizer(world / "teacher").digest
    scored = "teacher={kind: human, top_logprobs: 3, score: {model: teacher}}"
    assert open_stage("align").inputs(tiny.recipe(world))["teacher.tokenizer"] == own
    assert open_stage("align").inputs(tiny.recipe(world, scored))["teacher.tokenizer"] == own
    for change in ("transfer.rule=span", "transfer.calculator_marks=insert", "transfer.rewrite={×: '*'}"):
        assert "teacher.tokenizer" not in open_stage("align").inputs(tiny.recipe(world, scored, change))
    served = "teacher={kind: human, score: {kind: openai, model: m}}"
    for other in (served, "teacher={kind: human}"):
        assert "teacher.tokenizer" not in open_stage("align").inputs(tiny.recipe(world, other)), (
            "only bytes are known of it"
        )
    run_dir = tiny.make(world, tmp_path / "run", scored, until="align")
    chains = list(parquet.read_chains(run_dir / "sample" / "chains.parquet"))
    student = tokenization.load_tokenizer(world / "student-tokenizer")
    told = {"completions": completions(chains, student), "teacher": tokenization.load_tokenizer(world / "teacher")}
    stored = target_store.TargetStore(next(path for path in (run_dir / "align").iterdir() if path.is_dir()))
    for one in chains:
        wanted = transfer(one, student, "text", **told)
        for position in range(len(wanted)):
            row, found = wanted.distribution(position), stored.get(one).distribution(position)
            assert max(abs(row.get(token, 0.0) - found.get(token, 0.0)) for token in {*row, *found}) < 1e-3


def test_in_a_run_it_stops_align_but_a_choice_of_hard_targets_does_not(world: Path, tmp_path: Path) -> None:
    sampled = tiny.make(world, tmp_path / "run", until="sample")
    rows = [to_json(chain) for chain in parquet.read_chains(sampled / "sample" / "chains.parquet")]
    for name, change in (("bare", {"semantics": "raw"}), ("text", {"semantics": "none"})):
        storage.write_jsonl(
            tmp_path / f"{name}.jsonl", ({**row, "tokens": [], "candidates": [], **change} for row in rows)
        )
        at, teacher = tmp_path / name, f"teacher={{kind: replay, chains: {tmp_path / name}.jsonl}}"
        if name == "text":
            tiny.make(world, at, teacher, until="align")
            counts = json.loads((at / "align" / "manifest.json").read_text("utf-8"))["counts"]
            assert counts["covered"] is None and counts["chains"] == counts["chains without probabilities"] > 0
        else:
            with pytest.raises(UserError, match="E-align-low-coverage"):
                tiny.make(world, at, teacher, until="align")
            assert not (at / "align" / "manifest.json").exists()


def test_a_rewriting_in_the_recipe_reaches_the_targets_and_the_page(world: Path, tmp_path: Path) -> None:
    run_dir = tiny.make(world, tmp_path / "run", "transfer.rewrite={+: ' plus '}")
    counts = json.loads((run_dir / "align" / "manifest.json").read_text("utf-8"))["counts"]
    plain = json.loads((tiny.make(world, tmp_path / "plain", until="align") / "align" / "manifest.json").read_text())
    assert counts["positions"] > plain["counts"]["positions"], "`plus` is spelt in letters"
    page = (run_dir / "report" / "index.html").read_text("utf-8")
    assert "Characters replaced in the chains before alignment" in page
