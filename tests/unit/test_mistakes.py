"""Mistakes that people make in recipes and data: the code of the message, its place, and what its hint must name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from potstill import models
from potstill.data import assemble
from potstill.errors import UserError
from potstill.recipe import find_path, parse_recipe
from potstill.teachers.openai_api import server_errors

TEACHER = next(line for line in tiny.RECIPE.splitlines() if line.startswith("teacher:"))
FORMATS = "{zero-shot-rationale: 2, zero-shot-answer: 1, few-shot-rationale: 1, few-shot-answer: 1}"


@pytest.mark.parametrize(
    "before, after, code, place, hint",
    [
        (
            "{file: sets/sums.jsonl, task: number}",
            "sums.jsonl",
            "E-recipe-set-not-a-mapping",
            "line 5",
            "{file: sums.jsonl}",
        ),
        (TEACHER, "teacher: openai", "E-recipe-type", "line 15", "teacher: {kind: openai, model: NAME}"),
        (TEACHER, "teacher:", "E-recipe-type", "line 15", "teacher: {kind: openai, model: NAME}"),
        (TEACHER, "teacher: {kind: openai, model: m, server: local}", "E-recipe-type", "line 15", "server: {urls: ["),
        (TEACHER, "teacher: {server: {key: sk-abc}}", "E-recipe-key-variable", "line 15", "NAME of the variable"),
        (FORMATS, "[zero-shot-rationale]", "E-recipe-type", "line 18", "formats: {zero-shot-rationale: "),
        ("train: [sums]", "train: sums", "E-recipe-type", "line 9", "write [one]"),
        ("learning_rate: 1e-2", "lr: 1e-2", "E-recipe-unknown-key", "line 24", "train.learning_rate"),
        ("seed: 3", "steps: 3", "E-recipe-unknown-key", "line 3", "train.steps"),
    ],
)
def test_a_recipe_names_the_right_form(before: str, after: str, code: str, place: str, hint: str) -> None:
    assert before in tiny.RECIPE
    with pytest.raises(UserError) as caught:
        parse_recipe(tiny.RECIPE.replace(before, after, 1), "r.yaml")
    assert (caught.value.code, caught.value.where) == (code, f"r.yaml {place}")
    assert hint in caught.value.hint and "sk-abc" not in str(caught.value)


@pytest.mark.parametrize(
    "name, hint",
    [
        ("models/flan-t5-base", "hf download OWNER/flan-t5-base"),
        ("google/flan-t5-base@main", "student.model: google/flan-t5-base, and student.revision: main"),
        ("https://huggingface.co/google/flan-t5-base", "student.model: google/flan-t5-base"),
        ("hub:google/flan-t5-base", "student.model: google/flan-t5-base"),
    ],
)
def test_a_name_that_is_like_a_name_on_the_hub(tmp_path: Path, name: str, hint: str) -> None:
    recipe = parse_recipe(tiny.RECIPE, "r.yaml", [f"data={tmp_path}"])
    with pytest.raises(UserError) as caught:
        find_path(recipe, name, "student.model")
    assert caught.value.code == "E-recipe-missing-path" and hint in caught.value.hint


def collect_error(world: Path, *changes: str) -> UserError:
    with pytest.raises(UserError) as caught:
        assemble.assemble_questions(tiny.recipe(world, *changes))
    return caught.value


@pytest.mark.parametrize(
    "change, code, hint",
    [
        ({"answer": ""}, "E-data-empty-field", "`answer`"),
        ({"question": None}, "E-data-null-field", "`question`"),
        ({"id": "0"}, "E-data-repeated-id", "another id"),
        ({"split": "dev"}, "E-data-split-name", "validation for dev"),
    ],
)
def test_a_wrong_record_says_what_to_do(tmp_path: Path, change: dict[str, str], code: str, hint: str) -> None:
    world, rows = tiny.world(tmp_path), tiny.rows("sums", 12)
    rows[3] = {**rows[3], **change}
    path = world / "sets" / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    error = collect_error(world)
    assert (error.code, error.where) == (code, f"{path} line 4") and hint in error.hint


def test_one_file_for_training_and_for_test_is_named(tmp_path: Path) -> None:
    world = tiny.world(tmp_path)
    sets = "sets={{sums: {{file: {0}, task: number, split: train}}, held: {{file: {1}, task: number, split: test}}}}"
    names = ["questions={train: [sums], in_distribution: [held], out_of_distribution: [], generic: []}"]
    names.append("select.rule=in-distribution")
    error = collect_error(world, sets.format("sets/sums.jsonl", "sets/sums.jsonl"), *names)
    assert error.code == "E-data-leaked-split" and "sums and held read the same file" in error.hint
    assert "12 are also in held (test)" in error.found
    copied = (world / "sets" / "sums.jsonl").read_text() + json.dumps(tiny.rows("other", 1)[0] | {"id": "x"}) + "\n"
    (world / "sets" / "more-sums.jsonl").write_text(copied)
    error = collect_error(world, sets.format("sets/sums.jsonl", "sets/more-sums.jsonl"), *names)
    assert error.code == "E-data-leaked-split" and "same file" not in error.hint


def test_a_data_folder_without_the_built_in_set_says_how_to_fetch_it(tmp_path: Path) -> None:
    error = collect_error(tiny.world(tmp_path), "questions.generic=[bbh]")
    assert error.code == "E-data-no-set" and "potstill data bbh" in error.hint and "generic" in error.hint


def test_a_folder_without_config_is_one_problem(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        models.read_family(tmp_path)
    assert caught.value.code == "E-model-no-config" and caught.value.where == str(tmp_path)


def test_a_refused_key_names_the_key_of_the_recipe() -> None:
    assert "teacher.server.key" in server_errors.hint_for("HTTP 401 Incorrect API key provided")
