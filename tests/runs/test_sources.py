"""Several sources of chains in one run: each gives the chains that it gives alone, keeps its own budget, and is counted
alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import stub
import tiny
from expect import user_error
from potstill import models, runner, teachers
from potstill.alignment.target_store import TargetStore
from potstill.cli.show import print_chain
from potstill.cli.stage_commands import _check_batch_options
from potstill.cli.status import print_overview
from potstill.dry_run import describe_run
from potstill.errors import UserError
from potstill.recipe import parse_recipe
from potstill.records import Chain
from potstill.report import collect, figures
from potstill.report.group_files import compared_keys
from potstill.report.group_scores import label_groups
from potstill.report.run_files import RunFiles
from potstill.run_reader import open_run
from potstill.storage import atomic, ledger, manifest, parquet, segments
from potstill.storage.segments import Shard
from potstill.training import examples

MODEL = (
    "{kind: local, model: teacher, samples: 3, temperature: 1.0, max_tokens: 24, top_logprobs: 3, batch_tokens: 400}"
)
BOTH = (f"teachers={{model: {MODEL}, human: {{kind: human}}}}",)
WITHOUT_TEACHER = tiny.RECIPE.replace(
    next(line for line in tiny.RECIPE.splitlines() if line.startswith("teacher:")), ""
)


def recipe(world: Path, *changes: str):
    return parse_recipe(WITHOUT_TEACHER, "tiny.yaml", [f"data={world}", *changes])


def make(world: Path, folder: Path, *changes: str, until: str = "report") -> Path:
    return runner.run(recipe(world, *changes), run_dir=folder, until=until)


def chains(run_dir: Path, source: str = "") -> list[Chain]:
    return [c for c in parquet.read_chains(run_dir / "sample" / "chains.parquet") if source in ("", c.source)]


@pytest.fixture(scope="module")
def both(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_figures", lambda told: {})  # figures take seconds and are not looked at
        return make(world, tmp_path_factory.mktemp("both") / "run", *BOTH)


@pytest.fixture(scope="module")
def alone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each source in a run of its own, up to its targets."""
    folder = tmp_path_factory.mktemp("alone")
    one = {"model": f"teacher={MODEL[:-1]}, name: model}}", "human": "teacher={kind: human}"}
    return {name: make(world, folder / name, change, until="align") for name, change in one.items()}


@pytest.mark.parametrize("source", ["model", "human"])
def test_a_source_gives_the_chains_and_targets_that_it_gives_alone(
    both: Path, alone: dict[str, Path], source: str
) -> None:
    assert chains(both, source) == chains(alone[source]) != []
    stores = [
        TargetStore(next(path for path in (run / "align").iterdir() if path.is_dir())) for run in (both, alone[source])
    ]
    keys = [key for key in stores[0].keys if key[1] == source]
    assert keys == list(stores[1].keys) != []
    targets = [{key: store[index] for index, key in enumerate(store.keys)} for store in stores]
    assert all(targets[0][key] == targets[1][key] for key in keys)
    assert any(kind not in ("hard", "end") for key in keys for kind in targets[0][key].kinds) == (source == "model")


def test_training_uses_the_chains_of_both(both: Path) -> None:
    run = open_run(both).recipe
    data = examples.read_training_data(both, run, models.from_recipe(run))
    rows = [row for step in range(1, 30) for row in data.examples(step) if row.format == "zero-shot-rationale"]
    hard = [all(kind in ("hard", "end") for kind in row.target.kinds) for row in rows]
    assert any(hard) and not all(hard)


@pytest.mark.parametrize(("quotas", "share"), [("{model: 1, human: 3}", 0.75), ("{model: 0, human: 1}", 1.0)])
def test_quotas_decide_how_often_a_source_is_learnt(both: Path, world: Path, quotas: str, share: float) -> None:
    asked = recipe(world, *BOTH, f"train.sources={quotas}")
    data = examples.read_training_data(both, asked, models.from_recipe(asked))
    rows = [row for step in range(1, 101) for row in data.examples(step) if row.format == "zero-shot-rationale"]
    hard = [all(kind in ("hard", "end") for kind in row.target.kinds) for row in rows]
    assert sum(hard) / len(hard) == pytest.approx(share, abs=0.02)
    plans = {plan.stage: plan.action for plan in runner.plan_stages(asked, both)}
    assert plans["align"] == "keep" and plans["train"] == "refuse", "only training is made again"


