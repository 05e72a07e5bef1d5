"""Bits per byte of given texts: the formula, windows, the files that are read, and a run that measures them."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest
import torch

import tiny
from potstill import models, runner
from potstill.errors import UserError
from potstill.evaluation import intervals, texts
from potstill.inference import likelihood
from potstill.models import Shape
from potstill.preflight import find_problems
from potstill.storage.segments import Shard
from tools.toy_models.tokenizer_training import train_bpe

TEXTS = ["Tom has 3 pens.", "Naïve cafés cost 12 €!\nTwo lines.", "x"]
CAUSAL = "student={shape: {family: causal, d_model: 16, layers: 1, heads: 2, d_ff: 32}, tokenizer: student-tokenizer}"


@pytest.fixture(scope="module")
def student() -> models.Student:
    tokenizer = train_bpe(["Tom has 2 pens and gets 3 more. How many has he? 2 + 3 = 5"], 280)
    return models.random_student(Shape("causal", 16, 2, 2, 32, 8, tokenizer.size), tokenizer, 5).eval()


@pytest.mark.parametrize("window", [1, 2, 5, 1000])
def test_a_token_is_predicted_once_from_what_its_window_has_before_it(student, window):
    for text, row in zip(TEXTS, likelihood.measure_texts(student, TEXTS, window=window), strict=True):
        ids = [*student.tokenizer.prefix, *student.tokenizer.encode(text).ids]
        expected = 0.0
        for position in range(1, len(ids)):
            start = (position - 1) // window * window
            with torch.no_grad():
                logits = student.model(input_ids=torch.tensor([ids[start:position]])).logits[0, -1]
            expected -= float(logits.double().log_softmax(-1)[ids[position]]) / math.log(2)
        assert row.bits == pytest.approx(expected, rel=1e-5)


def test_bytes_are_those_of_the_predicted_tokens(student):
    assert not student.tokenizer.prefix, "nothing precedes the first token"
    for text, row in zip(TEXTS, likelihood.measure_texts(student, TEXTS), strict=True):
        first = student.tokenizer.encode(text).spans[0][1]
        assert row.bytes == len(text.encode()) - first
    assert likelihood.measure_texts(student, ["T", ""]) == [likelihood.TextBits(0.0, 0)] * 2


def test_an_interval_of_a_ratio_weighs_long_texts_more():
    before, after, sizes = [10.0, 100.0], [11.0, 130.0], [10, 100]
    point, low, high = intervals.ratio_bootstrap(after, before, sizes)
    assert point == pytest.approx(31 / 110) and low == pytest.approx(0.1) and high == pytest.approx(0.3)
    assert math.isnan(intervals.ratio_bootstrap([1], [2], [3])[1])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tiny.world(tmp_path_factory.mktemp("texts"))
    (data / "prose.md").write_text("Tom has pens.\n\n\nHe gets more pens.\nMany.\n\nAdd 2 to 3.\n")
    return data


def changes(data: Path, *, limit: int = 4) -> tuple[str, ...]:
    sets = f"more: {{file: sets/more.jsonl, field: question, limit: {limit}}}"
    return (CAUSAL, f"evaluate.texts={{prose: prose.md, {sets}}}")


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_share_the_texts(world, tmp_path, monkeypatch, shards):
    whole = tiny.make(world, tmp_path / "whole", *changes(world), until="test")
    run_dir, recipe = tiny.before(whole, tmp_path / "run", "test"), tiny.recipe(world, *changes(world))
    measured = []
    measure_texts = likelihood.measure_texts
    monkeypatch.setattr(
        likelihood, "measure_texts", lambda student, rows: measured.extend(rows) or measure_texts(student, rows)
    )
    shared = [range(shards), [0]][shards > 2]  # of three shards, two never begin
    for number in shared:
        before = len(measured)
        runner.run_shard(recipe, Shard(number + 1, shards), "test", run_dir=run_dir)
        assert len(measured) - before in (2 * (7 // shards), 2 * (7 // shards + 1)), "of two checkpoints"
        assert number + 1 == shards or not list(run_dir.glob("test/*/texts.json"))
    runner.run(recipe, run_dir, until="test")
    assert len(measured) == 2 * 7, "each text once for each checkpoint"
    ours, theirs = tiny.contents(run_dir), tiny.contents(whole)
    assert {name: ours[name] for name in theirs if name.startswith("test/")} == {
        name: theirs[name] for name in theirs if name.startswith("test/")
    }
    assert not list(run_dir.glob("test/**/shards"))


def test_a_run_measures_its_base_and_its_chosen_checkpoint(world, tmp_path, capsys):
    run_dir = tiny.make(world, tmp_path / "run", *changes(world))
    scores = {path.parent.name: json.loads(path.read_text()) for path in run_dir.glob("test/*/texts.json")}
    assert len(scores) == 2 and "0" in scores
    assert not list(run_dir.glob("evaluate/*/texts.json"))
    [prose, more] = scores["0"]
    assert (prose["name"], len(prose["bits"]), more["name"], len(more["bits"])) == ("prose", 3, "more", 4)
    rows = list(csv.DictReader(io.StringIO((run_dir / "report" / "texts.csv").read_text())))
    assert [(row["name"], row["checkpoint"]) for row in rows] == [
        ("prose", "base"), ("prose", "chosen"), ("more", "base"), ("more", "chosen")
    ]  # fmt: skip
    for before, after in (rows[:2], rows[2:]):
        change = float(after["bits_per_byte"]) - float(before["bits_per_byte"])
        assert float(after["difference"]) == pytest.approx(change, abs=2e-6) and change != 0
        assert float(after["difference_low"]) <= change <= float(after["difference_high"])
    assert "Bits per byte of texts" in (run_dir / "report" / "index.html").read_text()
    before = tiny.contents(run_dir)
    assert tiny.contents(tiny.make(world, run_dir, *changes(world))) == before
    with pytest.raises(UserError) as caught:
        tiny.make(world, run_dir, *changes(world, limit=3))
    assert caught.value.code == "E-run-stage-differs" and "test" in str(caught.value)
    (world / "prose.md").write_text("Another text.\n\nTwo of them.\n")
    with pytest.raises(UserError) as caught:
        tiny.make(world, run_dir, *changes(world))
    assert caught.value.code == "E-run-stage-differs"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("{prose: nothing.md}", "E-recipe-missing-path"),
        ("{prose: {file: sets/more.jsonl}}", "E-evaluate-no-text"),
        ("{prose: empty.txt}", "E-evaluate-no-text"),
    ],
)
def test_texts_that_cannot_be_read_are_found_before_the_run(world, change, code):
    (world / "empty.txt").write_text(" \n\n")
    problems = find_problems(tiny.recipe(world, CAUSAL, f"evaluate.texts={change}"), ("test",))
    assert [problem.fault.code for problem in problems] == [code]


def test_an_encoder_decoder_is_refused_before_the_run(world):
    problems = find_problems(
        tiny.recipe(world, "evaluate.texts={more: {file: sets/more.jsonl, field: question}}"), ("test",)
    )
    assert [problem.fault.code for problem in problems] == ["E-evaluate-texts-family"]


def test_paragraphs():
    assert texts.split_paragraphs("\n\n a\nb \n \t\nc\r\n\r\nd\n") == ["a\nb", "c", "d"]
