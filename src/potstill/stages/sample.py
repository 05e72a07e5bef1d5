"""sample: the teacher's chains, appended batch by batch, sealed in the order of their keys.

A batch is the unit of resume: one that is stored whole is skipped, one that is not is made again whole, and what is
stored of it already is not stored twice. Shards sample beside each other, each into a segment of its own; a run without
a shard makes what they left out and seals all segments into one table, the same as if there had been no shards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill import engines, files, progress, prompts, recipe, teachers
from potstill.encoding import to_json
from potstill.files import segments, tables
from potstill.files.segments import WHOLE, Shard
from potstill.questions import collected
from potstill.recipe import Recipe

READS = ("teacher", "seed")
AFTER = ("collect",)
VERSIONS = {"prompts": prompts.VERSION, "engines": engines.VERSION, "teachers": teachers.VERSION}


def inputs(plan: Recipe) -> dict[str, str]:
    named = {
        "teacher.model": plan.teacher.model,
        "teacher.score.model": plan.teacher.score.model if plan.teacher.score else None,
        "teacher.chains": plan.teacher.chains,
        "teacher.prompt": plan.teacher.prompt,
    }
    return {key: files.fingerprint(recipe.find(plan, path, key)) for key, path in named.items() if path is not None}


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    folder = run / "sample"
    sealed = folder / "chains.parquet"
    if not sealed.exists():
        before = _said(segments.paths(folder))
        stored = gather(run, plan)
        if before:
            progress.say(f"{stored} chains were missing in them; sealed into {sealed.name}")
        tables.write_chains(sealed, segments.merged(folder))
    for segment in segments.paths(folder):
        files.remove(segment)
    return [sealed], tables.chain_counts(sealed)


def gather(run: Path, plan: Recipe, shard: Shard = WHOLE) -> int:
    """Sample what is not stored of a shard, into its segment. How many chains this call stored."""
    folder = run / "sample"
    asked = collected.questions(run, plan.questions.train, "train")
    with files.Appender(folder / segments.name(shard)) as lines:
        done = segments.keys(segments.paths(folder))
        before = len(done)
        own = before if shard == WHOLE else len(segments.keys([folder / segments.name(shard)]))
        total = len(asked) * plan.teacher.samples // shard.count
        with progress.bar("sample" if shard == WHOLE else f"shard {shard}", total, "chains", done=own) as tick:
            for batch in teachers.chains(plan, asked, done, known=collected.others(run), shard=shard):
                new = [chain for chain in batch if done.add(chain.key)]
                lines.append(to_json(chain) for chain in new)
                tick(len(new))
    return len(done) - before


def _said(paths: list[Path]) -> bool:
    """Tell what shards have left, if they have."""
    left = [path for path in paths if path.name != segments.name(WHOLE)]
    for path in left:
        progress.say(f"{path.stem}: {len(segments.keys([path]))} chains", "dim")
    return bool(left)
