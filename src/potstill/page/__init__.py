"""The page of a run: one self-contained HTML text and its tables as CSV. The only module that knows jinja2.

    >>> story = Story("demo", student="tiny", teacher="local", groups={}, recipe="seed: 1")
    >>> sentence(story)
    'Nothing was compared: the run has no scores on the test split.'
    >>> html = render(story, figures={})
    >>> html.startswith("<!doctype html>"), "seed: 1" in html, "loss.csv" in html
    (True, True, False)

Texts of models, data and users are data: jinja escapes every value, the page has no script (its filters are style
rules over radio buttons), and its Content-Security-Policy allows none. The same story gives the same bytes. `render`
links each table as `<name>.csv` beside the page, and the files of `measured`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import groupby
from typing import Any, Final

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from potstill.contenders import BASE, Contender
from potstill.page.sentences import controls_sentence, count, duration, label, percent, sentence
from potstill.page.spreadsheet import tables, times_csv
from potstill.page.tokens import SHADES, pieces
from potstill.records import Score, Tries
from potstill.story import (
    GROUPS,
    OUTCOMES,
    Comparison,
    Group,
    Sample,
    Speed,
    Story,
    Time,
    changes,
    checkpoints,
    lines,
    main_comparisons,
    main_format,
    outcome,
    points,
    trained,
    visible,
)

__all__ = ["controls_sentence", "count", "label", "measured", "percent", "render", "sentence", "tables"]

VERSION: Final = 5  # of what the page and its tables show; stored by the stage that writes them
SECTIONS: Final = (
    ("before-after", "Before and after"),
    ("tradeoff", "Gained and lost"),
    ("training", "Through training"),
    ("selection", "Selection"),
    ("teacher", "Teacher and filter"),
    ("alignment", "Alignment"),
    ("cost", "What it took"),
    ("read", "Questions to read"),
    ("made", "How it was made"),
)


def render(story: Story, figures: Mapping[str, str]) -> str:
    """The page as HTML text. `figures` are those of `plots.draw`, trusted markup; a missing one is left out."""
    browsed = _browsed(story)
    html = _template("page.html.jinja").render(
        story=story,
        css=Markup(_own("page.css")),
        figures={name: Markup(svg) for name, svg in figures.items()},
        sections=SECTIONS,
        sentence=sentence(story),
        controls=controls_sentence(story),
        changes=changes(story),
        checkpoints=checkpoints(story),
        lines=lines(story),
        main=main_comparisons(story),
        formats=_formats(story),
        tried=_tried(story),
        trained=trained(story),
        mixed=any(row.contender.share != 1 for row in checkpoints(story)),
        repaired=any(row.contender.repaired for row in checkpoints(story)),
        unfinite=sum(not math.isfinite(loss) for _, loss in story.losses),
        groups=GROUPS,
        costs=[(stage, list(rows)) for stage, rows in groupby(story.costs, lambda cost: cost.stage)],
        browsed=browsed,
        opened=_opened(story.samples),
        kinds=_kinds([kind for _, kind, _ in browsed]),
        shaded=any(piece.shade for _, _, chains in browsed for _, _, cut in chains for piece in cut),
        shades=[f"under {100 * bound:.0f}\N{NO-BREAK SPACE}%" for bound in SHADES],
        tables=tables(story),
    )
    return _shown(html)


def measured(story: Story, times: Sequence[Time], speed: Speed | None = None) -> dict[str, str]:
    """File name -> text of what depends on the machine: a page and a table of seconds and memory."""
    html = _template("time.html.jinja").render(story=story, css=Markup(_own("page.css")), times=times, speed=speed)
    return {"time.html": _shown(html), "time.csv": times_csv(times)}


def _shown(html: str) -> str:
    """Once, over everything: no control or direction character of any text reaches the reader unseen."""
    return visible(html).strip() + "\n"


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=FunctionLoader(_own), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters.update(percent=percent, points=points, count=count, duration=duration, label=label)
    return made


def _template(name: str) -> Any:
    return _environment().get_template(name)


def _own(name: str) -> str:
    return resources.files("potstill.page").joinpath(name).read_text("utf-8")


def _browsed(story: Story) -> list[tuple[Any, str, list[tuple[Any, Any, Any]]]]:
    """Every sample with its kind (a class of the page's style) and its chains cut into pieces."""
    return [
        (
            sample,
            (outcome(sample.before, sample.after) or "taught").replace(" ", "-"),
            [(chain, verdict, pieces(chain)) for chain, verdict in sample.chains],
        )
        for sample in story.samples
    ]


def _opened(samples: Sequence[Sample]) -> int:
    """Which question stands open at first: one whose chains are not all of one mind, else the first."""
    graded = [{verdict.grade for _, verdict in sample.chains} for sample in samples]
    return next((at for at, grades in enumerate(graded) if len(grades) > 1), 0)


def _kinds(found: Sequence[str]) -> list[tuple[str, str, int]]:
    """The choices of the filter: id, name, number; those of which there is none are left out."""
    names = [("taught", "teacher’s chains")] + [(kind.replace(" ", "-"), kind) for kind in OUTCOMES]
    counted = [(kind, name, found.count(kind)) for kind, name in names]
    return [("all", "all", len(found)), *(each for each in counted if each[2])]


Counted = tuple[str, Score, Comparison | None]


def _formats(story: Story) -> list[tuple[str, str, bool, list[tuple[Group, list[list[Counted]]]]]]:
    """Every count by format and decoding, the main one first and with the controls: by group and set, a row a student.

    The third value says whether any set of them consists of several tasks.
    """
    keys = list(dict.fromkeys((each.chosen.format, each.chosen.decoding) for each in story.comparisons))
    found = []
    for key in sorted(keys, key=lambda key: key != main_format(story)):
        parts: list[tuple[Group, list[list[Counted]]]] = []
        for group in GROUPS:
            own = [
                _counted(story, each, key == main_format(story))
                for each in story.comparisons
                if (each.chosen.format, each.chosen.decoding) == key and story.groups[each.chosen.set] == group
            ]
            if own:
                parts.append((group, own))
        tasks = any(score.macro is not None for _, sets in parts for rows in sets for _, score, _ in rows)
        found.append((*key, tasks, parts))
    return found


def _tried(story: Story) -> list[tuple[str, str, list[tuple[str, str, int, list[Tries]]]]]:
    """Of every format and drawing the rows by set, student and number of samples (1, 2, 4, ... and all of them), each
    with a cell for the vote, the likeliest, and any right one."""
    found: dict[tuple[str, str], dict[tuple[str, Contender, int], list[Tries]]] = {}
    for each in story.tries:
        rows = found.setdefault((each.format, each.drawing), {})
        rows.setdefault((each.set, each.contender, each.k), []).append(each)
    told = []
    for (format, drawing), rows in found.items():
        most = max(k for _, _, k in rows)
        shown = {key: cells for key, cells in rows.items() if key[2] & (key[2] - 1) == 0 or key[2] == most}
        order = [name for group in GROUPS for name in story.groups if story.groups[name] == group]
        keys = sorted(shown, key=lambda key: (order.index(key[0]), *key[1:]))
        told.append((format, drawing, [(key[0], _student(key[1]), key[2], shown[key]) for key in keys]))
    return told


def _student(who: Contender) -> str:
    return "base" if who == BASE else f"step {who.label}"


def _counted(story: Story, row: Comparison, main: bool) -> list[Counted]:
    """The rows of one set: base, chosen checkpoint, and the controls where they are compared with."""
    rows: list[Counted] = [("base", row.base, None)]
    if trained(story):
        rows.append((_student(row.chosen.contender), row.chosen, row))
        for control in story.controls if main else ():
            rows += [
                (control.taught, each.chosen, each) for each in control.comparisons if each.chosen.set == row.chosen.set
            ]
    return rows
