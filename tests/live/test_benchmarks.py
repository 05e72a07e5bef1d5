"""The recipes of benchmarks of the hub: downloaded by the real client from a hub on this machine, collected and graded.

The rows are our own, with the columns and types of the real files.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from huggingface_hub import constants
from pyarrow import parquet

import hub_server
from potstill import runner, storage
from potstill.data import gsm_plus
from potstill.errors import UserError
from potstill.evaluation import checkpoint
from potstill.grading import grade
from potstill.recipe import Recipe, load_recipe
from potstill.records import BASE, Question

RECIPES = Path(__file__).parents[2] / "recipes"
SEED = {
    "seed_question": "Tom has 3 cars and buys 2. How many?",
    "seed_solution": "3+2=<<3+2=5>>5\n#### 5",
    "seed_answer": "5",
}
GSM_PLUS = [
    {"question": "Tom has 4 cars and buys 2. How many?", "solution": "4 + 2 = 6.\n#### 6", "answer": "6",
     "perturbation_type": "numerical substitution", **SEED},
    {"question": "Tom has 3 cars and buys some. How many?", "solution": "We don't know how many he buys.\n#### None",
     "answer": "None", "perturbation_type": "critical thinking", **SEED},
    {"question": "Tom has 1/2 of a cake. How much is half of it?", "solution": "1/2 / 2 = 1/4.\n#### 1/4", "answer": "1/4",
     "perturbation_type": "integer-decimal-fraction conversion", **SEED},
]  # fmt: skip
MATH = [
    {"problem": "What is $\\sqrt{12}$?", "solution": "$12 = 4 \\cdot 3$, so it is $\\boxed{2\\sqrt{3}}$.",
     "answer": "2\\sqrt{3}", "subject": "Algebra", "level": 2, "unique_id": "test/algebra/1.json"},
    {"problem": "Where is $(0,3)$?", "solution": "It is $\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}$.",
     "answer": "\\left( 3, \\frac{\\pi}{2} \\right)", "subject": "Precalculus", "level": 2,
     "unique_id": "test/precalculus/1.json"},
    {"problem": "Who runs fastest?", "solution": "It is $\\boxed{\\text{Ann}}$.", "answer": "\\text{Ann}",
     "subject": "Algebra", "level": 1, "unique_id": "test/algebra/2.json"},
]  # fmt: skip
AIME_2024 = [
    {"id": 60, "problem": "What is $15^2 - 21$?", "solution": "It is $225 - 21 = \\boxed{204}$.", "answer": "204",
     "url": "https://example.org/1", "year": "2024"},
    {"id": 61, "problem": "What is $5 \\cdot 9$?", "solution": "It is 45.", "answer": "045", "url": "https://example.org/2",
     "year": "2024"},
]  # fmt: skip
AIME_2025 = [
    {"problem": "What is $7 \\cdot 10$?", "answer": "70", "id": "0"},
    {"problem": "What is $0$?", "answer": "0", "id": "1"},
]
PLATINUM = [
    {"question": "Tom has 3 cars and buys 2. How many?", "answer": "He has 3+2=<<3+2=5>>5 cars.\n#### 5",
     "cleaning_status": "verified"},
    {"question": "Ann pays 1,000 twice. How much?", "answer": "2*1000=<<2*1000=2000>>2000\n#### 2,000",
     "cleaning_status": "revised"},
]  # fmt: skip


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


FILES = {
    "math-500": json_lines(MATH),
    "gsm-plus": json_lines(GSM_PLUS),
    "gsm8k-platinum": parquet_bytes(PLATINUM),
    "aime-2024": parquet_bytes(AIME_2024),
    "aime-2025": json_lines(AIME_2025),
}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    with hub_server.serve() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


def benchmark(name: str, server: hub_server.Hub, world: Path, tmp_path: Path, *changes: str) -> Recipe:
    """The recipe of the repository. Its sets are on the server at the commits of the recipe, with rows of our own; only their
    digests are changed, and the model."""
    path = RECIPES / f"{name}.yaml"
    pins = []
    for key, custom in load_recipe(path).sets.items():
        assert custom.hub and custom.revision and len(custom.paths) == 1
        repository = server.repositories.setdefault(f"datasets/{custom.hub}", hub_server.Repository())
        repository.commits[custom.revision] = {custom.paths[0]: FILES[key], "README.md": b""}
        if custom.sha256:
            pins.append(f"sets.{key}.sha256={sha256(FILES[key]).hexdigest()}")
    model = (f"data={world}", "student=teacher", "evaluate.max_tokens=6", f"evaluate.cache={tmp_path / 'answers'}")
    return load_recipe(path, [*pins, *model, *changes])


def collected(run_dir: Path, name: str) -> list[Question]:
    return list(storage.iter_records(Question, run_dir / "collect" / f"{name}.test.jsonl"))


EXPECTED = {
    "math-500": {"math-500": [("math-500/test/algebra/1.json", "2\\sqrt{3}", "math"),
                              ("math-500/test/precalculus/1.json", "\\left( 3, \\frac{\\pi}{2} \\right)", "math"),
                              ("math-500/test/algebra/2.json", "\\text{Ann}", "math")]},
    "gsm-plus": {"gsm-plus": [(f"gsm-plus/{i}", gold, "gsm-plus/function: potstill.data.gsm_plus:grade_gsm_plus")
                              for i, gold in enumerate(("6", "None", "1/4"), 1)]},
    "gsm8k-platinum": {"gsm8k-platinum": [("gsm8k-platinum/1", "5", "number"), ("gsm8k-platinum/2", "2,000", "number")]},
    "aime": {"aime-2024": [("aime-2024/60", "204", "number"), ("aime-2024/61", "045", "number")],
             "aime-2025": [("aime-2025/0", "70", "number"), ("aime-2025/1", "0", "number")]},
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_a_benchmark_is_downloaded_collected_answered_and_graded(
    name: str, served: hub_server.Hub, world: Path, tmp_path: Path
) -> None:
    run_dir = runner.run(benchmark(name, served, world, tmp_path), run_dir=tmp_path / "run")
    scores = {score.set: score for score in checkpoint.read_scores(run_dir / "test", BASE)}
    assert set(scores) == set(EXPECTED[name])
    for key, expected in EXPECTED[name].items():
        questions = collected(run_dir, key)
        assert [(q.id, q.gold, q.task) for q in questions] == expected
        assert {q.split for q in questions} == {"test"} and scores[key].n == len(questions)
        assert not collected_validation(run_dir, key)
        for question in questions:
            assert grade(f"So.\nThe answer is {question.gold}.", question.gold, question.task).grade == "right"
            assert grade("The answer is 999999.", question.gold, question.task).grade == "wrong"
    downloads = [
        request for request in served.requests if request.startswith("GET /datasets/") and "/resolve/" in request
    ]
    assert len(downloads) == len(EXPECTED[name])


def collected_validation(run_dir: Path, name: str) -> list[Question]:
    return list(storage.iter_records(Question, run_dir / "collect" / f"{name}.validation.jsonl"))


def test_rationales_are_the_solutions(served: hub_server.Hub, world: Path, tmp_path: Path) -> None:
    for name, key, rationale in (
        ("gsm8k-platinum", "gsm8k-platinum", "He has 3+2=5 cars."),
        ("gsm-plus", "gsm-plus", "4 + 2 = 6.\n#### 6"),
        ("aime", "aime-2024", "It is $225 - 21 = \\boxed{204}$."),
    ):
        run_dir = runner.run(benchmark(name, served, world, tmp_path), run_dir=tmp_path / name, until="collect")
        assert collected(run_dir, key)[0].rationale == rationale


def test_another_file_than_the_pinned_one_is_refused(served: hub_server.Hub, world: Path, tmp_path: Path) -> None:
    digest = "a" * 64
    with pytest.raises(UserError) as error:
        runner.run(
            benchmark("math-500", served, world, tmp_path, f"sets.math-500.sha256={digest}"), run_dir=tmp_path / "run"
        )
    assert error.value.code == "E-data-download-digest" and error.value.where == "sets.math-500"


TRAINED = (
    "teacher={kind: human}",
    "sets.sums={file: sets/sums.jsonl, task: number}",
    "questions.in_distribution=[aime-2024]",
    "questions.out_of_distribution=[aime-2025]",
)


def test_a_set_that_is_all_test_selects_no_checkpoint(served: hub_server.Hub, world: Path, tmp_path: Path) -> None:
    recipe = benchmark("aime", served, world, tmp_path, "questions.train=[sums]", *TRAINED)
    with pytest.raises(UserError) as error:
        runner.run(recipe, run_dir=tmp_path / "run", until="collect")
    assert error.value.code == "E-data-empty-split"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is None.", (True, "None")),
        ("The answer is \\boxed{\\text{None}}.", (True, "None")),
        ("The price is not given, so the answer cannot be determined.", (True, "None")),
        ("There is not enough information.\nQ: What is 2 + 2?\nThe answer is 4", (True, "None")),
        ("We don't know how old she will be in 10 years.", (True, "None")),
        ("We don't know the price. Let it be 3. The answer is 3 + 2 = 5.", (False, "5")),
        ("He does not need 5 more.", (False, "5")),
        ("We can't say how many of the 3 cars are red.", (True, "None")),
        ("It isn\u2019t possible to find the price.", (True, "None")),
        ("He does not buy any cars.", None),
        ("The answer is 5.\nQ: What is unknown?\nThe answer is unknown", (False, "5")),
        ("Let us think about the cars", None),
        ("", None),
    ],
)
def test_an_unanswerable_question_of_gsm_plus(text: str, expected: tuple[bool, str] | None) -> None:
    assert gsm_plus.grade_gsm_plus(text, "None") == expected


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("The answer is 45", "045", True),
        ("The answer is 045.", "045", True),
        ("\\boxed{450}", "045", False),
        ("\\boxed{0}", "0", True),
    ],
)
def test_whole_numbers_of_aime_may_have_leading_zeros(text: str, gold: str, right: bool) -> None:
    assert (grade(text, gold, "number").grade == "right") is right
