"""The canvas of the figures: colours, fonts, axes, labels next to points, and conversion to inline SVG.

    >>> empty = to_svg(new_figure(380, 100), "empty", "Nothing.")
    >>> empty.startswith('<svg class="figure" role="img" aria-label="Nothing." viewBox="0 0 380 100"')
    True
    >>> best_label_box((50, 50), 30, [(50, 50)], [], (0, 0, 200, 200))
    (60.0, 43.0, 90.0, 57.0)
    >>> [round(edge) for edge in best_label_box((50, 50), 30, [(50, 50), (75, 50)], [], (0, 0, 200, 200))]
    [45, 59, 75, 73]

Lengths are CSS pixels. A box is (left, lower, right, upper), and heights count upwards. Each colour stands for a CSS
variable of the page, so that a drawing works in the light and in the dark style.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from potstill.errors import escape_hidden
from potstill.records import BASE, Checkpoint
from potstill.report.model import Interval, SetGroup

Box = tuple[float, float, float, float]
LabelledPoint = tuple[Checkpoint, Interval, Interval]  # checkpoint, horizontal value, vertical value
WIDE, NARROW = 960, 380  # widths of a figure on a desktop and on a phone
LABEL_HEIGHT = 14.0  # height of a line of small text
RING_DISTANCES = (10, 22, 36, 52)
RING_DIRECTIONS = 16

# Matplotlib accepts only colours, so every CSS variable of the page has a placeholder colour, which `to_svg` replaces.
_PALETTE: Final = {
    "ink": "#1f1d1a",
    "soft": "#6b665e",
    "rule": "#dcd6cb",
    "paper": "#fffdf9",
    "inside": "#0b6aa8",
    "outside": "#bd4b12",
    "generic": "#6a4c9c",
    "heat": "#e0761f",
    "good": "#12704a",
    "bad": "#b3261e",
}
CSS_VARIABLES: Final = {
    f"#{number:02x}{number + 1:02x}{number + 2:02x}": f"var(--{name}, {colour})"
    for number, (name, colour) in enumerate(_PALETTE.items(), 1)
}
_LIGHT: Final = dict(zip(CSS_VARIABLES, _PALETTE.values(), strict=True))  # placeholder -> colour of the light page
INK, SOFT, RULE, PAPER, INSIDE, OUTSIDE, GENERIC, HEAT, GOOD, BAD = CSS_VARIABLES
GROUP_COLOURS: Final[Mapping[SetGroup, str]] = {
    "in-distribution": INSIDE,
    "out-of-distribution": OUTSIDE,
    "generic": GENERIC,
}
GROUP_MARKERS: Final[Mapping[SetGroup, str]] = {"in-distribution": "o", "out-of-distribution": "s", "generic": "D"}
SIZE, SMALL = 13.0, 11.5  # sizes of text in CSS pixels
DASHED = (0, (3, 3))
# All settings are given, so that a matplotlibrc file has no effect.
MATPLOTLIB_STYLE: Final[dict[Any, Any]] = {
    **{key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"},
    "svg.fonttype": "none",
    "svg.hashsalt": "potstill",
    "font.family": "DejaVu Sans",
    "font.size": SIZE,
    "text.color": INK,
    "text.parse_math": False,
    "lines.linewidth": 2.0,
    "lines.markeredgewidth": 1.8,
}


def new_figure(width: float, height: float) -> Figure:
    """An empty drawing, in which a point of matplotlib is a CSS pixel."""
    return Figure(figsize=(width / 72, height / 72), dpi=72)


def new_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes without a frame. Position and size are in CSS pixels, from the lower left corner."""
    across, up = figure.get_size_inches() * 72
    axes = figure.add_axes((left / across, bottom / up, width / across, height / up))
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=6, labelcolor=SOFT, labelsize=SMALL)
    axes.set_axisbelow(True)
    return axes


def percent_axis(axes: Axes, which: Literal["x", "y"], values: Sequence[float], ticks: int = 5) -> float:
    """Set the limits of an axis from 0 to a round number that is at least every value, and draw a faint grid. Returns the
    upper limit."""
    limit = min(1.0, next(step / 20 for step in range(1, 21) if step / 20 >= max(values) or step == 20))
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xlim if which == "x" else axes.set_ylim)(0, limit)
    axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.grid(axis=which, color=RULE, linewidth=1)
    return limit


