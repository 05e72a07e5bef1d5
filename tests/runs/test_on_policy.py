"""On-policy distillation: another model scores the chosen student's own answers at every step."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import potstill
import tiny
from crashing import Crash, crash
from loss_inputs import SMOOTH
from potstill import dry_run, inference, models, prompts, runner, tokenization, training
from potstill.alignment import cross_tokenizer
from potstill.data import run_questions
from potstill.data.splits import canonical_question
from potstill.errors import UserError
from potstill.evaluation import checkpoint
from potstill.grading import grade
from potstill.inference import Decode, Request
from potstill.losses import Loss
from potstill.models import Example, Shape
from potstill.records import END, Chain, Checkpoint, Prompt, Turn
from potstill.report import collect, summary
from potstill.stages.repair import Repair
from potstill.storage import manifest, read
from potstill.teachers import local_model
from potstill.tokenization import encoder
from potstill.training.own_texts import OWN_TEXTS_FILE, read_own_texts
from potstill.training.scorers import hard_example, self_written_target, teacher_forced_scores, transfer_scores
from tiny import ON_POLICY, REPLAY
from tools.toy_models.tokenizer_training import train_bpe
from training_steps import TEXTS, TOKENIZER, make_student


@pytest.fixture(scope="module")
def chosen(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(world, tmp_path_factory.mktemp("chosen") / "run", REPLAY, until="select")


@pytest.fixture(scope="module")
def complete(world: Path, chosen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run to its report."""
    return tiny.make(world, Path(shutil.copytree(chosen, tmp_path_factory.mktemp("complete") / "run")), REPLAY)


