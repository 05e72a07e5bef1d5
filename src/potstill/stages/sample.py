"""sample: the teacher's chains, appended batch by batch, sealed in the order of their keys.

A batch is the unit of resume: one that is stored whole is skipped, one that is not is made again whole, and what is
stored of it already is not stored twice. A teacher behind a server leaves two files more: `server.json`, what it was
found to be, and `spent.jsonl`, what was paid, which no digest covers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill import answers, engines, files, progress, prompts, recipe, teachers
from potstill.encoding import to_json
from potstill.files import run_folder, tables
from potstill.questions import collected
from potstill.recipe import Recipe
from potstill.records import Chain, Question
from potstill.teachers import Watch

READS = ("teacher", "seed")
AFTER = ("collect",)
VERSIONS = {"prompts": prompts.VERSION, "engines": engines.VERSION, "teachers": teachers.VERSION}
# Of a server: where it is and how much is asked of it at once changes no chain.
FREE = ("urls", "key", "per_request", "concurrency", "timeout", "patience", "refused")


def inputs(plan: Recipe) -> dict[str, str]:
    teacher = plan.teacher
    named = {
        "teacher.model": teacher.model if teacher.kind == "local" else None,
        "teacher.chains": teacher.chains,
        "teacher.prompt": teacher.prompt,
        "teacher.server.tokenizer": teacher.server.tokenizer if teacher.kind == "openai" else None,
    }
    return {key: files.fingerprint(recipe.find(plan, path, key)) for key, path in named.items() if path is not None}


def free(plan: Recipe) -> set[str]:
    """Keys that may change while a run goes on; of a teacher that is no server, all that speak of servers."""
    budget = set(recipe.flat(plan, "teacher.budget"))
    if plan.teacher.kind != "openai":
        return budget | set(recipe.flat(plan, "teacher.server", "teacher.enough"))
    return budget | {f"teacher.server.{name}" for name in FREE}


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    sealed, segment = run / "sample" / "chains.parquet", run / "sample" / "segment-0000.jsonl"
    server, spent = run / "sample" / "server.json", run / "sample" / "spent.jsonl"
    if not sealed.exists():
        asked = collected.questions(run, plan.questions.train, "train")
        found = teachers.probed(plan, asked, files.read_json(server) if server.exists() else None)
        if found is not None and not server.exists():
            files.write_json(server, found)
        watch = Watch(before=_spent(spent))
        with contextlib.ExitStack() as opened:
            lines = opened.enter_context(files.Appender(segment))
            bills = opened.enter_context(files.Appender(spent)) if found is not None else None
            done, right = _stored(segment, plan, asked)
            total = len(asked) * plan.teacher.samples
            paid: dict[str, float] = {}
            try:
                with progress.bar("sample", total, "chains", done=len(done)) as tick:
                    for batch in teachers.chains(
                        plan, asked, done, known=collected.others(run), server=found, watch=watch, right=right
                    ):
                        new = [chain for chain in batch if chain.key not in done]
                        lines.append(to_json(chain) for chain in new)
                        done.update(chain.key for chain in new)
                        tick(len(new), watch.note())
                        paid = _pay(bills, watch, paid)
            finally:
                if bills is not None:
                    _pay(bills, watch, paid)
                    run_folder.log(run, "sampled", **watch.as_json())
        chains = sorted(files.records(Chain, segment), key=lambda chain: chain.key)
        tables.write_chains(sealed, chains)
    files.remove(segment)
    counts = _counts(tables.read_chains(sealed))
    if server.exists():
        return [sealed, server], counts | {"server": files.read_json(server)}
    return [sealed], counts


def _stored(segment: Path, plan: Recipe, asked: Sequence[Question]) -> tuple[set[teachers.Key], dict[str, int]]:
    """The keys that are stored, and how many right chains of each question, where enough of them end its asking."""
    done: set[teachers.Key] = set()
    right: dict[str, int] = {}
    by_id = {question.id: question for question in asked} if plan.teacher.enough is not None else {}
    for chain in files.records(Chain, segment):
        done.add(chain.key)
        question = by_id.get(chain.question)
        if question and answers.grade(chain.text, question.gold, question.task, chain.stop).grade == "right":
            right[question.id] = right.get(question.id, 0) + 1
    return done, right


def _spent(path: Path) -> dict[str, float]:
    """What earlier processes of this run spent, added up."""
    total: dict[str, float] = {}
    if path.exists():
        with files.Appender(path):
            pass  # cuts a torn last line off
        for _, row in files.read_jsonl(path):
            for name, value in row.items():
                total[name] = total.get(name, 0) + value
    return total


def _pay(bills: files.Appender | None, watch: Watch, paid: Mapping[str, float]) -> dict[str, float]:
    """Write down what was spent since the last call, and return all that this process has spent."""
    now = watch.spent()
    more = {name: round(value - paid.get(name, 0), 9) for name, value in now.items()}
    if bills is not None and any(more.values()):
        bills.append([more])
    return now


def _counts(chains: Iterator[Chain]) -> dict[str, Any]:
    stops: dict[str, int] = {}
    semantics: dict[str, int] = {}
    defects: dict[str, int] = {}
    tokens = count = 0
    for chain in chains:
        count += 1
        tokens += len(chain.tokens)
        stops[chain.stop] = stops.get(chain.stop, 0) + 1
        semantics[chain.semantics] = semantics.get(chain.semantics, 0) + 1
        for defect in chain.defects:
            defects[defect] = defects.get(defect, 0) + 1
    counts: dict[str, Any] = {"chains": count, "tokens": tokens, "stop": stops, "semantics": semantics}
    return counts | ({"defects": defects} if defects else {})
