"""On-policy distillation during training: a share of every step's texts is written by the current student."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import stub
import tiny
from crashing import Crash, crash
from potstill import dry_run, models, runner
from potstill.data import run_questions
from potstill.data.splits import canonical_question
from potstill.errors import UserError
from potstill.grading import grade
from potstill.inference.transformers import hard_example
from potstill.models import Example
from potstill.storage import ledger, manifest, read
from potstill.training import on_policy
from potstill.training.own_texts import OWN_TEXTS_FILE, read_own_texts
from process_group import together
from scoring_stub import ScoringStub

SECTION = "train.on_policy={share: 0.5, max_tokens: 8, top_logprobs: 4, samples: 2, scorers: {big: {sets: [sums]}}}"
BOTH = SECTION.replace("}}}", "}, own: {sets: [more], model: base, quota: 2, rewards: false}}}")
WINDOW = BOTH.replace("share: 0.5", "share: 0.6, refresh_every: 3, rewards: {advantage_weight: 1, wrong_penalty: 0.1}")


def change(section: str, old: str, new: str) -> str:
    assert old in section
    return section.replace(old, new)


BOUNDED = WINDOW.replace("refresh_every: 3", "refresh_every: 5, max_kl: 1e-6")


@pytest.fixture(scope="module")
def aligned(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to `align`, whose chains every run here shares: only `train` differs."""
    return tiny.make(world, tmp_path_factory.mktemp("aligned") / "run", BOTH, until="align")


