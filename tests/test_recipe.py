"""Recipes: what is read, what is refused and how."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowest
from potstill.errors import UserError
from potstill.recipe import Recipe, find_path, load_recipe, parse_recipe, recipe_json_schema, recipe_to_yaml, synonyms
from potstill.recipe.load import _known_keys

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "text, changes, message",
    [
        ("nam: x\n", (), "r.yaml line 1: unknown key nam\n  hint: did you mean name?"),
        (
            "name: x\ntrain:\n  stps: 3\n",
            (),
            "r.yaml line 3: unknown key train.stps\n  hint: did you mean train.steps?",
        ),
        (
            "name: x\nlearning_rate: 1\n",
            (),
            "r.yaml line 2: unknown key learning_rate\n  hint: did you mean train.learning_rate?",
        ),
        (
            "name: x\n",
            ("train.stps=3",),
            "--set train.stps=3: unknown key train.stps\n  hint: did you mean train.steps?",
        ),
        (
            "name: x\n",
            ("train.steps",),
            "--set train.steps: a change is key=value\n  hint: for example --set train.steps=20",
        ),
        (
            "name: x\ntrain: {precision: float16}\n",
            (),
            "r.yaml line 2: train.precision: float16 overflows in T5 and FlanT5; take bfloat16, or float32 where there "
            'is none\n  found: "float16"\n  hint: change train.precision',
        ),
        (
            "name: x\ntrain: {hold: 3}\n",
            (),
            "r.yaml line 2: train: hold is for a schedule that falls: linear or cosine\n  hint: change train",
        ),
        (
            "name: x\ntrain: {steps: twelve}\n",
            (),
            'r.yaml line 2: train.steps: Input should be a valid integer\n  found: "twelve"\n'
            "  hint: write a number in digits, without quotes, such as 4",
        ),
        (
            "name: x\ntrain: {steps: yes}\n",
            (),
            'r.yaml line 2: train.steps: Input should be a valid integer\n  found: "yes"\n'
            "  hint: write a number in digits, without quotes, such as 4",
        ),
        (
            "name: x\nsets: {m: {url: 'https://a/b.jsonl'}}\n",
            (),
            "r.yaml line 2: sets.m: url needs the sha256 of its file (sha256sum FILE)\n  hint: change sets.m",
        ),
        (
            "name: x\nsets: {m: {hub: owner/name, file: a.jsonl}}\n",
            (),
            "r.yaml line 2: sets.m: hub needs a revision: a commit, since branches change\n  hint: change sets.m",
        ),
        (
            f"name: x\nsets: {{m: {{hub: owner/name, file: ../a.jsonl, revision: '{'a' * 40}'}}}}\n",
            (),
            "r.yaml line 2: sets.m: with hub, file is a path in its repository such as data/test.jsonl\n"
            "  hint: change sets.m",
        ),
        (
            "name: x\nsets: {m: {task: number}}\n",
            (),
            "r.yaml line 2: sets.m: a set is a file, a url with sha256, or a file of hub at a revision\n"
            "  hint: change sets.m",
        ),
        (
            f"name: x\nsets: {{m: {{file: a.jsonl, sha256: '{'a' * 64}'}}}}\n",
            (),
            "r.yaml line 2: sets.m: sha256 and revision are for url and hub; a file here is digested by the run\n"
            "  hint: change sets.m",
        ),
        (
            f"name: x\nsets: {{m: {{url: 'https://a/b', file: a, sha256: '{'a' * 64}'}}}}\n",
            (),
            "r.yaml line 2: sets.m: url stands alone, without file, hub and revision\n  hint: change sets.m",
        ),
        (
            "name: x\ntrain: {sharding: full, lora: 8}\n",
            (),
            "r.yaml line 2: train: sharding: full is for optimizer: adamw without lora; set it to none\n"
            "  hint: change train",
        ),
        ("train: {}\n", (), "r.yaml: name is missing\n  hint: add name"),
        ("", (), "r.yaml: a recipe is a mapping of keys\n  found: nothing\n  hint: begin with `name: ...`"),
        (
            "name: x\nname: y\n",
            (),
            'r.yaml line 2: not valid YAML\n  found: found duplicate key "name"\n  hint: write each key once',
        ),
        (
            "name: x\nteacher: {kind: local}\n",
            (),
            "r.yaml line 2: teacher: a local teacher needs model\n  hint: change teacher",
        ),
        (
            "name: x\ntrain:\n\tsteps: 3\n",
            (),
            "r.yaml line 3: not valid YAML\n  found: found character '\\t' that cannot start any token\n"
            "  hint: indent with spaces, not with tabs",
        ),
        (
            "name: x\nstudent: {tokenizer: t, shape: {family: t5, d_model: 8, heads: 2, d_ff: 8}}\n",
            (),
            "r.yaml line 2: student.shape.layers is missing\n  hint: add student.shape.layers",
        ),
    ],
)
def test_a_fault_is_one_message_with_its_place(text: str, changes: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe(text, "r.yaml", changes)
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
        parse_recipe(f"name: x\n{text}\n", "r.yaml")


def test_scalars_are_yaml_1_2() -> None:
    read = parse_recipe("name: x\nquestions: {train: [no, on]}\ntrain: {learning_rate: 5e-4}\n", "r.yaml")
    assert read.questions.train == ["no", "on"]
    assert read.train.learning_rate == 0.0005


def test_changes_win_and_are_typed() -> None:
    read = parse_recipe("name: x\n", "r.yaml", ["train.steps=7", "questions.train=[a, b]", "name=y"])
    assert (read.train.steps, read.questions.train, read.name) == (7, ["a", "b"], "y")


def test_the_resolved_recipe_reads_back_as_itself() -> None:
    read = parse_recipe("name: x\nsets: {m: {file: m.jsonl, fields: {question: q}}}\n", "r.yaml", ["train.clip=null"])
    assert parse_recipe(recipe_to_yaml(read), "resolved") == read


def test_a_recipe_is_frozen() -> None:
    read = parse_recipe("name: x\n", "r.yaml")
    with pytest.raises(ValueError, match="frozen"):
        read.train.steps = 3  # type: ignore[misc]


def test_names_cannot_leave_the_run_folder() -> None:
    for name in ("../x", "a/b", "", ".x"):
        with pytest.raises(UserError):
            parse_recipe(f"name: '{name}'\n", "r.yaml")


def test_every_recipe_of_the_repository_is_valid() -> None:
    paths = sorted((ROOT / "recipes").glob("*.yaml"))
    assert len(paths) >= 5
    for path in paths:
        assert load_recipe(path).name == path.stem


@pytest.mark.skipif(
    lowest.older("pydantic", "2.14"), reason="earlier versions of pydantic write the same schema otherwise"
)
def test_the_schema_for_editors_is_current() -> None:
    kept = json.loads((ROOT / "recipes" / "recipe.schema.json").read_text())
    assert kept == recipe_json_schema(), (
        "write it anew: python -c 'import json, potstill.recipe as r; print(json.dumps(r.schema(), indent=1))'"
    )


def test_find_looks_in_both_places_and_refuses_to_guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    read = parse_recipe("name: x\n", "r.yaml", [f"data={tmp_path / 'data'}"])
    with pytest.raises(UserError, match="nothing is there") as raised:
        find_path(read, "a.jsonl", "sets.m.file")
    assert f"looked at {tmp_path / 'here' / 'a.jsonl'} and {tmp_path / 'data' / 'a.jsonl'}" in raised.value.found
    (tmp_path / "data" / "a.jsonl").touch()
    assert find_path(read, "a.jsonl", "sets.m.file") == tmp_path / "data" / "a.jsonl"
    (tmp_path / "here" / "a.jsonl").touch()
    with pytest.raises(UserError, match="could mean two places"):
        find_path(read, "a.jsonl", "sets.m.file")
    assert find_path(read, "./a.jsonl", "sets.m.file") == Path("a.jsonl")


def test_adafactor_has_no_betas() -> None:
    assert parse_recipe("name: a", "a", ["train.betas=[0.9, 0.98]"]).train.betas == [0.9, 0.98]
    with pytest.raises(UserError, match="adafactor has no betas"):
        parse_recipe("name: a", "a", ["train.optimizer=adafactor", "train.betas=[0.9, 0.98]"])


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text, what, line",
    [
        ("name: !!python/object/apply:os.system [ls]\n", "a recipe has no tags", 1),
        ("name: x\ntrain: !foo {steps: 3}\n", "a recipe has no tags", 2),
        ("name: x\nreport:\n  notes: !bar [a]\n", "a recipe has no tags", 3),
        ("name: x\nseed: !!int abc\n", "a recipe has no tags", 2),
        ("%TAG ! tag:foo,2000:\n---\nname: !x y\n", "a recipe has no tags", 3),
        ("name: x\ntrain: !!omap [a: 1]\n", "a recipe has no tags", 2),
        ("name: " + "[" * 5000 + "]" * 5000, "nested too deeply", 1),
        ("name: " + "{a: " * 2000 + "1" + "}" * 2000, "nested too deeply", 1),
        ("".join(" " * n + "a:\n" for n in range(300)), "nested too deeply", 41),
        ("name: x\nseed: " + "9" * 5000, "no number has so many digits", 2),
        ("name: x\nseed: -" + "9" * 5000, "no number has so many digits", 2),
        ("name: x\nseed: 0x" + "f" * 50000, "no number has so many digits", 2),
        ("name: x\ntrain: {learning_rate: 1e" + "9" * 5000 + "}", "no number has so many digits", 2),
        (BOMB + "name: x\n", "too large for a recipe", 5),
        ("a: &a {x: 1}\n" + "".join(f"b{n}: &b{n} {{<<: [*a, *a], y: *a}}\n" for n in range(9999)), "too large", 0),
        ("name: x\nnotes: " + "a" * 3_000_000, "too large for a recipe", 0),
        ("name: &a [*a]\n", "holds itself", 1),
        ("name: &a x\ndata: &a y\n", "two anchors have one name", 2),
        ("name: a\0b\n", "not valid YAML", 1),
        ("name: x\ndata: \x1b[31m\n", "not valid YAML", 2),
        ("name: a\n---\nname: b\n", "not valid YAML", 2),
        ("name: *x\n", "not valid YAML", 1),
        ("%YAML 3.0\n---\nname: x\n", "not valid YAML", 1),
        ("? {a: b}\n: 1\n", "not a recipe's values", 0),
        ('name: "\\ud83d"\n', "name: Input should be a valid string", 1),
        ("~: 1\n", "unknown key null", 0),
        (".nan: 1\n", "unknown key NaN", 0),
    ],
)
def test_a_hostile_text_is_one_message_at_once(text: str, what: str, line: int) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe(text, "r.yaml")
    assert caught.value.what.startswith(what) and caught.value.hint and len(str(caught.value)) < 1000
    assert not line or caught.value.where == f"r.yaml line {line}"
    with pytest.raises(UserError) as caught:
        parse_recipe("name: x", "r.yaml", [f"seed={text}"])
    assert caught.value.where.startswith("--set seed=")


def test_values_that_look_odd_and_are_none(tmp_path: Path) -> None:
    merged = "name: 2026-99-99\nteacher: &t {kind: human}\nsets: {a: &s {file: x}, b: {<<: *s, task: number}}\n"
    found = parse_recipe(merged, "r.yaml")
    assert found.name == "2026-99-99" and found.sets["b"].file == "x" and found.sets["b"].task == "number"
    assert parse_recipe("name: 2026-11-28\n", "r.yaml").name == "2026-11-28", "a date is a text"
    with pytest.raises(UserError, match=r"line 3: unknown key sets\.b\.tsk"):
        parse_recipe(merged.replace("task", "tsk"), "r.yaml")


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("&*!{}[]:,-?|>%@`'\"#~<\n\t 09.exo_ab\\"), max_size=60))
def test_any_text_is_a_recipe_or_one_message(text: str) -> None:
    for changes in ((), (f"report.notes={text}",)):
        with contextlib.suppress(UserError):
            parse_recipe("name: x\n" + text if not changes else "name: x", "r.yaml", changes)


@pytest.mark.parametrize(
    "text, advice",
    [
        ("train: {lr: 5e-4}", "did you mean train.learning_rate?"),
        ("lr: 5e-4", "did you mean train.learning_rate?"),
        ("train: {Max-Steps: 5}", "did you mean train.steps?"),
        ("repair: {sets: [a], max_steps: 5}", "did you mean repair.steps?"),
        ("train: {warmup_steps: 5}", "did you mean train.warm_up?"),
        ("train: {gradient_checkpointing: true}", "did you mean train.recompute?"),
        ("train: {save_steps: 5}", "did you mean train.checkpoint_every?"),
        ("train: {max_grad_norm: 1.0}", "did you mean train.clip?"),
        ("evaluate: {max_new_tokens: 5}", "did you mean evaluate.max_tokens?"),
        ("teacher: {max_new_tokens: 5}", "did you mean teacher.max_tokens?"),
        ("teacher: {n: 5}", "did you mean teacher.samples?"),
        ("teacher: {top_logprobs: 5}", "did you mean teacher.candidates?"),
        ("student: {model_name_or_path: a}", "did you mean student.model?"),
        ("teacher: {model_name_or_path: a}", "did you mean teacher.model?"),
        ("train: {bf16: true}", "write train.precision: bfloat16"),
        ("train: {stps: 5}", "did you mean train.steps?"),
        ("sets: {a: {file: x, urls: y}}", "did you mean sets.a.url?"),
        ("repair: {sets: [a], stps: 3}", "did you mean repair.steps?"),
        ("train: {replay: {shr: 0.1}}", "did you mean train.replay.share?"),
        ("teacher: {server: {urlz: a}}", "did you mean teacher.server.urls?"),
    ],
)
def test_the_key_that_was_meant(text: str, advice: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe(f"name: x\n{text}\n", "r.yaml")
    assert caught.value.what.startswith("unknown key ") and caught.value.hint == advice
    key, _, value = text.partition(": {")
    if value.count(":") == 1 and key != "repair":
        inner, _, last = value.rstrip("}").partition(": ")
        with pytest.raises(UserError) as caught:
            parse_recipe("name: x\n", "r.yaml", [f"{key}.{inner}={last}"])
        assert caught.value.hint == advice and caught.value.where.startswith("--set ")


def test_every_synonym_names_keys_that_there_are() -> None:
    known = {".".join(key) for key in _known_keys(Recipe)}
    for word, meant in synonyms.SYNONYMS.items():
        named = re.findall(r"\b[a-z_]+(?:\.[a-zA-Z_]+)+", meant) if meant.startswith("=") else meant.split()
        assert set(named) <= known, word
        assert synonyms.find_synonym((word,)) and word == word.lower()


@pytest.mark.parametrize(
    "text, advice",
    [
        ("teacher: {kind: openia}", "did you mean openai?"),
        ("teacher: {kind: xyz}", "write one of local, vllm, openai, human, replay, none"),
        ("evaluate: {formats: [zero-shot-rationle]}", "did you mean zero-shot-rationale?"),
        ("train: {formats: {zero-shot-rationle: 1}}", "did you mean zero-shot-rationale?"),
        ("evaluate: {decodings: [gredy]}", "write greedy, vote-8 or best-8"),
        ("train: {steps: 0}", "write a number of at least 1"),
        ("train: {steps: 1.5}", "write a whole number, such as 4"),
        ("questions: {test: 25}", "write a number less than 1"),
        ("train: {snapshot: yes}", "write true or false"),
        ("student: {chat: maybe}", "write auto or write true or false"),
        ("teacher: {model: 3}", 'put it in quotes: "3"'),
        ("teacher: openai", "for example `teacher: {kind: human}`"),
        ("teacher:", "for example `teacher: {kind: human}`"),
        ("questions: {train: gsm8k}", "write [one] or [one, another]"),
        ("sets: {a b: {file: x}}", "begin with a letter or a digit"),
        ("train: {learning_rate: .inf}", "write a finite number"),
        ("transfer: {rewrite: {ab: c}}", "write one character"),
        ("evaluate: {formats: []}", "name at least one"),
    ],
)
def test_the_remedy_says_what_to_write(text: str, advice: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe(f"name: x\n{text}\n", "r.yaml")
    assert caught.value.hint.startswith(advice) and caught.value.where == "r.yaml line 2"


@pytest.mark.parametrize(
    "path, advice",
    [
        ("google/flan-t5-base", "download it"),
        ("models/flan-t5-bas", "did you mean models/flan-t5-base?"),
        ("Qwen2.5-0.5B", "download it"),
    ],
)
def test_a_name_of_the_hub_and_a_typo_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, advice: str
) -> None:
    monkeypatch.delenv("POTSTILL_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "flan-t5-base").mkdir(parents=True)
    with pytest.raises(UserError, match="nothing is there") as caught:
        find_path(parse_recipe("name: x", "r.yaml"), path, "student.model")
    assert advice in caught.value.hint and caught.value.where == "student.model"


def test_a_link_that_leads_to_itself_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "r.yaml").symlink_to("r.yaml")
    with pytest.raises(UserError):
        find_path(parse_recipe("name: x", "r.yaml"), "loop", "student.model")
    with pytest.raises(UserError, match="cannot be read"):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("value", ["[sk-secret]", "12345678901", "sk-secret\n    key: sk-secret2", "{a: sk-secret}"])
def test_no_message_repeats_what_may_be_a_secret(value: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe(f"name: x\nteacher:\n  server:\n    key: {value}\n", "r.yaml")
    assert "secret" not in str(caught.value) and "12345" not in str(caught.value)
