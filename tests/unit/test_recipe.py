"""Recipes: which are read, which are refused, and with which error."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowest_versions
from potstill.errors import UserError
from potstill.recipe import Recipe, find_path, load_recipe, parse_recipe, recipe_json_schema, recipe_to_yaml, synonyms
from potstill.recipe.load import known_keys, sections_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "text, changes, where, code",
    [
        ("nam: x\n", (), "r.yaml line 1", "E-recipe-unknown-key"),
        ("name: x\ntrain:\n  stps: 3\n", (), "r.yaml line 3", "E-recipe-unknown-key"),
        ("name: x\nlearning_rate: 1\n", (), "r.yaml line 2", "E-recipe-unknown-key"),
        ("name: x\n", ("train.stps=3",), "--set train.stps=3", "E-recipe-unknown-key"),
        ("name: x\n", ("train.steps",), "--set train.steps", "E-recipe-change"),
        ("name: x\n", ("name.first=3",), "--set name.first=3", "E-recipe-change"),
        ("name: x\ntrain: {precision: float16}\n", (), "r.yaml line 2", "E-recipe-float16"),
        ("name: x\ntrain: {stable_steps: 3}\n", (), "r.yaml line 2", "E-recipe-schedule"),
        ("name: x\ntrain: {steps: twelve}\n", (), "r.yaml line 2", "E-recipe-value"),
        ("name: x\ntrain: {steps: yes}\n", (), "r.yaml line 2", "E-recipe-value"),
        ("name: x\nsets: {m: {url: 'https://a/b.jsonl'}}\n", (), "r.yaml line 2", "E-recipe-set-digest"),
        ("name: x\nsets: {m: {hub: owner/name, file: a.jsonl}}\n", (), "r.yaml line 2", "E-recipe-set-revision"),
        (
            f"name: x\nsets: {{m: {{hub: owner/name, file: ../a.jsonl, revision: '{'a' * 40}'}}}}\n",
            (),
            "r.yaml line 2",
            "E-recipe-set-hub-path",
        ),
        ("name: x\nsets: {m: {task: number}}\n", (), "r.yaml line 2", "E-recipe-set-source"),
        (
            f"name: x\nsets: {{m: {{file: a.jsonl, sha256: '{'a' * 64}'}}}}\n",
            (),
            "r.yaml line 2",
            "E-recipe-set-digest",
        ),
        (
            f"name: x\nsets: {{m: {{url: 'https://a/b', file: a, sha256: '{'a' * 64}'}}}}\n",
            (),
            "r.yaml line 2",
            "E-recipe-set-source",
        ),
        ("name: x\ntrain: {sharding: full, optimizer: adafactor}\n", (), "r.yaml line 2", "E-recipe-sharding"),
        ("train: {}\n", (), "r.yaml", "E-recipe-missing-key"),
        ("", (), "r.yaml", "E-recipe-not-a-mapping"),
        ("name: s\nrecipe: demo\ngrid: {train.seed: [1]}\n", (), "r.yaml", "E-recipe-is-study"),
        ("name: s\nrecipe: demo\ntrain: {steps: 1}\n", (), "r.yaml line 2", "E-recipe-unknown-key"),
        ("name: x\nname: y\n", (), "r.yaml line 2", "E-recipe-yaml"),
        ("name: x\nteacher: {kind: local}\n", (), "r.yaml line 2", "E-recipe-teacher-incomplete"),
        ("name: x\ntrain:\n\tsteps: 3\n", (), "r.yaml line 3", "E-recipe-yaml"),
        (
            "name: x\nstudent: {tokenizer: t, shape: {family: t5, d_model: 8, heads: 2, d_ff: 8}}\n",
            (),
            "r.yaml line 2",
            "E-recipe-missing-key",
        ),
        ("name: x\nteacher: openai\n", (), "r.yaml line 2", "E-recipe-type"),
        ("name: x\ntrain:\n  clip: 1\n", (), "r.yaml line 3", "E-recipe-renamed-key"),
        ("name: x\n", ("teacher.server.per_request=4",), "--set teacher.server.per_request=4", "E-recipe-renamed-key"),
        ("name: x\nrepair: {sets: [a], groups: 3}\n", (), "r.yaml line 2", "E-recipe-renamed-key"),
    ],
)
def test_a_fault_is_one_message_with_its_place(text: str, changes: tuple[str, ...], where: str, code: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe(text, "r.yaml", changes)
    assert (caught.value.where, caught.value.code) == (where, code) and caught.value.hint


def test_a_renamed_key_is_refused_with_its_new_name() -> None:
    known = {".".join(key) for key in known_keys(Recipe)}
    for old, new in synonyms.RENAMED_KEYS.items():
        assert old not in known and new in known
        with pytest.raises(UserError) as caught:
            parse_recipe("name: x", "r.yaml", ["on_policy.sets=[a]", f"{old}=1"])
        assert caught.value.code == "E-recipe-renamed-key" and new in caught.value.hint


def test_every_key_has_a_description() -> None:
    """The reference of recipe keys is generated from them; a section is described by its own docstring."""

    def check(section: type, where: str = "") -> None:
        for name, field in section.model_fields.items():
            inner = sections_of(field.annotation)
            assert field.description or inner, f"{where}{name}"
            assert not field.description or field.description.endswith("."), f"{where}{name}"
            for one in inner:
                check(one, f"{where}{name}.")

    check(Recipe)


@pytest.mark.parametrize(
    "text, code",
    [
        ("train: {learning_rate: .inf}", "E-recipe-value"),
        ("evaluate: {formats: [zero-shot-rationale, zero-shot-rationale]}", "E-recipe-named-twice"),
        ("questions: {generic: [svamp]}", "E-recipe-named-twice"),
        ("questions: {train: [svamp]}", "E-recipe-set-trained"),
        ("questions: {train: []}", "E-recipe-no-training-set"),
        ("questions: {out_of_distribution: []}", "E-recipe-no-selection-set"),
        ("select: {rule: in-distribution}\nquestions: {in_distribution: []}", "E-recipe-no-selection-set"),
        ("? [a]\n: b", "E-recipe-values"),
    ],
)
def test_what_would_make_numbers_dishonest_is_refused(text: str, code: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe(f"name: x\n{text}\n", "r.yaml")
    assert caught.value.code == code


def test_one_data_set_is_enough_if_the_rule_says_so() -> None:
    read = parse_recipe("name: x\nquestions: {train: [a]}\nselect: {rule: in-distribution}\n", "r.yaml").questions
    groups = (read.train, read.in_distribution, read.out_of_distribution, read.generic)
    assert groups == (["a"], ["a"], [], [])
    named = parse_recipe("name: x\nquestions: {generic: [b]}\n", "r.yaml", ["select.rule=in-distribution"]).questions
    assert (named.in_distribution, named.generic, named.out_of_distribution) == (["gsm8k"], ["b"], [])


def test_scalars_are_yaml_1_2() -> None:
    read = parse_recipe("name: x\nquestions: {train: [no, on]}\ntrain: {learning_rate: 5e-4}\n", "r.yaml")
    assert read.questions.train == ["no", "on"]
    assert read.train.learning_rate == 0.0005


def test_changes_win_and_are_typed() -> None:
    read = parse_recipe("name: x\n", "r.yaml", ["train.steps=7", "questions.train=[a, b]", "name=y"])
    assert (read.train.steps, read.questions.train, read.name) == (7, ["a", "b"], "y")


def test_the_resolved_recipe_reads_back_as_itself() -> None:
    read = parse_recipe(
        "name: x\nsets: {m: {file: m.jsonl, fields: {question: q}}}\n", "r.yaml", ["train.max_grad_norm=null"]
    )
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
    lowest_versions.older("pydantic", "2.14"), reason="earlier versions of pydantic write the same schema otherwise"
)
def test_the_schema_for_editors_is_current() -> None:
    kept = json.loads((ROOT / "recipes" / "recipe.schema.json").read_text())
    assert kept == recipe_json_schema(), (
        "write it again: python -c 'import json, potstill.recipe as r; print(json.dumps(r.recipe_json_schema(), indent=1))'"
        " > recipes/recipe.schema.json"
    )


def test_find_looks_in_both_places_and_refuses_to_guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    read = parse_recipe("name: x\n", "r.yaml", [f"data={tmp_path / 'data'}"])
    with pytest.raises(UserError) as raised:
        find_path(read, "a.jsonl", "sets.m.file")
    assert raised.value.code == "E-recipe-missing-path"
    assert f"looked at {tmp_path / 'here' / 'a.jsonl'} and {tmp_path / 'data' / 'a.jsonl'}" in raised.value.found
    (tmp_path / "data" / "a.jsonl").touch()
    assert find_path(read, "a.jsonl", "sets.m.file") == tmp_path / "data" / "a.jsonl"
    (tmp_path / "here" / "a.jsonl").touch()
    with pytest.raises(UserError) as raised:
        find_path(read, "a.jsonl", "sets.m.file")
    assert raised.value.code == "E-recipe-ambiguous-path"
    assert find_path(read, "./a.jsonl", "sets.m.file") == Path("a.jsonl")


def test_adafactor_has_no_betas() -> None:
    assert parse_recipe("name: a", "a", ["train.betas=[0.9, 0.98]"]).train.betas == [0.9, 0.98]
    with pytest.raises(UserError) as caught:
        parse_recipe("name: a", "a", ["train.optimizer=adafactor", "train.betas=[0.9, 0.98]"])
    assert caught.value.code == "E-recipe-adafactor-betas"


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text, code, line",
    [
        ("name: !!python/object/apply:os.system [ls]\n", "E-recipe-yaml-tag", 1),
        ("name: x\ntrain: !foo {steps: 3}\n", "E-recipe-yaml-tag", 2),
        ("name: x\nreport:\n  notes: !bar [a]\n", "E-recipe-yaml-tag", 3),
        ("name: x\nseed: !!int abc\n", "E-recipe-yaml-tag", 2),
        ("%TAG ! tag:foo,2000:\n---\nname: !x y\n", "E-recipe-yaml-tag", 3),
        ("name: x\ntrain: !!omap [a: 1]\n", "E-recipe-yaml-tag", 2),
        ("name: " + "[" * 5000 + "]" * 5000, "E-recipe-too-deep", 1),
        ("name: " + "{a: " * 2000 + "1" + "}" * 2000, "E-recipe-too-deep", 1),
        ("".join(" " * n + "a:\n" for n in range(300)), "E-recipe-too-deep", 41),
        ("name: x\nseed: " + "9" * 5000, "E-recipe-yaml-number", 2),
        ("name: x\nseed: -" + "9" * 5000, "E-recipe-yaml-number", 2),
        ("name: x\nseed: 0x" + "f" * 50000, "E-recipe-yaml-number", 2),
        ("name: x\ntrain: {learning_rate: 1e" + "9" * 5000 + "}", "E-recipe-yaml-number", 2),
        (BOMB + "name: x\n", "E-recipe-too-large", 5),
        (
            "a: &a {x: 1}\n" + "".join(f"b{n}: &b{n} {{<<: [*a, *a], y: *a}}\n" for n in range(9999)),
            "E-recipe-too-large",
            0,
        ),
        ("name: x\nnotes: " + "a" * 3_000_000, "E-recipe-too-large", 0),
        ("name: &a [*a]\n", "E-recipe-yaml-anchor", 1),
        ("name: &a x\ndata: &a y\n", "E-recipe-yaml-anchor", 2),
        ("name: a\0b\n", "E-recipe-yaml", 1),
        ("name: x\ndata: \x1b[31m\n", "E-recipe-yaml", 2),
        ("name: a\n---\nname: b\n", "E-recipe-yaml", 2),
        ("name: *x\n", "E-recipe-yaml", 1),
        ("%YAML 3.0\n---\nname: x\n", "E-recipe-yaml", 1),
        ("? {a: b}\n: 1\n", "E-recipe-values", 0),
        ('name: "\\ud83d"\n', "E-recipe-value", 1),
        ("~: 1\n", "E-recipe-unknown-key", 0),
        (".nan: 1\n", "E-recipe-unknown-key", 0),
    ],
)
def test_a_hostile_text_is_one_message_at_once(text: str, code: str, line: int) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe(text, "r.yaml")
    assert caught.value.code == code and caught.value.hint and len(str(caught.value)) < 1000
    assert not line or caught.value.where == f"r.yaml line {line}"
    with pytest.raises(UserError) as caught:
        parse_recipe("name: x", "r.yaml", [f"seed={text}"])
    assert caught.value.where.startswith("--set seed=")


def test_values_that_look_odd_and_are_none(tmp_path: Path) -> None:
    merged = "name: 2026-99-99\nteacher: &t {kind: human}\nsets: {a: &s {file: x}, b: {<<: *s, task: number}}\n"
    found = parse_recipe(merged, "r.yaml")
    assert found.name == "2026-99-99" and found.sets["b"].file == "x" and found.sets["b"].task == "number"
    assert parse_recipe("name: 2026-11-28\n", "r.yaml").name == "2026-11-28", "a date is a text"
    with pytest.raises(UserError) as caught:
        parse_recipe(merged.replace("task", "tsk"), "r.yaml")
    assert (caught.value.where, caught.value.code) == ("r.yaml line 3", "E-recipe-unknown-key")


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
        ("on_policy: {sets: [a], max_steps: 5}", "did you mean on_policy.steps?"),
        ("train: {activation_checkpointing: true}", "did you mean train.gradient_checkpointing?"),
        ("train: {save_steps: 5}", "did you mean train.checkpoint_every?"),
        ("train: {clip_grad_norm: 1.0}", "did you mean train.max_grad_norm?"),
        ("evaluate: {max_new_tokens: 5}", "did you mean evaluate.max_tokens?"),
        ("teacher: {max_new_tokens: 5}", "did you mean teacher.max_tokens?"),
        ("teacher: {n: 5}", "did you mean teacher.samples?"),
        ("teacher: {logprobs: 5}", "did you mean teacher.top_logprobs?"),
        ("student: {model_name_or_path: a}", "did you mean student.model?"),
        ("teacher: {model_name_or_path: a}", "did you mean teacher.model?"),
        ("train: {bf16: true}", "write train.precision: bfloat16"),
        ("train: {stps: 5}", "did you mean train.steps?"),
        ("train: {beta: 0.5}", "did you mean train.divergence_beta?"),
        ("on_policy: {sets: [a], beta: 0.5}", "did you mean on_policy.divergence_beta?"),
        ("train: {beta1: 0.9}", "did you mean train.betas?"),
        ("sets: {a: {file: x, urls: y}}", "did you mean sets.a.url?"),
        ("on_policy: {sets: [a], stps: 3}", "did you mean on_policy.steps?"),
        ("train: {replay: {shr: 0.1}}", "did you mean train.replay.share?"),
        ("teacher: {server: {urlz: a}}", "did you mean teacher.server.urls?"),
    ],
)
def test_the_key_that_was_meant(text: str, advice: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe(f"name: x\n{text}\n", "r.yaml")
    assert caught.value.code == "E-recipe-unknown-key" and caught.value.hint == advice
    key, _, value = text.partition(": {")
    if value.count(":") == 1 and key != "on_policy":
        inner, _, last = value.rstrip("}").partition(": ")
        with pytest.raises(UserError) as caught:
            parse_recipe("name: x\n", "r.yaml", [f"{key}.{inner}={last}"])
        assert caught.value.hint == advice and caught.value.where.startswith("--set ")


def test_every_synonym_names_keys_that_there_are() -> None:
    known = {".".join(key) for key in known_keys(Recipe)}
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
        ("train: {async_checkpoints: yes}", "write true or false"),
        ("student: {chat: maybe}", "write auto or write true or false"),
        ("teacher: {model: 3}", 'quote the value: "3"'),
        ("teacher: openai", "for example `teacher: {kind: human}`"),
        ("teacher:", "for example `teacher: {kind: human}`"),
        ("questions: {train: gsm8k}", "write [one] or [one, another]"),
        ("sets: {a b: {file: x}}", "begin with a letter or digit"),
        ("train: {learning_rate: .inf}", "write a finite number"),
        ("transfer: {rewrite: {ab: c}}", "write one character"),
        ("evaluate: {formats: []}", "write at least one value"),
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
    with pytest.raises(UserError) as caught:
        find_path(parse_recipe("name: x", "r.yaml"), path, "student.model")
    assert advice in caught.value.hint and caught.value.where == "student.model"


def test_a_link_that_leads_to_itself_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "r.yaml").symlink_to("r.yaml")
    with pytest.raises(UserError):
        find_path(parse_recipe("name: x", "r.yaml"), "loop", "student.model")
    with pytest.raises(UserError) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert caught.value.code == "E-recipe-unreadable"


@pytest.mark.parametrize("value", ["[sk-secret]", "12345678901", "sk-secret\n    key: sk-secret2", "{a: sk-secret}"])
def test_no_message_repeats_what_may_be_a_secret(value: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe(f"name: x\nteacher:\n  server:\n    key: {value}\n", "r.yaml")
    assert "secret" not in str(caught.value) and "12345" not in str(caught.value)
