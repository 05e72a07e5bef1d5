"""Loaders of the built-in sets on small faulty files, and on the real sets."""

from __future__ import annotations

import importlib
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

import potstill as ps
from expect import user_error
from potstill import data, grading, prompts
from potstill.cli.grade_rows import grade_file
from potstill.data import (
    bbh,
    custom_set,
    find_duplicates_across_splits,
    load_set,
    read_demonstrations,
    splits,
)
from potstill.errors import UserError
from potstill.recipe import parse_recipe
from potstill.records import Question
from potstill.stages import open_stage
from potstill.storage import manifest
from real_sets import present_sets, real_set

FEW_SHOT = prompts.PromptFormat(few_shot=True, rationale=True)
ONE_SHOT = prompts.PromptFormat(few_shot=False, rationale=True)
SIZES = {"gsm8k": 8792, "multiarith": 600, "asdiv": 2305, "svamp": 1000, "bbh": 6511}


def own(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def refused(path: Path | None, name: str = "mine", **options) -> tuple[str, str]:
    """Code and place of the one error."""
    with pytest.raises(UserError) as error:
        data.load_set(name, file=path, **options) if path else data.load_set(name, **options)
    return error.value.code, error.value.where.replace(str(path.parent) if path else "", "DIR" if path else "")


# your own file


def test_own_records_with_all_fields(tmp_path: Path) -> None:
    full = {"id": 7, "question": " Which? ", "answer": "(A)", "rationale": "So.", "task": "mc/choice", "split": "test"}
    rows = [full, {"question": "Why 2?", "answer": 51.0, "split": "train"}]
    rows += [{"question": f"What is {i}?", "answer": str(i), "split": "validation"} for i in range(2)]
    loaded = data.load_set("mine", file=own(tmp_path, *rows))
    assert loaded[0] == Question("mine/7", "Which?", "(A)", "mine", "test", "mc/choice", "So.")
    assert loaded[1] == Question("mine/2", "Why 2?", "51", "mine", "train", "number", None)
    assert [q.id for q in loaded] == ["mine/7", "mine/2", "mine/3", "mine/4"]


def test_own_fields_may_have_other_names(tmp_path: Path) -> None:
    rows = [{"problem": f"q {i}", "solution": i, "part": "test"} for i in range(3)]
    names = {"question": "problem", "answer": "solution", "split": "part"}
    loaded = data.load_set("mine", file=own(tmp_path, *rows), fields=names, task="number")
    assert [(q.text, q.gold, q.split, q.task) for q in loaded[:1]] == [("q 0", "0", "test", "number")]


def test_rows_of_gsm8k_as_the_hub_has_them_are_read_as_the_set_is(tmp_path: Path, data: Path) -> None:
    path = data / "gsm8k" / "test.jsonl"
    known = [q for q in real_set("gsm8k", data) if q.id.startswith("gsm8k/test/")]
    for options in ({}, {"task": "number"}, {"fields": {"rationale": "answer"}}):
        mine = load_set("mine", file=path, **options)
        assert [(q.text, q.gold, q.rationale) for q in mine] == [(q.text, q.gold, q.rationale) for q in known]
        assert {q.task for q in mine} == {"number"}


def test_own_file_is_divided_by_digest(tmp_path: Path) -> None:
    rows = [{"question": f"What is {i} + {i}?", "answer": 2 * i} for i in range(200)]
    path = own(tmp_path, *rows, {"question": "WHAT is 7 + 7 ?!", "answer": 14})
    loaded = data.load_set("mine", file=path, validation=0.25, test=0.25)
    assert loaded[-1].split == loaded[7].split
    assert set(Counter(q.split for q in loaded)) == {"train", "validation", "test"}
    assert [q.split for q in loaded] == [splits.split_of(q.text, 0.25, 0.25) for q in loaded]
    counted = Counter(q.split for q in data.load_set("mine", file=path, validation=20, test=30))
    assert counted == {"validation": 20, "test": 30, "train": 151}
    assert data.find_duplicates_across_splits(loaded) == []


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ('{"question": "torn', None),
        ("[1]", None),
        ({"answer": 1}, "E-data-missing-field"),
        ({"question": "a"}, "E-data-missing-field"),
        ({"question": "a", "answer": ""}, "E-data-empty-field"),
        ({"question": 5, "answer": 1}, "E-data-field-type"),
        ({"question": "a", "answer": [1, 2]}, "E-data-field-type"),
        ({"question": "a", "answer": None}, "E-data-null-field"),
        ({"question": "a", "answer": 1, "id": "x"}, "E-data-repeated-id"),
        ({"question": "a", "answer": 1, "id": [1]}, "E-data-field-type"),
        ({"question": "a", "answer": 1, "split": "dev"}, "E-data-split-name"),
        ({"question": "a", "answer": "much", "task": "number"}, None),
        ({"question": "a", "answer": "1", "task": "numbr"}, None),
        ({"question": "Which? (A) bat (B) ant", "answer": "(F)"}, "E-data-gold-choice"),
        ({"question": "Which? (A) bat (B) ant", "answer": "bat", "task": "animals/choice"}, "E-data-gold-choice"),
        ({"question": "Which? A bat, B ant", "answer": "bat", "task": "choice"}, None),
        ({"question": "a", "answer": "1", "task": "function: os:system"}, "E-data-function-in-record"),
        ({"question": "a", "answer": "(", "task": "regex"}, None),
        ({"question": "a", "answer": "{", "task": "json"}, None),
    ],
)
def test_a_faulty_record_is_named(tmp_path: Path, row: object, code: str | None) -> None:
    """None: the code of the package that found the fault."""
    first = {"question": "first", "answer": 1, "id": "x", "split": "train"}
    found, where = refused(own(tmp_path, first, row))
    assert where == "DIR/mine.jsonl line 2" and found == (code or found)


