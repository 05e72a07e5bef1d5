"""sample: the teacher's chains, appended batch by batch, sealed in the order of their keys.

A batch is the unit of resume: one that is stored whole is skipped, one that is not is made again whole, and what is
stored of it already is not stored twice. Shards sample beside each other, each into a segment of its own; a run without
a shard makes what they left out and seals all segments into one table, the same as if there had been no shards.

A teacher behind a server leaves more: `server.json`, what it was found to be, and rows in the run's ledger. It may also
be asked through files (`batch_out`, `batch_in`): with the same requests, and the same chains of the same answers;
`unanswered.jsonl` has what came back without its chains.
"""

from __future__ import annotations

import contextlib
import gc
import textwrap
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from potstill import grading, inference, progress, prompts, storage, teachers
from potstill.data import run_questions
from potstill.errors import UserError
from potstill.recipe import Recipe
from potstill.records import Chain, Question, Verdict
from potstill.stages import Stage, StageResult
from potstill.storage import atomic, ledger, manifest, parquet, run_folder, segments
from potstill.storage.segments import UNSHARDED, Shard
from potstill.teachers import SamplingState, UsageMeter
from potstill.teachers.usage import FirstChainsCheck

MAX_CHAIN_CHARS = 600  # characters of a chain in a message
TABLE_FILE, UNANSWERED_FILE = "chains.parquet", "unanswered.jsonl"


class Sample(Stage):
    reads = ("teacher", "seed")
    after = ("collect",)

    def versions(self) -> dict[str, int]:
        return {"prompts": prompts.VERSION, "engines": inference.VERSION, "teachers": teachers.VERSION}

    def free(self, recipe: Recipe) -> set[str]:
        return teachers.from_recipe(recipe).free_keys()

    def inputs(self, recipe: Recipe, run_dir: Path | None = None) -> dict[str, str]:
        return teachers.from_recipe(recipe).inputs()

    def make(self, run_dir: Path, recipe: Recipe) -> StageResult:
        folder = run_dir / "sample"
        table, server = folder / TABLE_FILE, folder / "server.json"
        if not is_sealed(run_dir):
            before = _report_shards(segments.segment_paths(folder))
            stored = sample_missing(run_dir, recipe)
            if before:
                progress.print_line(f"{stored} chains were missing in them; sealed into {TABLE_FILE}")
            with _infrequent_gc():
                parquet.write_chains(table, segments.merge_segments(folder))
        for segment in segments.segment_paths(folder):
            storage.remove(segment)
        counts = parquet.count_chains(table)
        if server.exists():
            return StageResult([table, server], counts | {"server": storage.read_json(server)})
        return StageResult([table], counts)


def is_sealed(run_dir: Path) -> bool:
    """Whether the chains are in their table: their segments may be gone, and nothing is missing."""
    return (run_dir / "sample" / TABLE_FILE).exists()


def sample_missing(run_dir: Path, recipe: Recipe, shard: Shard = UNSHARDED) -> int:
    """Sample what is not stored of a shard, into its segment. How many chains this call stored."""
    folder = run_dir / "sample"
    if is_sealed(run_dir):
        return 0
    asked = _without_refused(folder, recipe, run_questions.read_questions(run_dir, recipe.questions.train, "train"))
    done, right = segments.stored_keys(segments.segment_paths(folder)), _count_right_chains(folder, recipe, asked)
    teacher, settled_and_before = teachers.from_recipe(recipe), ledger.budget_usage(run_dir, shard)
    watch = UsageMeter(settled=settled_and_before[0], before=settled_and_before[1])
    state = SamplingState(done, right, watch, shard, run_questions.read_unused(run_dir))
    if teacher.is_complete(shard.of(asked), state):
        return 0
    trial = state.first_chains = _first_chains_check(folder, recipe, asked, shard)
    if (fault := teacher.budget_error(asked, state)) is not None:
        if recipe.teacher.budget.spent == "stop":
            raise fault
        return 0
    stored = len(done)
    with contextlib.ExitStack() as opened:
        paid = opened.enter_context(_open_ledger(run_dir, recipe, watch, shard))
        state.server = _probe_server(folder, recipe, asked, watch)
        segment = opened.enter_context(storage.Appender(folder / segments.segment_name(shard)))
        own = stored if shard == UNSHARDED else len(segments.stored_keys([segment.path]))
        total, title = len(asked) * recipe.teacher.samples // shard.count, f"shard {shard}"
        opened.enter_context(_infrequent_gc())
        tick = opened.enter_context(progress.bar("sample" if shard == UNSHARDED else title, total, "chains", done=own))
        chains = teacher.sample(asked, state)
        if isinstance(chains, Generator):  # closed before the bill is: what is given up then may have been billed
            opened.callback(chains.close)
        for batch in chains:
            new = [chain for chain in batch if done.add(chain.key)]
            segment.append_lines(segments.encode_chain(chain) for chain in new)
            tick(len(new), watch.progress_note())
            paid()
            if trial is not None and not teacher.metered and (fault := trial.judge(1)) is not None:
                raise fault
            trial = None if trial is not None and trial.passed else trial
    return len(done) - stored


