"""Labels beside points: each point's name where it covers least, with a thin line to it where that is not beside it.

    >>> place((50, 50), 30, [(50, 50)], [], (0, 0, 200, 200))
    (60.0, 43.0, 90.0, 57.0)
    >>> [round(edge) for edge in place((50, 50), 30, [(50, 50), (75, 50)], [], (0, 0, 200, 200))]
    [45, 59, 75, 73]

Boxes are (left, lower, right, upper) in CSS pixels, heights counted upwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes

from potstill.contenders import BASE, Contender
from potstill.plots.canvas import SMALL, SOFT
from potstill.story import Interval

Box = tuple[float, float, float, float]
Dot = tuple[Contender, Interval, Interval]  # who, across, up
HIGH = 14.0  # of a line of small text
DISTANCES = (10, 22, 36, 52)
DIRECTIONS = 16


def name_points(axes: Axes, dots: Sequence[Dot], chosen: Contender | None) -> None:
    """Write each point's label beside it. No two names overlap where the panel has room for them."""
    to_pixels, to_data = axes.transData.transform, axes.transData.inverted().transform
    places = [tuple(map(float, to_pixels((x.value, y.value)))) for _, x, y in dots]
    lines: list[Box] = []
    for (_, x, y), (across, up) in zip(dots, places, strict=True):
        lines.append((float(to_pixels((x.low, 0))[0]), up - 1, float(to_pixels((x.high, 0))[0]), up + 1))
        lines.append((across - 1, float(to_pixels((0, y.low))[1]), across + 1, float(to_pixels((0, y.high))[1])))
    path = [place for (who, _, _), place in zip(dots, places, strict=True) if who.pure]
    for (x, y), (right, up) in pairwise(path):
        between = [(x + part / 8 * (right - x), y + part / 8 * (up - y)) for part in range(1, 8)]
        lines += [(a - 2, b - 2, a + 2, b + 2) for a, b in between]
    frame = tuple(float(edge) for edge in axes.get_window_extent().extents)
    taken: list[Box] = []
    # The chosen one first: it gets the best place.
    for number in sorted(range(len(dots)), key=lambda number: dots[number][0] != chosen):
        who, at = dots[number][0], places[number]
        text = f"{who.label}, chosen" if who == chosen else "step 0" if who == BASE else who.label
        box = place(at, 7.2 * len(text), places, taken, frame, lines)
        taken.append(box)
        left, middle = to_data((box[0], (box[1] + box[3]) / 2))
        near = (min(max(at[0], box[0]), box[2]), min(max(at[1], box[1]), box[3]))
        if math.dist(near, at) > DISTANCES[0] + 4:
            ends = [to_data(at), to_data(near)]
            axes.plot([x for x, _ in ends], [y for _, y in ends], color=SOFT, linewidth=0.8, zorder=1)
        weight = "bold" if who == chosen else "normal"
        axes.text(left, middle, text, ha="left", va="center_baseline", size=SMALL, weight=weight)


def place(
    at: Sequence[float],
    wide: float,
    points: Sequence[Sequence[float]],
    taken: Sequence[Box],
    frame: Sequence[float],
    lines: Sequence[Box] = (),
) -> Box:
    """The box for a name of some width beside a point: off other names first, then off points, then off lines."""
    marks = [(x - 7, y - 7, x + 7, y + 7) for x, y in points]

    def cost(ring: int, box: Box) -> float:
        names = sum(overlap(box, (other[0] - 3, other[1], other[2] + 3, other[3])) for other in taken)
        spots = sum(overlap(box, other) for other in marks)
        crossed = sum(overlap(box, other) for other in lines)
        outside = round(wide * HIGH - overlap(box, frame), 6)
        return round(100 * (names + outside) + 10 * spots + crossed + 150 * ring, 6)

    return min(_boxes(at, wide), key=lambda found: cost(*found))[1]


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """The area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _boxes(at: Sequence[float], wide: float) -> list[tuple[int, Box]]:
    """Boxes in rings around a point, near ones first, the first of all to its right."""
    x, y = at
    found: list[tuple[int, Box]] = []
    for ring, distance in enumerate(DISTANCES):
        for turn in range(DIRECTIONS):
            angle = 2 * math.pi * turn / DIRECTIONS
            across, up = math.cos(angle), math.sin(angle)
            left = x + distance * across - wide * (1 - across) / 2
            lower = y + distance * up - HIGH * (1 - up) / 2
            found.append((ring, (left, lower, left + wide, lower + HIGH)))
    return found
