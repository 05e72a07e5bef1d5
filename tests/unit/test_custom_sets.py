"""Custom sets in all supported file forms, and one message for each fault."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

import tiny
from potstill import data
from potstill.errors import UserError
from potstill.recipe import find_path, find_paths, parse_recipe
from potstill.records import Question
from potstill.storage import dataset_files
from potstill.teachers import replay

TWO = [
    {"question": "Ann has 3 pens and buys 2. How many?", "answer": 5, "split": "train"},
    {"question": "Bob, tired, has 7 hens. How many?", "answer": 7, "split": "test"},
]
LINES = "".join(json.dumps(row) + "\n" for row in TWO).encode()
ARRAY = json.dumps(TWO)
HEAD = "question,answer,split\n"
TABLE = HEAD + '"Ann has 3 pens and buys 2. How many?",5,train\n"Bob, tired, has 7 hens. How many?",7,test\n'
FORMS: dict[str, bytes] = {
    "mine.jsonl": LINES,
    "crlf.jsonl": LINES.replace(b"\n", b"\r\n"),
    "bom.jsonl": b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\n\xef\xbb\xbf", 1),  # two files, each with its mark
    "array.json": ARRAY.encode(),
    "indented.json": json.dumps(TWO, indent=2).encode(),
    "array.jsonl": b"\n" + ARRAY.encode(),
    "wrapped.json": json.dumps({"canary": "x", "examples": TWO}).encode(),
    "wrapped-indented.json": json.dumps({"data": TWO}, indent=1).encode(),
    "mine.jsonl.gz": gzip.compress(LINES[:90], mtime=0) + gzip.compress(LINES[90:], mtime=0),
    "named-plainly.jsonl": gzip.compress(LINES, mtime=0),
    "mine.jsonl.zst": pa.compress(LINES, codec="zstd", asbytes=True),
    "mine.jsonl.bz2": bz2.compress(LINES),
    "mine.jsonl.xz": lzma.compress(LINES),
    "array.json.gz": gzip.compress(ARRAY.encode(), mtime=0),
    "mine.csv": TABLE.encode(),
    "excel.csv": b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").encode(),
    "semicolons.csv": "\n".join(";".join(map(str, row)) for row in [[*TWO[0]], *(r.values() for r in TWO)]).encode(),
    "mine.tsv": "\n".join("\t".join(map(str, row)) for row in [[*TWO[0]], *(r.values() for r in TWO)]).encode(),
    "mine.csv.gz": gzip.compress(TABLE.encode(), mtime=0),
}


def stored(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def load(*paths: Path, **options: Any) -> list[Question]:
    return data.load_set("mine", file=paths if len(paths) > 1 else paths[0], validation=0.001, test=0.001, **options)


def refusal(*paths: Path, **options: Any) -> tuple[str, str]:
    """Code and place of the one error, which can be printed."""
    with pytest.raises(UserError) as error:
        load(*paths, **options)
    str(error.value).encode("utf-8")
    return error.value.code, error.value.where.rpartition("/")[2]


def lines(folder: Path, *rows: dict[str, Any]) -> Path:
    return stored(folder, "mine.jsonl", "".join(json.dumps({"split": "train", **row}) + "\n" for row in rows).encode())


@pytest.mark.parametrize("name", FORMS)
def test_each_form_holds_the_same_questions(tmp_path: Path, name: str) -> None:
    found = load(stored(tmp_path, name, FORMS[name]))
    assert [(q.text, q.gold, q.split) for q in found] == [(r["question"], str(r["answer"]), r["split"]) for r in TWO]


def arrow_table() -> pa.Table:
    return pa.Table.from_pylist(TWO)


def arrow_bytes(table: pa.Table, kind: str) -> bytes:
    sink = pa.BufferOutputStream()
    opened = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with opened(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def saved(folder: Path, table: pa.Table) -> Path:
    """A folder as `datasets.save_to_disk` writes it."""
    stored(folder, "data-00000-of-00001.arrow", arrow_bytes(table, "stream"))
    stored(folder, "state.json", json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}).encode())
    stored(folder, "dataset_info.json", b"{}")
    return folder


def test_arrow_files_and_folders_that_datasets_saved(tmp_path: Path) -> None:
    for kind in ("stream", "file"):
        assert [q.gold for q in load(stored(tmp_path, f"{kind}.arrow", arrow_bytes(arrow_table(), kind)))] == ["5", "7"]
    assert [q.gold for q in load(saved(tmp_path / "set", arrow_table()))] == ["5", "7"]
    parts = tmp_path / "parts"
    for part, at in (("train", 0), ("test", 1)):
        saved(parts / part, arrow_table().drop(["split"]).slice(at, 1))
    stored(parts, "dataset_dict.json", b'{"splits": ["train", "test"]}')
    assert [(q.gold, q.split) for q in load(parts)] == [("5", "train"), ("7", "test")]
    (parts / "test" / "data-00000-of-00001.arrow").unlink()
    assert refusal(parts)[1] == "data-00000-of-00001.arrow"
    (tmp_path / "other").mkdir()
    assert refusal(tmp_path / "other")[1] == "other"


def test_a_folder_that_the_library_datasets_saves(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the library datasets")
    whole = datasets.Dataset.from_list(TWO)
    whole.save_to_disk(str(tmp_path / "one"))
    assert [q.gold for q in load(tmp_path / "one")] == ["5", "7"]
    bare = whole.remove_columns(["split"])
    datasets.DatasetDict({"train": bare.select([0]), "test": bare.select([1])}).save_to_disk(str(tmp_path / "two"))
    assert [(q.gold, q.split) for q in load(tmp_path / "two")] == [("5", "train"), ("7", "test")]


def test_several_files_are_one_set(tmp_path: Path) -> None:
    first, second = stored(tmp_path, "a.jsonl", LINES), stored(tmp_path, "b.csv", TABLE.replace("n", "m").encode())
    second.write_text(second.read_text().replace("questiom,amswer", "question,answer").replace("traim", "train"))
    assert [q.id for q in load(first, second)] == ["mine/1-1", "mine/1-2", "mine/2-2", "mine/2-3"]


PARQUET: dict[str, tuple[Callable[[], dict[str, Any]], list[str]]] = {
    "bytes": (
        lambda: {"question": pa.array([b"Ann \xf0\x9f\x98\x80?"], pa.binary()), "answer": ["5"]},
        ["Ann 😀?", "5"],
    ),
    "large bytes": (lambda: {"question": pa.array([b"Ann?"], pa.large_binary()), "answer": [b"5"]}, ["Ann?", "5"]),
    "words": (lambda: {"question": pa.array(["Ann?"]).dictionary_encode(), "answer": [5]}, ["Ann?", "5"]),
    "float32": (lambda: {"question": ["Ann?"], "answer": pa.array([0.1], pa.float32())}, ["Ann?", "0.1"]),
    "float32 whole": (lambda: {"question": ["Ann?"], "answer": pa.array([51], pa.float32())}, ["Ann?", "51"]),
    "float64": (lambda: {"question": ["Ann?"], "answer": pa.array([0.1], pa.float64())}, ["Ann?", "0.1"]),
    "list": (lambda: {"question": ["Ann?"], "answer": pa.array([[0.3]], pa.list_(pa.float32()))}, ["Ann?", "0.3"]),
    "decimal": (lambda: {"question": ["Ann?"], "answer": pa.array([2], pa.decimal128(5, 1))}, ["Ann?", "2.0"]),
    "truth": (lambda: {"question": ["Does Ann eat?"], "answer": [True]}, ["Does Ann eat?", "yes"]),
    "picture": (lambda: {"question": ["Ann?"], "answer": ["5"], "image": [b"\xff\xd8"]}, ["Ann?", "5"]),
}


@pytest.mark.parametrize("name", PARQUET)
def test_types_of_columns(tmp_path: Path, name: str) -> None:
    columns, expected = PARQUET[name]
    parquet.write_table(pa.table({**columns(), "split": ["train"]}), tmp_path / "mine.parquet")
    [question] = load(tmp_path / "mine.parquet")
    assert [question.text, question.gold] == expected


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
@settings(max_examples=200)
def test_a_float32_is_the_shortest_decimal_that_it_stands_for(value: float) -> None:
    import numpy

    table = pa.table({"answer": pa.array([value], pa.float32())})
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink)
    from potstill.storage import dataset_files

    [row] = dataset_files.read_parquet_rows(sink.getvalue().to_pybytes(), Path("x"))
    assert numpy.float32(row["answer"]) == numpy.float32(value)
    assert digits(row["answer"]) <= digits(value)


def digits(value: float) -> int:
    """How many digits a number has without the zeros around them."""
    return len(f"{value!r}".lower().partition("e")[0].replace(".", "").strip("-0"))


# half of a surrogate pair

HALF = '{"question": "How many? \\ud83d", "answer": "5"}'


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.jsonl", LINES + HALF.encode(), "a.jsonl line 3"),
        ("a.json", f"[{HALF}]".encode(), "a.json record 1"),
        ("b.jsonl", b'{"question": "?", "answer": "\\udc00"}', "b.jsonl line 1"),
        (
            "c.jsonl",
            b'{"question": "?", "answer": 1, "rationale": "\\udc00."}',
            "c.jsonl line 1",
        ),
        ("d.jsonl", b'{"question": "?", "answer": 1, "id": "\\udc00"}', "d.jsonl line 1"),
        ("e.jsonl", LINES + b'{"question": "\xed\xa0\xbd", "answer": 1}', "e.jsonl line 3"),
        ("f.csv", TABLE.encode() + b"How \xed\xa0\xbd,5,test\n", "f.csv line 4"),
        ("g.jsonl.gz", gzip.compress(HALF.encode(), mtime=0), "g.jsonl.gz line 1"),
    ],
)
def test_half_of_a_surrogate_pair_is_refused_with_its_place(
    tmp_path: Path, name: str, data: bytes, expected: str
) -> None:
    code, where = refusal(stored(tmp_path, name, data))
    assert where == expected and (code == "E-data-surrogate" or name[0] in "ef")


def test_half_of_a_surrogate_pair_in_parquet_and_a_whole_pair(tmp_path: Path) -> None:
    text = pa.array([b"How?", b"How \xed\xa0\xbd?"], pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"question": text, "answer": ["5", "6"]}), tmp_path / "mine.parquet")
    assert refusal(tmp_path / "mine.parquet") == ("E-data-utf8", "mine.parquet record 2")
    whole = '{"question": "How many \\ud83d\\ude00?", "answer": "5", "split": "train"}'
    assert load(stored(tmp_path, "whole.jsonl", whole.encode()))[0].text == "How many 😀?"


@pytest.mark.parametrize("field", ["text", "source", "defects"])
def test_half_of_a_surrogate_pair_in_chains_to_replay(tmp_path: Path, field: str) -> None:
    question = Question("mine/1", "How many?", "5", "mine", "train", "number")
    row = {"question": "mine/1", "text": "It is 5.", field: ["\ud83d"] if field == "defects" else "\ud83d"}
    path = stored(tmp_path, "old.jsonl", json.dumps(row).encode())
    with pytest.raises(UserError, match=r"old\.jsonl line 1: the row is not a chain") as error:
        list(replay.build_chains(replay.read_rows(path), [question], where=str(path)))
    assert "half of a surrogate pair" in str(error.value)
    str(error.value).encode("utf-8")


def test_plain_parquet_is_replayed_as_its_rows_in_json_lines_are(tmp_path: Path) -> None:
    question = Question("mine/1", "How many?", "5", "mine", "train", "number")
    told = [{"question": "How many?", "text": "It is 5."}, {"question": "mine/1", "text": "Five."}]
    parquet.write_table(pa.Table.from_pylist(told), tmp_path / "old.parquet")
    text = "".join(json.dumps(row) + "\n" for row in told).encode()
    paths = [tmp_path / "old.parquet", stored(tmp_path, "old.jsonl", text)]
    paths += [
        stored(tmp_path, "old.json", json.dumps(told).encode()),
        stored(tmp_path, "z.jsonl", gzip.compress(text, mtime=0)),
    ]
    found = [
        [chain for batch in replay.build_chains(replay.read_rows(p), [question], where="") for chain in batch]
        for p in paths
    ]
    assert len(found[0]) == 2 and all(chains == found[0] for chains in found)


# what a gold answer may look like

GOLDS: list[tuple[dict[str, Any], str, str | None]] = [
    ({"answer": "3+2=<<3+2=5>>5 pens.\n#### 5"}, "5", "3+2=5 pens."),
    ({"answer": "#### 1,200"}, "1,200", None),
    ({"answer": "So it is $\\boxed{5}$."}, "5", None),
    ({"answer": "\\boxed{(A)}"}, "(A)", None),
    ({"answer": "The answer is 5."}, "5", None),
    ({"answer": "3 + 2 = 5.\nSo the answer is 5."}, "5", "3 + 2 = 5."),
    ({"answer": "3 + 2 = 5. The final answer is: $5."}, "$5", "3 + 2 = 5."),
    ({"answer": "Answer: (B)"}, "(B)", None),
    ({"answer": "true"}, "true", None),
    ({"answer": False}, "no", None),
    ({"answer": [39.0]}, "39", None),
    ({"answer": 0.5}, "0.5", None),
    ({"answer": 10**308 + 1}, f"1{'0' * 307}1", None),
    ({"answer": -(7 * 10**399)}, f"-7{'0' * 399}", None),
    ({"answer": 1e308}, str(int(1e308)), None),
    ({"answer": 1, "choices": [10**309, 10**310]}, "(B)", None),
    ({"answer": 10**310, "choices": [10**309, 10**310]}, "(B)", None),
    ({"answer": "#### 5", "task": "regex"}, "#### 5", None),
    ({"answer": "1 + 1 = 2\n#### 2", "rationale": "Own."}, "2", "Own."),
    ({"answer": {"a": 1}, "task": "json"}, '{"a": 1}', None),
]


@pytest.mark.parametrize(("row", "gold", "rationale"), GOLDS)
def test_gold_answers_in_the_forms_that_people_have(
    tmp_path: Path, row: dict[str, Any], gold: str, rationale: str | None
) -> None:
    [question] = load(lines(tmp_path, {"question": "Is it?", **row}))
    assert (question.gold, question.rationale) == (gold, rationale)


@pytest.mark.parametrize("number", ["7" * 401, "7" * 4301, "1e400", "NaN"])
def test_a_gold_number_that_cannot_be_compared_is_refused(tmp_path: Path, number: str) -> None:
    (tmp_path / "own.jsonl").write_text(f'{{"question": "How many?", "answer": {number}}}\n')
    with pytest.raises(UserError) as error:
        load(tmp_path / "own.jsonl", task="number")
    assert (
        error.value.code in ("E-grade-gold-type", "E-data-field-type", "E-storage-invalid-json") and error.value.where
    )


def test_where_an_answer_stands_is_said_by_the_recipe(tmp_path: Path) -> None:
    rows = ({"q": "Ann?", "a": "2 + 3. KEY: 5 pens"}, {"q": "Does Bob?", "a": "KEY: ja"})
    fields = {"question": "q", "answer": {"column": "a", "after": "KEY:"}}
    assert [q.gold for q in load(lines(tmp_path, *rows), fields=fields)] == ["5 pens", "ja"]
    assert [q.rationale for q in load(lines(tmp_path, *rows), fields=fields)] == ["2 + 3.", None]
    assert refusal(lines(tmp_path, *rows), fields={"question": "q", "answer": {"column": "a", "after": "+"}}) == (
        "E-data-missing-gold",
        "mine.jsonl line 2",
    )
    boxed = {"question": "Ann?", "solution": "It is \\boxed{5 + {1}} as $x$ shows."}
    asked = {"answer": {"column": "solution", "after": "\\boxed"}}
    assert load(lines(tmp_path, boxed), fields=asked, task="exact")[0].gold == "5 + {1}"
    values = {"answer": {"column": "label", "values": {"true": "valid", "0": "invalid"}}}
    told = load(lines(tmp_path, {"question": "A.", "label": True}, {"question": "B.", "label": 0}), fields=values)
    assert [q.gold for q in told] == ["valid", "invalid"]


@pytest.mark.parametrize(
    ("choices", "answer", "letter"),
    [
        (["red", "blue"], 1, "(B)"),
        (["red", "blue"], "b", "(B)"),
        (["red", "blue"], "(B)", "(B)"),
        (["red", "blue"], "Blue", "(B)"),
        (["red", "blue"], "1", "(B)"),
        ({"text": ["red", "blue"], "label": ["1", "2"]}, "1", "(A)"),
        ({"text": ["red", "blue"], "label": ["A", "B"]}, "A", "(A)"),
        ([{"label": "A", "text": "red"}, {"label": "B", "text": "blue"}], "B", "(B)"),
        (["12", "7"], "12", "(A)"),
        ([12, 7], "7", "(B)"),
    ],
)
def test_options_in_a_field_of_their_own(tmp_path: Path, choices: Any, answer: Any, letter: str) -> None:
    [question] = load(lines(tmp_path, {"question": "Which?", "choices": choices, "answer": answer}))
    assert (question.gold, question.task) == (letter, "choice")
    assert question.text.startswith("Which?\nOptions:\n(A) ") and "\n(B) " in question.text


def test_options_that_cannot_be_read(tmp_path: Path) -> None:
    one = {"question": "Which?", "options": ["red", "blue"], "answer": 5}
    named = {"choices": "options"}
    assert refusal(lines(tmp_path, one), fields=named) == ("E-data-gold-choice", "mine.jsonl line 1")
    assert refusal(lines(tmp_path, {**one, "options": "red"}), fields=named)[0] == "E-data-choices"
    assert refusal(lines(tmp_path, {"question": "?", "answer": 1}), fields=named)[0] == "E-data-choices"
    asked = {"question": "Which? (A) red (B) blue", "choices": ["red", "blue"], "answer": "B"}
    assert load(lines(tmp_path, asked))[0].text == asked["question"]  # it offers them itself


# a gold answer that no text can give


def test_a_set_whose_golds_are_not_right_where_a_text_says_them_is_refused(tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "answer": f"Stop{i}. Go."} for i in range(5)] + [
        {"question": "ok?", "answer": "Paris"}
    ]
    with pytest.raises(UserError) as error:
        load(lines(tmp_path, *rows))
    assert (error.value.code, error.value.where) == ("E-data-ungradable-gold", "mine") and "5 of 6" in error.value.what
    assert (
        all(f"line {i + 1}: 'Stop{i}. Go.'" in error.value.found for i in range(3))
        and "line 4" not in error.value.found
    )
    with pytest.raises(UserError) as error:
        load(lines(tmp_path, {"question": "?", "answer": "First she takes some.\nThen none. And no more of it."}))
    assert 'fields: {answer: {column: answer, after: "####"}}' in error.value.hint


@pytest.mark.parametrize("gold", ["(A), (C)", "A, C", "A and B", "(B) or (C)", "A;B;D", "(A)(B)"])
def test_several_letters_are_no_text(tmp_path: Path, gold: str) -> None:
    """ "(A), (C)" would be right for "C": an article does not count in a text."""
    row = {"question": "Which?", "answer": gold}
    assert refusal(lines(tmp_path, row)) == ("E-data-several-choices", "mine.jsonl line 1")
    assert refusal(lines(tmp_path, {"question": "Which?", "answer": ["A", "C"]}))[0] == "E-data-field-type"
    if " " in gold:
        assert load(lines(tmp_path, row), task="list")[0].gold == gold


def test_patterns_are_not_answers_and_a_function_is_only_called(tmp_path: Path, monkeypatch) -> None:
    import sys

    assert load(lines(tmp_path, {"question": "?", "answer": "[0-9]+ pens?"}), task="regex")[0].gold == "[0-9]+ pens?"
    (tmp_path / "checked_rules.py").write_text(
        "def never(text, gold):\n    return False\n\ndef broken(text, gold):\n    return text / gold\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load(lines(tmp_path, {"question": "?", "answer": "1"}), task="function: checked_rules:never")
    assert refusal(lines(tmp_path, {"question": "?", "answer": "1"}), task="function: checked_rules:broken")


def test_equal_questions_are_told_from_few(tmp_path: Path) -> None:
    path = stored(tmp_path, "e.jsonl", b'{"question": "How many?", "answer": 5}\n' * 60)
    with pytest.raises(UserError) as error:
        load(path)
    assert error.value.code == "E-data-empty-split" and "1 different" in error.value.found
    assert "different questions" in error.value.hint


# what is refused, and what the message says


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.jsonl", b"question,answer\nHow?,5\n", "a.jsonl line 1"),
        ("a.jsonl", b"question\tanswer\nHow?\t5\n", "a.jsonl line 1"),
        ("a.json", ARRAY[:-9].encode(), "a.json"),
        ("a.json", b'{\n "question": "?"}', "a.json"),
        ("a.json", b"[1, 2]", "a.json record 1"),
        ("a.jsonl", LINES + b"[1]\n", "a.jsonl line 3"),
        ("a.jsonl", LINES + b'{"question": 9' + b"9" * 6000, "a.jsonl line 3"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl"),
        ("a.jsonl", LINES + b'{"a":' * 100_000, "a.jsonl line 3"),
        ("a.csv", b"question,answer\nHow, then?,5\n", "a.csv line 2"),
        ("a.csv", b"question,question\nHow?,5\n", "a.csv line 1"),
        ("a.csv", b'question,answer\n"How?,5\n', "a.csv line 2"),
        ("a.jsonl.gz", gzip.compress(LINES * 50, mtime=0)[:-9], "a.jsonl.gz"),
        ("a.jsonl.zst", pa.compress(LINES * 50, codec="zstd", asbytes=True)[:-9], "a.jsonl.zst"),
        ("a.jsonl.xz", lzma.compress(LINES * 50)[:-9], "a.jsonl.xz"),
        ("a.arrow", b"ARROW1\0\0torn", "a.arrow"),
        ("a.jsonl", LINES.decode().encode("utf-16"), "a.jsonl"),
        ("a.parquet", b"PAR1torn", "a.parquet"),
    ],
)
def test_one_message_for_what_cannot_be_read(tmp_path: Path, name: str, data: bytes, expected: str) -> None:
    assert refusal(stored(tmp_path, name, data))[1] == expected


def test_a_file_that_unpacks_to_more_than_memory_holds_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(dataset_files, "MAX_CONTENT_BYTES", 1 << 20)
    for name, content in (
        ("a.gz", gzip.compress(b" " * (1 << 21), mtime=0)),
        ("a.xz", lzma.compress(b" " * (1 << 21))),
    ):
        assert refusal(stored(tmp_path, name, content))[1] == name


def test_links_that_lead_back_to_themselves(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to("a.jsonl")
    assert refusal(tmp_path / "a.jsonl")[1] == "a.jsonl"
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set").symlink_to(".")
    assert refusal(tmp_path / "set")[1] == "set"
    recipe = parse_recipe("name: x\nsets: {m: {file: set/set/set/a.jsonl}}\n", "x.yaml", [f"data={tmp_path}"])
    with pytest.raises(UserError) as error:
        find_path(recipe, "set/set/set/a.jsonl", "sets.m.file")
    assert error.value.code == "E-recipe-missing-path"


def test_a_question_of_two_megabytes_gets_one_message(tmp_path: Path) -> None:
    """No student has the memory to attend to it, and it must not be found out after training."""
    text = "Ann has 3 pens, " * 130_000 + "how many?"
    for name in ("a.jsonl", "a.csv", "a.json"):
        row = json.dumps({"question": text, "answer": 5, "split": "train"})
        data = (
            f'question,answer,split\n"{text}",5,train\n'
            if name == "a.csv"
            else row
            if name == "a.jsonl"
            else f"[{row}]"
        )
        assert refusal(stored(tmp_path, name, data.encode()))[0] == "E-data-too-long"
    assert len(load(stored(tmp_path, "b.jsonl", row.replace(text, text[:90_000]).encode()))[0].text) > 89_000


# recipes


def test_a_pattern_names_several_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        stored(tmp_path / "parts", name, LINES)
    recipe = parse_recipe("name: x\n", "x.yaml", [f"data={tmp_path}"])
    assert [p.name for p in find_paths(recipe, "parts/*.jsonl", "sets.m.file")] == ["a.jsonl", "b.jsonl"]
    with pytest.raises(UserError) as error:
        find_paths(recipe, "parts/*.csv", "sets.m.file")
    assert error.value.code == "E-recipe-missing-path"


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ("sets: {animals: animals.jsonl}", "E-recipe-set-not-a-mapping", "write {file: animals.jsonl}"),
        ("sets: {animals: [a.jsonl, b.jsonl]}", "E-recipe-set-not-a-mapping", "write {file: [a.jsonl, b.jsonl]}"),
        ("sets: animals.jsonl", "E-recipe-type", "for example"),
        ("teacher: openai", "E-recipe-type", "for example `teacher: {kind: human}`"),
        ("teacher:", "E-recipe-type", "for example"),
        ("questions: {train: animals}", "E-recipe-type", "write [one]"),
        ("sets: {a: {file: x, fields: {answer: {colum: b}}}}", "E-recipe-unknown-key", "column"),
        ("sets: {a: {file: x, fields: {id: {column: b, after: c}}}}", "E-recipe-set-fields", "sets.a"),
        ("sets: {a: {file: 5}}", "E-recipe-value", "sets.a.file"),
        ("sets: {a: {file: []}}", "E-recipe-value", "write at least one value"),
    ],
)
def test_what_a_recipe_says_of_a_set_in_another_form(text: str, code: str, expected: str) -> None:
    with pytest.raises(UserError) as error:
        parse_recipe(f"name: x\n{text}\n", "x.yaml")
    assert error.value.code == code and expected in error.value.what + error.value.hint


def test_one_question_with_two_answers_is_named_in_the_plan_and_counted(world: Path, tmp_path: Path) -> None:
    from potstill import dry_run
    from potstill.stages import open_stage

    twice = [
        {"id": f"twice {i}", "question": "What do 9 and 9 make?", "answer": 18 + i, "split": "test"} for i in (0, 1)
    ]
    path = lines(tmp_path, *tiny.rows("other", 12))
    path.write_text(
        path.read_text().replace('"split": "train", ', "") + "".join(json.dumps(row) + "\n" for row in twice)
    )
    recipe = tiny.recipe(world, f"sets.other.file={path}")
    assert (
        "contradiction   other/twice 0 and other/twice 1 are the same question with the answers '18' and '19'"
        in dry_run.describe_run(recipe)
    )
    assert open_stage("collect").make(tmp_path / "run", recipe)[1]["stand twice with different answers"] == 1
    assert (
        "stand twice with different answers" not in open_stage("collect").make(tmp_path / "run", tiny.recipe(world))[1]
    )