def test_the_report_and_show_count_each_source(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summaries = {row.name: row for row in collect.collect_report(both, open_run(both).recipe).sources}
    assert list(summaries) == ["human", "model"]
    for name, row in summaries.items():
        assert row.chains == len(chains(both, name)) and row.covered == row.kept_questions == 4
        assert row.tokens == sum(len(chain.tokens) for chain in chains(both, name)) and row.money is None
    assert summaries["human"].tokens == 0 < summaries["model"].tokens
    page = (both / "report" / "index.html").read_text()
    assert "Sources of chains" in page and "model (teacher), human" in page
    table = (both / "report" / "teacher.csv").read_text()
    assert f'"human","covered","questions of no other source",{summaries["human"].covered_alone}' in table
    print_overview(both)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("human"))
    assert line.split()[-1] == str(summaries["human"].covered_alone)
    question = chains(both, "human")[0].question
    assert {chain.source for chain in chains(both)[:4]} == {"human", "model"}
    print_chain(both, f"{question}#human#0", as_json=True)
    assert json.loads(capsys.readouterr().out)["chain"]["source"] == "human"


def test_a_run_with_one_teacher_does_not_know_of_several(world: Path, alone: dict[str, Path]) -> None:
    for run in alone.values():
        for stage in ("collect", "sample", "filter", "align"):
            done = manifest.read_finished(run / stage)
            assert done is not None and not any("teachers" in key for key in done.identity.recipe)
        assert len(collect.summarize_sources(RunFiles(run, open_run(run).recipe))) == 1


def test_a_comparison_names_only_what_the_sources_set(world: Path) -> None:
    recipes = [
        recipe(world, *BOTH),
        recipe(world, f"teacher={MODEL}"),
        recipe(world, f"teacher={MODEL}", "train.steps=9"),
    ]
    several, alone, longer = label_groups([compared_keys(each) for each in recipes])
    assert (
        "teachers.human.kind=human" in several
        and "teachers.model.samples=3" in several
        and "teachers.human.samples" not in several
    )
    assert "teacher.kind=local" in alone and "teacher.samples=3" in alone and "teacher.chat" not in alone
    assert "teacher.kind" not in several and longer == alone.replace("train.steps=4", "train.steps=9")


