"""report: the page with its tables, and the chosen student as a folder that any Hugging Face tool loads.

Everything that it shows is what `account` reads from the run's files, and from those of its controls beside it.
`time.html` and `time.csv` are not among the outputs: they hold what the machine measured, which no digest covers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill import account, answers, card, exam, files, intervals, page, plots, splits
from potstill.recipe import Recipe

READS = ("report", "name", "seed", "questions", "transfer.least_mass")
AFTER = (*account.STAGES, "repair")
VERSIONS = {
    "answers": answers.VERSION,
    "exam": exam.VERSION,
    "intervals": intervals.VERSION,
    "page": page.VERSION,
    "splits": splits.VERSION,
}


def beside(run: Path, plan: Recipe) -> dict[str, str]:
    return account.controls.inputs(run, plan)


def free(plan: Recipe) -> tuple[str, ...]:
    """A run that was renamed: its page and its card are written again (see `grown`), nothing else is."""
    return ("name",)


def grown(counts: dict[str, Any], plan: Recipe) -> bool:
    return counts["name"] != plan.name


def unread(run: Path, plan: Recipe) -> tuple[str, ...]:
    return exam.unread(run, plan)


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    told = account.tell(run, plan)
    paths = [run / "report" / "index.html"]
    files.write(paths[0], page.render(told, plots.draw(told)).encode("utf-8"))
    for name, text in page.tables(told).items():
        paths.append(run / "report" / f"{name}.csv")
        files.write(paths[-1], text.encode("utf-8"))
    for name, text in page.measured(told, account.counts.times(run), account.counts.speed(run)).items():
        files.write(run / "report" / name, text.encode("utf-8"))
    assert told.choice is not None, "report comes after select"
    with files.folder(run / "student") as inside:
        exam.open_contender(run, plan, told.choice.contender).save(inside)
        files.write(inside / "README.md", card.text(told).encode("utf-8"))
    paths += [path for path in (run / "student").iterdir() if path.is_file()]
    return paths, {"step": told.choice.contender.written, "files": len(paths), "name": plan.name}