@pytest.fixture(scope="module")
def repaired(world: Path, complete: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was finished without repair, and then got it."""
    run_dir = Path(shutil.copytree(complete, tmp_path_factory.mktemp("repaired") / "run"))
    return runner.run(tiny.recipe(world, REPLAY, ON_POLICY), run_dir=run_dir, redo="test")


def test_what_comes_of_it_answers_beside_the_choice(chosen: Path, repaired: Path) -> None:
    before, after = (tiny.contents(folder) for folder in (chosen, repaired))
    assert [name for name in before if before[name] != after[name]] == [], "up to the choice nothing is made again"
    choice = checkpoint.read_choice(repaired).checkpoint
    assert checkpoint.list_answered_checkpoints(repaired / "test") == [
        Checkpoint(0),
        choice,
        replace(choice, on_policy_steps=3),
    ]
    weights = {
        name: (repaired / path / "model.safetensors").read_bytes()
        for name, path in (
            ("chosen", f"train/checkpoints/{choice.step}"),
            ("student", "student"),
            ("repaired", "repair/checkpoints/3"),
        )
    }
    assert weights["student"] == weights["chosen"] != weights["repaired"], "the student's folder is that of the choice"
    name = replace(choice, on_policy_steps=3).name
    assert manifest.read_finished(repaired / "repair" / name) and not (repaired / "evaluate" / name).exists()
    rows = [row for _, row in read.read_jsonl(repaired / "repair" / "metrics.jsonl")]
    assert [row["step"] for row in rows] == [1, 2, 3] and all(set(row["taught"]) == {"own", "kept"} for row in rows)
    assert all(row["loss"] > 0 and row["kept"] < 1 for row in rows)
    assert rows[0]["losses"]["kept"] < 1e-4 < rows[-1]["losses"]["kept"], "at first it is the one that scores these"


def test_it_is_a_row_of_the_report(repaired: Path) -> None:
    from potstill.run_reader import open_run

    report = collect.collect_report(repaired, open_run(repaired).recipe)
    lines = summary.summary_rows(report)
    assert [line.title for line in lines] == ["base", "specialized", "repaired"]
    assert sum(each.checkpoint.on_policy_steps > 0 for each in summary.scores_by_checkpoint(report)) == 1
    assert lines[2].training == f"its own answers to more, scored by the base, after step {lines[1].checkpoint.label}"
    page = (repaired / "report" / "index.html").read_text()
    assert "3 steps on its own answers to more" in page and "the others (grey)" in page and "control:" not in page
    assert "for 3 more steps" in (repaired / "student" / "README.md").read_text()
    assert '"repaired"' in (repaired / "report" / "summary.csv").read_text()
    assert f'"{lines[1].checkpoint.step}+3"' in (repaired / "report" / "pareto.csv").read_text()


def test_its_texts_are_stored_graded_and_shown(repaired: Path) -> None:
    from potstill.run_reader import open_run

    rows = [row for _, row in read.read_jsonl(repaired / "repair" / "metrics.jsonl")]
    texts = read_own_texts(repaired / "repair" / OWN_TEXTS_FILE)
    questions = {q.id: q for q in run_questions.read_questions(repaired, ["sums", "more"], "train")}
    for row in rows:
        step = [text for text in texts if text.step == row["step"]]
        assert row["written"]["texts"] == len(step) > 0 and row["written"]["surprise"] > 0
        assert row["written"]["ratio"] == 1 and row["written"]["kl"] == 0
        right = [text.grade == "right" for text in step]
        assert row["written"]["right"] == sum(right) / len(right)
        for text in step:
            question = questions[text.question]
            assert text.grade == grade(text.text, question.gold, question.task, text.stop).grade
            assert (text.weight, text.advantage) == (1.0, 0.0), "grades change nothing"
    done = manifest.read_finished(repaired / "repair")
    assert done is not None and f"repair/{OWN_TEXTS_FILE}" in done.outputs
    report = collect.collect_report(repaired, open_run(repaired).recipe)
    assert report.own_texts is None and report.repair_texts is not None
    assert [step.measures for step in report.repair_texts.steps] == [row["written"] for row in rows]
    assert [step.divergences for step in report.repair_texts.steps] == [row["losses"] for row in rows]
    assert report.repair_texts.counted == len([text for text in texts if text.step == 3])
    page = (repaired / "report" / "index.html").read_text("utf-8")
    assert '<section id="repair-texts">' in page and '<section id="own-texts">' not in page
    assert "learnt from the base student (divergence: own)" in page and "(divergence: kept)" in page
    assert '"divergence","kept"' in (repaired / "report" / "repair-texts.csv").read_text("utf-8")


def test_status_counts_the_right_texts_of_a_repair(repaired: Path, tmp_path: Path) -> None:
    from potstill.run_status import read_status

    ongoing = Path(shutil.copytree(repaired, tmp_path / "run"))
    (ongoing / "repair" / "manifest.json").unlink()
    rows = [row["written"]["right"] for _, row in read.read_jsonl(ongoing / "repair" / "metrics.jsonl")]
    [stage] = [stage for stage in read_status(ongoing).stages if stage.stage == "repair"]
    assert (
        stage.counts["own_right"] == pytest.approx(sum(rows) / len(rows)) and "of recent own texts right" in stage.text
    )


def test_nothing_that_is_measured_is_asked(repaired: Path) -> None:
    asked = manifest.read_finished(repaired / "repair")
    assert asked is not None
    rows = {canonical_question(q.text) for q in run_questions.read_questions(repaired, ["more"], "train")}
    measured = [q for split in ("validation", "test") for q in run_questions.read_questions(repaired, tiny.SETS, split)]
    assert 0 < asked.counts["questions"] <= len(rows) and rows.isdisjoint(canonical_question(q.text) for q in measured)


def test_what_was_tested_without_a_repair_is_not_tested_with_one_unasked(
    world: Path, complete: Path, tmp_path: Path
) -> None:
    run_dir = Path(shutil.copytree(complete, tmp_path / "run"))
    with pytest.raises(UserError, match=r"test was made(.|\n)*: content of repair \(none before\)\n.*--redo test "):
        tiny.make(world, run_dir, REPLAY, ON_POLICY)
    assert tiny.contents(run_dir) == tiny.contents(complete), "it is said before the repair is made"


def test_a_repair_that_is_taken_back_leaves_nothing_in_the_report(
    world: Path, complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:  # made by another version, which is no longer this run's
        versions = Repair.versions
        patch.setattr(Repair, "versions", lambda stage: versions(stage) | {"loss": 99})
        run_dir = Path(shutil.copytree(complete, tmp_path / "run"))
        runner.run(tiny.recipe(world, REPLAY, ON_POLICY), run_dir=run_dir, redo="test")
    with pytest.raises(UserError, match=r"test was made(.|\n)*: content of repair \(none now\)\n.*--redo test "):
        tiny.make(world, run_dir, REPLAY)
    runner.run(tiny.recipe(world, REPLAY), run_dir=run_dir, redo="test")
    left = {name: content for name, content in tiny.contents(run_dir).items() if not name.startswith("repair/")}
    assert left == tiny.contents(complete)
    assert manifest.read_finished(run_dir / "repair"), "it is there again when the recipe has it again"


@pytest.mark.slow
def test_a_crash_in_a_repair_leaves_nothing_that_a_resume_does_not_mend(
    world: Path, chosen: Path, repaired: Path, tmp_path: Path
) -> None:
    wanted = {name: content for name, content in tiny.contents(repaired).items() if name.startswith("repair/")}
    number, crashed = 1, True
    while crashed:
        run_dir = Path(shutil.copytree(chosen, tmp_path / str(number)))
        try:
            with crash(number):
                tiny.make(world, run_dir, REPLAY, ON_POLICY, until="repair")
            crashed = False
        except Crash:
            pass
        tiny.make(world, run_dir, REPLAY, ON_POLICY, until="repair")
        found = {name: content for name, content in tiny.contents(run_dir).items() if name.startswith("repair/")}
        assert found == wanted, number
        number += 37
    assert number > 30


@pytest.mark.parametrize("family", ["t5", "causal"])
def test_what_is_told_of_a_text_is_the_tellers_own_distribution(family) -> None:
    student = make_student(family)
    prompt, ids = (7, 8, 9), (5, 11, 6)
    rows = [hard_example(prompt, ids, student.tokenizer.eos), hard_example(prompt[:2], ids[:1], None)]
    found = teacher_forced_scores(student, rows, 3)
    batch = student.batch(rows)
    with torch.no_grad():
        dense = student.head.logits(student.hidden(batch)).softmax(-1)
    own = iter(dense)
    for row, given in zip(found, rows, strict=True):
        assert row.target.ids == given.target.ids and row.target.kinds == given.target.kinds
        for position, token in enumerate(row.target.ids):
            truth, told = next(own), row.target.distribution(position)
            assert set(told) == {*truth.topk(3).indices.tolist(), token}
            assert all(p == pytest.approx(float(truth[c]), rel=1e-4) for c, p in told.items())


@pytest.mark.parametrize("family", ["t5", "causal"])
def test_the_reverse_divergence_of_a_student_is_that_of_whole_distributions(family) -> None:
    """Over all tokens there is no tail: sum q log(q / p), value and gradient."""
    student, scorer = make_student(family), make_student(family)
    with torch.no_grad():
        scorer.head.weight.mul_(1.5)
    rows = [hard_example((7, 8, 9), (5, 11, 6), student.tokenizer.eos)]
    batch = student.batch(teacher_forced_scores(scorer, rows, student.head.weight.shape[0]))
    with torch.no_grad():
        log_p = scorer.head.logits(scorer.hidden(batch)).log_softmax(-1)
    log_q = student.head.logits(student.hidden(batch)).log_softmax(-1)
    plain = (log_q.exp() * (log_q - log_p)).sum(1)
    wanted = torch.autograd.grad(plain.sum(), student.head.weight)[0]
    loss = Loss("reverse_kl", "tail")
    total, losses = student(batch, loss, summed=True)
    assert torch.allclose(losses, plain, atol=1e-4) and not losses.requires_grad
    assert torch.allclose(student(batch, loss), plain, atol=1e-4)
    found = torch.autograd.grad(total, student.head.weight)[0]
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()) + 1e-6)


@pytest.mark.parametrize("divergence", SMOOTH)  # with a corner at p = q, steps do not shrink near it
def test_a_student_comes_nearer_to_what_scores_its_own_texts(divergence) -> None:
    student, scorer = make_student("causal"), make_student("causal")
    with torch.no_grad():
        for value in student.parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)) * value.std())
    engine = inference.open_engine(student)

    def own(step: int) -> list[list[models.Example]]:
        requests = [Request((f"{step}/{position}", 0), (7, 8, 9 + position)) for position in range(8)]
        texts = engine.generate(requests, Decode(max_tokens=6, temperature=1.0, seed=1))
        end = {"end": student.tokenizer.eos}
        rows = [hard_example(r.prompt, t.ids, end.get(t.stop)) for r, t in zip(requests, texts, strict=True)]
        return [teacher_forced_scores(scorer, rows, 8)]

    adam = training.build_optimizer(student, 3e-3)
    schedule = training.Schedule("constant", 3e-3)
    loss = Loss(divergence, "tail")
    steps = training.train_steps(student, adam, own, first=1, last=24, schedule=schedule, seed=1, loss=loss)
    losses = [step.loss for step in steps]
    assert sum(losses[-6:]) < 0.6 * sum(losses[:6]), losses


@pytest.mark.parametrize(
    "change, code",
    [
        (("on_policy={sets: [other]}",), "E-recipe-set-selects"),
        (("on_policy={sets: [more]}", "teacher={kind: none}"), "E-recipe-on-policy-teacher"),
        (("on_policy={sets: []}",), "E-recipe-value"),
    ],
)
def test_a_repair_that_cannot_be_is_refused(world: Path, change: tuple[str, ...], code: str) -> None:
    with pytest.raises(UserError) as error:
        tiny.recipe(world, *change)
    assert error.value.code == code


def test_through_transfer_the_students_own_tokens_are_told_the_same() -> None:
    student, scorer = make_student("causal"), make_student("causal")
    with torch.no_grad():
        scorer.head.weight.mul_(1.5)
    own, prompts = student.tokenizer, {"a": "2 + 2", "b": "3 + 4"}
    asked = {name: Prompt((Turn("user", text),)) for name, text in prompts.items()}
    rows = [
        hard_example(tuple(scorer.encode(scorer.render(asked[name]))), tuple(own.encode(text).ids), end, name, "own")
        for name, text, end in (("a", "The answer is 4", own.eos), ("b", "2 + 2", None))
    ]
    whole = own.size
    score = partial(local_model.score_chains, inference.open_engine(scorer), top_logprobs=whole, batch_tokens=99)
    found = transfer_scores(score, own, own, asked.__getitem__, rows)
    for one, other in zip(found, teacher_forced_scores(scorer, rows, whole), strict=True):
        assert one.target.ids == other.target.ids and one.prompt == other.prompt and one.question == other.question
        for position in range(len(one.target)):
            told, wanted = one.target.distribution(position), other.target.distribution(position)
            visible = {token: p for token, p in wanted.items() if own.token_bytes(token) or token == own.eos}
            assert sum(told.values()) == pytest.approx(sum(visible.values()), abs=1e-5)
            if position:  # a text begins alike with "2" and " 2", which are one outcome there
                assert told == pytest.approx(visible, abs=1e-5)


def test_a_scorer_of_other_tokens_tells_of_each_text_as_the_student_cuts_it() -> None:
    student, own = make_student("t5"), TOKENIZER
    other = train_bpe(TEXTS, 300)
    scorer = models.random_student(Shape("causal", 16, 2, 2, 32, 8, other.size), other, 2)
    texts = {"a": ("The answer is 4", own.eos), "b": ("2 + 2", None), "c": ("4", own.eos)}
    asked = {name: Prompt((Turn("user", name),)) for name in texts}
    rows = [hard_example((7,), tuple(own.encode(t).ids), end, name, "own") for name, (t, end) in texts.items()]

    def told(rows: list[Example], budget: int) -> list[Example]:
        score = partial(local_model.score_chains, inference.open_engine(scorer), top_logprobs=9, batch_tokens=budget)
        return transfer_scores(score, other, own, asked.__getitem__, rows)

    found, turned = told(rows, 99), told(rows[::-1], 1)[::-1]
    for row, one, same in zip(rows, found, turned, strict=True):
        assert one.target.ids == same.target.ids == row.target.ids and one.question == row.question
        for position, token in enumerate(one.target.ids):
            distribution = one.target.distribution(position)
            assert distribution == pytest.approx(same.target.distribution(position), abs=1e-5)
            assert distribution[token] > 0 or distribution == {token: 0.0}, "the token that stands there is known"
    assert "hard" not in found[0].target.kinds, "all of it came through"
    losses = student(student.batch(found))
    assert torch.isfinite(losses).all()


def test_a_text_is_as_likely_through_transfer_as_the_scorer_says() -> None:
    """The embedded teacher and a student's tokenizer of other pieces, without line breaks: the chain rule holds."""
    models = Path(potstill.__file__).parent / "demo" / "models"
    scorer, own = inference.open_engine(models / "teacher"), tokenization.load_tokenizer(models / "student")
    prompt = prompts.build_prompt(
        "Leo has 6 cookies. Iris got 16 cookies. How many cookies are there?", prompts.PromptFormat(False, True)
    )
    for text in ("In all there are 6 + 16 = 22 cookies. The answer is 22", "That makes 16 - 6 = 10 cookies."):
        row = hard_example((5,), tuple(own.encode(text).ids), own.eos, "q", "own")
        score = partial(local_model.score_chains, scorer, top_logprobs=20, batch_tokens=999)
        told_by = tokenization.load_tokenizer(models / "teacher")
        [told] = transfer_scores(score, told_by, own, lambda _, prompt=prompt: prompt, [row])
        chain = Chain.from_text("q", 0, prompts.restore_answer_line(text), source="own")
        [read] = local_model.score_chains(scorer, [(prompt, chain)], top_logprobs=20, batch_tokens=999)
        steps = zip((*read.tokens, END), read.candidates, strict=True)
        wanted = sum(dict(step)[token] for token, step in steps)
        found = [told.target.distribution(position)[token] for position, token in enumerate(told.target.ids)]
        assert told.target.ids == row.target.ids
        assert sum(map(math.log, found)) == pytest.approx(wanted, abs=0.02 * abs(wanted))


def test_what_was_written_is_told_however_unlikely_and_what_nobody_told_costs_nothing() -> None:
    own = TOKENIZER
    faint = math.log(1e-7)
    steps = [
        [(b"The", -0.1)],
        [(b" answer", -0.1)],
        [(b" answer", -0.1), (b" is", faint)],
        [(b" 4", -0.5)],
        [(END, faint), (b"4", -0.1)],
    ]
    chain = Chain.from_tokens("q", 0, [b"The", b" answer", b" is", b" 4"], steps)
    target = cross_tokenizer.transfer(chain, own, "text")
    place = target.ids.index(own.encode("answer is").ids[-1])
    assert target.ids[place] not in target.distribution(place), "as tail it would cost a student nothing"
    told = self_written_target(target, chain, encoder.get_encoder(own))
    assert told.distribution(place)[target.ids[place]] == pytest.approx(1e-7)
    assert told.distribution(len(told) - 1)[own.eos] == pytest.approx(1e-7)
    hard = self_written_target(replace(target, kinds=("hard", *target.kinds[1:])), chain, encoder.get_encoder(own))
    assert hard.distribution(0) == {target.ids[0]: 0.0}
    student = make_student("t5")
    losses = student(student.batch([Example((7, 8), hard)]), Loss("reverse_kl", "tail"))
    assert losses[0] == 0 and losses[1:].min() > 0
    assert not torch.autograd.grad(losses[0], student.head.weight)[0].any()


def test_a_scorer_of_other_tokens_teaches(world: Path, chosen: Path, tmp_path: Path) -> None:
    made = []
    for name in "ab":
        run_dir = Path(shutil.copytree(chosen, tmp_path / name))
        made.append(
            tiny.make(world, run_dir, REPLAY, ON_POLICY.replace("sets:", "scorer: teacher, sets:"), until="repair")
        )
    assert tiny.contents(made[0]) == tiny.contents(made[1])
    rows = [row for _, row in read.read_jsonl(made[0] / "repair" / "metrics.jsonl")]
    assert len(rows) == 3 and all(row["losses"]["own"] > 0 and 0 < row["kept"] < 1 for row in rows)


def test_the_plan_says_what_is_written_for_it(world: Path) -> None:
    assert "repair          3 steps on 8 texts of the student each, of at most 6 tokens" in dry_run.describe_run(
        tiny.recipe(world, REPLAY, ON_POLICY)
    )
