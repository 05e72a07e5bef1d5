"""The command line: help, exit codes, wrong input of every kind, and the output of each command."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lowest_versions
import tiny
from potstill import stages
from potstill.recipe import load_recipe
from potstill.storage import parquet

GOLDEN = Path(__file__).parent / "golden"


def potstill(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    own = {name: value for name, value in os.environ.items() if name != "POTSTILL_DATA"}
    command = [sys.executable, "-m", "potstill", *map(str, arguments)]
    settings = {**own, "COLUMNS": "100", "NO_COLOR": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=settings)


Told = subprocess.CompletedProcess[str]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Told]]:
    """The command in this process, from its arguments to its exit code: a process of its own loads torch each time."""
    from potstill import cli

    before = signal.getsignal(signal.SIGINT)

    def call(*arguments: object, cwd: Path | None = None, columns: int = 100) -> Told:
        with monkeypatch.context() as patch:
            patch.delenv("POTSTILL_DATA", raising=False)
            for name, value in (("COLUMNS", str(columns)), ("NO_COLOR", "1")):
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["potstill", *map(str, arguments)])
            if cwd is not None:
                patch.chdir(cwd)
            capsys.readouterr()
            with pytest.raises(SystemExit) as ended:
                cli.main()
            output = capsys.readouterr()
        code = ended.value.code or 0
        assert isinstance(code, int)
        return subprocess.CompletedProcess(["potstill"], code, output.out, output.err)

    yield call
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(
    lowest_versions.older("typer", "0.29"), reason="earlier versions of typer word the same help in other ways"
)
def test_help_is_what_it_was(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from potstill import cli

    result = potstill("--help")
    assert result.returncode == 0 and result.stdout == (GOLDEN / "help.txt").read_text("utf-8")
    commands = result.stdout.partition("Commands:")[2].partition("\n\n")[0]
    assert not [line for line in commands.splitlines() if line.endswith("...") or len(line) > 80]
    monkeypatch.setenv("COLUMNS", "100")
    for name in (
        "",
        "run",
        "init",
        "ask",
        "recipes",
        "data",
        "show",
        "grade",
        "export",
        "sample",
        "evaluate",
        "track",
        "status",
        "compare",
        "study",
    ):
        with pytest.raises(SystemExit) as ended:
            cli.app([*([name] if name else []), "--help"], prog_name="python -m potstill")
        golden = GOLDEN / f"help{'-' + name if name else ''}.txt"
        assert ended.value.code == 0
        assert capsys.readouterr().out == golden.read_text("utf-8"), f"python -m potstill {name} --help > {golden.name}"


def test_every_command_has_an_example_and_the_version_is_printed(said: Callable[..., Told]) -> None:
    from potstill import __version__
    from potstill.cli import app

    assert all((command.epilog or "").startswith("Example: potstill ") for command in app.registered_commands)
    assert said("--version").stdout == f"potstill {__version__}\n"


def test_a_recipe_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    result = potstill("run", "absent.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("absent.yaml: ") and result.stderr.endswith("\n  code: E-recipe-unreadable\n")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def wrong(said: Callable[..., Told], tmp_path: Path, world: Path) -> Callable[..., str]:
    """The message with which a run ends that cannot be made."""

    def message(*changes: str) -> str:
        (tmp_path / "recipe.yaml").write_text(tiny.RECIPE)
        options = [part for change in (f"data={world}", *changes) for part in ("--set", change)]
        result = said("run", "recipe.yaml", *options, cwd=tmp_path)
        assert result.returncode == 2, result.stderr
        assert "Traceback" not in result.stderr
        return result.stderr

    return message


@pytest.mark.parametrize(
    "changes, message",
    [
        (["train.stps=3"], "E-recipe-unknown-key"),
        (["train.steps=many"], "E-recipe-value"),
        (["questions.out_of_distribution=[nowhere]"], "E-data-unknown-set"),
        (["questions.train=[sum]"], "did you mean 'sums'?"),
        (["questions.out_of_distribution=[svamp]"], "svamp"),
        (["sets.other.file=sets/absent.jsonl"], "E-recipe-missing-path"),
        (["teacher.model=absent"], "E-recipe-missing-path"),
        (["student.tokenizer=absent"], "E-recipe-missing-path"),
        (["student.shape=flan-t5-huge"], "no such shape"),
        (["teacher.max_tokens=1"], "E-filter-nothing-kept"),
        (["data=absent"], "E-data-no-folder"),
    ],
)
def test_wrong_values_are_one_message(wrong: Callable[..., str], changes: list[str], message: str) -> None:
    assert message in wrong(*changes)


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"id": "0", "question": "Torn?", "answer": "1', "sums.jsonl line 13"),
        ('{"id": "0", "question": "Again?", "answer": "1"}', "E-data-repeated-id"),
        ('{"id": "x", "question": "No number?", "answer": "none"}', "sums.jsonl line 13"),
        ('{"id": "x", "question": 7, "answer": "1"}', "sums.jsonl line 13"),
        ('{"id": "x", "answer": "1"}', "sums.jsonl line 13"),
        ("[]", "sums.jsonl line 13"),
    ],
)
def test_wrong_records_name_their_line(
    tmp_path: Path, world: Path, wrong: Callable[..., str], line: str, message: str
) -> None:
    path = tmp_path / "sums.jsonl"
    path.write_text((world / "sets" / "sums.jsonl").read_text() + line + "\n")
    assert message in wrong(f"sets.sums.file={path}")


def test_an_empty_set_and_an_empty_split_are_told_apart(tmp_path: Path, wrong: Callable[..., str]) -> None:
    path = tmp_path / "sums.jsonl"
    path.write_text("")
    assert "E-data-empty-set" in wrong(f"sets.sums.file={path}")
    path.write_text(json.dumps({"id": "0", "question": "One?", "answer": "1"}) + "\n")
    assert "E-data-empty-split" in wrong(f"sets.sums.file={path}")


def test_a_vocabulary_that_is_too_small_for_the_tokenizer_is_refused(
    tmp_path: Path, world: Path, wrong: Callable[..., str]
) -> None:
    """The teacher's folder with the student's larger or smaller tokenizer in it."""
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(world / "teacher", broken)
    config = json.loads((broken / "config.json").read_text())
    config["vocab_size"] = 7
    (broken / "config.json").write_text(json.dumps(config))
    assert str(broken) in wrong(f"teacher.model={broken}")


def test_a_finished_run_refuses_other_keys_and_redo_consents(tmp_path: Path, world: Path) -> None:
    run_dir = tmp_path / "run"
    tiny.make(world, run_dir, until="filter")
    before = tiny.contents(run_dir)
    from potstill.errors import UserError

    with pytest.raises(UserError) as caught:
        tiny.make(world, run_dir, "filter.max_per_question=1", until="filter")
    assert "filter.max_per_question: null -> 1" in str(caught.value) and "--redo filter" in str(caught.value)
    assert tiny.contents(run_dir) == before
    from potstill import runner

    runner.run(tiny.recipe(world, "filter.max_per_question=1"), run_dir=run_dir, redo="filter", until="filter")
    after = tiny.contents(run_dir)
    assert {name for name in after if after[name] != before.get(name)} <= {n for n in after if n.startswith("filter/")}
    assert b'"filter.max_per_question": 1' in after["filter/manifest.json"]


def test_training_may_grow(tmp_path: Path, world: Path, finished: Path) -> None:
    """Two more steps keep every earlier checkpoint and every earlier answer, and equal a run that had them at once."""
    import shutil

    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    kept = (run_dir / "evaluate" / "2" / "zero-shot-rationale.greedy.jsonl").stat().st_mtime_ns
    tiny.make(world, run_dir, "train.steps=6")
    assert (run_dir / "evaluate" / "2" / "zero-shot-rationale.greedy.jsonl").stat().st_mtime_ns == kept
    assert tiny.contents(run_dir) == tiny.contents(tiny.make(world, tmp_path / "at once", "train.steps=6"))


def test_the_demonstrations_of_a_run_are_not_taken_from_elsewhere(finished: Path) -> None:
    table = json.loads((finished / "collect" / "demonstrations.json").read_text())
    asked = {json.loads(line)["text"] for line in (finished / "collect" / "sums.train.jsonl").read_text().splitlines()}
    assert {shot["question"] for shot in table[""]["demonstrations"]} <= asked


def test_show_and_status_show_what_there_is(finished: Path, said: Callable[..., Told]) -> None:
    first = json.loads(said("export", finished, "--as", "jsonl").stdout.splitlines()[0])
    key = f"{first['question']}#{first['index']}"
    status = said("status", finished)
    assert status.returncode == 0 and status.stdout.count("done") == 9
    assert "kept" in said("show", finished, "--chain", key).stdout
    result = said("show", finished, "--chain", key).stdout
    assert "END" in result and "one token each" in result and "target" in result
    assert "same" in said("show", finished, "--target", key).stdout
    batch = said("show", finished, "--batch", 1).stdout
    assert "zero-shot-rationale" in batch and "Let's think step by step" in batch
    asked = (finished / "collect" / "other.validation.jsonl").read_text().splitlines()[0]
    assert "few-shot-answer" in said("show", finished, "--prediction", json.loads(asked)["id"]).stdout
    assert "sample" in said("show", finished).stdout


def test_what_is_not_there_to_show_is_one_message(finished: Path, tmp_path: Path, said: Callable[..., Told]) -> None:
    assert "code: E-run-not-a-run" in said("status", tmp_path).stderr
    result = said("show", finished, "--chain", "sums/none#0")
    assert (
        result.returncode == 2 and result.stderr.startswith("sums/none#0: ") and "E-cli-unknown-chain" in result.stderr
    )
    example = result.stderr.splitlines()[1].split()[-1]
    assert said("show", finished, "--chain", example).returncode == 0
    result = said("show", finished, "--prediction", example.partition("#")[0])
    assert said("show", finished, "--prediction", result.stderr.splitlines()[1].split()[-1]).returncode == 0


def test_texts_of_others_reach_no_terminal_as_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question, a gold and a source that hold markup and escapes: shown as they are, never obeyed."""
    from potstill import cli
    from potstill.cli import show, status

    world, evil = tiny.world(tmp_path), "\x1b[31m[/red]"
    rows = [{**row, "answer": f"{row['answer']} ({evil})", "split": "train"} for row in tiny.rows("sums", 6)]
    rows += [
        {**row, "split": split} for row, split in zip(tiny.rows("sums", 9)[6:8], ["validation", "test"], strict=True)
    ]
    for row in rows:
        row["id"] += evil
    (world / "sets" / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chains = [{"question": f"sums/{i}{evil}", "text": f"{evil} The answer is 1", "source": evil} for i in range(6)]
    (world / "chains.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chains))
    run_dir = tiny.make(world, tmp_path / "run", "teacher={kind: replay, chains: chains.jsonl}", until="sample")
    show.print_chain(run_dir, f"sums/0{evil}#0")
    status.print_overview(run_dir)
    monkeypatch.setattr(sys, "argv", ["potstill", "show", str(run_dir), "--chain", f"{evil}#1"])
    with pytest.raises(SystemExit):
        cli.main()
    output = capsys.readouterr()
    assert "\x1b" not in output.out + output.err
    assert (
        output.out.count("[31m[/red]") >= 4 and "[31m[/red]#1: " in output.err and "E-cli-unknown-chain" in output.err
    )


def test_a_run_under_way_can_be_looked_at(tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    from potstill.cli import show, status
    from potstill.errors import UserError
    from potstill.storage import run_folder

    run_dir = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(run_dir / "student")
    (run_dir / "train" / "manifest.json").unlink()
    (run_dir / "evaluate" / "4" / "manifest.json").unlink()
    with (run_dir / "evaluate" / "4" / "few-shot-answer.greedy.jsonl").open("a") as torn:
        torn.write('{"question": "oth')
    rows = json.loads((run_dir / "collect" / "other.validation.jsonl").read_text().splitlines()[0])["id"]
    with run_folder.lock_run(run_dir):
        run_folder.append_log(run_dir, "start", pid=os.getpid(), host=platform.node())
        status.print_status(run_dir)
        show.print_predictions(run_dir, rows)
        with pytest.raises(UserError) as caught:
            show.print_batch(run_dir, -1)
    assert caught.value.code == "E-cli-step"
    output = capsys.readouterr().out
    assert output.count("broken") == 2  # the moved student, and the torn answers, whose step is not shown
    assert output.count("running") == 1 and output.count("few-shot-answer") == 2
    assert "step 4 of 4, loss " in output and "last checkpoint: step 4" in output
    assert f"process {os.getpid()} on" in output and f"continue with: potstill run {run_dir}" in output.replace(
        "\n", ""
    )
    status.print_status(run_dir, as_json=True)
    found = json.loads(capsys.readouterr().out)
    train = next(stage for stage in found["stages"] if stage["stage"] == "train")
    assert train["state"] == "unfinished" and found["processes"] == []  # the lock is free again
    assert train["counts"]["step"] == 4 and train["counts"]["checkpoints"] == [2, 4]
    assert [stage["stage"] for stage in found["stages"]] == list(stages.STAGES)  # `repair` is not in the recipe


def test_every_command_with_json_prints_one_object(
    finished: Path, tmp_path: Path, said: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*arguments: object) -> dict[str, Any]:
        result = said(*arguments, "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    chain = json.loads(said("export", finished, "--as", "jsonl").stdout.splitlines()[0])
    key = f"{chain['question']}#{chain['index']}"
    shown = read("show", finished, "--chain", key)
    assert shown["chain"]["text"] == chain["text"] and shown["verdict"]["kept"] is True
    target = read("show", finished, "--target", key)
    for position in target["positions"]:
        assert position["tail"] + sum(row["p"] for row in position["distribution"]) == pytest.approx(1, abs=1e-3)
    batch = read("show", finished, "--batch", 1)
    assert (
        len(batch["groups"]) == 5 and {row["format"] for row in batch["groups"]} >= batch["first_of_each_format"].keys()
    )
    question = json.loads((finished / "collect" / "other.validation.jsonl").read_text().splitlines()[0])["id"]
    answers = read("show", finished, "--prediction", question)["answers"]
    assert [(row["checkpoint"], row["format"]) for row in answers[:2]] == [
        ("0", "zero-shot-rationale"), ("0", "few-shot-answer")
    ]  # fmt: skip
    assert read("show", finished) == read("status", finished)
    compared = read("compare", f"{finished}@0", f"{finished}@2")["comparisons"]
    assert {row["set"] for row in compared} == {"sums", "other", "more"}
    assert all(row["low"] <= row["difference"] == row["second"] - row["first"] <= row["high"] for row in compared)
    (tmp_path / "rows.jsonl").write_text('{"text": "The answer is 2", "gold": "2"}\n{"text": "No idea", "gold": "2"}\n')
    graded = read("grade", tmp_path / "rows.jsonl", "--out", tmp_path / "graded.jsonl")
    assert graded["rows"] == 2 and graded["verdicts"] == {"right": 1, "no answer": 1}


def test_every_table_fits_80_columns(finished: Path, said: Callable[..., Told]) -> None:
    for arguments in (("status", finished), ("compare", f"{finished}@0", f"{finished}@2")):
        lines = [line for line in said(*arguments, columns=80).stdout.splitlines() if str(finished) not in line]
        assert lines and max(map(len, lines[:-1])) <= 80


def test_a_run_is_continued_by_its_folder(tmp_path: Path, world: Path, said: Callable[..., Told]) -> None:
    run_dir = tmp_path / "elsewhere"
    tiny.make(world, run_dir, until="train")
    result = said("run", run_dir, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (run_dir / "report" / "index.html").exists() and not (tmp_path / "runs").exists()
    assert json.loads(said("status", run_dir, "--json").stdout)["resume"] is None
    result = said("sample", run_dir, "--redo", "sample", "--shard", "1/2", cwd=tmp_path)
    assert "E-cli-redo-shared" in result.stderr and (run_dir / "sample" / "manifest.json").exists()
    result = said("sample", run_dir, "--redo", "sample", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (run_dir / "sample" / "manifest.json").exists() and not (run_dir / "filter").exists()


def test_the_environment_is_printed_without_keys(said: Callable[..., Told], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    output = said("env").stdout
    lines = dict(line.split(maxsplit=1) for line in output.splitlines() if not line.startswith(("variables", " ")))
    assert lines["torch"] == torch.__version__ and "potstill" in lines and "devices" in lines
    assert "OPENAI_API_KEY" in output and "sk-secret" not in output and str(Path.home()) not in output


@pytest.mark.parametrize(
    "words, expected",
    [
        ("potstill st", {"status", "study"}),
        ("potstill run recipe.yaml --redo se", {"select"}),
        ("potstill run recipe.yaml --set train.st", {"train.steps=", "train.stable_steps="}),
        ("potstill export runs/a --as gg", {"gguf"}),
    ],
)
def test_the_shell_completes_commands_stages_and_keys(words: str, expected: set[str]) -> None:
    given = {"_POTSTILL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    program = "import sys; sys.argv = ['potstill']; from potstill.cli import main; main()"
    environment = {**os.environ, **given}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert set(result.stdout.split()) == expected, result.stderr


def test_export_gives_chat_rows(finished: Path, said: Callable[..., Told]) -> None:
    rows = [json.loads(line) for line in said("export", finished, "--as", "messages").stdout.splitlines()]
    assert rows and all([m["role"] for m in row["messages"]] == ["user", "assistant"] for row in rows)
    paths = (finished / "sample" / "chains.parquet", finished / "filter" / "verdicts.parquet")
    kept = [chain.text for chain, verdict in parquet.chains_with_verdicts(*paths) if verdict.kept]
    assert [row["messages"][1]["content"] for row in rows] == kept


def test_a_stage_command_goes_up_to_its_stage(tmp_path: Path, world: Path, said: Callable[..., Told]) -> None:
    run_dir = tmp_path / "run"
    tiny.make(world, run_dir, until="collect")
    result = said("filter", run_dir)
    assert result.returncode == 0, result.stderr
    assert (run_dir / "filter" / "manifest.json").exists() and not (run_dir / "align").exists()


def test_stage_commands_change_keys_of_a_recipe_and_of_a_run(
    tmp_path: Path, world: Path, said: Callable[..., Told]
) -> None:
    (tmp_path / "recipe.yaml").write_text(tiny.RECIPE)
    result = said("collect", "recipe.yaml", "--set", f"data={world}", "--set", "name=other", cwd=tmp_path)
    assert result.returncode == 0 and (tmp_path / "runs/other/collect/manifest.json").exists(), result.stderr
    result = said("sample", "runs/other", "--set", "teacher={kind: human}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert load_recipe(tmp_path / "runs/other/recipe.yaml").teacher.kind == "human"
    result = said("sample", "runs/other", "--set", "teacher.samples=many", cwd=tmp_path)
    assert result.returncode == 2 and "--set teacher.samples=many: " in result.stderr


def test_dry_run_plans_and_writes_nothing(tmp_path: Path, world: Path, said: Callable[..., Told]) -> None:
    (tmp_path / "recipe.yaml").write_text(tiny.RECIPE)
    result = said("run", "recipe.yaml", "--dry-run", "--set", f"data={world}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for word in ("questions", "teacher", "parameters", "memory", "tokens per step", "time", "answers", "not used"):
        assert word in result.stdout
    assert "few questions   other test, " in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_compare_prints_paired_differences_and_writes_what_changed(
    finished: Path, tmp_path: Path, said: Callable[..., Told]
) -> None:
    out = tmp_path / "changed.jsonl"
    result = said("compare", f"{finished}@0", f"{finished}@4", "--out", out, columns=160)
    assert result.returncode == 0, result.stderr
    assert "zero-shot-rationale.greedy\nfirst: run step 0; second: run step 4\n" in result.stdout
    assert "few-shot-answer.greedy" in result.stdout and "McNemar" not in result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines()[3:6]] == ["more", "other", "sums"]
    for line in out.read_text().splitlines():
        row = json.loads(line)
        assert (row["first"]["grade"] == "right") != (row["second"]["grade"] == "right")
    page = tmp_path / "page.html"
    result = said("compare", f"{finished}@0", f"{finished}@2", f"{finished}@4", "--page", page)
    assert result.returncode == 0, result.stderr
    html = page.read_text("utf-8")
    assert html.count('<th scope="col"><bdi>run step ') == 3 * html.count("<table"), (
        "one column per model in every table"
    )
    assert f"potstill compare {finished}@0 {finished}@2 {finished}@4 --page {page}" in html
    result = said("compare", finished, finished, finished, "--out", out)
    assert result.returncode == 2 and "E-cli-compare-table" in result.stderr
    same = said("compare", finished, finished, columns=160)
    assert same.returncode == 0 and " 0.0 " in same.stdout
    for wrong, message in ((f"{finished}@3", "E-cli-compare-unevaluated"), ("nowhere", "E-run-not-a-run")):
        result = said("compare", finished, wrong, cwd=tmp_path)
        assert result.returncode == 2 and message in result.stderr


def test_grade_keeps_order_and_fields(tmp_path: Path, said: Callable[..., Told]) -> None:
    rows = [
        {"text": "The answer is 18.", "gold": "18", "mine": [1]},
        {"text": "The answer is 17.", "gold": "18", "task": "gsm8k"},
        {"text": "I do not know.", "gold": "18"},
        {"text": "So we have", "gold": "18", "stop": "length"},
        {"text": "So the answer is (B).", "gold": "(B)"},
    ]
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = said("grade", path, "--out", out)
    assert result.returncode == 0, result.stderr
    graded = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["verdict"] for row in graded] == ["right", "wrong", "no answer", "truncated", "right"]
    assert [row["found"] for row in graded][:4] == ["18", "17", None, None]
    assert [{k: v for k, v in row.items() if k not in ("verdict", "found")} for row in graded] == rows


def test_grade_reads_samples_of_lm_evaluation_harness_and_functions_that_are_named(
    tmp_path: Path, said: Callable[..., Told]
) -> None:
    samples = [
        {
            "doc_id": 0,
            "doc": {"answer": "9\n#### 18"},
            "target": "9\n#### 18",
            "resps": [["It is 18."]],
            "filter": "none",
        },
        {"doc_id": 1, "doc": {"potstill_gold": "(B)", "potstill_task": "choice"}, "target": "", "resps": [["b"]]},
    ]
    path, out = tmp_path / "samples.jsonl", tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in samples))
    result = said("grade", path, "--out", out, "--task", "gsm8k")
    assert result.returncode == 0, result.stderr
    graded = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["verdict"], row["found"]) for row in graded] == [("right", "18"), ("right", "(B)")]
    assert [row["doc_id"] for row in graded] == [0, 1] and "text" not in graded[0]
    (tmp_path / "mine.py").write_text("def longer(text, gold):\n    return len(text) > int(gold)\n")
    path.write_text(json.dumps({"text": "abc", "gold": "2"}) + "\n")
    result = potstill("grade", path, "--out", out, "--task", "function: mine:longer", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(out.read_text())["verdict"] == "right"


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"text": "x"}', "code: E-grade-gold"),
        ("{", "code: E-storage-invalid-json"),
        ('{"text": "x", "gold": "x", "task": "function: os:system"}', "code: E-grade-row-function"),
        ('{"doc": {}, "target": "1", "resps": [[[-1.5, false]]]}', "code: E-grade-sample-text"),
    ],
)
def test_grade_names_the_line_and_writes_nothing(
    tmp_path: Path, said: Callable[..., Told], line: str, message: str
) -> None:
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text(line + "\n")
    result = said("grade", path, "--out", out)
    assert result.returncode == 2 and message in result.stderr and not out.exists()


ENDED = [
    ({"stop": "max_tokens"}, "truncated"),
    ({"finish_reason": "length"}, "truncated"),
    ({"finish_reason": "MAX_TOKENS"}, "truncated"),
    ({"stop_reason": "max_tokens"}, "truncated"),
    ({"finishReason": "MAX_TOKENS"}, "truncated"),
    ({"done_reason": "length"}, "truncated"),
    ({"stop_type": "limit", "stop": True}, "truncated"),
    ({"truncated": True}, "truncated"),
    ({"finish_reason": "content_filter"}, "truncated"),
    ({"stop": "end", "finish_reason": "length"}, "truncated"),
    ({"stop": ["Q:"], "finish_reason": "length"}, "truncated"),
    ({"finish_reason": "stop", "stop_reason": "Q:"}, "right"),
    ({"stop_reason": "end_turn"}, "right"),
    ({"finish_reason": "STOP"}, "right"),
    ({"finish_reason": None, "stop": ""}, "right"),
    ({"stop": "cut"}, "right"),
]


def graded(tmp_path: Path, *rows: dict[str, object], task: str | None = None) -> list[dict[str, object]]:
    from potstill.cli import grade_rows

    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    grade_rows.grade_file(path, out, task)
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize("ended, verdict", ENDED)
def test_grade_reads_how_a_text_ended(tmp_path: Path, ended: dict[str, object], verdict: str) -> None:
    """Without a marked answer a text that was cut off is truncated, whatever number it holds."""
    assert [row["verdict"] for row in graded(tmp_path, {"text": "He has 18", "gold": "18", **ended})] == [verdict]


def test_grade_refuses_an_end_that_nobody_knows(tmp_path: Path) -> None:
    from potstill.errors import UserError

    for name in ("stop", "finish_reason"):
        with pytest.raises(UserError) as caught:
            graded(tmp_path, {"text": "He has 18", "gold": "18", name: "tired"})
        error = caught.value
        assert (error.code, error.found) == ("E-grade-stop-unknown", "'tired'") and error.where.endswith("line 1")
    with pytest.raises(UserError) as caught:
        graded(tmp_path, {"text": "He has 18", "gold": "18", "stop": 3})
    assert caught.value.code == "E-grade-stop-type" and caught.value.where.endswith("line 1")


@pytest.mark.parametrize(
    "text, gold, verdict",
    [
        ("The answer is 18.", 18, "right"),
        ("The answer is 0.5.", 0.5, "right"),
        ("The answer is 18.", 18.0, "right"),
        ("The answer is 17.", 18, "wrong"),
        ("The answer is yes.", True, "right"),
        ("The answer is True.", True, "right"),
        ("The answer is no.", True, "wrong"),
        ("The answer is false.", False, "right"),
        ("The answer is 18.", "9 x 2 = 18\n#### 18", "right"),
        ("The answer is 18.", "so \\boxed{18}", "right"),
        ("The answer is 18.", ["18"], "right"),
    ],
)
def test_grade_takes_golds_in_the_forms_that_people_have(tmp_path: Path, text: str, gold: object, verdict: str) -> None:
    [row] = graded(tmp_path, {"text": text, "gold": gold})
    assert row["verdict"] == verdict and row["gold"] == gold


def test_grade_counts_a_document_once_however_many_filters_were_logged(tmp_path: Path, capsys) -> None:
    def sample(document: int, filter: str, text: str) -> dict[str, object]:
        return {"doc_id": document, "doc": {"q": document}, "target": "18", "resps": [[text]], "filter": filter}

    filters = ("strict-match", "flexible-extract")
    rows = [sample(i, name, f"The answer is {18 - i}.") for name in filters for i in range(2)]
    assert [(row["doc_id"], row["verdict"]) for row in graded(tmp_path, *rows)] == [(0, "right"), (1, "wrong")]
    output = capsys.readouterr()
    assert "once per filter (strict-match, flexible-extract)" in output.err + output.out
    from potstill.errors import UserError

    with pytest.raises(UserError) as caught:
        graded(tmp_path, sample(0, "a", "18"), sample(0, "b", "17"))
    assert caught.value.code == "E-grade-filters"
    # the same number of a document in two tasks, put into one file, are two documents
    other = {**sample(0, "strict-match", "18"), "doc": {"q": "another"}}
    assert len(graded(tmp_path, sample(0, "strict-match", "18"), other)) == 2


def test_grade_reads_tables_and_arrays_too(tmp_path: Path) -> None:
    from potstill.cli import grade_rows

    out = tmp_path / "out.jsonl"
    for name, text in (("a.csv", "text,gold\nIt is 18.,18\n"), ("a.json", '[{"text": "It is 18.", "gold": 18}]')):
        (tmp_path / name).write_text(text)
        grade_rows.grade_file(tmp_path / name, out)
        assert json.loads(out.read_text())["verdict"] == "right"


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, world: Path) -> None:
    import time

    (tmp_path / "recipe.yaml").write_text(tiny.RECIPE)
    options = ["--set", f"data={world}", "--set", "train.steps=100000"]
    command = [sys.executable, "-m", "potstill", "run", "recipe.yaml", *options]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "runs" / "tiny" / "train" / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "run the same command again" in told


def test_tables_of_compare_fit_a_terminal_of_80_columns_and_keep_their_names(
    said: Callable[..., Told], finished: Path
) -> None:
    for arguments in ((f"{finished}@0", f"{finished}@4"), (f"{finished}@0", f"{finished}@2", f"{finished}@4")):
        lines = said("compare", *arguments, columns=80).stdout.splitlines()
        rows = [line for line in lines if " to " in line and line.count("  ") > 2]
        assert rows and max(map(len, rows)) <= 80, rows
        assert not any("…" in line for line in lines) and any(line.lstrip().startswith("sums") for line in lines), lines
