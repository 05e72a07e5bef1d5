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

from potstill import answers, engines, files, progress, prompts, recipe, teachers, tokenizers
from potstill.errors import UserError
from potstill.files import ledger, lines, manifest, parts, run_folder, segments, tables
from potstill.files.segments import WHOLE, Shard
from potstill.questions import collected
from potstill.recipe import Recipe
from potstill.records import Chain, Question, Verdict
from potstill.teachers import Watch
from potstill.teachers.trial import Trial

READS = ("teacher", "seed")
AFTER = ("collect",)
VERSIONS = {"prompts": prompts.VERSION, "engines": engines.VERSION, "teachers": teachers.VERSION}
SHOWN = 600  # characters of a chain in a message
TABLE, NOTES = "chains.parquet", "unanswered.jsonl"
# Of a server: where it is and how much is asked of it at once changes no chain.
FREE = ("urls", "key", "per_request", "concurrency", "timeout", "patience", "refused")


def inputs(plan: Recipe) -> dict[str, str]:
    teacher, score = plan.teacher, plan.teacher.score
    asked = teacher.kind == "openai" or (score is not None and score.kind == "openai")
    named = {
        "teacher.model": teacher.model if teacher.kind in ("local", "vllm") else None,
        "teacher.score.model": score.model if score is not None and score.kind == "local" else None,
        "teacher.chains": teacher.chains,
        "teacher.prompt": teacher.prompt,
        "teacher.server.tokenizer": teacher.server.tokenizer if asked else None,
    }
    found = {key: files.fingerprint(recipe.find(plan, path, key)) for key, path in named.items() if path is not None}
    # What `teacher.chat` comes to; nothing of a model without a template, which is asked as ever.
    found |= {key: said for key, said in [("teacher.chat", teachers.spoken(plan))] if said is not None}
    model = teacher.kind in ("local", "vllm") or (score is not None and score.kind == "local")
    if model:
        from potstill import students  # which hold every model; a teacher behind a server needs no torch

        found["version of students"] = str(students.VERSION)
    if model or named["teacher.server.tokenizer"] is not None:
        found["version of tokenizers"] = str(tokenizers.VERSION)
    return found


def free(plan: Recipe) -> set[str]:
    """Keys that may change while a run goes on; of a teacher that asks no server, all that speak of servers."""
    budget, score = {*recipe.flat(plan, "teacher.budget"), "teacher.none_right_limit"}, plan.teacher.score
    budget |= {f"teacher.vllm.{name}" for name in recipe.Vllm.FREE} | {"teacher.chat"}  # see `inputs`
    if plan.teacher.kind != "openai":
        budget |= set(recipe.flat(plan, "teacher.enough"))
        if score is None or score.kind == "local":
            return budget | set(recipe.flat(plan, "teacher.server"))
    return budget | {f"teacher.server.{name}" for name in FREE}


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    folder = run / "sample"
    table, server = folder / TABLE, folder / "server.json"
    if not sealed(run):
        before = _said(segments.paths(folder))
        stored = gather(run, plan)
        if before:
            progress.say(f"{stored} chains were missing in them; sealed into {TABLE}")
        with _collecting_rarely():
            tables.write_chains(table, segments.merged(folder))
    for segment in segments.paths(folder):
        files.remove(segment)
    counts = tables.chain_counts(table)
    if server.exists():
        return [table, server], counts | {"server": files.read_json(server)}
    return [table], counts


def sealed(run: Path) -> bool:
    """Whether the chains are in their table: their segments may be gone, and nothing is missing."""
    return (run / "sample" / TABLE).exists()


def gather(run: Path, plan: Recipe, shard: Shard = WHOLE) -> int:
    """Sample what is not stored of a shard, into its segment. How many chains this call stored."""
    folder = run / "sample"
    if sealed(run):
        return 0
    asked = _askable(folder, plan, collected.questions(run, plan.questions.train, "train"))
    done, right = segments.keys(segments.paths(folder)), _right(folder, plan, asked)
    if teachers.complete(plan, shard.of(asked), done, right):
        return 0
    trial = _trial(folder, plan, asked, shard)
    settled, before = ledger.seen_by(run, shard)
    watch = Watch(before=before, settled=settled)
    if (fault := teachers.exhausted(plan, asked, watch, done, right, shard)) is not None:
        if plan.teacher.budget.spent == "stop":
            raise fault
        return 0
    stored = len(done)
    with contextlib.ExitStack() as opened:
        paid = opened.enter_context(_paid(run, plan, watch, shard))
        server = _server(folder, plan, asked, watch)
        segment = opened.enter_context(files.Appender(folder / segments.name(shard)))
        own = stored if shard == WHOLE else len(segments.keys([segment.path]))
        total, title = len(asked) * plan.teacher.samples // shard.count, f"shard {shard}"
        opened.enter_context(_collecting_rarely())
        tick = opened.enter_context(progress.bar("sample" if shard == WHOLE else title, total, "chains", done=own))
        told = {"server": server, "watch": watch, "right": right, "shard": shard, "trial": trial}
        chains = teachers.chains(plan, asked, done, known=collected.others(run), **told)
        if isinstance(chains, Generator):  # closed before the bill is: what is given up then may have been billed
            opened.callback(chains.close)
        for batch in chains:
            new = [chain for chain in batch if done.add(chain.key)]
            segment.append_lines(lines.line(chain) for chain in new)
            tick(len(new), watch.note())
            paid()
            if trial is not None and server is None and (fault := trial.verdict(1)) is not None:
                raise fault
            trial = None if trial is not None and trial.passed else trial
    return len(done) - stored