def test_a_choice_is_a_letter_with_or_without_brackets(tmp_path: Path) -> None:
    """What the question does not offer in order, each letter once, is not looked for among its choices."""
    asked = "Which? (A) bat (B) ant"
    rows = [(asked, "B"), (asked, "(B)"), ("Of (A) and (B): (A) (B) (C) or", "D"), ("Is (B) or (C) so?", "A")]
    written = [{"question": q, "answer": a, "task": "choice", "split": "test"} for q, a in rows]
    loaded = data.load_set("mine", file=own(tmp_path, *written))
    assert [question.gold for question in loaded] == ["B", "(B)", "D", "A"]
    assert grading.grade("The answer is (B).", "B", "choice") == grading.grade("The answer is B", "(B)", "choice")


def test_own_answers_may_be_json_patterns_or_a_functions_business(tmp_path: Path, monkeypatch) -> None:
    rows = [
        {"question": "a", "answer": {"b": [1, None]}, "task": "json", "split": "test"},
        {"question": "b", "answer": "[0-9]+ pens?", "task": "regex", "split": "test"},
        {"question": "c", "answer": 7, "split": "test"},
    ]
    (tmp_path / "own_rules.py").write_text("def same(text, gold):\n    return text == gold\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    loaded = data.load_set("mine", file=own(tmp_path, *rows), task="function: own_rules:same")
    assert [(q.gold, q.task) for q in loaded] == [
        ('{"b": [1, null]}', "json"),
        ("[0-9]+ pens?", "regex"),
        ("7", "function: own_rules:same"),
    ]
    verdicts = [
        grading.grade(text, q.gold, q.task).grade
        for q, text in zip(loaded, ['{"b":[1,null]}', "3 pens", "7"], strict=True)
    ]
    assert verdicts == ["right"] * 3
    before = custom_set.grader_digests([None, "number", "function: own_rules:same"])
    assert list(before) == ["function own_rules:same"]
    (tmp_path / "own_rules.py").write_text("def same(text, gold):\n    return True\n")
    assert custom_set.grader_digests(["function: own_rules:same"]) != before


def test_faulty_files_are_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "no.jsonl") == ("E-data-missing-file", "DIR/no.jsonl")
    assert refused(own(tmp_path)) == ("E-data-empty-set", "mine")
    bad = tmp_path / "latin.jsonl"
    bad.write_bytes('{"question": "caf\u00e9"}'.encode("latin-1"))
    assert refused(bad)[1] == "DIR/latin.jsonl"
    one = own(tmp_path, {"question": "How?", "answer": 1})
    assert refused(one) == ("E-data-empty-split", "mine")
    assert refused(one, validation=10, test=1) == ("E-data-split-size", "splits of mine")
    assert refused(one, splits="paper") == ("E-data-splits", "splits of mine")
    assert refused(one, fields={"text": "x"}) == ("E-data-unknown-field", "fields")
    with pytest.raises(UserError):
        data.load_set("mine", file=one, task="x")


