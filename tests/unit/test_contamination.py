"""The contamination check gives the verdicts of its plain definition, also for questions that differ only in numbers and
names."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from potstill import dry_run
from potstill.data import assemble, contamination, run_questions
from potstill.data.contamination import mask_numbers_and_names, word_ngrams
from potstill.data.splits import canonical_question
from potstill.errors import UserError
from potstill.stages import open_stage

WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "5", "7", "."]), max_size=14).map(" ".join)
TEXTS = st.lists(WORDS, max_size=24)


def plain_overlaps(texts: dict[str, str], held: list[str], n: int) -> dict[str, float]:
    """By comparing each with each."""
    found = {}
    for name, text in texts.items():
        own = word_ngrams(text, n)
        most = max((len(own & word_ngrams(other, n)) for other in held), default=0)
        if most:
            found[name] = most / len(own)
    return found


def plain_holds(texts: dict[str, str], held: list[str], n: int) -> dict[str, float]:
    found = {}
    for name, text in texts.items():
        words = canonical_question(text).split()
        best = 0.0
        for other in held:
            own = word_ngrams(other, n) - {()}
            inside = [gram for gram in own if gram in {tuple(words[i : i + len(gram)]) for i in range(len(words))}]
            best = max(best, len(inside) / len(own) if own else 0.0)
        if best:
            found[name] = best
    return found


@given(TEXTS, TEXTS, st.integers(1, 4))
def test_overlaps_and_holds_are_what_comparing_each_with_each_gives(left: list[str], right: list[str], n: int) -> None:
    texts = {str(i): text for i, text in enumerate(left)}
    assert contamination.overlap_shares(texts, right, n) == plain_overlaps(texts, right, n)
    assert contamination.contained_shares(texts, right, n) == pytest.approx(plain_holds(texts, right, n))


@given(
    st.lists(st.frozensets(st.integers(0, 30), max_size=20), max_size=120),
    st.frozensets(st.integers(0, 34)),
    st.sampled_from([1, 3, contamination.MAX_NODES]),
    st.sampled_from([0, 1, contamination.MAX_CANDIDATES]),
)
def test_the_index_finds_the_most_shared(held: list[frozenset[int]], own: frozenset[int], nodes: int, few: int) -> None:
    """Whichever way it is found: piece by piece, text by text, or by counting all of them."""
    expected: dict[int, int] = {}
    for other in held:
        if other & own:
            expected[len(other)] = max(expected.get(len(other), 0), len(other & own))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contamination, "MAX_NODES", nodes)
        patch.setattr(contamination, "MAX_CANDIDATES", few)
        assert contamination.OverlapIndex(held).max_shared(own) == expected


def test_ten_thousand_questions_of_one_template_take_no_pairs() -> None:
    """Each with each these are 21 million pairs, of which all share words."""
    draw = random.Random(0).randrange

    def made() -> str:
        a, b, c = draw(90), draw(90), draw(90)
        return (
            f"Tom has {a} pens and gets {b} more from his aunt, and then he loses {c} of them at school."
            " How many pens does Tom have now altogether?"
        )

    train, held = {str(i): made() for i in range(7000)}, [made() for _ in range(3000)]
    found = contamination.overlap_shares(train, held)
    some = {name: train[name] for name in list(train)[:20]}
    assert {name: found[name] for name in some} == plain_overlaps(some, held, 8)
    taking, same = contamination.find_same_templates(train, {str(i): text for i, text in enumerate(held)})
    assert (len(taking), len(same)) == (7000, 3000)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("Tom has 12 pens.", "Ann has 3.5 pens.", True),
        ("Tom has twelve pens. He loses 2.", "Mrs. Hill has 7 pens. She loses twenty-one.", True),
        ("If Tom's dog eats 1,000 bones", "If Ann Lee's dog eats 2/3 bones", True),
        ("Tom has 12 pens.", "Tom has 12 hens.", False),
        ("TOM HAS 12 PENS", "TOM HAS 13 HENS", False),  # without small letters nothing says what is a name
        ("He gives her 5", "She gives him 6", True),
        ("\u0422\u043e\u043c \u0438 5", "\u0410\u043d\u043d\u0430 \u0438 7", True),
        ("$5 for 30%", "$6.50 for 45%", True),
    ],
)
def test_masks(a: str, b: str, same: bool) -> None:
    assert (canonical_question(mask_numbers_and_names(a)) == canonical_question(mask_numbers_and_names(b))) is same


@given(st.text())
def test_a_mask_may_be_put_on_any_text(text: str) -> None:
    mask_numbers_and_names(text)


@pytest.mark.slow
def test_multiarith_repeats_its_templates_and_gsm8k_does_not(data: Path) -> None:
    from potstill.data import RawQuestion, assign_splits, load_set

    raws = [RawQuestion(q.id, q.text, q.gold, q.task, "") for q in load_set("multiarith", data)]
    questions = assign_splits(raws, "ma", validation=0.25, test=0.25)
    train, test = ({q.id: q.text for q in questions if q.split == split} for split in ("train", "test"))
    assert (
        contamination.overlap_shares(test, train.values()).values()
        and max(contamination.overlap_shares(test, train.values()).values()) < 0.9
    )
    _, found = contamination.find_same_templates(train, test)
    assert len(found) / len(test) > 0.75
    gsm8k = {q.id: q.text for q in load_set("gsm8k", data) if q.split == "train"}
    for name, most in (("svamp", 0), ("multiarith", 0), ("asdiv", 8)):
        measured = {q.id: q.text for q in load_set(name, data) if q.split == "test"}
        assert len(contamination.find_same_templates(gsm8k, measured)[1]) <= most


# in a run: the tiny sets have one template each, so that all of one set's questions are the same but for numbers


def gathered(world: Path, *changes: str) -> assemble.AssembledQuestions:
    return assemble.assemble_questions(tiny.recipe(world, *changes))


def test_the_plan_says_how_many_measured_questions_have_the_template_of_a_training_question(world: Path) -> None:
    found = gathered(world)
    assert list(found.templates) == ["sums"]
    for split, ids in found.templates["sums"].items():
        assert ids == [question.id for question in found.questions["sums"][split]]
    n = len(found.questions["sums"]["test"])
    text = dry_run.describe_run(tiny.recipe(world))
    assert f"templates       sums test: {n} of {n} equal training questions except for numbers and names" in text
    assert "templates       other" not in text


def extended(world: Path, folder: Path) -> str:
    """The first set with two training questions of templates of their own."""
    path = folder / "sums.jsonl"
    rows: list[dict[str, Any]] = [*tiny.rows("sums", 12)]
    others = ("Why is the sum of 1 and 9 ten?", "Which number follows 9 on a line?")
    rows += [{"question": text, "answer": "10", "rationale": "So.", "split": "train"} for text in others]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"sets.sums.file={path}"


def test_training_questions_of_a_measured_template_can_be_dropped(world: Path, tmp_path: Path) -> None:
    own = extended(world, tmp_path)
    kept, dropped = gathered(world, own), gathered(world, own, "questions.templates=drop")
    assert [q.text for q in dropped.questions["sums"]["train"]] == [
        "Why is the sum of 1 and 9 ten?",
        "Which number follows 9 on a line?",
    ]
    assert dropped.dropped == len(kept.questions["sums"]["train"]) - 2 and dropped.templates == {}
    assert {k: v["test"] for k, v in dropped.questions.items()} == {k: v["test"] for k, v in kept.questions.items()}
    recipe = tiny.recipe(world, own, "questions.templates=drop")
    assert f"templates       {dropped.dropped} training questions left out" in dry_run.describe_run(recipe)
    assert open_stage("collect").make(tmp_path / "run", recipe)[1]["left out as templates"] == dropped.dropped
    with pytest.raises(UserError) as error:
        gathered(world, "questions.templates=drop")
    assert error.value.code == "E-data-templates"


def test_the_page_says_how_the_student_did_on_other_templates(finished: Path, world: Path) -> None:
    from potstill.report import collect

    shared = run_questions.read_templates(finished, "test")
    assert list(shared) == ["sums"]
    notes = collect.collect_report(finished, tiny.recipe(world)).notes
    n = len(shared["sums"])
    [note] = [note for note in notes if "differ from a training question only in numbers" in note]
    assert note.startswith(
        f"{n} of the {n} test questions of sums differ from a training question only in numbers and names."
    )
    assert note in (finished / "report" / "index.html").read_text("utf-8").replace("&#39;", "'")


def test_accuracy_is_given_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    from potstill.evaluation import checkpoint
    from potstill.records import BASE, Checkpoint, Choice, Prediction
    from potstill.report import notes
    from potstill.report.run_files import RunFiles

    chosen = Checkpoint(4)
    right = {BASE: {"s/0"}, chosen: {"s/0", "s/1", "s/3"}}
    grade = {True: "right", False: "wrong"}

    def predictions(run_dir: Path, who: Checkpoint, format: str, decoding: str) -> list[Prediction]:
        names = [f"s/{i}" for i in range(4)]
        return [Prediction(n, "s", "number", "", "end", grade[n in right[who]], "") for n in names]  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "read_predictions", predictions)
    monkeypatch.setattr(checkpoint, "read_scores", lambda folder, checkpoint: [])
    monkeypatch.setattr(run_questions, "read_templates", lambda run, split: {"s": {"s/0", "s/1"}})
    files = RunFiles(Path(), tiny.recipe(Path()))
    files.choice = Choice(chosen, "", "zero-shot-rationale", "greedy", ())
    assert list(notes.note_templates(files)) == [
        "2 of the 4 test questions of s differ from a training question only in numbers and names. The chosen checkpoint"
        " is right on 100.0 % of them and on 50.0 % of the other 2 (the base: 50.0 % and 0.0 %)."
    ]
