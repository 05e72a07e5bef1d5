"""`potstill study`: runs share stages, resume, fail alone, and come to the bytes of runs that were made alone."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

import stub
import tiny
from fork_server import exit_code, start_command
from potstill import cli, runner, study
from potstill.errors import UserError
from potstill.report.group_files import read_groups
from potstill.report.group_scores import score_groups
from potstill.storage import atomic, manifest, run_folder
from potstill.study.plan import describe_study

STUDY = """
name: rules
recipe: tiny.yaml
grid:
  transfer.rule: [one-hot, span]
  train.seed: [3, 4]
"""


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the recipe `tiny.yaml` and the study `rules.yaml`."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(tiny.RECIPE + f"data: {world}\n", "utf-8")
    Path("rules.yaml").write_text(STUDY, "utf-8")
    return tmp_path


def make_all(text: str = STUDY, *changes: str) -> study.Study:
    """Make the runs of a study one after the other in this process."""
    Path("rules.yaml").write_text(text, "utf-8")
    plan = study.open_study(Path("rules.yaml"), changes)
    for run in plan.runs:
        study.make_run(plan, run)
    return plan


@pytest.fixture
def undisturbed(here: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, bytes]]:
    """The results of the study, which was made without an interruption in another folder."""
    with monkeypatch.context() as patch:
        (here / "undisturbed").mkdir()
        patch.chdir(here / "undisturbed")
        Path("tiny.yaml").write_bytes((here / "tiny.yaml").read_bytes())
        return results(make_all())


def events(run_dir: Path, event: str) -> list[str]:
    """The stages of one kind of event in the log of a run."""
    rows = map(json.loads, (run_dir / "log.jsonl").read_text("utf-8").splitlines())
    return [row["stage"] for row in rows if row["event"] == event]


def made(plan: study.Study) -> Counter[str]:
    return Counter(stage for run in plan.runs for stage in events(run.run_dir, "done"))


def results(plan: study.Study) -> dict[str, dict[str, bytes]]:
    return {run.name: tiny.contents(run.run_dir) for run in plan.runs}


def test_every_stage_is_made_once_and_the_runs_equal_runs_that_were_made_alone(here: Path) -> None:
    plan = make_all()
    assert dict(made(plan)) == study.count_shared(plan)
    assert made(plan)["sample"] == 1 and made(plan)["align"] == 2 and made(plan)["train"] == 4
    assert events(plan.runs[1].run_dir, "copied") == ["collect", "sample", "filter", "align"]
    for run in plan.runs:
        alone = runner.run(run.recipe, here / "alone" / run.name)
        assert tiny.contents(run.run_dir) == tiny.contents(alone), run.name
        assert manifest.read_finished(run.run_dir / "report")
    answers = list(Path("runs/rules/answers").glob("*/answers.jsonl"))
    assert len(answers) < 4 * len(list(Path("runs/rules").glob("*/evaluate/[0-9]*"))), "the base answers once"


def test_a_stage_that_is_made_in_another_runs_folder_takes_the_first_stages_from_a_third(here: Path) -> None:
    """The run is made before the run whose alignment it shares, as when two processes make the runs of a study."""
    plan = study.open_study(Path("rules.yaml"))
    first, _, maker, last = plan.runs
    study.make_run(plan, first)
    study.make_run(plan, last)
    assert events(maker.run_dir, "copied") == ["collect", "sample", "filter"]
    assert events(maker.run_dir, "done") == ["align"]
    assert events(last.run_dir, "copied") == ["collect", "sample", "filter", "align"]


def test_finished_runs_are_not_made_again(here: Path) -> None:
    before = results(make_all())
    plan = make_all()
    assert all(map(study.is_finished, plan.runs)) and results(plan) == before
    assert dict(made(plan)) == study.count_shared(plan)


def test_students_with_the_same_tokenizer_file_share_one_alignment(here: Path, world: Path) -> None:
    for name in ("first", "second"):
        folder = Path("models") / name
        folder.mkdir(parents=True)
        for path in (world / "student-tokenizer").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    plan = make_all("{name: sizes, recipe: tiny.yaml, grid: {student.tokenizer: [models/first, models/second]}}")
    assert made(plan)["align"] == 1 and made(plan)["train"] == 2
    assert events(plan.runs[1].run_dir, "copied") == ["collect", "sample", "filter", "align"]
    alone = runner.run(plan.runs[1].recipe, here / "alone")
    assert tiny.contents(plan.runs[1].run_dir) == tiny.contents(alone)


def test_a_replay_set_changes_the_questions_but_the_teacher_is_asked_once(here: Path) -> None:
    plan = make_all(
        "{name: kept, recipe: tiny.yaml, grid: {kept: {none: {}, some: {train.replay: {share: 0.2, sets: [more]}}}}}"
    )
    assert dict(made(plan)) == study.count_shared(plan)
    assert made(plan)["collect"] == 2 and made(plan)["sample"] == 1
    assert events(plan.runs[1].run_dir, "copied") == ["sample"]
    alone = runner.run(plan.runs[1].recipe, here / "alone")
    assert tiny.contents(plan.runs[1].run_dir) == tiny.contents(alone)


def test_another_rule_of_selection_keeps_the_training(here: Path) -> None:
    plan = make_all(
        "{name: choice, recipe: tiny.yaml, grid: {select.rule: [mean-out-of-distribution, in-distribution]}}"
    )
    assert made(plan)["train"] == made(plan)["evaluate"] == 1 and made(plan)["select"] == 2
    weights = [run.run_dir / "train" / "checkpoints" / "4" / "model.safetensors" for run in plan.runs]
    assert weights[0].samefile(weights[1]), "weights take no disk twice"
    metrics = [run.run_dir / "train" / "metrics.jsonl" for run in plan.runs]
    assert not metrics[0].samefile(metrics[1]), "a file that may grow is a copy"


def test_a_changed_grid_keeps_what_fits_under_other_names(here: Path) -> None:
    make_all()
    plan = make_all(
        "{name: rules, recipe: tiny.yaml, grid: {loss: {plain: {}, more: {train.steps: 6}}, transfer.rule: [one-hot]}}"
    )
    assert [run.name for run in plan.runs] == ["plain.one-hot", "more.one-hot"]
    kept = events(plan.runs[0].run_dir, "copied")
    assert kept[:6] == ["collect", "sample", "filter", "align", "train", "evaluate"]
    assert made(plan)["train"] == 1 and made(plan)["sample"] == 0


def test_longer_training_of_a_copied_run_leaves_the_first_as_it_is(here: Path) -> None:
    plan = make_all(
        "{name: choice, recipe: tiny.yaml, grid: {select.rule: [mean-out-of-distribution, in-distribution]}}"
    )
    first, second = plan.runs
    before = tiny.contents(first.run_dir)
    longer = second.recipe.model_copy(update={"train": second.recipe.train.model_copy(update={"steps": 6})})
    runner.run(longer, second.run_dir)
    assert tiny.contents(first.run_dir) == before
    assert (second.run_dir / "train" / "checkpoints" / "6").is_dir()


def test_the_plan_says_once_what_would_stop_several_runs(here: Path) -> None:
    grid = "{train.divergence: [forward_kl, reverse_kl], train.seed: [1, 2]}"
    Path("losses.yaml").write_text(f"{{name: losses, recipe: tiny.yaml, grid: {grid}}}", "utf-8")
    plan = study.open_study(Path("losses.yaml"))
    lines = list(describe_study(plan, study.find_problems(plan)))
    [problem] = [line for line in lines if line.startswith("problem")]
    assert problem.endswith("2 of 4 runs: reverse_kl.seed-1, reverse_kl.seed-2")
    assert sum("E-train-divergence-needs-tail" in line for line in lines) == 1


BAD = "{name: bad, recipe: tiny.yaml, grid: {size: {a: {}, broken: {student.tokenizer: missing}, c: {train.steps: 2}}}}"


def test_an_impossible_run_is_found_before_the_first_run_begins(here: Path) -> None:
    Path("bad.yaml").write_text(BAD, "utf-8")
    for options in ((), ("--jobs", "2"), ("--shard", "1/2"), ("--dry-run",)):
        result = CliRunner().invoke(cli.app, ["study", "bad.yaml", *options])
        assert isinstance(result.exception, UserError) and result.exception.code == "E-plan-problems", result.output
        assert result.exception.found == "E-recipe-missing-path"
        assert "1 of 3 runs: broken" in result.output and "E-recipe-missing-path" in result.output
        assert not Path("runs").exists()


def test_a_run_that_does_not_match_its_recipe_is_found_before_the_first_run_begins(here: Path) -> None:
    Path("grows.yaml").write_text("{name: grows, recipe: tiny.yaml, grid: {train.seed: [3, 4]}}", "utf-8")
    plan = study.open_study(Path("grows.yaml"))
    runner.run(plan.runs[0].recipe, plan.runs[0].run_dir, until="train")
    changed = study.open_study(Path("grows.yaml"), ["train.prompts_per_step=7"])
    (problem,) = study.find_problems(changed)
    assert (problem.fault.code, problem.stage, problem.runs) == ("E-run-stage-differs", "train", ("seed-3",))
    assert not study.find_problems(plan) and not study.find_problems(changed, redo_outdated=True)


def test_options_for_several_runs_are_refused_for_one(here: Path) -> None:
    for options in (("--jobs", "2"), ("--shard", "1/2"), ("--dry-run",), ("--keep-going",)):
        result = CliRunner().invoke(cli.app, ["study", "rules.yaml", "--run", "span.seed-3", *options])
        assert isinstance(result.exception, UserError) and result.exception.code == "E-cli-study-run"
        assert result.exception.found == options[0] and not Path("runs").exists()


def test_two_study_files_of_one_name_are_refused(here: Path) -> None:
    """But not a file that was renamed or copied without a change, or the same file in another spelling."""

    def fault(path: str) -> str | None:
        try:
            study.check_folder(study.open_study(Path(path)))
        except UserError as error:
            return error.code
        return None

    first = study.open_study(Path("rules.yaml"))
    study.make_runs(first, [sys.executable, "-c", ""])
    Path("other.yaml").write_text(STUDY.replace("[3, 4]", "[3]"), "utf-8")
    Path("copy.yaml").write_text(STUDY, "utf-8")
    assert [fault(path) for path in ("rules.yaml", "./rules.yaml", "copy.yaml", "other.yaml")] == [
        *[None] * 3,
        "E-study-folder",
    ]
    result = CliRunner().invoke(cli.app, ["study", "other.yaml"])
    assert isinstance(result.exception, UserError) and result.exception.code == "E-study-folder"
    Path("rules.yaml").write_text(STUDY.replace("name: rules", "name: others"), "utf-8")
    assert fault("other.yaml") is None
    Path("rules.yaml").unlink()
    assert fault("other.yaml") is None


def test_a_run_that_fails_does_not_stop_the_others(here: Path) -> None:
    Path("bad.yaml").write_text(BAD, "utf-8")
    process = start_command("study", "bad.yaml", "--keep-going", cwd=here, output=here / "out.txt")
    assert exit_code(process) == 2
    plan = study.open_study(Path("bad.yaml"))
    assert [study.is_finished(run) for run in plan.runs] == [True, False, True]
    output = (here / "out.txt").read_text("utf-8")
    assert "E-study-failed" in output and "broken" in output and "runs/bad/logs/broken.log" in output
    assert "E-recipe-missing-path" in (here / "runs/bad/logs/broken.log").read_text("utf-8")
    own = (here / "runs/bad/logs/broken.log").read_text("utf-8").split("  hint: ")[-1].split("\n")[0]
    assert " ".join(own.split()) in " ".join(output.split()), "the hint of the run's own error"
    assert "--redo-outdated" not in output, "its recipe has not changed"
    page = (here / "runs/bad/index.html").read_text("utf-8")
    assert "its recipe has changed since" not in page and study.find_failures(plan, ["broken"])["broken"], "its error"


def test_two_shards_write_the_files_of_the_study_one_after_the_other(here: Path) -> None:
    plan = study.open_study(Path("rules.yaml"))
    shard = threading.Thread(target=study.make_runs, args=(plan, [sys.executable, "-c", ""]), kwargs={"shard": (2, 4)})
    with study.lock_files(plan):
        shard.start()
        time.sleep(1)
        assert not (plan.folder / "study.json").exists()
    shard.join()
    assert (plan.folder / "study.json").exists()


def test_shards_and_kills_come_to_the_same_results(here: Path, undisturbed: dict[str, dict[str, bytes]]) -> None:
    draw = random.Random(7)
    for number in (1, 2, 1, 2):
        process = start_command("study", "rules.yaml", "--shard", f"{number}/2", cwd=here)
        time.sleep(draw.uniform(2, 9))
        os.kill(process.pid, signal.SIGTERM if number == 1 else signal.SIGINT)
        exit_code(process)
    processes = [
        start_command("study", "rules.yaml", "--shard", f"{number}/2", cwd=here, output=here / f"{number}.txt")
        for number in (1, 2)
    ]
    outputs = [here / "1.txt", here / "2.txt", *sorted((here / "runs" / "rules" / "logs").glob("*.log"))]
    codes = [exit_code(process, 300) for process in processes]
    assert codes == [0, 0], "\n".join(f"{path.name}:\n{path.read_text('utf-8')}" for path in outputs)
    plan = study.open_study(Path("rules.yaml"))
    assert made(plan)["sample"] == 1
    for name, contents in results(plan).items():
        theirs = undisturbed[name]
        assert contents.keys() == theirs.keys()
        different = [path for path in contents if contents[path] != theirs[path]]
        assert not different, (sorted(different), name)


def test_a_crash_while_a_stage_is_copied_leaves_the_stage_to_be_copied_again(
    here: Path, undisturbed: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = study.open_study(Path("rules.yaml"))
    study.make_run(plan, plan.runs[0])

    class Crash(BaseException):
        pass

    for moment in ("before", "middle", "after"):

        def crash(operation: str, at: str, path: Path, moment: str = moment) -> None:
            if operation == "folder" and at == moment and path.name == "sample":
                raise Crash

        with monkeypatch.context() as patch:
            patch.setattr(atomic, "crash", crash)
            with pytest.raises(Crash):
                study.make_run(plan, plan.runs[1])
    study.make_run(plan, plan.runs[1])
    assert tiny.contents(plan.runs[1].run_dir) == undisturbed[plan.runs[1].name]


def test_a_paid_teacher_is_asked_once_and_a_budget_counts_once(here: Path) -> None:
    sums = [{"id": str(n), "question": f"What is {n} + {n % 5}?", "answer": str(n + n % 5)} for n in range(1, 13)]
    Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums), "utf-8")
    with stub.running() as server:
        recipe = f"{tiny.SERVER[:-1]}, server: {{urls: ['{server.url}']}}, budget: {{tokens: 100000}}}}"
        changes = (
            *(recipe, "teacher.max_tokens=64", "sets.sums={file: ./sums.jsonl, task: number}"),
            *(
                "transfer.min_coverage=0",
                "evaluate.formats=[zero-shot-rationale]",
                "train.formats={zero-shot-rationale: 1}",
            ),
        )
        plan = make_all(STUDY, *changes)
        requests = len(server.seen)
        assert requests and made(plan)["sample"] == 1
        make_all(STUDY.replace("[3, 4]", "[3, 4, 5]"), *changes)
        assert len(server.seen) == requests, "another seed of training asks nothing"


def test_a_run_of_another_recipe_is_refused_and_made_again_only_if_asked(here: Path) -> None:
    plan = make_all()
    steps = (plan.runs[0].run_dir / "train" / "metrics.jsonl").read_text("utf-8")
    changed = study.open_study(Path("rules.yaml"), ["train.prompts_per_step=7"])
    assert not study.is_finished(changed.runs[0])
    with pytest.raises(UserError) as caught:
        study.make_run(changed, changed.runs[0])
    assert caught.value.code == "E-run-stage-differs"
    study.make_run(changed, changed.runs[0], redo_outdated=True)
    assert study.is_finished(changed.runs[0])
    assert (plan.runs[0].run_dir / "train" / "metrics.jsonl").read_text("utf-8") != steps
    assert events(plan.runs[0].run_dir, "done").count("sample") == 1


def test_a_changed_or_missing_file_makes_a_run_unfinished(here: Path, world: Path) -> None:
    Path("mine.jsonl").write_bytes((world / "sets" / "sums.jsonl").read_bytes())
    text = "{name: files, recipe: tiny.yaml, set: {sets.sums.file: ./mine.jsonl}, grid: {train.seed: [3, 4]}}"
    plan = make_all(text)
    assert all(map(study.is_finished, plan.runs))
    answers = next((plan.runs[1].run_dir / "test").glob("*/*.jsonl"))
    kept = answers.read_bytes()
    answers.unlink()
    assert [study.is_finished(run) for run in plan.runs] == [True, False]
    (table,) = study.read_tables(plan, study.find_finished(plan))
    assert table.missing == ("seed-4",) and len(table.groups[1].runs) == 1
    answers.write_bytes(kept)
    path = Path("mine.jsonl")
    path.write_text("".join(path.read_text("utf-8").splitlines(keepends=True)[:-1]), "utf-8")
    assert not any(map(study.is_finished, plan.runs)), "they were made from other questions"


def test_runs_of_one_training_have_no_table_and_the_reason_is_printed(here: Path) -> None:
    plan = make_all("{name: one, recipe: tiny.yaml, grid: {evaluate.seed: [3, 4]}}")
    (table,) = study.read_tables(plan, study.find_finished(plan))
    assert "E-report-same-seeds" in table.fault and not table.scores


def test_the_plan_writes_nothing_and_counts_what_is_shared(here: Path) -> None:
    result = CliRunner().invoke(cli.app, ["study", "rules.yaml", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert not Path("runs").exists()
    lines = [line.split() for line in result.output.splitlines()]
    assert ["sample", "once", "for", "4", "runs"] in lines
    assert ["train", "4", "times", "for", "4", "runs"] in lines


def test_the_plan_has_the_cost_of_what_is_left(here: Path) -> None:
    def plan(*changes: str) -> list[str]:
        options = [word for change in changes for word in ("--set", change)]
        result = CliRunner().invoke(cli.app, ["study", "rules.yaml", "--dry-run", "--redo-outdated", *options])
        assert result.exit_code == 0, result.output
        return result.output.splitlines()

    def asks(lines: list[str]) -> list[str]:
        """The entries of teachers. The rest of a wrapped line is indented."""
        entries = re.split(r"\n(?! )", "\n".join(lines))
        return [" ".join(entry.split()) for entry in entries if entry.startswith("teacher")]

    before = plan()
    assert asks(before) == [line for line in asks(before) if "(in one-hot.seed-3)" in line] and len(asks(before)) == 1
    assert any(line.startswith("time") for line in before)
    make_all()
    done = plan()
    assert "4 different runs, of which 4 are finished" in done
    assert not asks(done) and not any(line.startswith("time") for line in done)
    longer = plan("train.prompts_per_step=7")
    assert not asks(longer) and any(line.startswith("time") for line in longer), "only the training is made again"
    assert len(asks(plan("teacher.seed=9"))) == 1
    refused = CliRunner().invoke(cli.app, ["study", "rules.yaml", "--dry-run", "--set", "train.prompts_per_step=7"])
    assert refused.exit_code == 2 or isinstance(refused.exception, UserError)
    assert refused.output.count("E-run-stage-differs") == 4 and refused.output.count("--redo-outdated") == 4
    assert "--redo train" not in refused.output


def test_tables_have_the_scores_of_compare_with_the_names_of_the_choices(here: Path) -> None:
    plan = make_all()
    (table,) = study.read_tables(plan, study.find_finished(plan))
    assert [group.label for group in table.groups[1:]] == ["one-hot", "span"] and table.groups[0].is_base
    assert [len(group.runs) for group in table.groups[1:]] == [2, 2] and not table.missing
    groups = read_groups([run.run_dir for run in plan.runs])
    theirs = {
        (row.answers, row.set, row.n): row.by_seed for row in score_groups(groups) if row.group == groups[1].label
    }
    ours = {(row.answers, row.set, row.n): row.by_seed for row in table.scores if row.group == "span"}
    assert ours and ours == theirs
    study.make_runs(plan, [sys.executable, "-c", ""])  # all are finished: it only lists them
    compared = CliRunner().invoke(cli.app, ["compare", str(plan.folder), "--json"])
    assert compared.exit_code == 0, compared.output
    runs = [run for group in json.loads(compared.stdout)["groups"] for run in group["runs"]]
    assert sorted(runs) == sorted(str(run.run_dir) for run in plan.runs), "a study stands for its runs"
    result = CliRunner().invoke(cli.app, ["compare", str(plan.folder / "tables"), str(plan.runs[0].run_dir)])
    assert isinstance(result.exception, UserError) and result.exception.code == "E-run-not-a-run"
    assert str(plan.folder) in result.exception.hint
    result = CliRunner().invoke(cli.app, ["compare", str(plan.runs[0].run_dir)])
    assert isinstance(result.exception, UserError) and result.exception.code == "E-cli-compare-one"
    paths = study.write_table(plan, table)
    assert [path.name for path in paths] == ["rules.csv", "rules.md", "rules.tex"]
    assert "span" in paths[1].read_text("utf-8")
    stale = plan.folder / "figures" / "earlier-loss.svg"
    atomic.write_file(stale, b"<svg/>")
    page, *figures = study.write_page(plan, study.find_finished(plan))
    study.remove_stale_files(plan, [*paths, *figures])
    assert not stale.exists() and all(path.exists() for path in (page, *paths, *figures))
    html = page.read_text("utf-8")
    assert page == plan.folder / "index.html" and all(run.name in html for run in plan.runs)
    assert {path.suffix for path in (plan.folder / "figures").iterdir()} == {".csv", ".png", ".svg"}
    atomic.remove(plan.runs[3].run_dir / "report")
    (table,) = study.read_tables(plan, study.find_finished(plan))
    assert table.missing == ("span.seed-4",) and len(table.groups[2].runs) == 1


def test_a_run_waits_while_another_process_makes_a_shared_stage_in_its_folder(here: Path) -> None:
    plan = study.open_study(Path("rules.yaml"))
    run, output = plan.runs[0], here / "out.txt"
    with run_folder.lock_run(run.run_dir):
        process = start_command("study", "rules.yaml", "--run", run.name, cwd=here, output=output)
        until = time.monotonic() + 60
        while not output.exists() or "waiting for another process" not in output.read_text("utf-8"):
            assert time.monotonic() < until and process.is_alive()
            time.sleep(0.2)
    assert exit_code(process) == 0 and study.is_finished(run)


def test_a_run_whose_first_stages_are_still_being_copied_is_no_source(here: Path) -> None:
    """Another process has copied a stage into its folder, but not yet written its recipe."""
    plan = study.open_study(Path("rules.yaml"))
    run, early = plan.runs[0], Path("runs/rules/early")
    runner.run(run.recipe, run.run_dir, until="collect")
    early.mkdir()
    (run.run_dir / "collect").rename(early / "collect")
    shutil.rmtree(run.run_dir)
    study.make_run(plan, run)
    assert study.is_finished(run) and "copied" not in (run.run_dir / "log.jsonl").read_text("utf-8")


def test_the_status_of_a_study_is_that_of_its_runs(here: Path) -> None:
    plan = study.open_study(Path("rules.yaml"), ["train.prompts_per_step=4"], quick=False)
    study.make_runs(plan, [sys.executable, "-c", ""])  # writes study.json, and the runs begin later
    first, second, third, _ = plan.runs
    study.make_run(plan, first)
    study.make_run(plan, second)
    shutil.rmtree(second.run_dir)
    tiny.before(first.run_dir, second.run_dir, "evaluate")
    third.run_dir.mkdir()
    (third.run_dir / "recipe.yaml").write_text("nothing: 1\n", "utf-8")
    printed = json.loads(CliRunner().invoke(cli.app, ["status", "runs/rules", "--json"]).stdout)
    assert [run["state"] for run in printed["runs"]] == ["done", "unfinished", "broken", "waiting"]
    assert printed["runs"][1]["text"].startswith("evaluate")
    assert printed["resume"] == "potstill study rules.yaml --set train.prompts_per_step=4"
    shown = CliRunner().invoke(cli.app, ["status", "runs/rules"]).output
    assert "1 of 4 runs" in shown and printed["resume"] in shown


def test_results_are_those_of_the_finished_runs_and_nothing_is_made(here: Path) -> None:
    plan = study.open_study(Path("rules.yaml"))
    study.make_run(plan, plan.runs[0])
    result = CliRunner().invoke(cli.app, ["study", "rules.yaml", "--results"])
    assert result.exit_code == 0 and "1 of 4 runs" in result.output
    assert sorted(path.name for path in plan.folder.iterdir() if path.is_dir()) == [
        "answers", "figures", plan.runs[0].name, "tables"
    ]  # fmt: skip
    assert plan.runs[0].name in (plan.folder / "index.html").read_text("utf-8")


def test_a_finished_run_stays_finished_without_a_later_key_and_with_another_key_that_decides_nothing(
    here: Path,
) -> None:
    plan = make_all("{name: old, recipe: tiny.yaml, grid: {train.seed: [3]}}")
    path = plan.runs[0].run_dir / "recipe.yaml"
    text = path.read_text("utf-8")
    path.write_text(text.replace("  stop_repeats: false\n", ""), "utf-8")
    assert path.read_text("utf-8") != text and study.is_finished(plan.runs[0])
    for change, finished in (("evaluate.cache=elsewhere", True), ("evaluate.stop_repeats=true", False)):
        assert study.is_finished(study.open_study(Path("rules.yaml"), [change]).runs[0]) is finished
    path.write_text(text + "earlier: 1\n", "utf-8")
    assert not study.is_finished(plan.runs[0])
