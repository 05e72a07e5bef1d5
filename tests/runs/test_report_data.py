"""The data of the report: controls are compared with the same base on the same items, or refused with a hint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import tiny
from potstill import storage
from potstill.errors import UserError
from potstill.report import collect, summary
from potstill.storage import parquet

ANSWERS = (
    "name=answers", "teacher={kind: human}", "train.formats={zero-shot-answer: 1}",
    "evaluate.formats=[zero-shot-answer]", "select.format=zero-shot-answer",
)  # fmt: skip
CONTROLLED = "report.controls=[answers]"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    tiny.make(data, folder / "tiny", until="test")
    tiny.make(data, folder / "answers", *ANSWERS, until="test")
    return folder


@pytest.fixture
def own(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs, tmp_path / "runs"))


def test_a_control_is_held_against_the_same_base_item_by_item(data: Path, own: Path) -> None:
    report = collect.collect_report(own / "tiny", tiny.recipe(data, CONTROLLED))
    [control] = report.controls
    assert (control.name, control.training, control.steps) == ("answers", "bare answers", 4)
    base = {row.base.set: row.base for row in report.comparisons if row.base.format == "zero-shot-rationale"}
    for row in control.comparisons:
        assert row.base == base[row.base.set] and row.chosen.format == "zero-shot-answer"
        change = (row.won - row.lost) / row.base.n
        assert row.difference.value == pytest.approx(change) == pytest.approx(row.chosen.accuracy - row.base.accuracy)
    assert {line.name for line in summary.summary_rows(report)} == {"base", "specialized", "answers"}


def test_the_page_names_the_control_and_its_answers_are_an_input(data: Path, own: Path) -> None:
    made = tiny.make(data, own / "tiny", CONTROLLED)
    page = (made / "report" / "index.html").read_text("utf-8")
    assert "control: bare answers" in page and "4 steps on bare answers reached" in page
    begun = json.loads((made / "report" / "manifest.json").read_text("utf-8"))
    assert list(begun["inputs"]).count("report.controls answers") == 1
    shutil.rmtree(own / "answers" / "test")
    with pytest.raises(UserError) as caught:
        tiny.make(data, own / "tiny", CONTROLLED)
    assert caught.value.code == "E-report-control-unfinished"


def test_the_page_has_questions_to_read_with_the_teachers_chains(data: Path, own: Path) -> None:
    recipe = tiny.recipe(data)
    read = collect.collect_report(own / "tiny", recipe).examples
    taught = [sample for sample in read if sample.chains]
    assert 0 < len(taught) <= recipe.report.examples and len(read) > len(taught)
    assert all(chain.question == sample.question.id for sample in taught for chain, _ in sample.chains)


def test_a_missing_control_is_said_with_what_to_do(data: Path, own: Path) -> None:
    with pytest.raises(UserError) as fault:
        tiny.make(data, own / "tiny", "report.controls=[nowhere]")
    assert (fault.value.code, fault.value.where) == ("E-report-control-unfinished", "report.controls")
    assert fault.value.found == f"{own / 'nowhere'} does not exist" and "`name: nowhere`" in fault.value.hint


@pytest.mark.parametrize(
    "change, found",
    [
        ("questions.limit={test: 2}", "answered other test questions of sums"),
        ("seed=4", "started from another student"),
    ],
)
def test_a_control_that_cannot_be_compared_is_refused(data: Path, own: Path, change: str, found: str) -> None:
    shutil.rmtree(own / "answers")
    tiny.make(data, own / "answers", *ANSWERS, change, until="test")
    with pytest.raises(UserError) as fault:
        collect.collect_report(own / "tiny", tiny.recipe(data, CONTROLLED))
    assert fault.value.code == "E-report-control-incomparable" and found in fault.value.found


def test_a_control_may_be_evaluated_in_other_decodings(data: Path, own: Path) -> None:
    """A control on bare answers has no use for a calculator."""
    shutil.rmtree(own / "answers")
    tiny.make(data, own / "answers", *ANSWERS, "evaluate.test_decodings=[greedy+calculator]", until="test")
    [control] = collect.collect_report(own / "tiny", tiny.recipe(data, CONTROLLED)).controls
    assert control.name == "answers"


def test_counts_are_those_of_the_run(data: Path, own: Path) -> None:
    report = collect.collect_report(own / "tiny", tiny.recipe(data))
    counted = {(cost.stage, cost.label): cost.number for cost in report.costs}
    metrics = [row for _, row in storage.read_jsonl(own / "tiny" / "train" / "metrics.jsonl")]
    assert counted["train", "steps"] == 4
    assert counted["train", "tokens read"] == sum(row["tokens"] for row in metrics) > 0
    answers = sum(len(path.read_text().splitlines()) for path in (own / "tiny" / "test").rglob("*.greedy.jsonl"))
    assert counted["test", "answers on test"] == answers
    [source] = report.sources
    assert sum(source.grades.values()) == source.chains == counted["sample", "chains"]
    assert sum(right * n for right, n in source.right_counts.items()) == source.grades.get("right", 0)
    assert source.kept + sum(source.dropped.values()) == source.grades.get("right", 0)
    asked = {s.set: s.n for s in report.validation if s.checkpoint.step == 0 and "answer" not in s.format}
    assert {name: sum(counts.values()) for name, counts in report.outcomes.items()} == asked
    assert [kinds for _, kinds in report.kind_losses] == [row["kinds"] for row in metrics]
    [teacher] = report.calibrations
    several = [n for question in own_samples(own / "tiny") if (n := len(question)) > 1]
    assert (teacher.who, sum(row.n for row in teacher.bins)) == ("teacher", len(several)) and teacher.entropy


def own_samples(run_dir: Path) -> list[list[str]]:
    """The chains of each training question that was sampled."""
    by_question: dict[str, list[str]] = {}
    for chain in parquet.read_chains(run_dir / "sample" / "chains.parquet"):
        by_question.setdefault(chain.question, []).append(chain.text)
    return list(by_question.values())


def test_time_is_beside_the_page_and_in_no_manifest(data: Path, own: Path) -> None:
    made = tiny.make(data, own / "tiny")
    covered = json.loads((made / "report" / "manifest.json").read_text("utf-8"))["outputs"]
    assert not [name for name in covered if "time" in name]
    rows = (made / "report" / "time.csv").read_text("utf-8").splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == [f'"{stage}"' for stage in collect.REPORTED_STAGES]
    assert "The stages before the report took" in (made / "report" / "time.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("seed=1", ()),
        (tiny.REPLAY, ("replay",)),
        ("train.replay={share: 0.2, file: rows.jsonl}", ("replay",)),
        ("train.replay={share: 0.2, sets: [extra]}", ()),
        (
            "train.on_policy={share: 0.2, max_tokens: 4, scorers: {own: {sets: [more], model: base, rewards: false}}}",
            ("on-policy distillation",),
        ),
    ],
)
def test_generic_sets_that_were_trained_on_are_named(data: Path, change: str, found: tuple[str, ...]) -> None:
    recipe = tiny.recipe(data, "sets.extra={file: sets/more.jsonl, task: number}", change)
    assert tuple(collect._generic_training(recipe)) == found
