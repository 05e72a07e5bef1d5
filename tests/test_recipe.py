"""Recipes: what is read, what is refused and how."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from potstill import recipe
from potstill.errors import UserError

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "text, changes, message",
    [
        ("nam: x\n", (), "r.yaml line 1: unknown key nam\n  do: did you mean name?"),
        ("name: x\ntrain:\n  stps: 3\n", (), "r.yaml line 3: unknown key train.stps\n  do: did you mean train.steps?"),
        (
            "name: x\nlearning_rate: 1\n",
            (),
            "r.yaml line 2: unknown key learning_rate\n  do: did you mean train.learning_rate?",
        ),
        ("name: x\n", ("train.stps=3",), "--set train.stps=3: unknown key train.stps\n  do: did you mean train.steps?"),
        (
            "name: x\n",
            ("train.steps",),
            "--set train.steps: a change is key=value\n  do: for example --set train.steps=20",
        ),
        (
            "name: x\ntrain: {precision: float16}\n",
            (),
            "r.yaml line 2: train.precision: float16 overflows in T5 and FlanT5; take bfloat16, or float32 where there "
            'is none\n  found: "float16"\n  do: mend the value',
        ),
        (
            "name: x\ntrain: {hold: 3}\n",
            (),
            "r.yaml line 2: train: hold is for a schedule that falls: linear or cosine\n  do: mend the value",
        ),
        (
            "name: x\ntrain: {steps: twelve}\n",
            (),
            'r.yaml line 2: train.steps: Input should be a valid integer\n  found: "twelve"\n  do: mend the value',
        ),
        (
            "name: x\ntrain: {steps: yes}\n",
            (),
            'r.yaml line 2: train.steps: Input should be a valid integer\n  found: "yes"\n  do: mend the value',
        ),
        (
            "name: x\nsets: {m: {url: 'https://a/b.jsonl'}}\n",
            (),
            "r.yaml line 2: sets.m: url needs the sha256 of its file (sha256sum FILE)\n  do: mend the value",
        ),
        (
            "name: x\nsets: {m: {hub: owner/name, file: a.jsonl}}\n",
            (),
            "r.yaml line 2: sets.m: hub needs a revision: a commit, since branches change\n  do: mend the value",
        ),
        (
            f"name: x\nsets: {{m: {{hub: owner/name, file: ../a.jsonl, revision: '{'a' * 40}'}}}}\n",
            (),
            "r.yaml line 2: sets.m: with hub, file is a path in its repository such as data/test.jsonl\n"
            "  do: mend the value",
        ),
        (
            "name: x\nsets: {m: {task: number}}\n",
            (),
            "r.yaml line 2: sets.m: a set is a file, a url with sha256, or a file of hub at a revision\n"
            "  do: mend the value",
        ),
        (
            f"name: x\nsets: {{m: {{file: a.jsonl, sha256: '{'a' * 64}'}}}}\n",
            (),
            "r.yaml line 2: sets.m: sha256 and revision are for url and hub; a file here is digested by the run\n"
            "  do: mend the value",
        ),
        (
            f"name: x\nsets: {{m: {{url: 'https://a/b', file: a, sha256: '{'a' * 64}'}}}}\n",
            (),
            "r.yaml line 2: sets.m: url stands alone, without file, hub and revision\n  do: mend the value",
        ),
        (
            "name: x\ntrain: {sharding: full, lora: 8}\n",
            (),
            "r.yaml line 2: train: sharding: full is for optimizer: adamw without lora; set it to none\n"
            "  do: mend the value",
        ),
        ("train: {}\n", (), "r.yaml: name is missing\n  do: add name"),
        ("", (), "r.yaml: a recipe is a mapping of keys\n  found: nothing\n  do: begin with `name: ...`"),
        (
            "name: x\nname: y\n",
            (),
            'r.yaml line 2: not valid YAML\n  found: found duplicate key "name" with value "y" (original value: "x")\n'
            "  do: mend the line",
        ),
        (
            "name: x\nteacher: {kind: local}\n",
            (),
            "r.yaml line 2: teacher: a local teacher needs model\n  do: mend the value",
        ),
        (
            "name: x\ntrain:\n\tsteps: 3\n",
            (),
            "r.yaml line 3: not valid YAML\n  found: found character '\\t' that cannot start any token\n"
            "  do: indent with spaces, not with tabs",
        ),
        (
            "name: x\nstudent: {tokenizer: t, shape: {family: t5, d_model: 8, heads: 2, d_ff: 8}}\n",
            (),
            "r.yaml line 2: student.shape.layers is missing\n  do: add student.shape.layers",
        ),
    ],
)
def test_a_fault_is_one_message_with_its_place(text: str, changes: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe.parse(text, "r.yaml", changes)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "text, message",
    [
        ("train: {learning_rate: .inf}", "finite number"),
        ("evaluate: {formats: [zero-shot-rationale, zero-shot-rationale]}", "named twice"),
        ("questions: {generic: [svamp]}", "svamp is named twice"),
        ("questions: {train: [svamp]}", "names svamp, which is trained on"),
        ("questions: {train: []}", "nothing to learn from"),
        ("? [a]\n: b", "not a recipe's values"),
    ],
)
def test_what_would_make_numbers_dishonest_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe.parse(f"name: x\n{text}\n", "r.yaml")


def test_scalars_are_yaml_1_2() -> None:
    read = recipe.parse("name: x\nquestions: {train: [no, on]}\ntrain: {learning_rate: 5e-4}\n", "r.yaml")
    assert read.questions.train == ["no", "on"]
    assert read.train.learning_rate == 0.0005


def test_changes_win_and_are_typed() -> None:
    read = recipe.parse("name: x\n", "r.yaml", ["train.steps=7", "questions.train=[a, b]", "name=y"])
    assert (read.train.steps, read.questions.train, read.name) == (7, ["a", "b"], "y")


def test_the_resolved_recipe_reads_back_as_itself() -> None:
    read = recipe.parse("name: x\nsets: {m: {file: m.jsonl, fields: {question: q}}}\n", "r.yaml", ["train.clip=null"])
    assert recipe.parse(recipe.resolved(read), "resolved") == read


def test_a_recipe_is_frozen() -> None:
    read = recipe.parse("name: x\n", "r.yaml")
    with pytest.raises(ValueError, match="frozen"):
        read.train.steps = 3  # type: ignore[misc]


def test_names_cannot_leave_the_run_folder() -> None:
    for name in ("../x", "a/b", "", ".x"):
        with pytest.raises(UserError):
            recipe.parse(f"name: '{name}'\n", "r.yaml")


def test_every_recipe_of_the_repository_is_valid() -> None:
    paths = sorted((ROOT / "recipes").glob("*.yaml"))
    assert len(paths) >= 5
    for path in paths:
        assert recipe.load(path).name == path.stem


def test_the_schema_for_editors_is_current() -> None:
    kept = json.loads((ROOT / "recipes" / "recipe.schema.json").read_text())
    assert kept == recipe.schema(), (
        "write it anew: python -c 'import json, potstill.recipe as r; print(json.dumps(r.schema(), indent=1))'"
    )


def test_find_looks_in_both_places_and_refuses_to_guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    read = recipe.parse("name: x\n", "r.yaml", [f"data={tmp_path / 'data'}"])
    with pytest.raises(UserError, match="nothing is there") as raised:
        recipe.find(read, "a.jsonl", "sets.m.file")
    assert f"looked at {tmp_path / 'here' / 'a.jsonl'} and {tmp_path / 'data' / 'a.jsonl'}" in raised.value.found
    (tmp_path / "data" / "a.jsonl").touch()
    assert recipe.find(read, "a.jsonl", "sets.m.file") == tmp_path / "data" / "a.jsonl"
    (tmp_path / "here" / "a.jsonl").touch()
    with pytest.raises(UserError, match="could mean two places"):
        recipe.find(read, "a.jsonl", "sets.m.file")
    assert recipe.find(read, "./a.jsonl", "sets.m.file") == Path("a.jsonl")


def test_adafactor_has_no_betas() -> None:
    assert recipe.parse("name: a", "a", ["train.betas=[0.9, 0.98]"]).train.betas == [0.9, 0.98]
    with pytest.raises(UserError, match="adafactor has no betas"):
        recipe.parse("name: a", "a", ["train.optimizer=adafactor", "train.betas=[0.9, 0.98]"])