def test_names_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, suggestion in (("gsmk8", "'gsm8k'"), ("bbh/navigat", "'bbh/navigate'")):
        with pytest.raises(UserError) as error:
            data.load_set(name, tmp_path)
        assert error.value.code == "E-data-unknown-set" and suggestion in error.value.hint
    assert refused(own(tmp_path, {"question": "q", "answer": 1}), "svamp")[0] == "E-data-reserved-name"
    assert refused(None, "svamp", data_dir=tmp_path, task="number")[0] == "E-data-custom-options"
    assert refused(None, "svamp", data_dir=tmp_path, splits="random")[0] == "E-data-splits"
    monkeypatch.delenv("POTSTILL_DATA", raising=False)
    assert refused(None, "svamp") == ("E-data-no-folder", "set svamp")
    assert refused(None, "svamp", data_dir=tmp_path / "nowhere") == ("E-data-no-folder", "data")
    assert refused(None, "svamp", data_dir=tmp_path) == ("E-data-no-set", "data")
    (tmp_path / "svamp").mkdir()
    assert refused(None, "svamp", data_dir=tmp_path) == ("E-data-missing-file", f"{tmp_path}/svamp/SVAMP.json")


PARITY = """
from potstill.data.set_files import BuiltinSet, RawQuestion, read_rows, require_text

TASK = "parity/function: parity:same_parity"

def read_parity(data_dir):
    return [
        RawQuestion(f"parity/{n}", require_text(row, "q", where=where), str(n), TASK, where)
        for n, where, row in read_rows(data_dir / "parity" / "parity.jsonl")
    ]

def same_parity(text, gold):
    return int(text.split()[-1].rstrip(".")) % 2 == int(gold) % 2

SET = BuiltinSet("parity", read_parity, paper_validation=0.2, grader=TASK)
"""


@pytest.fixture
def parity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder of a built-in set that a function grades."""
    (tmp_path / "parity.py").write_text(PARITY)
    write(tmp_path, "parity/parity.jsonl", "".join(f'{{"q": "Which parity has {n}?"}}\n' for n in range(1, 41)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "parity", raising=False)
    monkeypatch.setitem(data.SETS, "parity", importlib.import_module("parity").SET)
    return tmp_path


def test_a_built_in_set_with_its_own_grader_is_one_file_and_an_entry_of_the_table(parity: Path) -> None:
    questions = data.load_set("parity", parity)
    assert len(questions) == 40 and {question.split for question in questions} == {"validation", "test"}
    recipe = parse_recipe("name: x\nquestions: {out_of_distribution: [parity]}\n", "x.yaml")
    assert list(custom_set.grader_digests(data.grader_tasks(recipe))) == ["function parity:same_parity"]


@pytest.mark.parametrize("task", ["parity", "parity/function: parity:same_parity"])
def test_the_grader_of_a_built_in_set_is_a_task_everywhere(parity: Path, task: str) -> None:
    """By the set's name, as of any other set; and in rows and records: it is part of potstill."""
    assert ps.grade("The answer is 7", "3", task=task).grade == "right"
    assert ps.grade("The answer is 8", "3", task=task).grade == "wrong"
    rows, graded = parity / "rows.jsonl", parity / "graded.jsonl"
    rows.write_text(json.dumps({"text": "It is 7", "gold": "3", "task": task}) + "\n")
    grade_file(rows, graded)
    rows.write_text(json.dumps({"text": "It is 7", "gold": "3"}) + "\n")
    assert json.loads(graded.read_text())["verdict"] == "right"
    grade_file(rows, graded, task)
    assert json.loads(graded.read_text())["verdict"] == "right"
    record = {"question": "Which?", "answer": "3", "task": task, "split": "test"}
    assert [question.task for question in data.load_set("mine", file=own(parity, record))] == [task]