def _trial(folder: Path, plan: Recipe, asked: Sequence[Question], shard: Shard = WHOLE) -> Trial | None:
    """What the first chains have to show before a teacher is asked for all; None where they have, or where the recipe
    does not want it. Raises UserError where enough are stored already and none of them is right."""
    limit, by_id = plan.teacher.none_right_limit, {question.id: question for question in asked}
    if not limit or plan.teacher.kind not in ("local", "vllm", "openai"):
        return None

    def graded() -> Iterator[tuple[Chain, Question, Verdict]]:
        for chain in tables.stored(folder):
            if (question := by_id.get(chain.question)) is not None:
                yield chain, question, answers.grade(chain.text, question.gold, question.task, chain.stop)

    def look() -> tuple[int, int]:
        stored = 0
        for stored, (_, _, verdict) in enumerate(graded(), 1):
            if verdict.grade == "right":
                return stored, 1
        return stored, 0

    def fault() -> UserError:
        chain, question, verdict = next(graded())
        text = chain.text if len(chain.text) <= SHOWN else f"... {chain.text[-SHOWN:]}"
        read = "no answer" if verdict.found is None else f"the answer {verdict.found}"
        return UserError(
            f"none of the first {look()[0]} chains is right, so no further ones are asked for",
            where="teacher",
            found=f"{chain.question}#{chain.index} has {read} ({verdict.grade}); the set's answer is {question.gold}:\n"
            + textwrap.indent(text, "    "),
            do="correct the set's answers or task, the prompt, max_tokens or the teacher. If nothing is wrong there,"
            " raise teacher.none_right_limit or set it to 0, and run the same command again: every chain is kept",
        )

    trial = Trial(limit, look, fault, shard.count)
    stored, right = look()
    a_request = min(plan.teacher.samples, plan.teacher.server.per_request) if plan.teacher.kind == "openai" else 1
    if stored and not right and stored + a_request > limit:
        raise fault()
    return None if right else trial


@contextlib.contextmanager
def _paid(run: Path, plan: Recipe, watch: Watch, shard: Shard) -> Iterator[Callable[[], None]]:
    """What to call to write down what was spent, for a teacher behind a server; also done at the end, however it
    comes."""
    if plan.teacher.kind != "openai":
        yield lambda: None
        return
    with ledger.Bill(ledger.path(run, shard)) as bill:
        watch.risk = bill.risk
        try:
            yield lambda: bill.pay(watch.spent())
        finally:
            bill.pay(watch.spent())
            run_folder.log(run, "sampled", **watch.as_json())


def batch_out(run: Path, plan: Recipe, out: Path) -> None:
    """Write the requests for what is not stored into a new folder, as files that a service for batches takes.

    A server that was not asked before is probed. The same call writes the same requests, until results are read.
    """
    from potstill.teachers.openai import batches, budget

    folder = run / "sample"
    asked = collected.questions(run, plan.questions.train, "train")
    _trial(folder, plan, asked)
    done, before = segments.keys(segments.paths(folder)), _before(folder)
    right, watch = _right(folder, plan, asked), Watch(before=ledger.total(run))
    if (server := _known(folder)) is None:
        if (fault := teachers.exhausted(plan, asked, watch, done, right)) is not None:
            raise fault
        with _paid(run, plan, watch, WHOLE):
            server = _server(folder, plan, asked, watch)
    batch = _batch(folder, plan, asked, server)
    ceiling = budget.Budget(batch.settings, Watch(before=ledger.total(run)))
    written = batches.Written()
    rows = batches.lines(batch, done, right, before, ceiling, written)
    limits = {"most_lines": batches.MOST_REQUESTS, "most_bytes": batches.MOST_BYTES}
    paths = parts.write(out, rows, "requests", **limits)
    if written.stopped and not paths:
        raise ceiling.reached()
    for line in batches.told(batch, written, paths):
        progress.say(line)
    run_folder.log(run, "batch written", folder=str(out), requests=written.requests, chains=written.chains)


