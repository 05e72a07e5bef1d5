"""The sheet that figures are drawn on: colours, type, axes, and the way to an inline SVG.

    >>> empty = svg(figure(380, 100), "empty", "Nothing.")
    >>> empty.startswith('<svg class="figure" role="img" aria-label="Nothing." viewBox="0 0 380 100"')
    True

Lengths are CSS pixels. Colours stand for the CSS variables of the page, so that one drawing serves light and dark.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from potstill.story import Group, visible

# Matplotlib wants colours that it can parse, CSS wants names: each of these stands for one variable of the page.
INK, SOFT, RULE, PAPER, HEAT = "#010203", "#020304", "#030405", "#040506", "#08090a"
HUE: Final[Mapping[Group, str]] = {
    "in-distribution": "#050607",
    "out-of-distribution": "#060708",
    "generic": "#070809",
}
VARIABLES: Final = {
    INK: "var(--ink, #1f1d1a)",
    SOFT: "var(--soft, #6b665e)",
    RULE: "var(--rule, #dcd6cb)",
    PAPER: "var(--paper, #fffdf9)",
    HEAT: "var(--heat, #e0761f)",
    HUE["in-distribution"]: "var(--inside, #0b6aa8)",
    HUE["out-of-distribution"]: "var(--outside, #bd4b12)",
    HUE["generic"]: "var(--generic, #21795c)",
}
MARKER: Final[Mapping[Group, str]] = {"in-distribution": "o", "out-of-distribution": "s", "generic": "D"}
SIZE, SMALL = 13.0, 11.5  # of text, in CSS pixels
# Every setting, so that a matplotlibrc of the machine changes nothing.
STYLE: Final[dict[Any, Any]] = {
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


def figure(width: float, height: float) -> Figure:
    """An empty drawing; a point of matplotlib is a CSS pixel."""
    return Figure(figsize=(width / 72, height / 72), dpi=72)


def axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Bare axes at a place in CSS pixels, counted from the lower left corner."""
    across, up = figure.get_size_inches() * 72
    made = figure.add_axes((left / across, bottom / up, width / across, height / up))
    made.patch.set_visible(False)
    made.spines[:].set_visible(False)
    made.tick_params(length=0, pad=6, labelcolor=SOFT, labelsize=SMALL)
    made.set_axisbelow(True)
    return made


def percent_axis(axes: Axes, which: Literal["x", "y"], values: Sequence[float], ticks: int = 5) -> float:
    """Limits from 0 to a round number that holds all values, and a faint grid. Returns the upper limit."""
    limit = min(1.0, next(step / 20 for step in range(1, 21) if step / 20 >= max(values) or step == 20))
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xlim if which == "x" else axes.set_ylim)(0, limit)
    axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.grid(axis=which, color=RULE, linewidth=1)
    return limit


def step_axis(axes: Axes, steps: Sequence[int], chosen: int | None) -> None:
    """From the first to the last step, with a dashed line at the chosen one."""
    axes.set_xlim(min(steps), max(steps) if max(steps) > min(steps) else min(steps) + 1)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    axes.axhline(axes.get_ylim()[0], color=SOFT, linewidth=1)
    if chosen is not None:
        axes.axvline(chosen, color=SOFT, linewidth=1, linestyle=(0, (3, 3)))


def label(text: str, most: int) -> str:
    """A name from data as one line of at most `most` characters."""
    text = " ".join(visible(text).split())
    return text if len(text) <= most else text[: most - 1] + "…"


def svg(figure: Figure, name: str, description: str) -> str:
    """The drawing as an `svg` element that can stand several times in one page and follows its colours and font."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        # The font is for measuring only; a reader's own has the letters that this one lacks.
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from font", UserWarning)
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    width, height = (72 * length for length in figure.get_size_inches())
    # The style element of matplotlib would hold for the whole page; ids would clash with those of the other figures.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text))
    prefix = f"{name}-{width:.0f}-"
    text = re.sub(r' id="([^"]*)"', lambda found: f' id="{prefix}{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(f": {colour}", f": {variable}")
    head = (
        f'<svg class="figure" role="img" aria-label="{description}" viewBox="0 0 {width:g} {height:g}" '
        'stroke-linejoin="round" xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    lines = [line.strip() for line in (head + text[text.index(">") + 1 :]).splitlines()]
    return "\n".join(line for line in lines if line and not line.startswith("<!--"))