def test_other_functions_stay_refused_in_rows_and_records(parity: Path) -> None:
    task = "parity/function: parity:read_parity"
    assert refused(own(parity, {"question": "q", "answer": "3", "task": task}))[0] == "E-data-function-in-record"
    (parity / "rows.jsonl").write_text(json.dumps({"text": "7", "gold": "3", "task": task}) + "\n")
    with user_error("E-grade-row-function"):
        grade_file(parity / "rows.jsonl", parity / "graded.jsonl")
    with user_error("E-grade-unknown-task", hint="gsm8k, multiarith, asdiv, svamp, parity"):
        ps.grade("7", "3", task="partiy")


def test_golds_that_the_grader_takes_for_equal_are_no_contradiction(parity: Path) -> None:
    task = "parity/function: parity:same_parity"
    golds = [Question(f"p/{gold}", "Which?", gold, "p", "test", task) for gold in ("3", "7", "8")]
    assert [(first.id, other.id) for first, other in data.find_contradictions(golds)] == [("p/3", "p/8")]


def test_a_changed_file_of_a_built_in_set_is_noticed(parity: Path) -> None:
    """If the set is not on this machine, or an older run did not record it, nothing is known to have changed."""
    recipe = parse_recipe(f"name: x\ndata: {parity}\nquestions: {{out_of_distribution: [parity]}}\n", "x.yaml")
    before = open_stage("collect").inputs(recipe)
    assert list(before) == ["built-in set parity"]
    assert open_stage("collect").inputs(recipe) == before
    write(parity, "parity/parity.jsonl", '{"q": "Which parity has 1 or 2?"}\n' * 40)
    after = open_stage("collect").inputs(recipe)
    identities = [manifest.Identity("collect", {}, {}, inputs) for inputs in (before, after, {})]
    assert manifest.identity_differences(identities[0], identities[1]) == ["content of built-in set parity"]
    assert manifest.identity_differences(identities[2], identities[1]) == []
    assert manifest.identity_differences(identities[0], identities[2]) == []


# the five sets, from files written here


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def test_small_sets_are_read_as_they_should(tmp_path: Path) -> None:
    write(tmp_path, "gsm8k/train.jsonl", json.dumps({"question": "q", "answer": "a <<1+1=2>>2\nb\n#### 1,002"}) + "\n")
    tests = [json.dumps({"question": f"t {i}", "answer": f"#### {i}"}) for i in range(40)]
    write(tmp_path, "gsm8k/test.jsonl", "\n".join(tests))
    loaded = data.load_set("gsm8k", tmp_path)
    assert loaded[0] == Question("gsm8k/train/0", "q", "1,002", "gsm8k", "train", "gsm8k", "a 2\nb")
    assert {q.split for q in loaded[1:]} == {"validation", "test"}

    svamp = [{"ID": f"chal-{i}", "Body": f"He has {i}", "Question": "How many?", "Answer": float(i)} for i in range(30)]
    write(tmp_path, "svamp/SVAMP.json", json.dumps(svamp))
    third = data.load_set("svamp", tmp_path)[3]
    assert (third.id, third.text, third.gold) == ("svamp/chal-3", "He has 3. How many?", "3")
    svamp[3]["Answer"] = "3"
    write(tmp_path, "svamp/SVAMP.json", json.dumps(svamp))
    with pytest.raises(UserError) as error:
        data.load_set("svamp", tmp_path)
    assert error.value.code == "E-data-field-type" and error.value.where.endswith("SVAMP.json record 3")
    write(tmp_path, "svamp/SVAMP.json", json.dumps(svamp)[:-40])
    with pytest.raises(UserError) as error:
        data.load_set("svamp", tmp_path)
    assert error.value.code == "E-data-json" and error.value.where.endswith("SVAMP.json")
    write(tmp_path, "asdiv/ASDiv.xml", "<a><Problem ID='n'><Body>x</Body>")
    with pytest.raises(UserError) as error:
        data.load_set("asdiv", tmp_path)
    assert error.value.code == "E-data-xml" and error.value.where.endswith("ASDiv.xml")
    write(tmp_path, "asdiv/ASDiv.xml", "<a><Problem ID='n'><Body>x</Body><Question>y</Question></Problem></a>")
    with pytest.raises(UserError) as error:
        data.load_set("asdiv", tmp_path)
    assert error.value.code == "E-data-missing-field" and error.value.where.endswith("ASDiv.xml record 0 (n)")
    write(tmp_path, "multiarith/MultiArith.json", json.dumps([{"sQuestion": "q", "lSolutions": [1.0, 2.0]}]))
    with pytest.raises(UserError) as error:
        data.load_set("multiarith", tmp_path)
    assert error.value.code == "E-data-missing-gold" and error.value.where.endswith("record 0")


