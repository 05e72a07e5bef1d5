"""Figures as inline SVG: pure functions from plain data to text. The only room that knows matplotlib.

    >>> svg = losses([(1, 2.5), (2, 1.5), (3, 1.25)], chosen=2, width=380)
    >>> svg.startswith('<svg class="figure"'), losses([(1, 2.5), (2, 1.5), (3, 1.25)], chosen=2, width=380) == svg
    (True, True)

The same data give the same bytes: no date, salted ids, the font that matplotlib ships for measuring. Text stays text,
in the page's own font. `width` is in CSS pixels; no letter is smaller than 11 at that width, which is why the page gets
every figure in two widths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from matplotlib import rc_context
from matplotlib.ticker import MaxNLocator

from potstill.contenders import Contender
from potstill.plots import canvas, chains
from potstill.plots.canvas import (
    HUE,
    INK,
    MARKER,
    PAPER,
    RULE,
    SIZE,
    SMALL,
    SOFT,
    STYLE,
    label,
    percent_axis,
    step_axis,
)
from potstill.plots.labels import name_points
from potstill.story import (
    Checkpoint,
    Comparison,
    Control,
    Group,
    Interval,
    Story,
    checkpoints,
    main_comparisons,
    points,
    trained,
)

WIDE, NARROW = 960, 380
GLYPHS, CONTROLS = "▽△◁▷", "v^<>"  # how a control is marked, in words and by matplotlib
SPECIALIZED: Final[tuple[Group, ...]] = ("in-distribution", "out-of-distribution")


def draw(story: Story) -> dict[str, str]:
    """Every figure that the story has data for: `name` for a wide page and `name-narrow` for a phone."""
    found: dict[str, str] = {}
    steps, best = checkpoints(story), story.choice.contender if story.choice else None
    pure, chosen = [row for row in steps if row.contender.pure], best.step if best else None
    mine = main_comparisons(story)
    for suffix, width in (("", WIDE), ("-narrow", NARROW)):
        if mine and trained(story):
            found["before-after" + suffix] = before_after(mine, story.groups, story.controls, width=width)
        if _two_sided(steps):
            found["tradeoff" + suffix] = tradeoff(steps, best, width=width)
        if len(pure) > 1:
            found["accuracy" + suffix] = curve(pure, story.groups, chosen, width=width)
        if sum(math.isfinite(loss) for _, loss in story.losses) > 1:
            found["loss" + suffix] = losses(story.losses, chosen, width=width)
        if story.pictured:
            [(chain, _)] = story.pictured.chains
            found["probabilities" + suffix] = chains.probabilities(chain, width=width)
            found["candidates" + suffix] = chains.candidates(chain, width=width)
    return found


@rc_context(STYLE)
def before_after(
    rows: Sequence[Comparison], groups: Mapping[str, Group], controls: Sequence[Control] = (), *, width: int = WIDE
) -> str:
    """A row per set: base (hollow), controls (grey) and chosen (filled) with intervals, and the difference in words."""
    rows = sorted(rows, key=lambda row: list(HUE).index(groups[row.base.set]))
    narrow = width < 600
    gap = 9.0 if narrow else 10.0  # between the lines of one set
    own = gap * (len(controls) + 1)
    key = [
        "hollow: base, filled: chosen",
        *(f"{GLYPHS[at % 4]} {label(c.taught, 40)}" for at, c in enumerate(controls)),
    ]
    keys = key if narrow else [",  ".join(key)]
    pitch, top, bottom = own + (44 if narrow else 32), 12 + 17 * len(keys) + (17 if narrow else 0), 34
    left, right = (10, 16) if narrow else (160, 225)
    figure = canvas.figure(width, height := top + pitch * len(rows) + bottom)
    axes = canvas.axes(figure, left, bottom, width - left - right, height - top - bottom)
    theirs = [{each.chosen.set: each.chosen for each in control.comparisons} for control in controls]
    shown = [[row.base, *(each[row.base.set] for each in theirs), row.chosen] for row in rows]
    limit = percent_axis(axes, "x", [score.high for scores in shown for score in scores])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    for at, (row, scores) in enumerate(zip(rows, shown, strict=True)):
        colour, marker = HUE[groups[row.base.set]], MARKER[groups[row.base.set]]
        for number, score in enumerate(scores):
            up = at + (number * gap - own / 2 + (10 if narrow else 0)) / pitch
            control = 0 < number < len(scores) - 1
            hue = SOFT if control else colour
            axes.hlines(up, score.low, score.high, color=hue, linewidth=2, alpha=0.55)
            dot = {"color": hue, "markerfacecolor": colour if number == len(scores) - 1 else PAPER, "clip_on": False}
            shape, size = (CONTROLS[(number - 1) % 4], 6.5) if control else (marker, 8)
            axes.plot(score.accuracy, up, shape, markersize=size, **dot)
        name, change = label(row.base.set, 22), signed(row.difference)
        above = at - (own / 2 + 8) / pitch
        if narrow:
            axes.text(0, above, name, ha="left", va="center", weight="bold")
            axes.text(limit, above, change, ha="right", va="center", color=SOFT, size=SMALL)
        else:
            axes.text(-0.02 * limit, at, name, ha="right", va="center", weight="bold", clip_on=False)
            axes.text(1.03 * limit, at, change, ha="left", va="center", color=SOFT, clip_on=False)
        if at and groups[rows[at - 1].base.set] != groups[row.base.set]:
            across = width - left - right
            axes.axhline(at - 0.5, color=RULE, linewidth=1, xmin=-left / across, xmax=1 + right / across, clip_on=False)
    for line, text in enumerate([*keys, "change in points (95 % interval)"] if narrow else keys):
        figure.text(left / width, 1 - (12 + 17 * line) / height, text, ha="left", va="center", color=SOFT, size=SMALL)
    if not narrow:
        end = (left + 1.03 * (width - left - right)) / width
        heading = {"ha": "left", "va": "center", "color": SOFT, "size": SMALL}
        figure.text(end, 1 - 12 / height, "change in points (95 % interval)", **heading)
    return canvas.svg(figure, "before-after", "Accuracy on the test split, base and chosen, with 95 % intervals.")


@rc_context(STYLE)
def tradeoff(rows: Sequence[Checkpoint], chosen: Contender | None, *, width: int = WIDE) -> str:
    """Specialized accuracy against generic accuracy through training: a panel for each specialized group."""
    shown: list[Group] = [group for group in SPECIALIZED if any(group in row.groups for row in rows)]
    narrow = width < 600
    columns, panel = (1, 300) if narrow else (len(shown), 330)
    lines = len(shown) if narrow else 1
    left, right, top, bottom, gap = 56, 14, 34, 52, 44
    each = (width - left - right - gap * (columns - 1)) / columns
    figure = canvas.figure(width, lines * panel)
    values = [bound for row in rows for value in row.groups.values() for bound in (value.low, value.high)]
    for at, group in enumerate(shown):
        start, below = (left, (lines - 1 - at) * panel) if narrow else (left + at * (each + gap), 0)
        axes = canvas.axes(figure, start, below + bottom, each, panel - top - bottom)
        both = [row for row in rows if {"generic", group} <= set(row.groups)]
        dots = [(row.contender, row.groups["generic"], row.groups[group]) for row in both]
        path = [(x.value, y.value) for who, x, y in dots if who.pure]
        hue = HUE[group]
        percent_axis(axes, "x", values)
        percent_axis(axes, "y", values)
        axes.set_title(f"{group} accuracy", loc="left", size=SIZE, weight="bold", color=hue, pad=12)
        axes.set_xlabel("generic accuracy", color=SOFT, labelpad=8)
        axes.plot([x for x, _ in path], [y for _, y in path], color=hue, alpha=0.45)
        for who, x, y in dots:
            axes.hlines(y.value, x.low, x.high, color=hue, linewidth=1.2, alpha=0.3)
            axes.vlines(x.value, y.low, y.high, color=hue, linewidth=1.2, alpha=0.3)
            face, size = (hue, 10) if who == chosen else (PAPER, 7 if who.pure else 5)
            axes.plot(x.value, y.value, MARKER[group], color=hue, markerfacecolor=face, markersize=size)
        name_points(axes, dots, chosen)
    return canvas.svg(figure, "tradeoff", "Validation: specialized accuracy against generic, one point a checkpoint.")


@rc_context(STYLE)
def curve(rows: Sequence[Checkpoint], groups: Mapping[str, Group], chosen: int | None, *, width: int = WIDE) -> str:
    """Accuracy by step with its interval: a panel for each set, all on the same axes."""
    names = sorted({name for row in rows for name in row.sets}, key=list(groups).index)
    names = sorted(names, key=lambda name: list(HUE).index(groups[name]))
    most = 2 if width < 600 else 4
    lines = -(-len(names) // most)
    columns = -(-len(names) // lines)
    left, right, gap, head, foot, panel = 46, 14, 30, 30, 26, 170
    each = (width - left - right - gap * (columns - 1)) / columns
    figure = canvas.figure(width, height := lines * panel + 18)
    values = [bound for row in rows for value in row.sets.values() for bound in (value.low, value.high)]
    for at, name in enumerate(names):
        line, column = divmod(at, columns)
        start, below = left + column * (each + gap), height - (line + 1) * panel + foot
        axes = canvas.axes(figure, start, below, each, panel - head - foot)
        dots = [(row.contender.step, row.sets[name]) for row in rows if name in row.sets]
        percent_axis(axes, "y", values, ticks=4)
        step_axis(axes, [row.contender.step for row in rows], chosen)
        if column:
            axes.tick_params(labelleft=False)
        colour, marker = HUE[groups[name]], MARKER[groups[name]]
        steps, lows, highs = [step for step, _ in dots], [y.low for _, y in dots], [y.high for _, y in dots]
        axes.fill_between(steps, lows, highs, color=colour, alpha=0.16, linewidth=0)
        axes.plot(steps, [y.value for _, y in dots], color=colour, marker=marker, markersize=4.5, clip_on=False)
        axes.set_title(label(name, 22), loc="left", size=SIZE, weight="bold", color=colour, pad=8)
    figure.text(left / width, 6 / height, "step", ha="left", va="bottom", color=SOFT, size=SMALL)
    return canvas.svg(figure, "accuracy", "Validation accuracy of every set by training step, with 95 % intervals.")


@rc_context(STYLE)
def losses(rows: Sequence[tuple[int, float]], chosen: int | None, *, width: int = WIDE) -> str:
    """Training loss by step (faint) and its centred mean over a twentieth of the steps; finite losses only."""
    rows = _thin([row for row in rows if math.isfinite(row[1])], 480)
    steps, values = [step for step, _ in rows], [value for _, value in rows]
    window = max(1, len(rows) // 20)
    runs = [values[max(0, at - window // 2) : at + window // 2 + 1] for at in range(len(values))]
    smooth = [sum(run) / len(run) for run in runs]
    figure = canvas.figure(width, 250)
    axes = canvas.axes(figure, 46, 46, width - 58, 250 - 62)
    axes.grid(axis="y", color=RULE, linewidth=1)
    if window > 1:
        axes.plot(steps, values, color=INK, alpha=0.28, linewidth=1)
    axes.plot(steps, smooth, color=INK, linewidth=2)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.set_ylim(min(0.0, *values), 1.05 * max(0.01, *values))
    step_axis(axes, steps, chosen)
    axes.set_xlabel("step", color=SOFT, loc="left")
    return canvas.svg(figure, "loss", "Training loss by step.")


def signed(change: Interval) -> str:
    """A difference of shares in points, with its bounds."""
    return f"{points(change.value)} ({points(change.low)} to {points(change.high)})"


def _two_sided(rows: Sequence[Checkpoint]) -> bool:
    """Whether there is something to set against something: two steps with a generic and a specialized accuracy."""
    return len([row for row in rows if "generic" in row.groups and set(SPECIALIZED) & set(row.groups)]) > 1


def _thin(rows: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """At most `most` rows: the means of equal runs of steps."""
    size = -(-len(rows) // most)
    runs = [rows[at : at + size] for at in range(0, len(rows), size)]
    return [(run[-1][0], sum(value for _, value in run) / len(run)) for run in runs]