def test_shards_and_resumed_runs_store_the_same_chains(
    world: Path, both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, appended = tmp_path / "run", 0

    class Crash(BaseException):
        pass

    def crash(operation: str, moment: str, path: Path) -> None:
        nonlocal appended
        appended += operation == "append" and path.name.startswith("segment")
        if appended > 4:
            raise Crash

    for number in (2, 1, 2):
        with monkeypatch.context() as patch:
            appended = 0
            patch.setattr(atomic, "crash", crash)
            try:
                runner.run_shard(recipe(world, *BOTH), Shard(number, 2), run_dir=run_dir)
            except Crash:
                continue
    runner.run(recipe(world, *BOTH), run_dir, until="align")
    wanted = {name: content for name, content in tiny.contents(both).items() if tiny_stage(name)}
    assert {name: content for name, content in tiny.contents(run_dir).items() if tiny_stage(name)} == wanted


def tiny_stage(name: str) -> bool:
    return name.split("/")[0] in ("collect", "sample", "filter", "align")


def test_each_source_has_its_own_server_budget_and_cost(world: Path, tmp_path: Path) -> None:
    keys = "kind: openai, model: m, samples: 3, max_tokens: 24, top_logprobs: 3"
    prices = "prices: {prompt: 1e6, completion: 1e6}"

    def changes(first: stub.Server, second: stub.Server, budget: str) -> str:
        a = f"a: {{{keys}, server: {{urls: ['{first.url}']}}, budget: {{{prices}}}}}"
        b = f"b: {{{keys}, server: {{urls: ['{second.url}']}}, budget: {{{prices}, {budget}}}}}"
        return f"teachers={{{a}, {b}, human: {{kind: human}}}}"

    run_dir = tmp_path / "run"
    with stub.running() as first, stub.running() as second:
        with pytest.raises(UserError) as caught:
            make(world, run_dir, changes(first, second, "money: 1"), until="sample")
        assert caught.value.code == "E-teacher-budget-spent" and "teachers.b" in caught.value.where
        assert len({chain.source for chain in parquet.read_stored_chains(run_dir / "sample")}) == 1, "a is complete"
        make(world, run_dir, changes(first, second, "money: 1e9"), until="filter")
        spent = {name: ledger.total_usage(run_dir, name)["money"] for name in ("a", "b", "human")}
        assert spent == {"a": first.written, "b": second.written, "human": 0.0}
        assert ledger.total_usage(run_dir)["money"] == first.written + second.written
        with pytest.raises(UserError) as refused:
            runner.run(recipe(world, changes(first, second, "money: 1e9")), run_dir, redo="sample")
        assert refused.value.code == "E-run-removes-paid-chains"
    files = {path.name for path in (run_dir / "sample").iterdir()}
    assert {"server@a.json", "server@b.json"} < files and "server.json" not in files
    rows = {row.name: row for row in collect.summarize_sources(RunFiles(run_dir, open_run(run_dir).recipe))}
    assert (rows["a"].money, rows["b"].money, rows["human"].money) == (first.written, second.written, None)


def test_shards_divide_the_budget_of_each_source(world: Path, tmp_path: Path) -> None:
    keys = "kind: openai, model: m, samples: 3, max_tokens: 24, top_logprobs: 3"
    run_dir, prices = tmp_path / "run", "prices: {prompt: 1e6, completion: 1e6}"
    with stub.running() as first, stub.running() as second:
        a = f"a: {{{keys}, server: {{urls: ['{first.url}']}}, budget: {{{prices}, money: 1e6}}}}"
        b = f"a-of: {{{keys}, server: {{urls: ['{second.url}']}}, budget: {{{prices}, money: 2e6}}}}"
        several = recipe(world, f"teachers={{{a}, {b}}}")
        for number in (1, 2):
            runner.run_shard(several, Shard(number, 2), run_dir=run_dir)
        shares = {name: json.loads((run_dir / f"spent@{name}.json").read_text()) for name in ("a", "a-of")}
        assert {name: share["shards"] for name, share in shares.items()} == {"a": 2, "a-of": 2}
        runner.run(several, run_dir, until="sample")
        spent = {name: ledger.total_usage(run_dir, name)["money"] for name in shares}
        assert spent == {"a": first.written, "a-of": second.written}
    names = {path.name for path in ledger.ledger_paths(run_dir)}
    assert {f"spent-000{i}-of-0002@{name}.jsonl" for i in (1, 2) for name in shares} <= names
    assert len(chains(run_dir, "a")) == len(chains(run_dir, "a-of")) == 12


def test_a_spent_budget_that_seals_leaves_the_other_sources_whole(world: Path, tmp_path: Path) -> None:
    keys = "kind: openai, model: m, samples: 3, max_tokens: 24, top_logprobs: 3"
    with stub.running() as server:
        budget = "budget: {prices: {prompt: 1e6, completion: 1e6}, money: 1, spent: seal}"
        paid = f"paid: {{{keys}, server: {{urls: ['{server.url}']}}, {budget}}}"
        run_dir = make(world, tmp_path / "run", f"teachers={{{paid}, human: {{kind: human}}}}", until="filter")
    assert {chain.source for chain in chains(run_dir)} == {"human"}


def test_a_source_covers_alone_what_no_other_source_has_right(world: Path, tmp_path: Path) -> None:
    poor = MODEL.replace("samples: 3", "samples: 1").replace("temperature: 1.0", "temperature: 2.5")
    changes = f"teachers={{poor: {poor}, again: {MODEL}, human: {{kind: human, unsolved: skip}}}}"
    run_dir = make(world, tmp_path / "run", changes, until="filter")
    right: dict[str, set[str]] = {"again": set(), "human": set(), "poor": set()}
    for (question, source, _), verdict in parquet.read_verdicts(run_dir / "filter" / "verdicts.parquet"):
        if verdict.grade == "right":
            right[source].add(question)
    summaries = collect.summarize_sources(RunFiles(run_dir, open_run(run_dir).recipe))
    assert [row.name for row in summaries] == list(right) and right["poor"] != right["human"]
    for row in summaries:
        others = set().union(*(questions for name, questions in right.items() if name != row.name))
        assert (row.covered, row.covered_alone) == (len(right[row.name]), len(right[row.name] - others))


def test_of_equal_texts_the_one_with_probabilities_is_kept(world: Path, tmp_path: Path) -> None:
    model = MODEL.replace("temperature: 1.0", "temperature: 0.2")  # it has learnt the solutions by heart
    run_dir = make(world, tmp_path / "run", f"teachers={{human: {{kind: human}}, model: {model}}}", until="align")
    verdicts = dict(parquet.read_verdicts(run_dir / "filter" / "verdicts.parquet"))
    copies = [key for key, verdict in verdicts.items() if key[1] == "human" and verdict.dropped == "duplicate"]
    assert copies and all(verdict.grade == "right" for verdict in verdicts.values() if verdict.kept)
    texts = {chain.key: chain.text for chain in chains(run_dir)}
    for key in copies:
        twins = [other for other, text in texts.items() if other[0] == key[0] and text == texts[key] and other != key]
        assert any(verdicts[twin].kept and twin[1] == "model" for twin in twins)


def test_the_cap_counts_each_source(world: Path, tmp_path: Path) -> None:
    changes = (*BOTH, "filter.max_per_question=1", "filter.duplicates=keep")
    run_dir = make(world, tmp_path / "run", *changes, until="filter")
    kept = [key for key, verdict in parquet.read_verdicts(run_dir / "filter" / "verdicts.parquet") if verdict.kept]
    assert len({(question, source) for question, source, _ in kept}) == len(kept)
    assert {source for _, source, _ in kept} == {"model", "human"}


def test_a_file_of_chains_gets_the_name_of_its_source(world: Path, both: Path, tmp_path: Path) -> None:
    file = both / "sample" / "chains.parquet"
    changes = f"teachers={{old: {{kind: replay, chains: {file}}}, human: {{kind: human}}}}"
    run_dir = make(world, tmp_path / "run", changes, until="align")
    assert {chain.source for chain in chains(run_dir)} == {"old", "human"}
    old, before = chains(run_dir, "old"), chains(both)
    assert sorted((c.question, c.content) for c in old) == sorted((c.question, c.content) for c in before)
    assert [chain.index for chain in old if chain.question == old[0].question] == [0, 1, 2, 3]


def test_the_plan_has_the_lines_of_each_source(world: Path, tmp_path: Path) -> None:
    plan = describe_run(recipe(world, *BOTH), tmp_path / "run")
    assert "teacher model     local" in plan and "teacher human     human" in plan
    make(world, tmp_path / "run", *BOTH, until="sample")
    assert "all chains are stored" in describe_run(recipe(world, *BOTH), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        (("teachers={}",), "teachers"),
        (("teacher.kind=human", "teacher.unsolved=skip", "teachers={a: {kind: human}}"), ""),
        (("teachers={a: {kind: none}}",), "teachers.a"),
        (("teachers={a: {kind: human, name: b}}",), "teachers.a"),
        (("train.sources={a: 1}",), "a is not among"),
        ((*BOTH, "train.sources={model: 1}"), "human has no quota"),
        ((*BOTH, "train.sources={model: 0, human: 0}"), "between 1 and"),
        ((*BOTH, "train.sources={model: 1, human: 1}", "train.uniform_over=chains"), "uniform_over"),
    ],
)
def test_what_no_run_could_mean_is_refused(world: Path, changes: tuple[str, ...], where: str) -> None:
    code = "E-recipe-sources" if "train.sources" in str(changes) else "E-recipe-teachers"
    with user_error(code) as caught:
        recipe(world, *changes)
    assert where in str(caught.value)