def test_leaks_are_found_across_sets() -> None:
    def make(name: str, text: str, split) -> Question:
        return Question(name, text, "1", set=name[0], split=split, task="number")

    train, again = make("a/1", "How many?", "train"), make("a/2", "Other", "train")
    validation, test = make("b/1", "how MANY", "validation"), make("c/1", "How, many?", "test")
    assert data.find_duplicates_across_splits([train, again, validation, test]) == [(train, test), (validation, test)]
    assert data.find_duplicates_across_splits([test, validation]) == [(validation, test)]
    assert data.find_duplicates_across_splits([train, again]) == []


def test_contradictions_are_equal_questions_with_different_answers() -> None:
    mine = [Question(f"m/{gold}", "How many?", gold, "m", "train", "number") for gold in ("5", "5.0", "6")]
    assert [(first.id, other.id) for first, other in data.find_contradictions(mine)] == [("m/5", "m/6")]


def test_every_set_names_its_source_and_the_licence_that_its_authors_state() -> None:
    assert {name: builtin.licence for name, builtin in data.SETS.items()} == {
        "gsm8k": "mit",
        "multiarith": None,
        "asdiv": "cc-by-nc-4.0",
        "svamp": "mit",
        "bbh": "mit",
    }
    assert all(builtin.source.startswith("https://github.com/") for builtin in data.SETS.values())


# the real files


@pytest.mark.parametrize("name", data.SETS)
def test_real_sets_are_whole_and_leak_free(data: Path, name: str) -> None:
    assert name in SIZES, f"enter the number of questions of {name} in SIZES"
    found = real_set(name, data)
    assert len(found) == len({q.id for q in found}) == SIZES[name]
    assert find_duplicates_across_splits(found) == []
    assert not any(".." in q.text for q in found if q.set == "svamp")
    assert ("train" in {q.split for q in found}) == (name == "gsm8k")


def test_a_set_without_its_files_is_skipped_and_no_other_fault_is(tmp_path: Path) -> None:
    (tmp_path / "svamp").mkdir()
    (tmp_path / "svamp" / "SVAMP.json").write_text("[]")
    for name in ("gsm8k", "multiarith", "asdiv", "bbh"):
        with pytest.raises(pytest.skip.Exception, match=name):
            real_set(name, tmp_path)
    with pytest.raises(UserError):
        real_set("svamp", tmp_path)


def test_shares_keep_all_sets_apart(data: Path) -> None:
    assert find_duplicates_across_splits([q for name in present_sets(data) for q in real_set(name, data)]) == []


def test_counts_tear_a_few_questions_apart_and_leaks_names_them(data: Path) -> None:
    everything = [q for name in ("multiarith", "asdiv", "svamp") for q in real_set(name, data, "paper")]
    torn = find_duplicates_across_splits(
        everything
    )  # MultiArith and ASDiv share some questions, and the authors did not look
    assert len(torn) == 30 and sum(first.set == later.set == "multiarith" for first, later in torn) == 5
    dropped = {first.id for first, _ in torn}
    assert find_duplicates_across_splits([q for q in everything if q.id not in dropped]) == []


