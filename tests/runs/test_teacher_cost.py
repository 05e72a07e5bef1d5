"""The cost of a paid teacher: a stub counts what it writes, and the run's ledger must agree.

A token costs one unit of money, so an exact ledger holds as much money as the server has written tokens.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import potstill
import stub
import tiny
from fork_server import exit_code, start_command
from potstill import runner
from potstill.errors import UserError
from potstill.storage import ledger, parquet, read, segments
from potstill.storage.segments import Shard

PRICES = "teacher.budget.prices={prompt: 1e6, completion: 1e6}"
ASKED, SAMPLES = 4, 4  # training questions of the tiny world, chains of each
WORST = 4 * 64 + 100  # tokens that a request sets aside: four texts, and a prompt that is guessed


def changes(url: str, *more: str) -> list[str]:
    return [
        tiny.SERVER, f"teacher.samples={SAMPLES}", "teacher.max_tokens=64",
        f"teacher.server.urls=['{url}']", PRICES, *more,
    ]  # fmt: skip


def tokens(run_dir: Path) -> float:
    spent = ledger.total_usage(run_dir)
    assert spent["money"] == spent["prompt_tokens"] + spent["completion_tokens"]
    return spent["money"]


def sample(
    world: Path, run_dir: Path, url: str, *more: str, redo: str | None = None, yes: runner.Consent = False
) -> Path:
    return runner.run(tiny.recipe(world, *changes(url, *more)), run_dir=run_dir, redo=redo, until="sample", yes=yes)


def test_a_redo_forgets_nothing_of_what_was_paid(world: Path, tmp_path: Path) -> None:
    """Five rounds under one ceiling: it is reached in one of them, and all together do not pass it."""
    run_dir, most, stopped = tmp_path / "run", 1600, 0
    with stub.running() as server:
        for number in range(5):
            redo = "sample" if (run_dir / "sample").exists() else None
            try:
                sample(world, run_dir, server.url, f"teacher.budget.money={most}", redo=redo, yes=True)
            except UserError as fault:
                stopped += 1
                assert "the budget is spent" in fault.what and f"of {most}" in fault.found
            assert tokens(run_dir) == server.written <= most, number
    assert 0 < stopped < 5 and server.written > most - WORST


@pytest.mark.parametrize("stage", ["sample", "collect"])
def test_paid_chains_go_only_where_somebody_says_yes(world: Path, tmp_path: Path, stage: str) -> None:
    run_dir, asked = tmp_path / "run", list[str]()
    with stub.running() as server:
        sample(world, run_dir, server.url)
        before, paid = tiny.contents(run_dir), tokens(run_dir)
        for yes in (False, lambda lost: asked.append(lost) is not None):
            with pytest.raises(UserError) as caught:
                sample(world, run_dir, server.url, redo=stage, yes=yes)
            assert f"{ASKED * SAMPLES} chains; this run has used " in caught.value.found
            assert f"{paid:.0f} tokens" in caught.value.found and f"cost {paid:.4f}" in caught.value.found
            assert "--yes" in caught.value.hint and tiny.contents(run_dir) == before
        assert len(asked) == 1 and asked[0].startswith(f"--redo {stage} removes {ASKED * SAMPLES} chains")
        sample(world, run_dir, server.url, redo=stage, yes=lambda lost: True)
        assert tokens(run_dir) == server.written > 1.5 * paid


def test_chains_that_are_still_being_sampled_are_paid_for_too(world: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with stub.running() as server:
        with pytest.raises(UserError, match="E-teacher-budget-spent"):
            sample(
                world, run_dir, server.url, f"teacher.budget.money={2 * WORST}", "teacher.server.samples_per_request=1"
            )
        stored = len(segments.stored_keys(segments.segment_paths(run_dir / "sample")))
        with pytest.raises(UserError, match=f"{stored} chains; this run has used"):
            sample(world, run_dir, server.url, redo="sample")
    assert stored > 0


def test_what_cost_nothing_is_redone_at_once(world: Path, tmp_path: Path) -> None:
    run_dir = tiny.make(world, tmp_path / "run", until="sample")
    before = tiny.contents(run_dir)
    runner.run(tiny.recipe(world), run_dir=run_dir, redo="sample", until="sample")
    assert tiny.contents(run_dir) == before
    with stub.running() as server:
        bought = sample(world, tmp_path / "bought", server.url)
        runner.run(tiny.recipe(world, *changes(server.url)), run_dir=bought, redo="filter", until="filter")
        assert tokens(bought) == server.written


def test_the_command_asks_for_yes(world: Path, tmp_path: Path) -> None:
    """A script has no terminal: it is refused with exit code 2, and everything is kept."""
    with stub.running() as server:
        settings = [argument for change in changes(server.url) for argument in ("--set", change)]
        (tmp_path / "recipe.yaml").write_text(tiny.RECIPE + f"data: {world}\n")
        sample(world, tmp_path / "runs" / "tiny", server.url)
        output = tmp_path / "output.txt"
        refused = start_command("run", "recipe.yaml", *settings, "--redo", "collect", cwd=tmp_path, output=output)
        assert exit_code(refused) == 2
    assert "--yes" in output.read_text() and "16 chains" in output.read_text()
    assert (tmp_path / "runs" / "tiny" / "sample" / "chains.parquet").exists()


def test_a_ceiling_follows_a_run_that_is_copied_or_renamed(world: Path, tmp_path: Path) -> None:
    run_dir, most = tmp_path / "run", f"teacher.budget.money={2 * WORST}"
    with stub.running() as server:
        with pytest.raises(UserError, match="E-teacher-budget-spent"):
            sample(world, run_dir, server.url, most)
        paid, seen = tokens(run_dir), len(server.seen)
        copied = Path(shutil.copytree(run_dir, tmp_path / "copied"))
        renamed = run_dir.rename(tmp_path / "renamed")
        shutil.rmtree(copied / "sample")  # by hand: what was paid was paid
        for folder in (copied, renamed):
            with pytest.raises(UserError, match="E-teacher-budget-spent"):
                sample(world, folder, server.url, most)
            assert tokens(folder) == paid
        assert len(server.seen) == seen, "not even a probe is sent where it could not be paid"


def test_shards_of_any_division_stay_together_below_the_ceiling(world: Path, tmp_path: Path) -> None:
    """Shards one after the other, divided otherwise, a run without, and again: the order changes nothing."""
    run_dir, most = tmp_path / "run", 900
    with stub.running() as server:
        recipe = tiny.recipe(
            world, *changes(server.url, f"teacher.budget.money={most}", "teacher.server.samples_per_request=1")
        )
        rounds: list[Callable[[], object]] = [
            *(lambda n=n: runner.run_shard(recipe, Shard(n, 2), run_dir=run_dir) for n in (1, 2, 1)),
            *(lambda n=n: runner.run_shard(recipe, Shard(n, 4), run_dir=run_dir) for n in (3, 1, 2)),
            lambda: runner.run(recipe, run_dir, until="sample"),
            *(lambda n=n: runner.run_shard(recipe, Shard(n, 2), run_dir=run_dir) for n in (2, 1)),
        ]
        for each in rounds:
            try:
                each()
            except UserError as fault:
                assert "the budget is spent" in fault.what
            assert tokens(run_dir) == server.written <= most
    assert server.written > most - WORST


def test_shards_that_run_beside_each_other_have_even_parts(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        ledger.split_budget(tmp_path, Shard(number, 3))
        with ledger.LedgerWriter(ledger.ledger_path(tmp_path, Shard(number, 3))) as bill:
            bill.record({"completion_tokens": 10 * number, "money": 1.0})
    for number in (1, 2, 3):  # begun again: the division is the same one
        ledger.split_budget(tmp_path, Shard(number, 3))
        settled, own = ledger.budget_usage(tmp_path, Shard(number, 3))
        assert settled["completion_tokens"] == 0 and own["completion_tokens"] == 10 * number
    with ledger.LedgerWriter(ledger.ledger_path(tmp_path)) as bill:
        bill.record({"completion_tokens": 5.0})
    ledger.split_budget(tmp_path, Shard(2, 3))
    settled, own = ledger.budget_usage(tmp_path, Shard(2, 3))
    assert settled["completion_tokens"] == 65 and own["completion_tokens"] == 0, "what is left is shared anew"


def test_a_second_division_waits_for_the_first(tmp_path: Path) -> None:
    from potstill.storage import run_folder

    with run_folder.lock_shard(tmp_path, 1, 2):
        ledger.split_budget(tmp_path, Shard(2, 2))
        with pytest.raises(UserError, match="E-run-shard-count"):
            ledger.split_budget(tmp_path, Shard(1, 4))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_what_was_under_way_is_counted_when_sampling_stops(world: Path, tmp_path: Path, how: signal.Signals) -> None:
    """Interrupted or killed while requests are under way: the server writes them to their end and bills them."""
    run_dir = tmp_path / "runs" / "tiny"
    (tmp_path / "recipe.yaml").write_text(tiny.RECIPE + f"data: {world}\n")
    with stub.running(latency=1.0) as server:
        settings_of_the_server = changes(
            server.url, "teacher.server.samples_per_request=1", "teacher.server.concurrency=6"
        )
        settings = [argument for change in settings_of_the_server for argument in ("--set", change)]
        process = start_command("run", "recipe.yaml", *settings, cwd=tmp_path)
        while (
            not any(path.stat().st_size for path in segments.segment_paths(run_dir / "sample")) and process.is_alive()
        ):
            time.sleep(0.02)
        time.sleep(0.3)
        assert process.pid is not None
        os.kill(process.pid, how)
        process.join(60)
        time.sleep(1.5)
        stored = len(segments.stored_keys(segments.segment_paths(run_dir / "sample")))
        assert 0 < stored < ASKED * SAMPLES
        paid = tokens(run_dir)
        assert server.written < paid <= server.written + 6 * (64 + 100), "each at the most that it could cost"
        server.latency = 0.0
        sample(world, run_dir, server.url, "teacher.server.samples_per_request=1")
        assert server.written < tokens(run_dir) <= server.written + 6 * (64 + 100)
    assert parquet.count_rows(run_dir / "sample" / "chains.parquet") == ASKED * SAMPLES
    last = list(read.read_complete_lines(ledger.ledger_path(run_dir)))[-1]
    assert "open" not in last


def test_results_of_a_batch_are_counted_once_whatever_becomes_of_the_chains(world: Path, tmp_path: Path) -> None:
    from batch_service import served

    run_dir = tmp_path / "run"
    with stub.running() as server:
        recipe = tiny.recipe(world, *changes(server.url))
        runner.run_batch(recipe, out=tmp_path / "out", run_dir=run_dir)
        asked = [row for path in (tmp_path / "out").glob("*") for _, row in read.read_jsonl(path)]
        (tmp_path / "results.jsonl").write_bytes(b"".join(served(server, asked)))
        paid = server.written
        runner.run_batch(recipe, [tmp_path / "results.jsonl"], run_dir=run_dir)
        assert tokens(run_dir) == paid
        redone = runner.run(recipe, run_dir, redo="sample", until="collect", yes=True)
        runner.run_batch(recipe, out=tmp_path / "again", run_dir=redone)  # asks the server how it wants to be asked
        probe = server.written - paid
        runner.run_batch(recipe, [tmp_path / "results.jsonl"], run_dir=run_dir)
        assert (
            tokens(run_dir) == paid + probe
            and parquet.count_rows(run_dir / "sample" / "chains.parquet") == ASKED * SAMPLES
        )


def test_what_a_batch_brings_too_late_was_paid_all_the_same(world: Path, tmp_path: Path) -> None:
    """All but one of the chains came from the server meanwhile: the results are in the ledger, and nothing is stored
    twice."""
    from batch_service import served

    run_dir = tmp_path / "run"
    with stub.running() as server:
        recipe = tiny.recipe(world, *changes(server.url, "teacher.server.samples_per_request=1"))
        runner.run_batch(recipe, out=tmp_path / "out", run_dir=run_dir)
        asked = [row for path in (tmp_path / "out").glob("*") for _, row in read.read_jsonl(path)]
        lines = served(server, asked)
        (tmp_path / "results.jsonl").write_bytes(b"".join(lines))
        with pytest.raises(UserError, match="E-teacher-budget-spent"):
            sample(
                world,
                run_dir,
                server.url,
                "teacher.server.samples_per_request=1",
                f"teacher.budget.money={tokens(run_dir) + 500}",
            )
        stored = len(segments.stored_keys(segments.segment_paths(run_dir / "sample")))
        paid = tokens(run_dir)
        runner.run_batch(recipe, [tmp_path / "results.jsonl"], run_dir=run_dir)
        assert 0 < stored < ASKED * SAMPLES and paid < tokens(run_dir) == server.written
    assert parquet.count_rows(run_dir / "sample" / "chains.parquet") == ASKED * SAMPLES


def test_chains_can_be_looked_at_while_they_are_sampled(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from potstill.cli import show, status

    run_dir = tmp_path / "run"
    with stub.running() as server:
        with pytest.raises(UserError, match="E-teacher-budget-spent"):
            sample(
                world, run_dir, server.url, f"teacher.budget.money={2 * WORST}", "teacher.server.samples_per_request=1"
            )
        with segments.segment_paths(run_dir / "sample")[0].open("ab") as torn:
            torn.write(b'{"question": "sums/')
        before = tiny.contents(run_dir)
        status.print_overview(run_dir)
        [key] = re.findall(r"--chain (\S+)", capsys.readouterr().out)
        key = key.strip("'")  # quoted for the shell
        show.print_chain(run_dir, key)
        output = capsys.readouterr().out
        assert "gold: " in output and "The answer is" in output
        with pytest.raises(UserError, match="no such chain"):
            show.print_chain(run_dir, "sums/none#0")
        with pytest.raises(UserError, match=r"(not aligned yet|was not kept)"):
            show.print_target(run_dir, key)
        status.print_status(run_dir)
        output = capsys.readouterr().out
        stored = len(segments.stored_keys(segments.segment_paths(run_dir / "sample")))
        assert (
            f"{stored} of at most {ASKED * SAMPLES} chains" in output
            and "cost " in output
            and f"at most {2 * WORST:g} money" in output
        )
        assert f"continue with: potstill run {run_dir}" in output.replace("\n", "")
        status.print_status(run_dir, as_json=True)
        found = json.loads(capsys.readouterr().out)
        assert found["usage"] == ledger.total_usage(run_dir) and found["budget"]["money"] == 2 * WORST
        assert found["stages"][1]["counts"] == {"chains": stored, "chains_at_most": ASKED * SAMPLES}
        assert tiny.contents(run_dir) == before
    empty = tiny.make(world, tmp_path / "empty", *changes("http://127.0.0.1:9/v1"), until="collect")
    with pytest.raises(UserError, match="no chain is stored yet"):
        show.print_chain(empty, key)


DAMAGES = (
    ("sample/chains.parquet", b""),
    ("sample/chains.parquet", None),
    ("sample/manifest.json", b"{"),
    ("sample/manifest.json", b'{"format": 1}'),
    ("sample/begun.json", b"[]"),
    ("sample/server.json", b"{"),
    ("sample/server.json", None),
    ("collect/sums.train.jsonl", b"{\n"),
    ("collect/sums.train.jsonl", None),
    ("collect/manifest.json", b"{"),
)


@pytest.mark.parametrize(("name", "content"), DAMAGES)
def test_no_message_about_a_damaged_run_advises_to_remove_its_chains(
    world: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    from potstill.cli import export, show

    run_dir = tmp_path / "run"
    with stub.running() as server:
        sample(world, run_dir, server.url)
        if content is None:
            (run_dir / name).unlink()
        else:
            (run_dir / name).write_bytes(content)
        told = []
        for call in (
            lambda: sample(world, run_dir, server.url),
            lambda: sample(world, run_dir, server.url, "teacher.temperature=0.1"),
            lambda: show.print_chain(run_dir, "sums/0#0"),
            lambda: list(export.export_rows(run_dir, "messages")),
        ):
            try:
                call()
            except UserError as fault:
                told.append(fault)
                assert not set(fault.hint.split()) & {"redo", "--redo", "remove", "delete"}, str(fault)
        assert told


def test_no_message_of_the_program_advises_a_redo_of_what_holds_chains() -> None:
    source = Path(potstill.__file__).parent
    for path in source.rglob("*.py"):
        text = path.read_text("utf-8")
        for advice in ("--redo sample", "--redo collect", "redo the stage", "redo its stage"):
            assert advice not in text, path


MANY = ("teacher.samples=40", "teacher.server.samples_per_request=4")  # 160 chains in 40 requests


def test_a_teacher_that_is_always_wrong_is_asked_for_the_first_chains_only(world: Path, tmp_path: Path) -> None:
    """It stops after 50 at most, says which text met which answer, and pays nothing more until somebody says so."""
    run_dir = tmp_path / "run"
    with stub.running(wrong=True) as server:
        for number in range(2):
            with pytest.raises(UserError) as caught:
                sample(world, run_dir, server.url, *MANY)
            stored = len(segments.stored_keys(segments.segment_paths(run_dir / "sample")))
            assert 46 < stored <= 50 and tokens(run_dir) == server.written
            assert (
                caught.value.code == "E-teacher-none-right"
                and f"none of the first {stored} chains" in caught.value.what
            )
            assert "The answer is" in caught.value.found and "the set's answer is" in caught.value.found
            if number == 0:
                seen = len(server.seen)
        assert len(server.seen) == seen, "the second time nothing is asked, and nothing is paid"
        questions = {
            json.loads(line)["question"]
            for line in segments.segment_paths(run_dir / "sample")[0].read_text().splitlines()
        }
        assert len(questions) == ASKED, "the first chains are of as many questions as can be"
        with pytest.raises(UserError, match=r"none of the first (9[6-9]|100) chains"):
            sample(world, run_dir, server.url, *MANY, "teacher.none_right_limit=100")
        sample(world, run_dir, server.url, *MANY, "teacher.none_right_limit=0")
        assert tokens(run_dir) == server.written
    assert parquet.count_rows(run_dir / "sample" / "chains.parquet") == 160


def test_one_right_chain_is_enough_and_changes_no_request(world: Path, tmp_path: Path) -> None:
    bodies = []
    for name, more in (
        ("on", ()),
        ("off", ("teacher.none_right_limit=0",)),
        ("tight", ("teacher.none_right_limit=1",)),
    ):
        with stub.running() as server:
            sample(world, tmp_path / name, server.url, *MANY, *more)
        bodies.append(sorted(json.dumps(body, sort_keys=True) for body in server.seen if body["max_tokens"] == 64))
    assert bodies[0] == bodies[1] == bodies[2] and len(bodies[0]) == 40
    tables_of = [(tmp_path / name / "sample" / "chains.parquet").read_bytes() for name in ("on", "off", "tight")]
    assert len(set(tables_of)) == 1


def test_shards_look_at_each_others_first_chains(world: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with stub.running(wrong=True) as server:
        recipe = tiny.recipe(world, *changes(server.url, *MANY))
        with pytest.raises(UserError, match="none of the first"):
            runner.run_shard(recipe, Shard(1, 2), run_dir=run_dir)
        assert len(segments.stored_keys(segments.segment_paths(run_dir / "sample"))) <= 50
        with pytest.raises(UserError, match="none of the first"):
            runner.run_shard(recipe, Shard(2, 2), run_dir=run_dir)
        assert len(segments.stored_keys(segments.segment_paths(run_dir / "sample"))) <= 50
        server.wrong = False
        raised = tiny.recipe(world, *changes(server.url, *MANY, "teacher.none_right_limit=60"))
        runner.run_shard(raised, Shard(2, 2), run_dir=run_dir)
        runner.run_shard(recipe, Shard(1, 2), run_dir=run_dir)  # one right chain of the other is enough
        runner.run(recipe, run_dir, until="sample")
    assert parquet.count_rows(run_dir / "sample" / "chains.parquet") == 160


def test_a_model_in_this_process_that_is_always_wrong_stops_too(world: Path, tmp_path: Path) -> None:
    run_dir, wrong = tmp_path / "run", tmp_path / "wrong.jsonl"
    rows = [json.loads(line) for line in (world / "sets" / "sums.jsonl").read_text().splitlines()]
    wrong.write_text("".join(json.dumps(row | {"answer": "1000"}) + "\n" for row in rows))
    more = (f"sets.sums={{file: {wrong}, task: number}}", "teacher.samples=8", "teacher.batch_tokens=200")
    with pytest.raises(UserError, match=r"none of the first 2[0-9] chains is right"):
        tiny.make(world, run_dir, *more, "teacher.none_right_limit=20", until="sample")
    stored = len(segments.stored_keys(segments.segment_paths(run_dir / "sample")))
    tiny.make(world, run_dir, *more, "teacher.none_right_limit=0", until="sample")
    assert 20 <= stored < 32 == parquet.count_rows(run_dir / "sample" / "chains.parquet")


@pytest.mark.parametrize("status, code", [(429, "insufficient_quota"), (402, "insufficient_credits")])
def test_a_quota_that_ends_in_the_middle_keeps_what_was_paid(
    world: Path, tmp_path: Path, status: int, code: str
) -> None:
    """Answers under way when the first refusal comes are stored, and the ledger holds them to the token; a later run
    pays only for what is missing."""
    run_dir, one = tmp_path / "run", "teacher.server.samples_per_request=1"
    sent = {"requests": 0}

    def ended(request: dict) -> tuple[int, bytes, dict[str, str]] | None:
        if request["max_tokens"] <= 24:  # the probe
            return None
        sent["requests"] += 1
        body = {"error": {"message": "You exceeded your current quota", "code": code}}
        return (status, json.dumps(body).encode(), {}) if sent["requests"] > 6 else None

    with stub.running(script=ended) as server:
        with pytest.raises(UserError, match="You exceeded your current quota"):
            sample(world, run_dir, server.url, one)
        assert len(segments.stored_keys(segments.segment_paths(run_dir / "sample"))) == 6
        assert tokens(run_dir) == server.written
        server.script = None
        sample(world, run_dir, server.url, one)
        assert tokens(run_dir) == server.written
    chains = list(parquet.read_chains(run_dir / "sample" / "chains.parquet"))
    assert len(chains) == len({chain.key for chain in chains}) == ASKED * SAMPLES


def test_results_of_batches_are_judged_before_more_is_asked_for(world: Path, tmp_path: Path) -> None:
    from batch_service import served

    run_dir = tmp_path / "run"
    with stub.running(wrong=True) as server:
        recipe = tiny.recipe(world, *changes(server.url, *MANY))
        runner.run_batch(recipe, out=tmp_path / "out", run_dir=run_dir)
        asked = [row for path in (tmp_path / "out").glob("*") for _, row in read.read_jsonl(path)]
        (tmp_path / "results.jsonl").write_bytes(b"".join(served(server, asked[:15])))
        with pytest.raises(UserError, match="none of the first 60 chains is right"):
            runner.run_batch(recipe, [tmp_path / "results.jsonl"], run_dir=run_dir)
        with pytest.raises(UserError, match="none of the first 60 chains is right"):
            runner.run_batch(recipe, out=tmp_path / "again", run_dir=run_dir)
        assert tokens(run_dir) == server.written and not (tmp_path / "again").exists()
