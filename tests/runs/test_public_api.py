"""The public API `import potstill as ps` does what the documentation promises."""

from __future__ import annotations

import itertools
import math
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

import potstill as ps
from potstill import demo
from potstill.alignment.exact_rules import step_distributions
from potstill.records import BASE

TEACHER = demo.DATA / "models" / "teacher"


def yaml(path: Path) -> dict[str, Any]:
    return YAML(typ="safe").load(path)


def test_the_package_says_its_version_and_its_names() -> None:
    assert set(ps.__all__) <= set(dir(ps)) and ps.__version__ == metadata.version("potstill")
    for name in ps.__all__:
        assert getattr(ps, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = ps.nothing_of_this_name
    assert (Path(ps.__file__).parent / "py.typed").exists()


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = "import sys, potstill; print(*sorted(name.split('.')[0] for name in sys.modules))"
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "pyarrow", "pydantic", "transformers"}.isdisjoint(completed.stdout.split())


def test_importing_the_demo_loads_no_model_library() -> None:
    program = "import sys; from potstill import demo; print(*sys.modules)"
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "pydantic", "matplotlib"}.isdisjoint(completed.stdout.split())


def test_encode_takes_every_kind_of_tokenizer() -> None:
    import tokenizers
    from transformers import AutoTokenizer

    text = "Leo has 24 kites, naïve\n"
    own = ps.load_tokenizer(TEACHER)
    encoding = ps.encode(text, own)
    for other in (
        tokenizers.Tokenizer.from_file(str(TEACHER / "tokenizer.json")),
        AutoTokenizer.from_pretrained(TEACHER),
    ):
        assert ps.encode(text, other) == encoding
    covered = [text.encode()[start:end] for start, end in encoding.spans]
    assert covered == own.split(encoding.ids) and b"".join(covered) == text.encode()


def test_the_candidates_of_a_step_may_be_a_mapping() -> None:
    tokens = [b" 4", b"2"]
    steps = [{b" 4": 0.0}, {b"2": math.log(0.75), b"7": math.log(0.25)}, {ps.END: 0.0}]
    chain = ps.Chain.from_tokens("q", 0, tokens, steps)
    assert chain == ps.Chain.from_tokens("q", 0, tokens, [list(step.items()) for step in steps])
    assert chain == ps.Chain.from_tokens("q", 0, tokens, [iter(step.items()) for step in steps])
    assert step_distributions(chain)[1] == pytest.approx({b"2": 0.75, b"7": 0.25})


@pytest.mark.parametrize(
    "call, code",
    [
        (lambda: ps.Chain.from_tokens("q", 0, ["a"]), "E-chain-not-bytes"),
        (lambda: ps.Chain.from_tokens("q", 0, [b"a"], [[("a", -0.1)]]), "E-chain-not-bytes"),
        (lambda: ps.Chain.from_tokens("q", 0, [b"a"], [{"a": -0.1}]), "E-chain-not-bytes"),
        (lambda: ps.Chain.from_tokens("q", 0, [b"a"], [[(b"a", -0.1)]] * 3), "E-chain-candidates"),
        (lambda: ps.encode("text", "t5-base"), "E-tokenizer-not-fast"),
        (lambda: list(ps.teachers.local(TEACHER, samples=1).sample(["What is 1 + 1?"])), "E-teacher-not-a-question"),
        (lambda: ps.teachers.local(TEACHER, samples={1}), "E-recipe-values"),
        (lambda: ps.run({"name": "mine"}, set={"train.steps": {1}}), "E-recipe-values"),
        (lambda: ps.run({"name": "mine", "train": {"stps": 3}}), "E-recipe-unknown-key"),
    ],
)
def test_a_mistake_in_an_argument_is_one_message(call, code: str) -> None:
    with pytest.raises(ps.UserError) as error:
        call()
    assert error.value.code == code and error.value.hint


def test_float_ids_are_refused_by_name() -> None:
    ids, probs = torch.tensor([[3.0]]), torch.tensor([[1.0]])
    with pytest.raises(AssertionError, match=r"candidate ids of torch\.float32"):
        ps.losses.sparse_kl(torch.zeros(1, 2), torch.zeros(4, 2), ids, probs)


def test_grade() -> None:
    assert ps.grade("The answer is $18.", "18", task="gsm8k").grade == "right"


def test_a_run_gives_its_records(finished: Path) -> None:
    run = ps.open_run(str(finished))
    assert str(finished) in repr(run) and len(repr(run)) < 300
    questions = list(run.questions("train"))
    assert questions and all(question.split == "train" for question in questions)
    everything, kept = list(run.chains()), list(run.chains(kept=True))
    assert kept and kept == [(chain, verdict) for chain, verdict in everything if verdict.kept]
    for chain, target in run.targets():
        assert chain.key in {each.key for each, _ in kept} and len(target.ids) > 0
    scores = run.scores("test")
    assert {score.split for score in scores} == {"test"} and {BASE, run.choice} <= {
        score.checkpoint for score in scores
    }
    for prediction in itertools.islice(run.predictions("test"), 3):
        assert prediction.grade in ("right", "wrong", "no answer", "truncated")
    student = run.student()
    assert isinstance(student.model, torch.nn.Module) and len(repr(student.tokenizer)) < 300