def test_the_authors_own_validation_questions_of_multiarith(data: Path, tmp_path: Path) -> None:
    indices = json.loads((data / "golden" / "authors_validation_indices.json").read_bytes())["multiarith_dev200"]
    held = {q.id for q in real_set("multiarith", data, "paper") if q.split == "validation"}
    assert held == {f"multiarith/{index}" for index in indices} and len(held) == 200
    (tmp_path / "multiarith").symlink_to(data / "multiarith")
    others = {q.id for q in real_set("multiarith", tmp_path, "paper") if q.split == "validation"}
    assert len(others) == 200 and others != held  # without their file: those of lowest digest
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden" / "authors_validation_indices.json").write_text('{"multiarith_dev200": [1, 2, 600]}')
    with pytest.raises(UserError) as error:
        load_set("multiarith", tmp_path, splits="paper")
    assert error.value.code == "E-data-split-file"


def test_paper_sizes(data: Path) -> None:
    sizes = {
        name: Counter(q.split for q in real_set(name, data, "paper"))
        for name in ("gsm8k", "multiarith", "asdiv", "svamp")
    }
    assert sizes["gsm8k"] == {"train": 7473, "validation": 500, "test": 819}
    assert sizes["multiarith"] == {"validation": 200, "test": 400}
    assert sizes["asdiv"] == {"validation": 500, "test": 1805}
    assert sizes["svamp"] == {"validation": 500, "test": 500}
    tasks = Counter((q.task, q.split) for q in real_set("bbh", data))
    assert tasks["bbh/navigate", "validation"] == 50
    assert tasks["bbh/snarks", "validation"] == 35


def test_one_task_of_bbh_is_the_same_alone(data: Path) -> None:
    alone = load_set("bbh/navigate", data)
    assert alone == [q for q in real_set("bbh", data) if q.task == "bbh/navigate"]
    assert {q.set for q in alone} == {"bbh"}


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("prompt_simple_4_cases", prompts.PAPER_STYLE),
        ("prompt_complex", prompts.TEACHER_STYLE),
        ("prompt_original", prompts.TEACHER_STYLE),
    ],
)
def test_prompt_files_are_rebuilt_byte_for_byte(data: Path, name: str, style: prompts.PromptStyle) -> None:
    file = data / "prompts" / f"{name}.txt"
    shots = read_demonstrations(file)
    prompt = prompts.build_prompt("Why?", ONE_SHOT, style=style).plain
    assert prompts.build_prompt("Why?", FEW_SHOT, shots, style=style).plain == file.read_text() + "\n" + prompt


def test_answer_only_prompt_file_is_rebuilt(data: Path) -> None:
    file = data / "prompts" / "prompt_direct.txt"
    shots = read_demonstrations(file)
    built = prompts.build_prompt("Why?", prompts.PromptFormat(True, False), shots, style=prompts.TEACHER_STYLE).plain
    assert built == file.read_text() + "\nQuestion: Why?\nThe answer is"
    assert not any(shot.rationale for shot in shots)


def test_a_torn_prompt_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "shots.txt"
    file.write_text("Q: a\nThe answer is 1\n\nQ: b\nThe ans")
    with pytest.raises(UserError) as error:
        data.read_demonstrations(file)
    assert error.value.code == "E-data-demonstration" and error.value.where.endswith("shots.txt block 2")
    file.write_text("\n")
    with pytest.raises(UserError) as error:
        data.read_demonstrations(file)
    assert error.value.code == "E-data-no-demonstrations"


@pytest.mark.parametrize("task", bbh.TASKS)
def test_official_bbh_prompts_are_rebuilt_without_the_canary(data: Path, task: str) -> None:
    text = (data / "bbh" / "cot-prompts" / f"{task}.txt").read_text()
    instruction, shots = bbh.read_bbh_demonstrations(data, task)
    style = bbh.bbh_prompt_style(task)
    built = prompts.build_prompt("Why?", FEW_SHOT, shots, style=style, instruction=instruction).plain
    assert built == text.partition("\n-----\n")[2] + "\n\nQ: Why?\nA: Let's think step by step."
    assert len(shots) == 3 and "canary" not in built.lower()
    bare = prompts.build_prompt(
        "Why?", prompts.PromptFormat(True, False), shots, style=style, instruction=instruction
    ).plain
    expected = [f"Q: {shot.question}\nA: {shot.answer}" for shot in shots]
    assert bare == "\n\n".join([instruction, *expected, "Q: Why?\nA:"])
    assert not any(shot.rationale[:30] in bare for shot in shots)
