"""sample: the teacher's chains, stored batch by batch and merged into one table in the order of their keys.

Sampling resumes by batch. A complete batch is skipped. An incomplete batch is sampled again, but its stored chains are
not stored twice. Several processes may sample shards at the same time, each into its own segment. A run without a shard
samples the remaining chains and merges all segments. The table is the same as if one process had sampled all chains.

For a teacher behind a server, the stage also writes `server.json`, which describes the server, and rows in the run's
ledger. Such a teacher also works through batch files (`write_batch_requests`, `read_batch_results`), with the same
requests and, for the same answers, the same chains. `unanswered.jsonl` lists results without chains.

For existing chains that a server scores (`teacher.score`), the folder `scores` has every score that arrived, until the table
exists: a score is stored before its batch is complete.

With several sources (`teachers`), they are sampled one after another into the same segments. Every source has its own
batches, budget and description of its server (`server@NAME.json`).
"""

from __future__ import annotations

import contextlib
import gc
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from potstill import grading, inference, progress, prompts, storage, teachers
from potstill.data import run_questions
from potstill.errors import UserError
from potstill.recipe import Recipe
from potstill.records import Chain, Question, Verdict
from potstill.stages import Stage, StageResult
from potstill.storage import atomic, ledger, manifest, parquet, run_folder, segments
from potstill.storage.flat_chains import FlatChain, encode_row
from potstill.storage.segments import UNSHARDED, ChainKeySet, Shard
from potstill.teachers import SamplingState, UsageMeter
from potstill.teachers.protocol import FirstChainsCheck

MAX_CHAIN_CHARS = 600  # maximum length of a chain in a message
TABLE_FILE, UNANSWERED_FILE, SCORES_FOLDER = "chains.parquet", "unanswered.jsonl", "scores"


class Sample(Stage):
    reads = ("teacher", "teachers", "seed")
    after = ("collect",)
    shared = True
    growing = ("teacher.enough",)
    unaffected = (
        *("train.replay.sets", "train.replay.file", "on_policy.sets", "train.on_policy.scorers"),
        *("evaluate.demonstrations", "train.demonstrations"),
    )

    def versions(self) -> dict[str, int]:
        return {"prompts": prompts.VERSION, "engines": inference.VERSION, "teachers": teachers.VERSION}

    def free(self, recipe: Recipe) -> set[str]:
        return teachers.from_recipe(recipe).free_keys()

    def read_files(self, recipe: Recipe) -> tuple[str, ...]:
        return tuple(f"collect/{name}.train.jsonl" for name in recipe.questions.train)

    def inputs(self, recipe: Recipe, run_dir: Path | None = None) -> dict[str, str]:
        return teachers.from_recipe(recipe).inputs()

    def make(self, run_dir: Path, recipe: Recipe) -> StageResult:
        folder = run_dir / "sample"
        table = folder / TABLE_FILE
        if not is_sealed(run_dir):
            unsharded = segments.segment_name(UNSHARDED)
            shards = [path for path in segments.segment_paths(folder) if path.name != unsharded]
            for path in shards:
                progress.print_line(f"{path.stem}: {len(segments.stored_keys([path]))} chains", "dim")
            stored = sample_missing(run_dir, recipe)
            if shards:
                progress.print_line(f"sampled {stored} chains that the shards lacked; merged all into {TABLE_FILE}")
            with _infrequent_gc():
                parquet.write_chains(table, segments.merge_segments(folder))
        for segment in segments.segment_paths(folder):
            storage.remove(segment)
        storage.remove(folder / SCORES_FOLDER)  # the table has them
        counts = parquet.count_chains(table)
        servers = {source: path for source in recipe.sources if (path := _server_path(folder, source)).exists()}
        if servers:
            described = {source: storage.read_json(path) for source, path in servers.items()}
            counts |= {"server": described.get("", described)}
        return StageResult([table, *servers.values()], counts)

    def begin_shards(self, run_dir: Path, recipe: Recipe, shard: Shard) -> None:
        for source, only in recipe.sources.items():
            if teachers.from_recipe(only).metered:
                ledger.split_budget(run_dir, shard, source)

    def make_shard(self, run_dir: Path, recipe: Recipe, shard: Shard) -> None:
        sample_missing(run_dir, recipe, shard)

    def launcher_conflict(self, recipe: Recipe) -> str:
        if any(teachers.from_recipe(only).metered for only in recipe.sources.values()):
            return "one process keeps a server busy"
        is_vllm = any(only.teacher.kind == "vllm" for only in recipe.sources.values())
        return "vLLM chooses its GPUs itself" if is_vllm else ""