def _first_chains_check(
    folder: Path, recipe: Recipe, asked: Sequence[Question], shard: Shard = UNSHARDED
) -> FirstChainsCheck | None:
    """What the first chains have to show before a teacher is asked for all; None where they have, or where the recipe
    does not want it. Raises UserError where enough are stored already and none of them is right."""
    limit, by_id = recipe.teacher.none_right_limit, {question.id: question for question in asked}
    teacher = teachers.from_recipe(recipe)
    if not limit or not teacher.generates:
        return None

    def graded() -> Iterator[tuple[Chain, Question, Verdict]]:
        for chain in parquet.read_stored_chains(folder):
            if (question := by_id.get(chain.question)) is not None:
                yield chain, question, grading.grade(chain.text, question.gold, question.task, chain.stop)

    def look() -> tuple[int, int]:
        stored = 0
        for stored, (_, _, verdict) in enumerate(graded(), 1):
            if verdict.grade == "right":
                return stored, 1
        return stored, 0

    def fault() -> UserError:
        chain, question, verdict = next(graded())
        text = chain.text if len(chain.text) <= MAX_CHAIN_CHARS else f"... {chain.text[-MAX_CHAIN_CHARS:]}"
        read = "no answer" if verdict.answer is None else f"the answer {verdict.answer}"
        return UserError(
            f"none of the first {look()[0]} chains is right, so no further ones are asked for",
            where="teacher",
            found=f"{chain.question}#{chain.index} has {read} ({verdict.grade}); the set's answer is {question.gold}:\n"
            + textwrap.indent(text, "    "),
            hint="correct the set's answers or task, the prompt, max_tokens or the teacher. If nothing is wrong there,"
            " raise teacher.none_right_limit or set it to 0, and run the same command again: every chain is kept",
        )

    trial = FirstChainsCheck(limit, look, fault, shard.count)
    stored, right = look()
    if stored and not right and stored + teacher.samples_per_request > limit:
        raise fault()
    return None if right else trial


@contextlib.contextmanager
def _open_ledger(run_dir: Path, recipe: Recipe, watch: UsageMeter, shard: Shard) -> Iterator[Callable[[], None]]:
    """What to call to write down what was spent, for a teacher behind a server; also done at the end, however it
    comes."""
    if not teachers.from_recipe(recipe).metered:
        yield lambda: None
        return
    with ledger.LedgerWriter(ledger.ledger_path(run_dir, shard)) as bill:
        watch.on_reserve = bill.reserve
        try:
            yield lambda: bill.record(watch.spent())
        finally:
            bill.record(watch.spent())
            run_folder.append_log(run_dir, "sampled", **watch.as_json())


def write_batch_requests(run_dir: Path, recipe: Recipe, out: Path) -> None:
    """Write the requests for what is not stored into a new folder, as files that a service for batches takes.

    A server that was not asked before is probed. The same call writes the same requests, until results are read.
    """
    from potstill.teachers.openai_api import batch_api, budget

    folder = run_dir / "sample"
    asked = run_questions.read_questions(run_dir, recipe.questions.train, "train")
    _first_chains_check(folder, recipe, asked)
    done, before = segments.stored_keys(segments.segment_paths(folder)), _read_failed_results(folder)
    right, watch = _count_right_chains(folder, recipe, asked), UsageMeter(before=ledger.total_usage(run_dir))
    if (server := _read_server(folder)) is None:
        error = teachers.from_recipe(recipe).budget_error(asked, SamplingState(done, right, watch))
        if error is not None:
            raise error
        with _open_ledger(run_dir, recipe, watch, UNSHARDED):
            server = _probe_server(folder, recipe, asked, watch)
    batch = _open_batch(folder, recipe, asked, server)
    ceiling = budget.Budget(batch.settings, UsageMeter(before=ledger.total_usage(run_dir)))
    written = batch_api.BatchSummary()
    rows = batch_api.iter_request_lines(batch, done, right, before, ceiling, written)
    limits = {"max_lines": batch_api.MAX_REQUESTS, "max_bytes": batch_api.MAX_BYTES}
    paths = atomic.write_rolling_files(out, rows, "requests", **limits)
    if written.over_budget and not paths:
        raise ceiling.spent_error()
    for line in batch_api.describe(batch, written, paths):
        progress.print_line(line)
    run_folder.append_log(run_dir, "batch written", folder=str(out), requests=written.requests, chains=written.chains)


