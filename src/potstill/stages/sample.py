"""sample: the teacher's chains, appended batch by batch, sealed in the order of their keys.

A batch is the unit of resume: one that is stored whole is skipped, one that is not is made again whole, and what is
stored of it already is not stored twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from potstill import engines, files, progress, prompts, recipe, teachers
from potstill.encoding import to_json
from potstill.files import tables
from potstill.questions import collected
from potstill.recipe import Recipe
from potstill.records import Chain

READS = ("teacher", "seed")
AFTER = ("collect",)
VERSIONS = {"prompts": prompts.VERSION, "engines": engines.VERSION, "teachers": teachers.VERSION}


def inputs(plan: Recipe) -> dict[str, str]:
    named = {
        "teacher.model": plan.teacher.model,
        "teacher.chains": plan.teacher.chains,
        "teacher.prompt": plan.teacher.prompt,
    }
    return {key: files.fingerprint(recipe.find(plan, path, key)) for key, path in named.items() if path is not None}


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    sealed, segment = run / "sample" / "chains.parquet", run / "sample" / "segment-0000.jsonl"
    if not sealed.exists():
        asked = collected.questions(run, plan.questions.train, "train")
        with files.Appender(segment) as lines:
            done = {chain.key for chain in files.records(Chain, segment)}
            total = len(asked) * plan.teacher.samples
            with progress.bar("sample", total, "chains", done=len(done)) as tick:
                for batch in teachers.chains(plan, asked, done, known=collected.others(run)):
                    new = [chain for chain in batch if chain.key not in done]
                    lines.append(to_json(chain) for chain in new)
                    done.update(chain.key for chain in new)
                    tick(len(new))
        chains = sorted(files.records(Chain, segment), key=lambda chain: chain.key)
        tables.write_chains(sealed, chains)
    files.remove(segment)
    return [sealed], _counts(tables.read_chains(sealed))


def _counts(chains: Iterator[Chain]) -> dict[str, Any]:
    stops: dict[str, int] = {}
    semantics: dict[str, int] = {}
    tokens = count = 0
    for chain in chains:
        count += 1
        tokens += len(chain.tokens)
        stops[chain.stop] = stops.get(chain.stop, 0) + 1
        semantics[chain.semantics] = semantics.get(chain.semantics, 0) + 1
    return {"chains": count, "tokens": tokens, "stop": stops, "semantics": semantics}