def _server_path(folder: Path, source: str) -> Path:
    """The file that describes the server of a source."""
    return folder / (f"server@{source}.json" if source else "server.json")


def is_sealed(run_dir: Path) -> bool:
    """Whether the table of chains exists. The segments may then be removed."""
    return (run_dir / "sample" / TABLE_FILE).exists()


def sample_missing(run_dir: Path, recipe: Recipe, shard: Shard = UNSHARDED) -> int:
    """Sample the missing chains of a shard into its segment, source by source. Returns the number of newly stored chains."""
    if is_sealed(run_dir):
        return 0
    stored = 0
    for source in recipe.sources:
        with teachers.name_source(source):
            stored += _sample_source(run_dir, recipe, source, shard)
    return stored


def _sample_source(run_dir: Path, recipe: Recipe, source: str, shard: Shard) -> int:
    sampling = _Sampling(run_dir, recipe, source)
    recipe = sampling.recipe
    teacher, questions = sampling.teacher, sampling.unrefused_questions()
    sampling.questions = questions
    settled, before = ledger.budget_usage(run_dir, shard, source)
    usage = UsageMeter(settled=settled, before=before)
    scores = sampling.folder / SCORES_FOLDER / source
    done, right = sampling.stored_keys(), sampling.count_right_chains()
    state = SamplingState(done, right, usage, shard, run_questions.read_unused(run_dir), scores=scores)
    if teacher.is_complete(shard.of(questions), state):
        return 0
    first_chains = state.first_chains = sampling.check_first_chains(shard)
    if (fault := teacher.budget_error(questions, state)) is not None:
        if recipe.teacher.budget.spent == "stop":
            raise fault
        return 0
    stored = len(done)
    with contextlib.ExitStack() as stack:
        record_usage = stack.enter_context(sampling.open_ledger(usage, shard))
        state.server = sampling.probe_server(usage)
        segment = stack.enter_context(storage.Appender(sampling.folder / segments.segment_name(shard)))
        stack.enter_context(_infrequent_gc())
        label = (source or "sample") if shard == UNSHARDED else f"shard {shard} {source}".rstrip()
        total = len(questions) * recipe.teacher.samples // shard.count
        stored_of_shard = sampling.count_stored(done if shard == UNSHARDED else segments.stored_keys([segment.path]))
        tick = stack.enter_context(progress.bar(label, total, "chains", done=stored_of_shard))
        # Closed before the ledger: requests may be billed.
        batches = stack.enter_context(contextlib.closing(teacher.sample_rows(questions, state)))
        for batch in batches:
            assert all(map(sampling.is_own, batch)), f"the chains of {source} have another source"
            new = [chain for chain in batch if done.add(chain.key)]
            segment.append_lines(map(encode_row, new))
            tick(len(new), usage.progress_note())
            record_usage()
            if first_chains is not None and not teacher.metered and (fault := first_chains.judge(1)) is not None:
                raise fault
            if first_chains is not None and first_chains.passed:
                first_chains = None
    return len(done) - stored


def write_batch_requests(run_dir: Path, recipe: Recipe, out: Path) -> None:
    """Write the requests for the missing chains into a new folder, as files for a batch service.

    The server is probed first if the run has not used it yet. Until results are read, the same call writes the same
    requests.
    """
    sampling = _Sampling(run_dir, recipe)
    sampling.check_first_chains()
    done, right = sampling.stored_keys(), sampling.count_right_chains()
    usage = UsageMeter(before=ledger.total_usage(run_dir))
    if (server := sampling.read_server()) is None:
        fault = sampling.teacher.budget_error(sampling.questions, SamplingState(done, right, usage))
        if fault is not None:
            raise fault
        with sampling.open_ledger(usage):
            server = sampling.probe_server(usage)
    batch = sampling.open_batch(server, UsageMeter(before=ledger.total_usage(run_dir)))
    paths = atomic.write_rolling_files(out, batch.iter_request_lines(done, right), "requests", **batch.FILE_LIMITS)
    if batch.over_budget and not paths:
        raise batch.spent_error()
    for line in batch.describe(paths):
        progress.print_line(line)
    run_folder.append_log(run_dir, "batch written", folder=str(out), requests=batch.requests, chains=batch.chains)