def test_predictions_are_by_default_those_that_selected(finished: Path, tmp_path: Path) -> None:
    for part in ("test", "select"):
        shutil.copytree(finished / part, tmp_path / part)
    text = (finished / "recipe.yaml").read_text("utf-8")
    head, select, tail = text.partition("\nselect:\n")
    tail = tail.replace("format: zero-shot-rationale", "format: few-shot-answer", 1)
    (tmp_path / "recipe.yaml").write_text(head + select + tail, "utf-8")
    run, named = ps.open_run(tmp_path), {"format": "few-shot-answer", "decoding": "greedy"}
    assert run.recipe.select.format == "few-shot-answer"
    assert list(run.predictions("test")) == list(ps.open_run(finished).predictions("test", **named))
    with pytest.raises(ps.UserError) as caught:
        list(run.predictions("test", format="zero-shot-answer"))
    assert caught.value.code == "E-run-no-answers" and "/few-shot-answer.greedy" in caught.value.hint
    # A run without a teacher selects nothing: it has only the base.
    (tmp_path / "recipe.yaml").write_text(
        "name: x\nteacher: {kind: none}\nstudent: {model: x}\nquestions: {train: []}\n"
    )
    assert list(ps.open_run(tmp_path).predictions("test")) == list(ps.open_run(finished).predictions("test", 0))


@pytest.mark.parametrize(
    "call, code",
    [
        (lambda run: list(run.questions()), "E-run-stage-not-finished"),
        (lambda run: list(run.chains()), "E-run-stage-not-finished"),
        (lambda run: list(run.targets()), "E-run-stage-not-finished"),
        (lambda run: run.scores("test"), "E-run-stage-not-finished"),
        (lambda run: run.choice, "E-run-stage-not-finished"),
        (lambda run: run.scores("train"), "E-run-unknown-split"),
    ],
)
def test_what_is_not_there_yet_is_one_message(finished: Path, tmp_path: Path, call, code: str) -> None:
    shutil.copy(finished / "recipe.yaml", tmp_path)
    with pytest.raises(ps.UserError) as error:
        call(ps.open_run(tmp_path))
    assert error.value.code == code


def test_an_unknown_split_and_unknown_answers_are_refused(finished: Path) -> None:
    run = ps.open_run(finished)
    with pytest.raises(ps.UserError) as error:
        list(run.questions("tset"))  # pyright: ignore[reportArgumentType]
    assert error.value.code == "E-run-unknown-split" and "validation" in error.value.hint
    for calls in (lambda: run.predictions("test", 3), lambda: run.predictions("test", format="zero-shot-rational")):
        with pytest.raises(ps.UserError) as error:
            next(calls())
        assert error.value.code == "E-run-no-answers" and "0/zero-shot-rationale.greedy" in error.value.hint


def test_duckdb_and_pandas_read_every_table_of_a_run(finished: Path) -> None:
    """The same columns and rows; texts of JSON lines and of chains are those of the run."""
    duckdb, pandas = pytest.importorskip("duckdb"), pytest.importorskip("pandas")
    readers = {
        ".parquet": pandas.read_parquet,
        ".csv": pandas.read_csv,
        ".jsonl": lambda path: pandas.read_json(path, lines=True, dtype=False),
    }
    found = [path for path in sorted(finished.rglob("*")) if path.suffix in readers]
    assert {path.suffix for path in found} == set(readers)
    for path in found:
        theirs, table = duckdb.sql(f"SELECT * FROM '{path}'"), readers[path.suffix](path)
        assert theirs.columns == list(table) and len(theirs.fetchall()) == len(table), path
    golds = [question.gold for question in ps.open_run(finished).questions("train")]
    questions = str(finished / "collect" / "sums.train.jsonl")
    assert duckdb.sql(f"SELECT gold FROM '{questions}'").fetchall() == [(gold,) for gold in golds]
    assert readers[".jsonl"](questions).gold.tolist() == golds
    chains, texts = finished / "sample" / "chains.parquet", [chain.text for chain, _ in ps.open_run(finished).chains()]
    assert pandas.read_parquet(chains).content.str.decode("utf-8", errors="replace").tolist() == texts
    decoded = duckdb.sql(f"SELECT try(decode(content)) FROM '{chains}'").fetchall()
    assert [text if "\ufffd" not in text else None for text in texts] == [text for (text,) in decoded]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ps.UserError) as error:
        ps.open_run(tmp_path)
    assert error.value.code == "E-run-not-a-run" and str(tmp_path) in error.value.where


def test_a_recipe_in_place_of_a_run_is_called_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    with pytest.raises(ps.UserError) as error:
        ps.open_run(tmp_path / "mine.yaml")
    assert (error.value.code, error.value.found) == ("E-run-not-a-run", "a recipe file")


def test_run_is_the_command(tmp_path: Path, finished: Path) -> None:
    again = ps.run(finished / "recipe.yaml", run_dir=finished)  # everything is up to date
    assert again == ps.open_run(finished)
    stopped = ps.run(finished / "recipe.yaml", set={"name": "another"}, run_dir=tmp_path / "another", until="collect")
    assert stopped.recipe.name == "another" and list(stopped.questions("train"))
    keys = {**yaml(finished / "recipe.yaml"), "name": "third", "data": Path(str(stopped.recipe.data))}
    third = ps.run(keys, run_dir=tmp_path / "third", until="collect")
    assert list(third.questions("train")) == list(stopped.questions("train"))


def test_public_objects_print_one_line(finished: Path) -> None:
    run = ps.open_run(finished)
    (chain, verdict), (_, target) = next(iter(run.chains())), next(iter(run.targets()))
    student, recipe = run.student(), run.recipe
    answers = (run.scores("test")[0], next(iter(run.predictions("test", 0))), run.choice, verdict)
    objects = (run, recipe, recipe.teacher, recipe.train, student, student.tokenizer, chain, target, *answers)
    for value in objects:
        assert "\n" not in repr(value) and len(repr(value)) <= 500, type(value)
        assert "\n" not in str(value) and len(str(value)) <= 500, type(value)
    assert f"{student.tokenizer.size:,} tokens" in repr(student) and "float32" in repr(student)
    assert f"{sum(p.numel() for p in student.model.parameters()):,} parameters" in repr(student)
