"""Draws the figures of a study's page: as SVG for the page, and as SVG and PNG files for papers.

    drawn = draw_experiment(view, prefix="rules-")
    drawn.inline["tradeoff"], drawn.inline["tradeoff-narrow"]           # in the colours of the page, light and dark
    drawn.files["rules-tradeoff.svg"], drawn.files["rules-tradeoff.png"]    # on white, in plain colours

A colour and a marker stand for a group, in all figures of an experiment. The base is grey and hollow.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from potstill.report import canvas
from potstill.report.canvas import (
    DASHED,
    INK,
    MATPLOTLIB_STYLE,
    NARROW,
    PAPER,
    RULE,
    SIZE,
    SMALL,
    SOFT,
    WIDE,
    percent_axis,
    shorten,
    step_axis,
)
from potstill.report.model import SET_GROUPS, SetGroup
from potstill.report.study_model import ExperimentView, FormatMatrix, Scaling
from potstill.report.study_numbers import mean_path
from potstill.report.summary import percent_number

COLOURS: Final = (canvas.INSIDE, canvas.OUTSIDE, canvas.GENERIC, canvas.GOOD, canvas.BAD, canvas.HEAT, INK)
MARKERS: Final = "osD^vPX"
LINE_HEIGHT: Final = 19  # of a line of the key
LONGEST_LABEL: Final = 60  # characters of a group's name
MAX_POINTS: Final = 240  # of a line of losses; each is the mean over several steps


@dataclass(frozen=True, slots=True)
class Drawn:
    """The figures of an experiment.

    inline  `name` and `name-narrow` -> SVG element for the page
    files   file name -> SVG text or PNG bytes
    """

    inline: Mapping[str, str]
    files: Mapping[str, str | bytes]


def draw_experiment(view: ExperimentView, prefix: str) -> Drawn:
    """Every figure for which the experiment has data. prefix: of the names of the files, and of the ids in the SVG"""
    labels = [group.label for group in view.groups]
    drawings: dict[str, tuple[Callable[..., Figure], str]] = {}
    if view.tradeoff:
        text = "Validation: specialized accuracy against generic accuracy, a line for each run."
        drawings["tradeoff"] = (partial(draw_tradeoff, view), text)
    if view.front:
        text = "Test: specialized accuracy against generic accuracy, a point for each group."
        drawings["retention"] = (partial(draw_retention, view), text)
    if view.scaling:
        text = "Test accuracy by number of parameters, on a logarithmic axis."
        drawings["scaling"] = (partial(draw_scaling, view.scaling), text)
    if view.matrices:
        text = "Test accuracy by the formats of training and the format of the question."
        drawings["formats"] = (partial(draw_matrices, view.matrices), text)
    if view.losses:
        drawings["loss"] = (partial(draw_losses, view, labels), "Training loss by step, a line for each run.")
    inline: dict[str, str] = {}
    files: dict[str, str | bytes] = {}
    with rc_context(MATPLOTLIB_STYLE):
        for name, (draw, description) in drawings.items():
            wide, narrow = draw(width=WIDE), draw(width=NARROW)
            inline[name] = canvas.to_svg(wide, f"{prefix}{name}", description)
            inline[f"{name}-narrow"] = canvas.to_svg(narrow, f"{prefix}{name}", description)
            files[f"{prefix}{name}.svg"] = canvas.to_svg_file(inline[name])
            files[f"{prefix}{name}.png"] = canvas.to_png(wide)
    return Drawn(inline, files)


def draw_tradeoff(view: ExperimentView, *, width: int = WIDE) -> Figure:
    """Specialized against generic validation accuracy: a thin line for each run, a strong line for the mean of a group
    with several runs, filled markers for the chosen checkpoints, and a dashed line for the Pareto front."""
    keys = [*_group_keys(view), *FRONT_KEYS]
    figure, panels = _panels(list(dict.fromkeys(point.kind for point in view.tradeoff)), keys, width)
    limits = [point.generic for point in view.tradeoff], [point.specialized for point in view.tradeoff]
    for kind, axes in panels:
        of_kind = [point for point in view.tradeoff if point.kind == kind]
        _plane(axes, kind, *limits)
        _front_line(axes, [(point.generic, point.specialized) for point in of_kind if point.is_front])
        for index, group in enumerate(view.groups):
            points = [point for point in of_kind if point.group == index]
            colour, marker = _look(index)
            several = len(group.runs) > 1
            for run in group.runs:
                own = [point for point in points if point.run == run.name]
                path = [(point.generic, point.specialized) for point in own if point.checkpoint.is_plain]
                strength = {"alpha": 0.4 if several else 0.9, "linewidth": 1.0 if several else 1.8}
                _line(axes, path, colour, **strength)
                mixed = [(point.generic, point.specialized) for point in own if not point.checkpoint.is_plain]
                _dots(axes, mixed, marker, colour, PAPER, 4, 0.5)
                _dots(axes, path[1:], marker, colour, PAPER, 4.5, 0.5 if several else 0.9)
                _dots(axes, path[:1], "o", SOFT, PAPER, 7)
                chosen = [(point.generic, point.specialized) for point in own if point.is_chosen]
                _dots(axes, chosen, marker, colour, colour, 9)
            if several:
                _line(axes, mean_path(points), colour, linewidth=2.6)
    return figure


def draw_retention(view: ExperimentView, *, width: int = WIDE) -> Figure:
    """Specialized against generic test accuracy: a point with intervals for each group and base, and the Pareto front."""
    keys = [*_group_keys(view), ("o", SOFT, PAPER, "base"), ("--", SOFT, PAPER, "Pareto front")]
    figure, panels = _panels(list(dict.fromkeys(point.kind for point in view.front)), keys, width)
    limits = [point.generic.high for point in view.front], [point.specialized.high for point in view.front]
    for kind, axes in panels:
        of_kind = [point for point in view.front if point.kind == kind]
        _plane(axes, kind, *limits)
        _front_line(axes, [(point.generic.share, point.specialized.share) for point in of_kind if point.is_front])
        for point in of_kind:
            colour, marker = (SOFT, "o") if point.group is None else _look(point.group)
            x, y = point.generic, point.specialized
            axes.hlines(y.share, x.low, x.high, color=colour, linewidth=1.6, alpha=0.5, clip_on=False)
            axes.vlines(x.share, y.low, y.high, color=colour, linewidth=1.6, alpha=0.5, clip_on=False)
            face = PAPER if point.group is None else colour
            _dots(axes, [(x.share, y.share)], marker, colour, face, 8.5)
    return figure


def draw_scaling(curves: Sequence[Scaling], *, width: int = WIDE) -> Figure:
    """Test accuracy with intervals by number of parameters: specialized students (filled, with the band of the line) and
    their bases (grey, hollow), with the line of each."""
    labels = list(dict.fromkeys(curve.label for curve in curves))
    keys: list[tuple[str, str, str, str]] = []
    for index, label in enumerate(labels):
        colour, marker = _look(index)
        keys.append((marker, colour, colour, f"specialized{f', {label}' if label else ''}"))
    keys.append(("o", SOFT, PAPER, "base"))
    kinds: list[SetGroup] = [kind for kind in SET_GROUPS if any(curve.kind == kind for curve in curves)]
    figure, panels = _panels(kinds, keys, width)
    values = [score.high for curve in curves for _, _, score in curve.points]
    numbers = [number for curve in curves for number, _, _ in curve.points]
    for kind, axes in panels:
        axes.set_title(f"{kind} accuracy", loc="left", size=SIZE, weight="bold", pad=12)
        axes.set_xlabel("parameters", color=SOFT, labelpad=8)
        axes.set_xscale("log")
        axes.set_xlim(min(numbers) / 1.25, max(numbers) * 1.25)
        percent_axis(axes, "y", values)
        ticks = _size_ticks(sorted(set(numbers)), 4)
        axes.set_xticks(ticks, [format_parameters(number) for number in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        for curve in (curve for curve in curves if curve.kind == kind):
            colour, marker = (SOFT, "o") if curve.who == "base" else _look(labels.index(curve.label))
            steps = [10**at for at, *_ in curve.fit.points]
            if curve.who != "base":
                lows, highs = ([point[at] for point in curve.fit.points] for at in (2, 3))
                axes.fill_between(steps, lows, highs, color=colour, alpha=0.13, linewidth=0)
            style: dict[str, Any] = {"linestyle": DASHED} if curve.who == "base" else {}
            axes.plot(steps, [point[1] for point in curve.fit.points], color=colour, linewidth=1.6, **style)
            for number, _, score in curve.points:
                axes.vlines(number, score.low, score.high, color=colour, linewidth=1.6, alpha=0.5, clip_on=False)
                if len(score.by_seed) > 1:
                    _dots(axes, [(number, share) for share in score.by_seed], marker, colour, PAPER, 3.5, 0.6)
                face = PAPER if curve.who == "base" else colour
                _dots(axes, [(number, score.share)], marker, colour, face, 8)
    return figure


def draw_matrices(matrices: Sequence[FormatMatrix], *, width: int = WIDE) -> Figure:
    """Test accuracies in cells: a row for each group, a column for each format, and a part for each kind of sets."""
    narrow = width < 600
    cell, head, left = 30.0, 58.0, 150.0 if narrow else 250.0
    height = sum(head + cell * len(matrix.rows) + 14 for matrix in matrices)
    figure = canvas.new_figure(width, height)
    axes = canvas.new_axes(figure, 0, 0, width, height)
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_axis_off()
    top = height
    for matrix in matrices:
        across = (width - left) / len(matrix.formats)
        axes.text(0, top - 12, matrix.kind, ha="left", va="center", weight="bold")
        for at, name in enumerate(matrix.formats):
            words = "-\n".join(filter(None, name.rpartition("-")[::2]))
            x = left + across * (at + 0.5)
            axes.text(x, top - 40, words, ha="center", va="center", size=SMALL, color=SOFT, linespacing=1.0)
        for row, (label, _, cells) in enumerate(matrix.rows):
            below = top - head - cell * (row + 1)
            text = shorten(label, 21 if narrow else 36)
            axes.text(0, below + cell / 2, text, ha="left", va="center_baseline", size=SMALL)
            for at, score in enumerate(cells):
                x = left + across * at
                if score is None:
                    axes.text(x + across / 2, below + cell / 2, "–", ha="center", va="center_baseline", color=SOFT)
                    continue
                box = (x + across / 2, cell - 3, across - 3, below + 1.5)
                axes.bar(*box, color=canvas.HEAT, alpha=0.75 * score.share, linewidth=0)
                number = f"{percent_number(score.share)} %"
                style = {"ha": "center", "va": "center_baseline", "size": SMALL}
                axes.text(x + across / 2, below + cell / 2, number, **style)
        top -= head + cell * len(matrix.rows) + 14
    return figure


def draw_losses(view: ExperimentView, labels: Sequence[str], *, width: int = WIDE) -> Figure:
    """Training losses by step, smoothed, one panel under another for each objective, which have axes of their own."""
    used = list(dict.fromkeys(index for panel in view.losses for index, _, _ in panel.lines))
    keys = [(MARKERS[0], _look(index)[0], "line", labels[index]) for index in used]
    rows = _wrap_keys(keys, width)
    panel, top = 220.0, LINE_HEIGHT * len(rows) + 6.0
    figure = canvas.new_figure(width, height := top + panel * len(view.losses))
    _draw_keys(figure, rows, width, height)
    for at, objective in enumerate(view.losses):
        axes = canvas.new_axes(figure, 46, height - top - panel * (at + 1) + 44, width - 60, panel - 44 - 30)
        axes.grid(axis="y", color=RULE, linewidth=1)
        values: list[float] = []
        steps: list[int] = []
        for index, _, losses in objective.lines:
            smooth = smooth_losses(losses)
            steps += [step for step, _ in losses]
            values += [loss for _, loss in smooth]
            several = sum(other == index for other, _, _ in objective.lines) > 1
            _line(axes, smooth, _look(index)[0], alpha=0.75 if several else 1.0, linewidth=1.2 if several else 2.0)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.set_ylim(min(0.0, *values), 1.05 * max(0.01, *values))
        step_axis(axes, steps, None)
        axes.set_xlabel("step", color=SOFT, loc="left")
        if objective.objective:
            text = shorten(objective.objective, 50 if width < 600 else 120)
            axes.set_title(text, loc="left", size=SMALL, color=SOFT, pad=8)
    return figure


def smooth_losses(losses: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS means over steps, and then a centred mean over a twentieth of them.

    >>> smooth_losses([(1, 2.0), (2, 1.0)])
    [(1, 2.0), (2, 1.0)]
    """
    size = -(-len(losses) // MAX_POINTS)
    parts = [losses[at : at + size] for at in range(0, len(losses), size)]
    steps, values = [part[-1][0] for part in parts], [statistics.fmean(loss for _, loss in part) for part in parts]
    half = max(1, len(values) // 20) // 2
    means = [statistics.fmean(values[max(0, at - half) : at + half + 1]) for at in range(len(values))]
    return list(zip(steps, means, strict=True))


def format_parameters(number: float) -> str:
    """A number of parameters in three digits.

    >>> format_parameters(134515008), format_parameters(2400), format_parameters(1.5e9)
    ('135 M', '2.4 k', '1.5 B')
    """
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{float(f'{number / size:.3g}'):g} {unit}"
    return f"{number:g}"


# Parts of figures

Key = tuple[str, str, str, str]  # marker or "--", colour, fill or "line", text
FRONT_KEYS: Final[Sequence[Key]] = (
    ("o", SOFT, PAPER, "base"),
    ("o", INK, INK, "filled: chosen"),
    ("--", SOFT, PAPER, "Pareto front"),
)


def _look(index: int) -> tuple[str, str]:
    """The colour and the marker of a group. After all colours, they start again with other markers."""
    turn = index // len(COLOURS)
    return COLOURS[index % len(COLOURS)], MARKERS[(index + turn) % len(MARKERS)]


def _group_keys(view: ExperimentView) -> list[Key]:
    looks = [(_look(index), group.label) for index, group in enumerate(view.groups)]
    return [(marker, colour, colour, label) for (colour, marker), label in looks]


def _wrap_keys(keys: Sequence[Key], width: float) -> list[list[tuple[float, Key]]]:
    """The lines of a key, as (left edge, entry)."""
    rows: list[list[tuple[float, Key]]] = [[]]
    x = 0.0
    for key in keys:
        text = shorten(key[3], LONGEST_LABEL if width > 600 else 44)
        room = 24 + 6.9 * len(text) + 14
        if x and x + room > width:
            rows.append([])
            x = 0.0
        rows[-1].append((x, (*key[:3], text)))
        x += room
    return rows


def _draw_keys(figure: Figure, rows: Sequence[Sequence[tuple[float, Key]]], width: float, height: float) -> None:
    axes = canvas.new_axes(figure, 0, 0, width, height)
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_axis_off()
    for number, row in enumerate(rows):
        y = height - 10 - LINE_HEIGHT * number
        for x, (marker, colour, face, text) in row:
            if marker == "--" or face == "line":
                style: dict[str, Any] = {"linestyle": DASHED} if marker == "--" else {"linewidth": 2.4}
                axes.plot([x + 2, x + 18], [y, y], color=colour, **style)
            else:
                _dots(axes, [(x + 10, y)], marker, colour, face, 7.5)
            axes.text(x + 24, y, text, ha="left", va="center_baseline", size=SMALL)


def _panels(kinds: Sequence[SetGroup], keys: Sequence[Key], width: int) -> tuple[Figure, list[tuple[SetGroup, Axes]]]:
    """A figure with a key on top, and a panel for each kind of sets: side by side, or one under another on a phone."""
    narrow = width < 600
    rows = _wrap_keys(keys, width)
    columns, lines = (1, len(kinds)) if narrow else (len(kinds), 1)
    left, right, top, bottom, gap, panel = 52, 16, 36, 52, 52, 300.0 if narrow else 350.0
    head = LINE_HEIGHT * len(rows) + 4.0
    figure = canvas.new_figure(width, height := head + lines * panel)
    _draw_keys(figure, rows, width, height)
    across = min(460.0, (width - left - right - gap * (columns - 1)) / columns)
    panels = []
    for index, kind in enumerate(kinds):
        line, column = (index, 0) if narrow else (0, index)
        below = height - head - (line + 1) * panel + bottom
        box = (left + column * (across + gap), below, across, panel - top - bottom)
        panels.append((kind, canvas.new_axes(figure, *box)))
    return figure, panels


def _plane(axes: Axes, kind: SetGroup, generic: Sequence[float], specialized: Sequence[float]) -> None:
    """All panels have the same limits, from 0."""
    percent_axis(axes, "x", generic)
    percent_axis(axes, "y", specialized)
    axes.set_title(f"{kind} accuracy", loc="left", size=SIZE, weight="bold", pad=12)
    axes.set_xlabel("generic accuracy", color=SOFT, labelpad=8)


def _front_line(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    _line(axes, sorted(set(points), key=lambda point: (point[0], -point[1])), SOFT, linewidth=1.2, linestyle=DASHED)


def _line(axes: Axes, points: Sequence[tuple[float, float]], colour: str, **style: Any) -> None:
    axes.plot([x for x, _ in points], [y for _, y in points], color=colour, clip_on=False, **style)


def _dots(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    marker: str,
    colour: str,
    face: str,
    size: float,
    alpha: float = 1.0,
) -> None:
    style = {"markersize": size, "markerfacecolor": face, "markeredgewidth": 1.5, "alpha": alpha, "clip_on": False}
    axes.plot([x for x, _ in points], [y for _, y in points], marker, color=colour, **style)


def _size_ticks(numbers: Sequence[int], most: int) -> list[int]:
    """Sizes to name on the axis: all, or the first, the last and some between that are far enough apart."""
    if len(numbers) <= most:
        return list(numbers)
    low, high = math.log(numbers[0]), math.log(numbers[-1])
    wanted = [low + (high - low) * at / (most - 1) for at in range(most)]
    return sorted({min(numbers, key=lambda number: abs(math.log(number) - at)) for at in wanted})