def batch_in(run: Path, plan: Recipe, paths: Sequence[Path]) -> bool:
    """Store the chains of results; whether all chains of the run are there now. A result may be read again and again.

    Raises UserError for a line that is no result of this run; what came before it is stored.
    """
    from potstill.teachers.openai import budget, results

    folder = run / "sample"
    asked = collected.questions(run, plan.questions.train, "train")
    if (server := _known(folder)) is None:
        raise UserError("no requests were written for this run", where=run, do="begin with --batch-out FOLDER")
    batch, before = _batch(folder, plan, asked, server), _before(folder)
    segment = folder / segments.name(WHOLE)
    watch, counted = Watch(before=ledger.total(run)), ledger.counted(run)
    ceiling, right = budget.Budget(batch.settings, watch), _right(folder, plan, asked)
    with contextlib.ExitStack() as opened:
        stored, notes = (opened.enter_context(files.Appender(path)) for path in (segment, folder / NOTES))
        bill = opened.enter_context(ledger.Bill(ledger.path(run)))
        done = segments.keys(segments.paths(folder))
        opened.enter_context(_collecting_rarely())
        total = len(asked) * plan.teacher.samples
        tick = opened.enter_context(progress.bar("batch", total, "chains", done=len(done)))
        for chains, rows, billed in results.read(batch, paths, done, right, before, counted, ceiling, watch):
            bill.pay(watch.spent(), billed)  # first: should this stop here, the same result costs nothing again
            stored.append_lines(lines.line(chain) for chain in chains if done.add(chain.key))
            notes.append(rows)
            tick(len(chains), watch.note())
    run_folder.log(run, "batch read", **watch.as_json())
    progress.say(f"batch     {watch.chains} chains stored now, {len(done)} in all")
    for said, times in sorted(watch.faults.items(), key=lambda fault: -fault[1])[:5]:
        progress.say(f"lacking   {times} results: {said}", "yellow")
    _trial(folder, plan, asked)
    complete = teachers.complete(plan, _askable(folder, plan, asked), done, right)
    if not complete:
        progress.say(
            "missing   some chains are; --batch-out FOLDER writes their requests, without it the server is asked"
        )
    return complete


@contextlib.contextmanager
def _collecting_rarely() -> Iterator[None]:
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


def _batch(folder: Path, plan: Recipe, asked: Sequence[Question], server: Any) -> Any:
    begun = manifest.begun(folder)
    assert begun is not None
    return teachers.batch(plan, asked, server, begun.as_json())


def _known(folder: Path) -> Any:
    """What the teacher's server was found to be; None if it was never asked."""
    path = folder / "server.json"
    return files.read_json(path) if path.exists() else None


def _before(folder: Path) -> Any:
    """What results of batches lacked."""
    from potstill.teachers.openai import batches

    before = batches.Before()
    for row in files.whole_rows(folder / NOTES):
        before.add(row)
    return before


def _askable(folder: Path, plan: Recipe, asked: Sequence[Question]) -> Sequence[Question]:
    """The questions without those that were refused in a batch, where the recipe skips such."""
    if plan.teacher.server.refused != "skip" or not (folder / NOTES).exists():
        return asked
    refused = _before(folder).refused
    return [question for number, question in enumerate(asked) if number not in refused]


def _said(paths: list[Path]) -> bool:
    """Tell what shards have left, if they have."""
    left = [path for path in paths if path.name != segments.name(WHOLE)]
    for path in left:
        progress.say(f"{path.stem}: {len(segments.keys([path]))} chains", "dim")
    return bool(left)


def _server(folder: Path, plan: Recipe, asked: Sequence[Question], watch: Watch) -> Any:
    """What the teacher's server is, as it was first found; None for a teacher that is none."""
    before = _known(folder)
    found = teachers.probed(plan, asked, before, watch)
    if found is not None and before is None:
        files.write_json(folder / "server.json", found)
    return found


def _right(folder: Path, plan: Recipe, asked: Sequence[Question]) -> dict[str, int]:
    """How many right chains of each question are stored, where the recipe stops at enough of them. A torn last line is
    nobody's, here as for `segments.keys`: its process was killed, or is writing it now."""
    right: dict[str, int] = {}
    if plan.teacher.enough is None:
        return right
    by_id = {question.id: question for question in asked}
    for path in segments.paths(folder):
        for chain in files.records(Chain, path, torn=True):
            question = by_id.get(chain.question)
            if question and answers.grade(chain.text, question.gold, question.task, chain.stop).grade == "right":
                right[question.id] = right.get(question.id, 0) + 1
    return right
