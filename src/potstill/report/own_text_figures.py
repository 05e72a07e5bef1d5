"""The figure of the texts that the student wrote during training: small panels by step, as inline SVG.

>>> from potstill.report.model import OwnTextStep
>>> steps = [OwnTextStep(n, {"big": 1 / n}, {"texts": 4, "right": 0.25, "surprise": 1.0}) for n in range(1, 9)]
>>> svg = draw_own_texts(OwnTextSummary((), 1, None, tuple(steps)), chosen=4, width=380)
>>> svg.startswith('<svg class="figure"'), "divergence: big" in svg
(True, True)
"""

from __future__ import annotations

from typing import Final

from matplotlib import rc_context
from matplotlib.ticker import MaxNLocator

from potstill.report import canvas
from potstill.report.canvas import (
    DASHED,
    INK,
    MATPLOTLIB_STYLE,
    RULE,
    SIZE,
    SMALL,
    SOFT,
    WIDE,
    percent_axis,
    shorten,
    smooth_by_step,
    step_axis,
)
from potstill.report.model import OwnTextSummary
from potstill.report.own_text_panels import list_panels

MAX_POINTS: Final = 160  # of a line


@rc_context(MATPLOTLIB_STYLE)
def draw_own_texts(summary: OwnTextSummary, chosen: int | None, *, width: int = WIDE) -> str:
    """Each measure by step (faint) and its centred mean over a tenth of the steps, and at least over the steps that were
    written at once, in a panel of its own. The height of a panel fits the means."""
    panels, narrow = list_panels(summary), width < 600
    columns = 2 if narrow else 3 if len(panels) % 4 in (1, 2) and len(panels) != 2 else 4
    columns = min(columns, len(panels))
    lines = -(-len(panels) // columns)
    left, right, gap, head, foot, height = 48, 14, 54, 30, 26, 158
    panel_width = (width - left - right - gap * (columns - 1)) / columns
    figure = canvas.new_figure(width, total := lines * height + 18)
    steps = [row.step for row in summary.steps]
    for index, panel in enumerate(panels):
        line, column = divmod(index, columns)
        start, bottom = left + column * (panel_width + gap), total - (line + 1) * height + foot
        axes = canvas.new_axes(figure, start, bottom, panel_width, height - head - foot)
        at, values, means = smooth_by_step(panel.rows, most=MAX_POINTS, parts=10, least=summary.window)
        if panel.is_share:
            percent_axis(axes, "y", [1.15 * mean for mean in means], ticks=4)
        else:
            low, high = min(0.0, *means), 1.15 * max(0.01, *means)
            if panel.measure == "ratio":
                low, high = min(0.9, 0.98 * min(means)), max(1.1, 1.02 * max(means))
                axes.axhline(1, color=SOFT, linewidth=1.2, linestyle=DASHED)
            axes.set_ylim(low, high)
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
            axes.grid(axis="y", color=RULE, linewidth=1)
        step_axis(axes, steps, chosen)
        if means != values:
            axes.plot(at, values, color=INK, alpha=0.22, linewidth=1)
        axes.plot(at, means, color=INK, linewidth=2)
        axes.set_title(shorten(panel.title, 20 if narrow else 28), loc="left", size=SIZE, weight="bold", pad=8)
    figure.text(left / width, 6 / total, "step", ha="left", va="bottom", color=SOFT, size=SMALL)
    when = "during training" if summary.stage == "train" else "after the selection"
    return canvas.to_svg(figure, summary.name, f"Measures of the texts that the student wrote {when}, by step.")
