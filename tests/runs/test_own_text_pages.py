"""Whoever trains on texts of the student sees them: on the page, in its tables, in the progress and in a tracker."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest

import tiny
from potstill import dry_run, run_cost, storage, tracking
from potstill.data.assemble import assemble_questions
from potstill.existing_run import Progress
from potstill.report import collect
from potstill.run_reader import open_run
from potstill.run_status import read_status
from potstill.training import examples
from potstill.training.own_texts import read_own_texts

SECTION = (
    "train.on_policy={share: 0.6, max_tokens: 24, top_logprobs: 4, samples: 2, refresh_every: 2,"
    " rewards: {advantage_weight: 1}, scorers: {big: {sets: [sums]}, own: {sets: [more], model: base, rewards: false}}}"
)


@pytest.fixture(scope="module")
def run_dir(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(world, tmp_path_factory.mktemp("own") / "run", SECTION, "train.steps=8")


def test_the_page_has_the_measures_of_every_step_and_texts_as_they_were_written(run_dir: Path) -> None:
    report = collect.collect_report(run_dir, open_run(run_dir).recipe)
    own = report.own_texts
    assert own is not None and own.window == 2 and [row.step for row in own.steps] == list(range(1, 9))
    metrics = [row for _, row in storage.read_jsonl(run_dir / "train" / "metrics.jsonl")]
    for row, step in zip(metrics, own.steps, strict=True):
        assert step.measures == row["written"]
        assert step.divergences == {name: row["losses"][f"own/{name}"] for name in step.divergences} != {}
    texts = [text for text in read_own_texts(run_dir / "train" / "own_texts.jsonl") if text.step in (7, 8)]
    counted = [text for text in texts if text.reward is not None]
    assert (own.first, own.last, own.counted) == (7, 8, len(counted)) and counted
    assert own.right == sum(text.reward == 1 for text in counted)
    for sample in own.samples:
        [text] = [
            text
            for text in counted
            if (text.step, text.question, text.text) == (sample.step, sample.question.id, sample.text)
        ][:1]
        assert (text.grade, text.reward) == (sample.verdict.grade, sample.reward)
    assert report.training.endswith(" and its own texts")
    page = (run_dir / "report" / "index.html").read_text("utf-8")
    assert "The scorer big, for questions of sums, is the teacher." in page and "is the base student." in page
    with open(run_dir / "report" / "own-texts.csv", encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert {(row["step"], row["scorer"]) for row in rows if row["measure"] == "divergence"} >= {
        ("8", "big"),
        ("8", "own"),
    }
    card = (
        (run_dir / "student" / "README.md").read_text("utf-8").partition("## Its own texts\n")[2].partition("\n## ")[0]
    )
    assert "the student wrote the texts for 60 % of the prompts itself, 2 for each" in card
    assert "The scorer big, for questions of sums, is the teacher." in card
    assert "Rewards from the grader: the group-relative advantage of right texts counted with weight 1." in card
    chosen = report.choice.checkpoint.step if report.choice else 0
    count = sum(step.measures["texts"] for step in own.steps if step.step <= chosen)
    assert f"Up to step {chosen}, it wrote {count} texts of " in card if chosen else "it wrote no text" in card
    costs = {cost.label: cost.number for cost in report.costs}
    written = read_own_texts(run_dir / "train" / "own_texts.jsonl")
    assert costs["texts that the student wrote"] == len(written)
    assert costs["tokens of these texts"] == sum(len(text.ids) for text in written)


def test_texts_without_rewards_have_measures_and_no_samples(world: Path, run_dir: Path, tmp_path: Path) -> None:
    later = shutil.ignore_patterns("train", "evaluate", "select", "test", "report", "student")
    again = Path(shutil.copytree(run_dir, tmp_path / "run", ignore=later))
    section = "train.on_policy={share: 0.2, max_tokens: 4, scorers: {own: {sets: [more], model: base, rewards: false}}}"
    tiny.make(world, again, section, "train.steps=2", "train.checkpoint_every=2")
    own = collect.collect_report(again, open_run(again).recipe).own_texts
    assert own is not None and own.samples == () and own.staleness == ()
    page = (again / "report" / "index.html").read_text("utf-8")
    assert "Texts with the highest reward" not in page and "tokens per text" in page


def test_the_plan_counts_the_texts_that_the_run_wrote(world: Path, run_dir: Path, tmp_path: Path) -> None:
    recipe = tiny.recipe(world, SECTION, "train.steps=8")
    texts = read_own_texts(run_dir / "train" / "own_texts.jsonl")
    by_set = Counter(question.partition("/")[0] for _, _, question in {(t.step, t.slot, t.question) for t in texts})
    assert examples.count_own_prompts(recipe) == {"big": by_set["sums"], "own": by_set["more"]}
    plan = dry_run.describe_run(recipe, tmp_path / "run")
    assert "the student writes the texts for 60 % of the prompts" in plan
    assert "48 for 24 of 40 prompts (2 for each), at most 6 per step, of at most 24 tokens" in plan
    assert f"{by_set['sums']} prompts from " in plan and "scored by the base student" in plan
    sets = assemble_questions(recipe).questions
    cost = run_cost.estimate_cost(recipe, run_cost.plan_step(recipe, sets), sets, Progress())
    assert cost is not None and cost.own_texts is not None and cost.own_texts.unknown == ()
    assert 0 < cost.own_texts.writing < cost.own_texts.longest_writing
    assert 0 < cost.own_texts.scoring < cost.own_texts.longest_scoring
    trained = Progress(trained=8)
    done = run_cost.estimate_cost(recipe, run_cost.plan_step(recipe, sets), sets, trained)
    assert done is not None and done.own_seconds == 0


def test_the_plan_says_what_a_server_takes_to_score(world: Path, tmp_path: Path) -> None:
    server = "server: {urls: ['http://localhost:9/v1']}, budget: {prices: {prompt: 1000, completion: 0}}"
    scorer = f"{{sets: [more], kind: openai, model: m, {server}}}"
    section = f"train.on_policy={{share: 1, max_tokens: 10, scorers: {{far: {scorer}}}}}"
    plan = dry_run.describe_run(tiny.recipe(world, section), tmp_path / "run")
    assert "scored by m on a server" in plan and "scores by far     openai: m at http://localhost:9/v1" in plan
    assert "20 texts, each once" in plan and "No estimate for the scorer far" in plan
    tokens = int(plan.partition("at most about ")[2].partition(" in prompts")[0])
    assert 200 < tokens < 2000 and f"at most about {tokens / 1000:.2f}, at 1000" in plan


def test_status_and_trackers_have_the_share_of_right_texts(run_dir: Path, tmp_path: Path) -> None:
    ongoing = Path(shutil.copytree(run_dir, tmp_path / "run"))
    (ongoing / "train" / "manifest.json").unlink()
    rows = [row for _, row in storage.read_jsonl(ongoing / "train" / "metrics.jsonl")]
    shares = [row["written"]["right"] for row in rows if "right" in row["written"]]
    [stage] = [stage for stage in read_status(ongoing).stages if stage.stage == "train"]
    assert stage.counts["own_right"] == pytest.approx(fmean(shares))
    assert f", {fmean(shares):.0%} of recent own texts right; " in stage.text
    points = tracking.read_points(run_dir, open_run(run_dir).recipe)["train"]
    for row, point in zip(rows, points, strict=True):
        expected = {f"train/written/{name}": value for name, value in row["written"].items()}
        assert {name: value for name, value in point.values.items() if name.startswith("train/written/")} == expected
        assert "train/losses/own/own" in point.values
