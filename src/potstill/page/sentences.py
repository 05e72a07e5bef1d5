"""What the page says in words: the run in one sentence, its controls in another, numbers as text.

>>> percent(0.125), count(12345), duration(272)
('12.5\\xa0%', '12\\u202f345', '4 min 32 s')
"""

from __future__ import annotations

from collections.abc import Sequence

from potstill.contenders import BASE, Contender
from potstill.story import Change, Interval, Line, Story, changes, lines, points

PLACES = {
    "in-distribution": "in-distribution",
    "out-of-distribution": "out-of-distribution",
    "generic": "on generic tasks",
}


def sentence(story: Story) -> str:
    """The run in one sentence: base against chosen on the test split, group by group, with paired 95 % intervals."""
    found = changes(story)
    if not found:
        return "Nothing was compared: the run has no scores on the test split."
    if story.choice and story.choice.contender == BASE:
        scores = ", ".join(
            f"{percent(each.base)} {PLACES[each.group]} ({_sets(each)}; 95\xa0% interval {_bounds(each.base)})"
            for each in found
        )
        return f"The rule chose step 0, the student before training; its accuracy on the test split: {scores}."
    parts = [
        f"from {percent(each.base)} to {percent(each.chosen)} {PLACES[each.group]} ({_sets(each)}; "
        f"{points(each.difference.value)} points, "
        f"95\xa0% interval {points(each.difference.low)} to {points(each.difference.high)})"
        for each in found
    ]
    step = f"After {_steps(story.choice.contender)}" if story.choice else "After training"
    return f"{step}, accuracy on the test split went {_listed(parts)}."


def controls_sentence(story: Story) -> str:
    """What the controls reached from the same base on the same items; empty without controls."""
    shown = lines(story)[2:]
    if not shown:
        return ""
    steps = {each.name: each.steps for each in story.controls}
    parts = [f"{count(steps[each.name])} steps on {each.taught} reached {_reached(each)}" for each in shown]
    return f"For comparison, from the same base, each with one seed: {'; '.join(parts)}."


def percent(share: float | Interval) -> str:
    """A share as a percentage."""
    return f"{100 * (share.value if isinstance(share, Interval) else share):.1f}\N{NO-BREAK SPACE}%"


def count(number: int) -> str:
    """An integer with its thousands set apart."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") if abs(number) > 9999 else str(number)


def label(who: Contender) -> str:
    """A contender in a table or beside a word: its step, its share where it is a mix, and its steps of repair.

    >>> label(Contender(350)), label(Contender(350, 0.3))
    ('350', '350 × 0.3')
    """
    return f"{count(who.step)}{who.further}"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def _reached(line: Line) -> str:
    return _listed([f"{percent(cell.accuracy)} {PLACES[group]}" for group, cell in line.groups.items()])


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"


def _bounds(shown: Interval) -> str:
    return f"{percent(shown.low)} to {percent(shown.high)}"


def _steps(who: Contender) -> str:
    steps = f"{count(who.step)} training steps"
    return steps if who.share == 1 else f"{steps}, {percent(who.share)} of what they changed"


def _sets(change: Change) -> str:
    return change.sets[0] if len(change.sets) == 1 else f"mean of {len(change.sets)} sets"