@pytest.fixture(scope="module")
def aligned_task(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, without questions of the generic set."""
    return tiny.make(world, tmp_path_factory.mktemp("aligned") / "run", SECTION, until="align")


@pytest.fixture(scope="module")
def windowed(world: Path, aligned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(world, aligned, tmp_path_factory.mktemp("windowed") / "run", WINDOW)


@pytest.fixture(scope="module")
def bounded(world: Path, aligned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(world, aligned, tmp_path_factory.mktemp("bounded") / "run", BOUNDED)


def trained(world: Path, aligned: Path, folder: Path, *changes: str) -> Path:
    return tiny.make(world, Path(shutil.copytree(aligned, folder)), *changes, until="train")


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [row for _, row in read.read_jsonl(run_dir / "train" / "metrics.jsonl")]


def train_files(run_dir: Path) -> dict[str, bytes]:
    return {name: content for name, content in tiny.contents(run_dir).items() if name.startswith("train/")}


def test_own_texts_alone_need_no_chains_of_a_teacher(world: Path, tmp_path: Path) -> None:
    """From the first step on, with questions that have no solutions: every row is the student's, and the run has a report."""
    questions = tmp_path / "sums.jsonl"
    rows = [{key: value for key, value in row.items() if key != "rationale"} for row in tiny.rows("sums", 12)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = (
        "train.on_policy={share: 1, max_tokens: 6, top_logprobs: 4, scorers: {big: {sets: [sums], model: teacher}}}"
    )
    alone = section.replace("model: teacher", f"model: {world / 'teacher'}")
    keys = (f"sets.sums.file={questions}", "teacher={kind: human, unsolved: answer}", alone)
    keys += ("train.formats={zero-shot-rationale: 1}", "evaluate.formats=[zero-shot-rationale]")
    run_dir = tiny.make(world, tmp_path / "run", *keys)
    assert [set(row["taught"]) for row in metrics(run_dir)] == [{"own/big"}] * 4
    assert [row["written"]["texts"] for row in metrics(run_dir)] == [5] * 4
    assert (run_dir / "report" / "index.html").exists()
    unlearnt = "are sampled, and none is learnt"
    assert unlearnt not in dry_run.describe_run(tiny.recipe(world, *keys))
    assert unlearnt in dry_run.describe_run(tiny.recipe(world, section))
    assert unlearnt not in dry_run.describe_run(tiny.recipe(world, section.replace("share: 1", "share: 0.9")))


def test_the_steps_have_their_share_of_own_texts(world: Path, aligned: Path, tmp_path: Path) -> None:
    run_dir = trained(world, aligned, tmp_path / "run", BOTH)
    rows, texts = metrics(run_dir), read_own_texts(run_dir / "train" / OWN_TEXTS_FILE)
    by_step = {step: [text for text in texts if text.step == step] for step in (1, 2, 3, 4)}
    slots = [{(text.slot, text.question) for text in by_step[step]} for step in by_step]
    assert [len(step) for step in slots] == [3, 2, 3, 2], "half of 5 prompts"
    asked = [question.split("/")[0] for step in slots for _, question in step]
    assert asked.count("more") == 2 * asked.count("sums") + 1, "quota 2 to 1, in 10 places"
    for row, step in zip(rows, by_step, strict=True):
        assert row["written"]["texts"] == len(by_step[step]) and row["written"]["ratio"] == 1
        assert {name for name in row["taught"] if name.startswith("own/")} == {
            {"sums": "own/big", "more": "own/own"}[text.question.split("/")[0]] for text in by_step[step]
        }
        # Of a scorer with the student's tokenizer, the positions are those of the written tokens.
        scored = [text for text in by_step[step] if text.question.startswith("more")]
        assert row["taught"]["own/own"] == sum(len(text.ids) + (text.stop == "end") for text in scored)
    assert rows[0]["losses"]["own/own"] == pytest.approx(0, abs=1e-5), "the base scores its own texts"
    assert rows[0]["losses"]["own/big"] > 0.1
    assert all("written" in row for row in rows) and all(text.logprobs is None for text in texts)
    done = manifest.read_finished(run_dir / "train")
    assert done is not None and f"train/{OWN_TEXTS_FILE}" in done.outputs


def test_texts_are_graded_where_rewards_apply(world: Path, aligned: Path, tmp_path: Path) -> None:
    section = change(BOTH, "max_tokens: 8", "max_tokens: 24, rewards: {wrong_weight: 0.25}")
    run_dir = trained(world, aligned, tmp_path / "run", section)
    questions = {q.id: q for q in run_questions.read_questions(run_dir, ["sums", "more"], "train")}
    for text in read_own_texts(run_dir / "train" / OWN_TEXTS_FILE):
        question = questions[text.question]
        if question.set == "more":
            assert (text.grade, text.reward, text.weight) == (None, None, 1.0)
        else:
            assert text.grade == grade(text.text, question.gold, question.task, text.stop).grade
            assert text.weight == (1.0 if text.grade == "right" else 0.25)


def test_no_stored_chain_is_drawn_twice_or_left_out(world: Path, aligned: Path) -> None:
    """The stored prompts of all steps are the first prompts of a run without own texts, in their order."""
    from potstill.training import examples

    own, plain = tiny.recipe(world, BOTH), tiny.recipe(world)
    student = models.from_recipe(own)
    found = [
        group
        for step in (1, 2, 3, 4)
        for group in examples.read_training_data(aligned, own, student, lambda step: []).groups(step)
    ]
    data = examples.read_training_data(aligned, plain, student)
    assert found == [*data.groups(1), *data.groups(2)][: len(found)] and len(found) == 10


def test_a_share_that_rises_begins_with_stored_chains_and_ends_with_none(
    world: Path, aligned_task: Path, tmp_path: Path
) -> None:
    run_dir = trained(world, aligned_task, tmp_path / "run", change(SECTION, "share: 0.5", "share: {1: 0, 4: 1}"))
    rows = metrics(run_dir)
    assert not any(name.startswith("own/") for name in rows[0]["taught"]) and rows[0]["written"] == {"texts": 0}
    assert set(rows[3]["taught"]) == {"own/big"}


FORMATS = "train.formats={zero-shot-rationale: 2, zero-shot-answer: 1}"
WEIGHTS = "train.loss_weights={zero-shot-rationale: 1, zero-shot-answer: 3}"


def test_loss_weights_divide_the_part_of_stored_chains(world: Path, aligned_task: Path, tmp_path: Path) -> None:
    """The weight of own texts is that of their tokens, as without weights."""
    from potstill.training import examples

    section = change(SECTION, "share: 0.5", "share: {1: 0.4, 3: 0.4, 4: 1}")
    changes = (section, FORMATS, WEIGHTS, "train.prompts_per_step=10", "train.steps=4")
    recipe = tiny.recipe(world, *changes)
    student = models.from_recipe(recipe)
    plan = on_policy.plan_training(aligned_task, recipe, student, aligned_task / "none.jsonl", ExitStack())
    texts = on_policy.OwnTexts(replace(plan, file=None), student)
    data = examples.read_training_data(aligned_task, recipe, student, texts.micro_batches)
    for step in (1, 2, 3, 4):
        weights, positions = Counter[str](), Counter[str]()
        for row in (row for batch in data.micro_batches(step) for row in batch):
            weights[row.format] += row.weight * len(row.target)
            positions[row.format] += len(row.target)
        assert weights["own/big"] == positions["own/big"] > 0
        stored = positions.total() - positions["own/big"]
        if step < 4:
            assert weights["zero-shot-rationale"] == pytest.approx(stored / 4)
            assert weights["zero-shot-answer"] == pytest.approx(3 * stored / 4)
    assert set(positions) == {"own/big"}, "a step without stored chains needs no format"
    assert metrics(trained(world, aligned_task, tmp_path / "run", *changes))[-1]["taught"].keys() == {"own/big"}


def test_a_step_whose_stored_chains_lack_a_weighted_format_is_refused(world: Path) -> None:
    from potstill.training import examples

    section = change(SECTION, "share: 0.5", "share: {1: 0.4, 4: 0.9}")
    recipe = tiny.recipe(world, section, FORMATS, WEIGHTS, "train.prompts_per_step=10", "train.steps=4")
    with pytest.raises(UserError) as error:
        examples.check_format_mix(recipe)
    assert error.value.code == "E-train-format-without-rows" and "in step" in str(error.value.found)
    examples.check_format_mix(tiny.recipe(world, section, FORMATS, "train.prompts_per_step=10", "train.steps=4"))


def test_nothing_that_is_measured_is_answered(world: Path, aligned: Path, tmp_path: Path) -> None:
    run_dir = trained(world, aligned, tmp_path / "run", change(BOTH, "share: 0.5", "share: 1"), "train.steps=12")
    questions = {q.id: q for q in run_questions.read_questions(run_dir, ["sums", "more"], "train")}
    answered = {text.question for text in read_own_texts(run_dir / "train" / OWN_TEXTS_FILE)}
    measured = [q for split in ("validation", "test") for q in run_questions.read_questions(run_dir, tiny.SETS, split)]
    forms = {canonical_question(questions[name].text) for name in answered if questions[name].set == "more"}
    assert forms and forms.isdisjoint(canonical_question(question.text) for question in measured)


def test_texts_of_a_window_are_written_by_the_weights_before_it(world: Path, windowed: Path) -> None:
    rows, texts = metrics(windowed), read_own_texts(windowed / "train" / OWN_TEXTS_FILE)
    assert [row["written"]["staleness"] for row in rows] == [0, 1, 2, 0]
    assert [row["written"]["ratio"] == pytest.approx(1, abs=1e-5) for row in rows] == [True, False, False, True]
    assert {text.step for text in texts} == {1, 2, 3, 4, 5, 6}, "the second window is whole, though 4 is the last step"
    recipe = tiny.recipe(world, WINDOW)
    student = models.from_recipe(recipe)
    first = next(text for text in texts if text.step == 1 and text.question.startswith("more"))
    plan = on_policy.plan_training(windowed, recipe, student, windowed / "none.jsonl", ExitStack())
    question = next(part.questions[first.question] for part in plan.parts if first.question in part.questions)
    prompt = tuple(student.encode(student.render(plan.prompt_of(question))))
    row = hard_example(prompt, first.ids, student.tokenizer.eos if first.stop == "end" else None)
    with torch.no_grad():
        batch = student.batch([row])
        dense = student.head.logits(student.hidden(batch)).log_softmax(-1)
    wanted = [float(dense[position, token]) for position, token in enumerate(row.target.ids)]
    assert first.logprobs == pytest.approx(wanted, abs=1e-4)
    graded = [text for text in texts if text.question.startswith("sums")]
    assert graded and all(text.advantage == -0.1 for text in graded if text.reward == 0)


def test_texts_are_written_again_when_the_weights_have_moved_too_far(world: Path, bounded: Path) -> None:
    """Texts of the first weights have a divergence of 0, so each is used for one step, and the next step finds it stale."""
    rows, texts = metrics(bounded), read_own_texts(bounded / "train" / OWN_TEXTS_FILE)
    assert [row["written"]["staleness"] for row in rows] == [0, 1, 0, 1]
    assert [row["written"]["kl"] > 1e-6 for row in rows] == [False, True, False, True]
    assert [text.step for text in texts] == sorted(text.step for text in texts), "what was discarded is not in the file"
    assert {text.step for text in texts} == {1, 2, 3, 4, 5}, "the texts of step 5 were not replaced yet"


def test_a_bound_that_is_never_reached_changes_nothing(
    world: Path, aligned: Path, windowed: Path, tmp_path: Path
) -> None:
    section = change(WINDOW, "refresh_every: 3", "refresh_every: 3, max_kl: 100")
    run_dir, manifests = trained(world, aligned, tmp_path / "run", section), ("train/begun.json", "train/manifest.json")
    found, wanted = train_files(run_dir), train_files(windowed)
    assert {name: found[name] for name in wanted if name not in manifests} == {
        name: content for name, content in wanted.items() if name not in manifests
    }


def test_more_steps_continue_inside_a_window_that_was_written_again(
    world: Path, aligned: Path, bounded: Path, tmp_path: Path
) -> None:
    long = trained(world, aligned, tmp_path / "long", BOUNDED, "train.steps=6")
    grown = Path(shutil.copytree(bounded, tmp_path / "grown"))
    tiny.make(world, grown, BOUNDED, "train.steps=6", until="train")
    names = [f"train/{OWN_TEXTS_FILE}", "train/metrics.jsonl", "train/checkpoints/6/model.safetensors"]
    assert [tiny.contents(grown)[name] for name in names] == [tiny.contents(long)[name] for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("section", [BOTH, WINDOW, BOUNDED])
def test_a_crash_leaves_nothing_that_a_resume_does_not_mend(
    world: Path, aligned: Path, windowed: Path, bounded: Path, tmp_path: Path, section: str
) -> None:
    made = {WINDOW: windowed, BOUNDED: bounded}
    whole = made[section] if section in made else trained(world, aligned, tmp_path / "whole", section)
    wanted, number, crashed = train_files(whole), 1, True
    while crashed:
        run_dir = Path(shutil.copytree(aligned, tmp_path / str(number)))
        try:
            with crash(number):
                tiny.make(world, run_dir, section, until="train")
            crashed = False
        except Crash:
            pass
        tiny.make(world, run_dir, section, until="train")
        assert train_files(run_dir) == wanted, number
        number += 23
    assert number > 60


def test_more_steps_continue_inside_a_window(world: Path, aligned: Path, tmp_path: Path) -> None:
    long = trained(world, aligned, tmp_path / "long", WINDOW, "train.steps=6")
    grown = trained(world, aligned, tmp_path / "grown", WINDOW)
    tiny.make(world, grown, WINDOW, "train.steps=6", until="train")
    names = [f"train/{OWN_TEXTS_FILE}", "train/metrics.jsonl", "train/checkpoints/6/model.safetensors"]
    assert [tiny.contents(grown)[name] for name in names] == [tiny.contents(long)[name] for name in names]


def test_lost_texts_of_a_window_are_an_error_and_not_other_texts(world: Path, aligned: Path, tmp_path: Path) -> None:
    run_dir = trained(world, aligned, tmp_path / "run", WINDOW)
    (run_dir / "train" / "manifest.json").unlink()
    (run_dir / "train" / OWN_TEXTS_FILE).unlink()
    with pytest.raises(UserError) as error:
        tiny.make(world, run_dir, WINDOW, "train.steps=6", until="train")
    assert error.value.code == "E-train-own-texts-lost"


def own_rows(world: Path, run_dir: Path, section: str) -> list[list[Example]]:
    recipe = tiny.recipe(world, section)
    student = models.from_recipe(recipe)
    plan = on_policy.plan_training(run_dir, recipe, student, run_dir / "none.jsonl", ExitStack())
    return on_policy.OwnTexts(replace(plan, file=None), student).micro_batches(1)


def test_without_a_model_texts_have_only_rewards(world: Path, aligned_task: Path, tmp_path: Path) -> None:
    section = change(SECTION, "{sets: [sums]}", "{sets: [sums], model: null}")
    section = change(section, "samples: 2", "samples: 4, rewards: {advantage_weight: 1, truncated: graded}")
    rows = [row for batch in own_rows(world, aligned_task, section) for row in batch]
    assert rows and all(row.target.distribution(p) == {t: 0.0} for row in rows for p, t in enumerate(row.target.ids))
    run_dir = trained(world, aligned_task, tmp_path / "run", section)
    assert all(row["losses"].get("own/big", 0.0) == pytest.approx(0, abs=1e-6) for row in metrics(run_dir))


def test_a_scorer_with_the_students_tokenizer_reads_the_teachers_prompt(
    world: Path, aligned: Path, tmp_path: Path
) -> None:
    """The teacher of this recipe is a checkpoint of the student, with prompts of its own."""
    student = models.from_recipe(tiny.recipe(world))
    folder = tmp_path / "teacher"
    folder.mkdir()
    student.save(folder)
    teacher = f"teacher={{kind: local, model: {folder}, samples: 1}}"
    recipe = tiny.recipe(world, SECTION, teacher)
    plan = on_policy.plan_training(aligned, recipe, student, aligned / "none.jsonl", ExitStack())
    [batch] = on_policy.OwnTexts(replace(plan, file=None), student).micro_batches(1)
    from potstill.teachers.protocol import load_prompt_builder

    build, [part] = load_prompt_builder(recipe), plan.parts
    for row in batch:
        prompt = tuple(student.encode(student.render(build(part.questions[row.question]))))
        assert prompt != row.prompt
        asked = student.batch([replace(row, prompt=prompt, written=None)])
        with torch.no_grad():
            dense = student.head.logits(student.hidden(asked)).softmax(-1)
        for position in range(len(row.target)):
            told = row.target.distribution(position)
            assert all(p == pytest.approx(float(dense[position, token]), rel=1e-3) for token, p in told.items())


def test_ctranslate2_writes_with_the_current_weights(world: Path, aligned: Path, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    section = change(BOTH, "share: 0.5", "share: 0.5, engine: ctranslate2, temperature: 0.7")
    one, two = (train_files(trained(world, aligned, tmp_path / name, section)) for name in "ab")
    assert one == two and read_own_texts(tmp_path / "a" / "train" / OWN_TEXTS_FILE)


def in_processes(rank: int, world: Path, folder: Path, *changes: str) -> None:
    runner.run(tiny.recipe(world, WINDOW, *changes), run_dir=folder, until="train")


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_processes_agree_with_one(
    world: Path, aligned: Path, windowed: Path, tmp_path: Path, sharding: str
) -> None:
    run_dir = Path(shutil.copytree(aligned, tmp_path / "run"))
    assert together(2, in_processes, world, run_dir, f"train.sharding={sharding}") == [0, 0]
    one, two = (read_own_texts(folder / "train" / OWN_TEXTS_FILE) for folder in (windowed, run_dir))
    first = [[replace(text, logprobs=None) for text in texts if text.step < 4] for texts in (one, two)]
    assert first[0] == first[1], "the first window has the same weights"
    for a, b in zip(metrics(windowed), metrics(run_dir), strict=True):
        assert a["taught"] == b["taught"] and a["losses"] == pytest.approx(b["losses"], rel=1e-3, abs=1e-5)
        assert a["written"] == pytest.approx(b["written"], rel=1e-3, abs=1e-5)
    weights = [load_file(folder / "train/checkpoints/2/model.safetensors") for folder in (windowed, run_dir)]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-4) for name in weights[0])


def test_sharded_adapters_write_the_texts_of_one_process(world: Path, aligned: Path, tmp_path: Path) -> None:
    changes = ("train.lora=2", "train.steps=2", "train.checkpoint_every=2")
    one = trained(world, aligned, tmp_path / "one", WINDOW, *changes)
    two = Path(shutil.copytree(aligned, tmp_path / "two"))
    assert together(2, in_processes, world, two, "train.sharding=full", *changes) == [0, 0]
    texts = [read_own_texts(folder / "train" / OWN_TEXTS_FILE) for folder in (one, two)]
    assert [text.ids for text in texts[0]] == [text.ids for text in texts[1]] != []
    for a, b in zip(metrics(one), metrics(two), strict=True):
        assert a["losses"] == pytest.approx(b["losses"], rel=1e-3, abs=1e-5)


REFUSED = [
    (("share: 0.5", "share: 0"), "E-recipe-on-policy-share"),
    (("share: 0.5", "share: {1: 0, 9: 0}"), "E-recipe-on-policy-share"),
    (("[sums]", "[other]"), "E-recipe-set-selects"),
    (("[sums]", "[sums, sums]"), "E-recipe-named-twice"),
    (("[sums]}", "[sums], model: null}"), "E-recipe-on-policy-nothing"),
    (("samples: 2", "samples: 1, rewards: {advantage_weight: 1}"), "E-recipe-on-policy-samples"),
    (("samples: 2", "divergence_weight: 0"), "E-recipe-on-policy-nothing"),
    (("samples: 2", "max_kl: 0.1"), "E-recipe-on-policy-max-kl"),
    (("[sums]}", "[sums], budget: {tokens: 5}}"), "E-recipe-scorer-server"),
    (("[sums]}", "[sums], kind: openai}"), "E-recipe-scorer-server"),
]


@pytest.mark.parametrize("replaced, code", REFUSED)
def test_a_section_that_cannot_be_is_refused(world: Path, replaced: tuple[str, str], code: str) -> None:
    with pytest.raises(UserError) as error:
        tiny.recipe(world, change(SECTION, *replaced))
    assert error.value.code == code


@pytest.mark.parametrize(
    "more, code",
    [
        ("teacher={kind: none}", "E-recipe-on-policy-teacher"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused(world: Path, more: str, code: str) -> None:
    with pytest.raises(UserError) as error:
        tiny.recipe(world, SECTION, more)
    assert error.value.code == code


@pytest.mark.parametrize(
    "changes, code",
    [
        (("teacher={kind: human}",), "E-train-scorer-without-model"),
        (("train.on_policy.divergence=nothing",), "E-train-unknown-divergence"),
        (("train.on_policy.scorers.big.model=no/such/folder",), "E-recipe-missing-path"),
    ],
)
def test_what_would_stop_training_is_said_before_anything_is_made(
    world: Path, tmp_path: Path, changes: tuple[str, ...], code: str
) -> None:
    with pytest.raises(UserError) as error:
        tiny.make(world, tmp_path / "run", SECTION, *changes, until="train")
    assert error.value.code == code and not (tmp_path / "run" / "collect").exists()


def test_a_quota_changes_only_training(world: Path, aligned: Path, tmp_path: Path) -> None:
    """Nothing before `train` is made again when scorers change, as long as their sets have training questions."""
    from potstill.runner import identity_keys

    def keys(stage: str, *changes: str) -> dict[str, Any]:
        return identity_keys(tiny.recipe(world, *changes), stage)

    other = BOTH.replace("quota: 2", "quota: 3")
    for stage in ("collect", "sample", "filter", "align"):
        assert keys(stage, BOTH) == keys(stage, other)
    assert keys("train", BOTH) != keys("train", other)
    assert not any("on_policy" in key for key in keys("train")), "without the section, manifests stay as they were"
    server = SECTION.replace(
        "{sets: [sums]}", "{sets: [sums], kind: openai, model: m, server: {urls: ['http://a/v1']}}"
    )
    moved = server.replace("http://a/v1", "http://b/v1")
    assert keys("train", server) == keys("train", moved), "where a server is changes nothing"


def served(url: str, budget: str = "budget: {}") -> str:
    return change(
        SECTION, "[sums]}", f"[sums], kind: openai, model: m, server: {{urls: ['{url}'], timeout: 5}}, {budget}}}"
    )


def asked(server: ScoringStub) -> list[str]:
    """The texts for which scores were requested, after their prompts."""
    return [body["prompt"] for body in server.seen if "echo" in body or "prompt_logprobs" in body]


def test_a_server_scores_every_text_once(world: Path, aligned_task: Path, tmp_path: Path) -> None:
    with stub.running(ScoringStub) as server:
        run_dir = trained(world, aligned_task, tmp_path / "run", served(server.url))
        texts = read_own_texts(run_dir / "train" / OWN_TEXTS_FILE)
        assert sorted(Counter(asked(server)).values())[:-1] == [1] * 20, (
            "only the first text was used to find the method"
        )
        usage = ledger.total_usage(run_dir)
        assert usage["prompt_tokens"] + usage["completion_tokens"] == server.billed
        billed, before = server.billed, train_files(run_dir)
        runner.run(tiny.recipe(world, served(server.url)), run_dir=run_dir, until="train", redo="train")
        assert server.billed == billed, "what is paid for outlives a redo"
        assert train_files(run_dir) == before
    assert texts and all(row["losses"]["own/big"] > 0 for row in metrics(run_dir))


@pytest.mark.slow
def test_faults_and_kills_double_nothing(world: Path, aligned_task: Path, tmp_path: Path) -> None:
    with stub.running(ScoringStub) as server:
        wanted = train_files(trained(world, aligned_task, tmp_path / "whole", served(server.url)))
        section = change(served(server.url), "timeout: 5", "timeout: 1")  # of an answer that hangs
        number, crashed = 5, True
        while crashed:
            run_dir = Path(shutil.copytree(aligned_task, tmp_path / str(number)))
            server.faults, server.seen = 0.01, []
            try:
                with crash(number):
                    tiny.make(world, run_dir, section, until="train")
                crashed = False
            except Crash:
                pass
            tiny.make(world, run_dir, section, until="train")
            assert train_files(run_dir) == wanted, number
            number += 41
    assert number > 60


def test_a_budget_stops_training_and_a_larger_one_continues_it(world: Path, aligned_task: Path, tmp_path: Path) -> None:
    with stub.running(ScoringStub) as server:
        whole = trained(world, aligned_task, tmp_path / "whole", served(server.url))
        spent = server.billed
        server.billed = 0
        with pytest.raises(UserError) as error:
            trained(world, aligned_task, tmp_path / "run", served(server.url, f"budget: {{tokens: {spent // 2}}}"))
        assert error.value.code == "E-teacher-budget-spent" and server.billed <= spent // 2
        run_dir = tmp_path / "run"
        tiny.make(world, run_dir, served(server.url, f"budget: {{tokens: {2 * spent}}}"), until="train")
        assert train_files(run_dir) == train_files(whole)
        assert server.billed < 1.2 * spent


def test_a_changed_grading_function_makes_training_with_graded_texts_outdated(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from potstill.stages import open_stage

    monkeypatch.chdir(tmp_path)
    module = tmp_path / "own_texts_grader.py"

    def inputs(limit: int, *changes: str) -> dict[str, str]:
        module.write_text(f"def judge(text, gold):\n    return len(text) > {limit}, text\n")
        task = "sets.sums.task='function: own_texts_grader:judge'"
        return open_stage("train").inputs(tiny.recipe(world, task, *changes))

    assert inputs(1, SECTION) == inputs(1, SECTION) != inputs(22, SECTION)
    ungraded = change(SECTION, "{sets: [sums]}", "{sets: [sums], rewards: false}")
    assert inputs(1, ungraded) == inputs(22, ungraded) and inputs(1) == inputs(22)