def read_batch_results(run_dir: Path, recipe: Recipe, paths: Sequence[Path]) -> bool:
    """Store the chains of batch results. Returns whether all chains of the run are stored now.

    A result may be read several times. Raises UserError for a line that is not a result of this run; the results before
    that line are stored.
    """
    sampling = _Sampling(run_dir, recipe)
    folder = sampling.folder
    if (server := sampling.read_server()) is None:
        what, hint = "no requests were written for this run", "write requests first, with --batch-out FOLDER"
        raise UserError(what, code="E-run-no-batch", where=run_dir, hint=hint)
    usage, billed = UsageMeter(before=ledger.total_usage(run_dir)), ledger.billed_result_ids(run_dir)
    batch, right = sampling.open_batch(server, usage), sampling.count_right_chains()
    with contextlib.ExitStack() as stack:
        segment = stack.enter_context(storage.Appender(folder / segments.segment_name(UNSHARDED)))
        unanswered = stack.enter_context(storage.Appender(folder / UNANSWERED_FILE))
        writer = stack.enter_context(ledger.LedgerWriter(ledger.ledger_path(run_dir)))
        done = sampling.stored_keys()
        stack.enter_context(_infrequent_gc())
        total = len(sampling.questions) * recipe.teacher.samples
        tick = stack.enter_context(progress.bar("batch", total, "chains", done=len(done)))
        for chains, rows, ids in batch.read_results(paths, done, right, billed):
            writer.record(usage.spent(), ids)  # before the chains: no result is counted twice
            segment.append_lines(encode_row(chain) for chain in chains if done.add(chain.key))
            unanswered.append(rows)
            tick(len(chains), usage.progress_note())
    run_folder.append_log(run_dir, "batch read", **usage.as_json())
    progress.print_line(f"batch     {usage.chains} chains read, {len(done)} stored in total")
    for message, times in sorted(usage.faults.items(), key=lambda fault: -fault[1])[:5]:
        progress.print_line(f"failed    {times} results: {message}", "yellow")
    sampling.check_first_chains()
    complete = sampling.teacher.is_complete(sampling.unrefused_questions(), SamplingState(done, right))
    if not complete:
        advice = "write their requests with --batch-out FOLDER, or sample without it to send requests to the server"
        progress.print_line(f"missing   some chains are not stored yet: {advice}")
    return complete


