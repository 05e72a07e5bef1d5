"""sample: the teacher's chains, appended batch by batch, sealed in the order of their keys.

A batch is the unit of resume: one that is stored whole is skipped, one that is not is made again whole, and what is
stored of it already is not stored twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill import engines, files, progress, prompts, recipe, teachers
from potstill.encoding import to_json
from potstill.files import segments, tables
from potstill.questions import collected
from potstill.recipe import Recipe

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
    folder = run / "sample"
    sealed = folder / "chains.parquet"
    if not sealed.exists():
        gather(run, plan, segments.WHOLE)
        tables.write_chains(sealed, segments.merged(folder))
    for segment in segments.paths(folder):
        files.remove(segment)
    return [sealed], tables.chain_counts(sealed)


def gather(run: Path, plan: Recipe, shard: segments.Shard) -> tuple[int, int]:
    """Sample what is not stored of a shard. How many chains this call stored, and how many are stored in all."""
    asked = collected.questions(run, plan.questions.train, "train")
    with files.Appender(run / "sample" / segments.name(shard)) as lines:
        done = segments.keys(run / "sample")
        before = len(done)
        total = len(asked) * plan.teacher.samples
        with progress.bar("sample", total, "chains", done=before) as tick:
            for batch in teachers.chains(plan, asked, done, known=collected.others(run)):
                new = [chain for chain in batch if chain.key not in done]
                lines.append(to_json(chain) for chain in new)
                for chain in new:
                    done.add(chain.key)
                tick(len(new))
    return len(done) - before, len(done)