def test_a_fault_names_the_key_of_its_source(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        make(world, tmp_path / "run", "teachers={big: {kind: local, model: nowhere}, human: {kind: human}}")
    assert caught.value.where == "teachers.big.model"
    with pytest.raises(UserError) as caught:
        _check_batch_options(recipe(world, *BOTH), None)
    assert caught.value.code == "E-cli-batch-teachers"
    with pytest.raises(UserError) as caught:
        recipe(world, "teachers={a: {kind: openai, model: m, server: {urls: ['http://u:secret@h/v1']}}}")
    assert "secret" not in str(caught.value)


def test_a_changed_source_is_noticed_and_free_keys_are_free(world: Path, both: Path) -> None:
    changed = BOTH[0].replace("samples: 3", "samples: 4")
    with pytest.raises(UserError) as caught:
        runner.run(recipe(world, changed), both)
    assert caught.value.code == "E-run-stage-differs" and "teachers.model.samples" in caught.value.found
    free = BOTH[0].replace("max_tokens: 24", "max_tokens: 24, none_right_limit: 7")
    plans = runner.plan_stages(recipe(world, free), both)
    assert [plan.action for plan in plans if plan.stage in ("sample", "align")] == ["keep", "keep"]
    assert not teachers.from_recipe(recipe(world, *BOTH)).right_by_definition
    assert len(segments.segment_paths(both / "sample")) == 0
