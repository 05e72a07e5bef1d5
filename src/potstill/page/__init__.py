"""The page of a run: one self-contained HTML text and its tables as CSV. The only module that knows jinja2.

    >>> story = Story("demo", student="tiny", teacher="local", groups={}, recipe="seed: 1")
    >>> sentence(story)
    'Nothing was compared: the run has no scores on the test split.'
    >>> html = render(story, figures={})
    >>> html.startswith("<!doctype html>"), "seed: 1" in html, "loss.csv" in html
    (True, True, False)

Texts of models, data and users are data: jinja escapes every value, the page has no script, and its
Content-Security-Policy allows none. The same story gives the same bytes. `render` links each table as `<name>.csv`
beside the page.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from importlib import resources
from typing import Final

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from potstill.page.spreadsheet import tables
from potstill.story import (
    GROUPS,
    Change,
    Comparison,
    Group,
    Interval,
    Sample,
    Story,
    changes,
    checkpoints,
    main_format,
    points,
    trained,
    visible,
)

__all__ = ["count", "outcome", "percent", "render", "sentence", "tables"]

VERSION: Final = 1  # of what the page and its tables show; stored by the stage that writes them


def render(story: Story, figures: Mapping[str, str]) -> str:
    """The page as HTML text. `figures` are those of `plots.draw`, trusted markup; a missing one is left out."""
    html = _template().render(
        story=story,
        css=Markup(_own("page.css")),
        figures={name: Markup(svg) for name, svg in figures.items()},
        sentence=sentence(story),
        changes=changes(story),
        checkpoints=checkpoints(story),
        formats=_formats(story),
        trained=trained(story),
        unfinite=sum(not math.isfinite(loss) for _, loss in story.losses),
        groups=GROUPS,
        outcome=outcome,
        tables=tables(story),
    )
    # Once, over everything: no control or direction character of any text reaches the reader unseen.
    return visible(html).strip() + "\n"


def sentence(story: Story) -> str:
    """The run in one sentence: base against chosen on the test split, group by group, with paired 95 % intervals."""
    found = changes(story)
    if not found:
        return "Nothing was compared: the run has no scores on the test split."
    if story.choice and story.choice.step == 0:
        scores = ", ".join(
            f"{percent(each.base)} {_place(each)} ({_sets(each)}; 95\xa0% interval {_bounds(each.base)})"
            for each in found
        )
        return f"The rule chose step 0, the student before training; its accuracy on the test split: {scores}."
    parts = [
        f"from {percent(each.base)} to {percent(each.chosen)} {_place(each)} ({_sets(each)}; "
        f"{points(each.difference.value)} points, "
        f"95\xa0% interval {points(each.difference.low)} to {points(each.difference.high)})"
        for each in found
    ]
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"
    step = f"After {count(story.choice.step)} training steps" if story.choice else "After training"
    return f"{step}, accuracy on the test split went {listed}."


def outcome(sample: Sample) -> str:
    """What training changed about one question: won, lost, right or wrong both times; empty without two answers."""
    if sample.before is None or sample.after is None:
        return ""
    was, now = sample.before.grade == "right", sample.after.grade == "right"
    return ("still right" if now else "lost") if was else ("won" if now else "still not right")


def percent(share: float | Interval) -> str:
    """A share as a percentage.

    >>> percent(0.125)
    '12.5\\xa0%'
    """
    return f"{100 * _value(share):.1f}\N{NO-BREAK SPACE}%"


def count(number: int) -> str:
    """An integer with its thousands set apart."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") if abs(number) > 9999 else str(number)


@functools.cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=percent, points=points, count=count)
    return environment.from_string(_own("page.html.jinja"))


def _own(name: str) -> str:
    return resources.files("potstill.page").joinpath(name).read_text("utf-8")


def _value(number: float | Interval) -> float:
    return number.value if isinstance(number, Interval) else number


def _bounds(shown: Interval) -> str:
    return f"{percent(shown.low)} to {percent(shown.high)}"


def _place(change: Change) -> str:
    return "on generic tasks" if change.group == "generic" else change.group


def _sets(change: Change) -> str:
    return change.sets[0] if len(change.sets) == 1 else f"mean of {len(change.sets)} sets"


def _formats(story: Story) -> list[tuple[str, str, list[tuple[Group, list[Comparison]]]]]:
    """Comparisons by format and decoding, the main one first, and by group in each."""
    keys = list(dict.fromkeys((each.chosen.format, each.chosen.decoding) for each in story.comparisons))
    found = []
    for key in sorted(keys, key=lambda key: key != main_format(story)):
        mine = [each for each in story.comparisons if (each.chosen.format, each.chosen.decoding) == key]
        by_group = [(group, [each for each in mine if story.groups[each.chosen.set] == group]) for group in GROUPS]
        found.append((*key, [(group, rows) for group, rows in by_group if rows]))
    return found