class _Sampling:
    """The state of a run's sampling: the questions, and the chains stored so far."""

    def __init__(self, run_dir: Path, recipe: Recipe, source: str = "") -> None:
        """source: the name of one of several sources. `recipe` is then the recipe with only this source."""
        self.run_dir, self.recipe, self.folder = run_dir, recipe.sources[source], run_dir / "sample"
        self.source, teacher = source, teachers.from_recipe(recipe)
        self.teacher = teacher.members[source] if isinstance(teacher, teachers.SeveralTeachers) else teacher
        self.questions = run_questions.read_questions(run_dir, recipe.questions.train, "train")

    def stored_keys(self) -> ChainKeySet:
        return segments.stored_keys(segments.segment_paths(self.folder))

    def count_stored(self, keys: ChainKeySet) -> int:
        """The number of chains of this source."""
        return keys.count_source(self.source) if self.source else len(keys)

    def read_server(self) -> Any:
        """The stored description of the teacher's server; None if the run has not used the server."""
        path = _server_path(self.folder, self.source)
        return storage.read_json(path) if path.exists() else None

    def probe_server(self, usage: UsageMeter) -> Any:
        """The description of the teacher's server, from a probe at its first use; None for a teacher without a server."""
        before = self.read_server()
        server = self.teacher.probe(self.questions, before, usage)
        if server is not None and before is None:
            storage.write_json(_server_path(self.folder, self.source), server)
        return server

    def unrefused_questions(self) -> list[Question]:
        """The questions; if the recipe skips refused questions, without those that a batch service refused."""
        if self.recipe.teacher.server.refused != "skip" or not (self.folder / UNANSWERED_FILE).exists():
            return self.questions
        from potstill.teachers.openai_api.batch_api import FailedResults

        refused = FailedResults.from_rows(storage.read_complete_lines(self.folder / UNANSWERED_FILE)).refused
        return [question for number, question in enumerate(self.questions) if number not in refused]

    def open_batch(self, server: Any, usage: UsageMeter) -> Any:
        begun = manifest.read_begun(self.folder)
        assert begun is not None
        failed = storage.read_complete_lines(self.folder / UNANSWERED_FILE)
        return self.teacher.open_batch(self.questions, server, begun.as_json(), failed, usage)

    def count_right_chains(self) -> dict[str, int]:
        """Question id -> number of right stored chains, if the recipe has `teacher.enough`; otherwise empty.

        An incomplete last line does not count, because its process was killed, or is still writing it.
        """
        right: dict[str, int] = {}
        if self.recipe.teacher.enough is None:
            return right
        by_id = {question.id: question for question in self.questions}
        for path in segments.segment_paths(self.folder):
            for chain in segments.iter_chains(path):
                question = by_id.get(chain.question) if self.is_own(chain) else None
                if question is not None and _grade(chain, question).grade == "right":
                    right[question.id] = right.get(question.id, 0) + 1
        return right

    def is_own(self, chain: Chain | FlatChain) -> bool:
        """Whether a chain is of this source. In a run with one teacher, all chains are."""
        return self.source in ("", chain.source)

    def iter_graded(self) -> Iterator[tuple[Chain, Question, Verdict]]:
        by_id = {question.id: question for question in self.questions}
        for chain in parquet.read_stored_chains(self.folder):
            if self.is_own(chain) and (question := by_id.get(chain.question)) is not None:
                yield chain, question, _grade(chain, question)

    def check_first_chains(self, shard: Shard = UNSHARDED) -> FirstChainsCheck | None:
        """The check that at least one of the first chains is right, before all chains are sampled.

        None if a stored chain is right, or if the recipe switches the check off. Raises UserError if the first chains are
        already stored and none of them is right.
        """
        limit = self.recipe.teacher.none_right_limit
        if not limit or not self.teacher.generates:
            return None

        def count() -> tuple[int, int]:
            stored = 0
            for stored, (_, _, verdict) in enumerate(self.iter_graded(), 1):
                if verdict.grade == "right":
                    return stored, 1
            return stored, 0

        def fault() -> UserError:
            return _none_right_error(count()[0], *next(self.iter_graded()))

        stored, right = count()
        if stored and not right and stored + self.teacher.samples_per_request > limit:
            raise fault()
        return None if right else FirstChainsCheck(limit, count, fault, shard.count)

    @contextlib.contextmanager
    def open_ledger(self, usage: UsageMeter, shard: Shard = UNSHARDED) -> Iterator[Callable[[], None]]:
        """Yield a function that records the usage of a server in the ledger.

        It is called once more at the end, even after an error. For teachers without a server, it does nothing.
        """
        if not self.teacher.metered:
            yield lambda: None
            return
        with ledger.LedgerWriter(ledger.ledger_path(self.run_dir, shard, self.source)) as writer:
            usage.record_in(writer)
            try:
                yield lambda: writer.record(usage.spent())
            finally:
                writer.record(usage.spent())
                named = {"source": self.source} if self.source else {}
                run_folder.append_log(self.run_dir, "sampled", **named, **usage.as_json())


def _grade(chain: Chain, question: Question) -> Verdict:
    return grading.grade_chain(chain.text, question, chain.stop, chain.defects)


def _none_right_error(count: int, chain: Chain, question: Question, verdict: Verdict) -> UserError:
    text = chain.text if len(chain.text) <= MAX_CHAIN_CHARS else f"... {chain.text[-MAX_CHAIN_CHARS:]}"
    answer = "no answer" if verdict.answer is None else f"the answer {verdict.answer}"
    found = f"{chain.question}#{chain.index} has {answer} ({verdict.grade}); the set's answer is {question.gold}:\n"
    return UserError(
        f"none of the first {count} chains is right, so sampling has stopped",
        code="E-teacher-none-right",
        where="teacher",
        found=found + textwrap.indent(text, "    "),
        hint="correct the set's answers or task, the prompt, max_tokens or the teacher. If they are correct, raise"
        " teacher.none_right_limit or set it to 0, and run the same command again: all stored chains are kept",
    )


@contextlib.contextmanager
def _infrequent_gc() -> Iterator[None]:
    """Run the garbage collector rarely, because the search for cycles takes a fifth of the time.

    Chains are many small objects without cycles.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