def read_batch_results(run_dir: Path, recipe: Recipe, paths: Sequence[Path]) -> bool:
    """Store the chains of results; whether all chains of the run are there now. A result may be read again and again.

    Raises UserError for a line that is no result of this run; what came before it is stored.
    """
    from potstill.teachers.openai_api import batch_api, budget

    folder = run_dir / "sample"
    asked = run_questions.read_questions(run_dir, recipe.questions.train, "train")
    if (server := _read_server(folder)) is None:
        raise UserError("no requests were written for this run", where=run_dir, hint="begin with --batch-out FOLDER")
    batch, before = _open_batch(folder, recipe, asked, server), _read_failed_results(folder)
    segment = folder / segments.segment_name(UNSHARDED)
    watch, counted = UsageMeter(before=ledger.total_usage(run_dir)), ledger.billed_result_ids(run_dir)
    ceiling, right = budget.Budget(batch.settings, watch), _count_right_chains(folder, recipe, asked)
    with contextlib.ExitStack() as opened:
        stored, notes = (opened.enter_context(storage.Appender(path)) for path in (segment, folder / UNANSWERED_FILE))
        bill = opened.enter_context(ledger.LedgerWriter(ledger.ledger_path(run_dir)))
        done = segments.stored_keys(segments.segment_paths(folder))
        opened.enter_context(_infrequent_gc())
        total = len(asked) * recipe.teacher.samples
        tick = opened.enter_context(progress.bar("batch", total, "chains", done=len(done)))
        for chains, rows, billed in batch_api.read_results(batch, paths, done, right, before, counted, ceiling, watch):
            bill.record(watch.spent(), billed)  # first: should this stop here, the same result costs nothing again
            stored.append_lines(segments.encode_chain(chain) for chain in chains if done.add(chain.key))
            notes.append(rows)
            tick(len(chains), watch.progress_note())
    run_folder.append_log(run_dir, "batch read", **watch.as_json())
    progress.print_line(f"batch     {watch.chains} chains stored now, {len(done)} in all")
    for said, times in sorted(watch.faults.items(), key=lambda fault: -fault[1])[:5]:
        progress.print_line(f"lacking   {times} results: {said}", "yellow")
    _first_chains_check(folder, recipe, asked)
    state = SamplingState(done, right)
    complete = teachers.from_recipe(recipe).is_complete(_without_refused(folder, recipe, asked), state)
    if not complete:
        progress.print_line(
            "missing   some chains are; --batch-out FOLDER writes their requests, without it the server is asked"
        )
    return complete


@contextlib.contextmanager
def _infrequent_gc() -> Iterator[None]:
    """Chains are many small objects without cycles: they go when nobody needs them any more, and looking through them
    for cycles takes a fifth of the time."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def _open_batch(folder: Path, recipe: Recipe, asked: Sequence[Question], server: Any) -> Any:
    from potstill.teachers.openai_api.teacher import OpenAITeacher

    begun = manifest.read_begun(folder)
    assert begun is not None
    return OpenAITeacher(recipe).open_batch(asked, server, begun.as_json())


def _read_server(folder: Path) -> Any:
    """What the teacher's server was found to be; None if it was never asked."""
    path = folder / "server.json"
    return storage.read_json(path) if path.exists() else None


def _read_failed_results(folder: Path) -> Any:
    """What results of batches lacked."""
    from potstill.teachers.openai_api import batch_api

    before = batch_api.FailedResults()
    for row in storage.read_complete_lines(folder / UNANSWERED_FILE):
        before.add(row)
    return before


def _without_refused(folder: Path, recipe: Recipe, asked: Sequence[Question]) -> Sequence[Question]:
    """The questions without those that were refused in a batch, where the recipe skips such."""
    if recipe.teacher.server.refused != "skip" or not (folder / UNANSWERED_FILE).exists():
        return asked
    refused = _read_failed_results(folder).refused
    return [question for number, question in enumerate(asked) if number not in refused]


def _report_shards(paths: list[Path]) -> bool:
    """Tell what shards have left, if they have."""
    left = [path for path in paths if path.name != segments.segment_name(UNSHARDED)]
    for path in left:
        progress.print_line(f"{path.stem}: {len(segments.stored_keys([path]))} chains", "dim")
    return bool(left)


def _probe_server(folder: Path, recipe: Recipe, asked: Sequence[Question], watch: UsageMeter) -> Any:
    """What the teacher's server is, as it was first found; None for a teacher that is none."""
    before = _read_server(folder)
    found = teachers.from_recipe(recipe).probe(asked, before, watch)
    if found is not None and before is None:
        storage.write_json(folder / "server.json", found)
    return found


def _count_right_chains(folder: Path, recipe: Recipe, asked: Sequence[Question]) -> dict[str, int]:
    """How many right chains of each question are stored, where the recipe stops at enough of them. A torn last line is
    nobody's, here as for `segments.keys`: its process was killed, or is writing it now."""
    right: dict[str, int] = {}
    if recipe.teacher.enough is None:
        return right
    by_id = {question.id: question for question in asked}
    for path in segments.segment_paths(folder):
        for chain in storage.iter_records(Chain, path, torn=True):
            question = by_id.get(chain.question)
            if question and grading.grade(chain.text, question.gold, question.task, chain.stop).grade == "right":
                right[question.id] = right.get(question.id, 0) + 1
    return right
