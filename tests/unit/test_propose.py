"""Proposals for files of questions: columns, answer types and labels, from names and contents."""

from __future__ import annotations

from typing import Any

import pytest

from potstill.data.propose import UNUSED, propose


def rows(n: int, **columns: Any) -> list[dict[str, Any]]:
    """n rows; a column is a function of the number of the row."""
    return [{name: make(i) for name, make in columns.items()} for i in range(n)]


def question(i: int) -> str:
    return f"a question {i}"


def number(i: int) -> int:
    return i


@pytest.mark.parametrize(
    ("given", "columns", "labels", "task"),
    [
        ({"question": question, "answer": number}, {}, None, "number"),
        ({"prompt": question, "label": lambda i: i % 2}, {"question": "prompt", "answer": "label"}, ("0", "1"), None),
        ({"Text": question, "Class": lambda i: "ab"[i % 2]}, {"question": "Text", "answer": "Class"}, ("a", "b"), None),
        ({"question": question, "answer": lambda i: i % 2 == 0}, {}, None, "boolean"),
        ({"question": question, "answer": lambda i: f"name {chr(97 + i)}"}, {}, None, "text"),
        ({"question": question, "answer": lambda i: ("Bug", "bug", "spam")[i % 3]}, {}, ("Bug", "spam"), None),
        ({"x": question, "y": str}, {"question": "x", "answer": "y"}, None, "number"),
        (
            {"Frage": question, "Quelle": lambda i: "web", "Antwort": lambda i: ("Ja", "Nein")[i % 2]},
            {"question": "Frage", "answer": "Antwort"},
            ("Ja", "Nein"),
            None,
        ),
        ({"question": question, "answer": number, "solution": question}, {"rationale": "solution"}, None, "number"),
        ({"question": question, "answer": number, "id": lambda i: 1}, {"id": UNUSED}, None, "number"),
        ({"question": question, "answer": number, "nr": lambda i: 1000 + i}, {"id": "nr"}, None, "number"),
        ({"question": question, "answer": number, "weight": lambda i: 1.5 * i}, {}, None, "number"),
        ({"question": question, "answer": number, "by": lambda i: f"Kim {i}"}, {}, None, "number"),
        ({"question": question, "answer": number, "split": lambda i: "dev"}, {"split": UNUSED}, None, "number"),
        ({"question": question, "answer": number, "task": question}, {"task": UNUSED}, None, "number"),
        (
            {"question": question, "answer": number, "endings": lambda i: ["x", "y"]},
            {"choices": "endings"},
            None,
            "choice",
        ),
    ],
)
def test_columns_and_types(
    given: dict[str, Any], columns: dict[str, str], labels: tuple[str, ...] | None, task: str | None
) -> None:
    proposal = propose(rows(20, **given))
    expected = {"question": "question", "answer": "answer", **columns}
    assert (proposal.columns, proposal.labels, proposal.task) == (expected, labels, task)
    noted = any(columns.get(name) == UNUSED for name in ("id", "split")) or labels == ("0", "1")
    assert bool(proposal.notes) == noted


def test_what_the_user_chose_comes_first() -> None:
    given = rows(20, question=lambda i: f"q {i}", answer=lambda i: i, note=lambda i: f"n {i % 2}")
    proposal = propose(given, {"question": "answer", "answer": "note"}, "label")
    assert proposal.columns == {"question": "answer", "answer": "note"} and proposal.labels == ("n 0", "n 1")