def step_axis(axes: Axes, steps: Sequence[int], chosen: int | None) -> None:
    """Set the limits of the x axis to the first and the last step, with a dashed line at the chosen step."""
    axes.set_xlim(min(steps), max(steps) if max(steps) > min(steps) else min(steps) + 1)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    axes.axhline(axes.get_ylim()[0], color=SOFT, linewidth=1)
    if chosen is not None:
        axes.axvline(chosen, color=SOFT, linewidth=1, linestyle=DASHED)


def smooth_by_step(
    rows: Sequence[tuple[int, int | float]], *, most: int = 480, parts: int = 20, least: int = 1
) -> tuple[list[int], list[float], list[float]]:
    """The steps, values and smooth values of a line of at most `most` points, which are means over steps. A smooth value is
    the centred mean over one of `parts` parts of the points, and at least over `least` rows.

    >>> smooth_by_step([(1, 1.0), (2, 2.0), (3, 6.0)], least=3)
    ([1, 2, 3], [1.0, 2.0, 6.0], [1.5, 3.0, 4.0])
    """
    size = -(-len(rows) // most)  # rows per point
    runs = [rows[index : index + size] for index in range(0, len(rows), size)]
    steps, values = [run[-1][0] for run in runs], [sum(value for _, value in run) / len(run) for run in runs]
    window = max(1, len(values) // parts, -(-least // size))
    windows = [values[max(0, index - window // 2) : index + window // 2 + 1] for index in range(len(values))]
    return steps, values, [sum(part) / len(part) for part in windows]


def shorten(text: str, most: int) -> str:
    """A text as one line of at most `most` characters. Hidden characters are escaped."""
    text = " ".join(escape_hidden(text).split())
    return text if len(text) <= most else text[: most - 1] + "…"


def to_svg(figure: Figure, name: str, description: str) -> str:
    """The drawing as an `svg` element with unique ids, in the colours and the font of the page."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        # The font only measures text. The reader's browser shows characters that this font lacks.
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from font", UserWarning)
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    width, height = (72 * length for length in figure.get_size_inches())
    # Matplotlib's style element would apply to the whole page, and its ids would be the same in several figures.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text))
    prefix = f"{name}-{width:.0f}-"
    text = re.sub(r' id="([^"]*)"', lambda found: f' id="{prefix}{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    for colour, variable in CSS_VARIABLES.items():
        text = text.replace(f": {colour}", f": {variable}")
    head = (
        f'<svg class="figure" role="img" aria-label="{description}" viewBox="0 0 {width:g} {height:g}" '
        'stroke-linejoin="round" xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    lines = [line.strip() for line in (head + text[text.index(">") + 1 :]).splitlines()]
    return "\n".join(line for line in lines if line and not line.startswith("<!--"))


def to_svg_file(svg: str) -> str:
    """An `svg` element of `to_svg` as a file of its own: on white, in plain colours and with a font for every program.

    >>> to_svg_file(to_svg(new_figure(10, 10), "empty", "Nothing.")).splitlines()[0]
    '<?xml version="1.0" encoding="UTF-8"?>'
    """
    plain = re.sub(r"var\(--[a-z]+, (#[0-9a-f]{6})\)", r"\1", svg)
    head = '<svg font-family="Inter, Helvetica, Arial, sans-serif" style="background: #ffffff"'
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + plain.replace('<svg class="figure"', head, 1) + "\n"


def to_png(figure: Figure, scale: float = 2.0) -> bytes:
    """The drawing as a PNG image on white, with `scale` pixels for a CSS pixel. It has the colours of the light page, which
    the figure then keeps: `to_svg` comes first."""
    figure.draw_without_rendering()  # makes the ticks, which also have colours
    names = [f"{edge}color" for edge in ("", "face", "edge", "markerface", "markeredge")]
    for artist in figure.findobj():
        for name in names:
            get, put = getattr(artist, f"get_{name}", None), getattr(artist, f"set_{name}", None)
            if get is not None and put is not None and (plain := _plain_colour(get())) is not None:
                put(plain)
    figure.patch.set_facecolor("#ffffff")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from font", UserWarning)
        figure.savefig(buffer, format="png", dpi=72 * scale, facecolor="#ffffff", metadata={"Software": None})
    return buffer.getvalue()


def _plain_colour(colour: Any) -> Any:
    """A colour, or an array of colours, with the colours of the light page for placeholders; None without a placeholder."""
    if isinstance(colour, str) and colour in ("none", "auto"):
        return None
    rows = to_rgba_array(colour)
    plain = [_LIGHT.get(to_hex(row[:3])) for row in rows]
    if not any(plain):
        return None
    for row, light in zip(rows, plain, strict=True):
        if light is not None:
            row[:3] = to_rgb(light)
    return rows if getattr(colour, "ndim", 1) == 2 else tuple(rows[0])


# Labels next to points


def label_points(axes: Axes, dots: Sequence[LabelledPoint], chosen: Checkpoint | None) -> None:
    """Write a label next to each point, and draw a thin line to a point that is not adjacent to its label. Labels do not
    overlap if the panel has enough room."""
    to_pixels, to_data = axes.transData.transform, axes.transData.inverted().transform
    points = [tuple(map(float, to_pixels((x.value, y.value)))) for _, x, y in dots]
    lines: list[Box] = []
    for (_, x, y), (across, up) in zip(dots, points, strict=True):
        lines.append((float(to_pixels((x.low, 0))[0]), up - 1, float(to_pixels((x.high, 0))[0]), up + 1))
        lines.append((across - 1, float(to_pixels((0, y.low))[1]), across + 1, float(to_pixels((0, y.high))[1])))
    path = [point for (checkpoint, _, _), point in zip(dots, points, strict=True) if checkpoint.is_plain]
    for (x, y), (next_x, next_y) in pairwise(path):
        between = [(x + part / 8 * (next_x - x), y + part / 8 * (next_y - y)) for part in range(1, 8)]
        lines += [(a - 2, b - 2, a + 2, b + 2) for a, b in between]
    frame = tuple(float(edge) for edge in axes.get_window_extent().extents)
    boxes: list[Box] = []
    # The chosen checkpoint comes first, so that its label gets the best place.
    for number in sorted(range(len(dots)), key=lambda number: dots[number][0] != chosen):
        checkpoint, point = dots[number][0], points[number]
        text = "step 0" if checkpoint == BASE and checkpoint != chosen else checkpoint.label
        text += ", chosen" if checkpoint == chosen else ""
        box = best_label_box(point, 7.2 * len(text), points, boxes, frame, lines)
        boxes.append(box)
        left, middle = to_data((box[0], (box[1] + box[3]) / 2))
        nearest = (min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3]))
        if math.dist(nearest, point) > RING_DISTANCES[0] + 4:
            ends = [to_data(point), to_data(nearest)]
            axes.plot([x for x, _ in ends], [y for _, y in ends], color=SOFT, linewidth=0.8, zorder=1)
        weight = "bold" if checkpoint == chosen else "normal"
        axes.text(left, middle, text, ha="left", va="center_baseline", size=SMALL, weight=weight)


def best_label_box(
    point: Sequence[float],
    text_width: float,
    points: Sequence[Sequence[float]],
    boxes: Sequence[Box],
    frame: Sequence[float],
    lines: Sequence[Box] = (),
) -> Box:
    """The box of a label next to a point. It avoids first other labels and the frame, then points, then lines."""
    (x, y), best = point, (math.inf, (0.0, 0.0, 0.0, 0.0))
    for ring, distance in enumerate(RING_DISTANCES):  # near boxes come first, starting at the right of the point
        for turn in range(RING_DIRECTIONS):
            angle = 2 * math.pi * turn / RING_DIRECTIONS
            across, up = math.cos(angle), math.sin(angle)
            left = x + distance * across - text_width * (1 - across) / 2
            lower = y + distance * up - LABEL_HEIGHT * (1 - up) / 2
            box = (left, lower, left + text_width, lower + LABEL_HEIGHT)
            labels = sum(overlap_area(box, (other[0] - 3, other[1], other[2] + 3, other[3])) for other in boxes)
            covered = sum(overlap_area(box, (a - 7, b - 7, a + 7, b + 7)) for a, b in points)
            crossed = sum(overlap_area(box, line) for line in lines)
            outside = round(text_width * LABEL_HEIGHT - overlap_area(box, frame), 6)
            cost = round(100 * (labels + outside) + 10 * covered + crossed + 150 * ring, 6)
            if cost < best[0]:
                best = cost, box
    return best[1]


def overlap_area(a: Sequence[float], b: Sequence[float]) -> float:
    """The area of the intersection of two boxes."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
