"""One chain token by token: how likely its source found each, and what else might have stood there.

    >>> steps = [[(b"4", -0.1), (b"5", -2.4)], [(b".", -0.01)], [(b"\\n", -0.3)], [(b"So", -0.7), (b"The", -0.9)]]
    >>> chain = Chain.from_tokens("q", 0, [b"4", b".", b"\\n", b"So"], steps)
    >>> step_starts(chain.tokens), break_lines([3, 2, 4], 5)
    ([0, 3], [(0, 5), (5, 9)])
    >>> draw_probabilities(chain, width=380).startswith('<svg class="figure"')
    True

Both figures are written like music: as many tokens a line as the width has room for, steps of reasoning kept together.

Figures as inline SVG: pure functions from plain data to text. The only room that knows matplotlib.

    >>> svg = draw_losses([(1, 2.5), (2, 1.5), (3, 1.25)], chosen=2, width=380)
    >>> svg.startswith('<svg class="figure"'), draw_losses([(1, 2.5), (2, 1.5), (3, 1.25)], chosen=2, width=380) == svg
    (True, True)

The same data give the same bytes: no date, salted ids, the font that matplotlib ships for measuring. Text stays text,
in the page's own font. `width` is in CSS pixels; no letter is smaller than 11 at that width, which is why the page gets
every figure in two widths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from potstill.records import END, Candidate, Chain, Checkpoint, End
from potstill.report import canvas
from potstill.report.canvas import (
    GROUP_COLOURS,
    GROUP_MARKERS,
    HEAT,
    INK,
    MATPLOTLIB_STYLE,
    PAPER,
    RULE,
    SIZE,
    SMALL,
    SOFT,
    label_points,
    percent_axis,
    shorten,
    step_axis,
)
from potstill.report.model import Comparison, ControlRun, Interval, ReportData, SetGroup, format_points, readable_token
from potstill.report.summary import CheckpointScores, has_trained_choice, main_comparisons, scores_by_checkpoint

MAX_TOKENS: Final = {"probabilities": 240, "candidates": 120}  # tokens that a figure shows of a longer chain
LIKELY_PROBABILITY: Final = 0.8  # below it a bar is drawn in colour
MAX_OPACITY: Final = 0.8  # opacity of a certain candidate


def step_starts(tokens: Sequence[bytes]) -> list[int]:
    """Where the steps of reasoning begin: at every line, or at every sentence of a chain of fewer than three lines."""
    text = b"".join(tokens).strip()
    by_line = text.count(b"\n") > 1
    found, before = [0], b""
    for place, token in enumerate(tokens):
        behind_line = before.rstrip(b" ").endswith(b"\n")
        sentence = before.endswith((b".", b"!", b"?")) and token[:1] == b" "
        if place and (behind_line or (sentence and not by_line)):
            found.append(place)
        before += token
    return found


def break_lines(steps: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Steps of so many tokens, put into lines of at most `room` tokens: a new line where the next step would not fit;
    a step that has no room in a line of its own is cut into parts as equal as can be."""
    found: list[tuple[int, int]] = []
    begin = end = 0
    for length in steps:
        parts = -(-length // room)
        for part in range(parts):
            size = length * (part + 1) // parts - length * part // parts
            if end > begin and end + size - begin > room:
                found.append((begin, end))
                begin = end
            end += size
    return [*found, (begin, end)] if end > begin else found


@rc_context(MATPLOTLIB_STYLE)
def draw_probabilities(chain: Chain, *, width: int) -> str:
    """A bar for each token, as high as its probability was; dashed lines where steps of reasoning begin."""
    least, most, high, head, left = 15, 28, 84, 24, 46
    shown, begins = _visible_tokens(chain, "probabilities")
    rows = _line_ranges(begins, len(shown), int((width - left) // least))
    cell = min(most, (width - left) / max(end - begin for begin, end in rows))
    labels = [canvas.shorten(_bare_token(own), 11) for own, _ in shown]
    names = 22 + 7 * max(map(len, labels))
    pitch = head + high + names
    figure, axes = _new_sheet(width, height := pitch * len(rows))
    for line, (begin, end) in enumerate(rows):
        base = height - line * pitch - head - high
        right = left + cell * (end - begin)
        for share in (0, 0.5, 1):
            axes.hlines(base + high * share, left, right, color=RULE, linewidth=1)
            axes.text(
                left - 6, base + high * share, f"{100 * share:g} %", ha="right", va="center", size=SMALL, color=SOFT
            )
        for place in range(begin, end):
            across = left + cell * (place - begin)
            own, step = shown[place]
            value = _drawn_probability(own, step)
            if value is not None:
                hue, depth = (SOFT, 0.5) if value >= LIKELY_PROBABILITY else (HEAT, 0.95)
                axes.bar(across + cell / 2, high * value, 0.74 * cell, base, color=hue, alpha=depth, linewidth=0)
            axes.text(across + cell / 2, base - 7, labels[place], ha="center", va="top", rotation=90, size=SMALL)
            if place in begins:
                _mark_step(axes, begins.index(place) + 1, across, base, base + high + 11, inside=place > begin)
    return canvas.to_svg(figure, "probabilities", "Probability of each of the teacher's tokens along one chain.")


@rc_context(MATPLOTLIB_STYLE)
def draw_candidates(chain: Chain, *, width: int) -> str:
    """Above each other the likeliest candidates of each token, deeper in colour the likelier; the drawn one framed."""
    narrow = width < 600
    cell, high, gap, ranks = (53, 21, 20, 3) if narrow else (63, 22, 22, 5)
    shown, begins = _visible_tokens(chain, "candidates")
    ranks = min(ranks, max(len(step) for _, step in shown))
    rows, pitch = _line_ranges(begins, len(shown), int(width // cell)), high * ranks + gap
    cell = min(80, width / max(end - begin for begin, end in rows))
    letters = int((cell - 10) / 7.2)
    figure, axes = _new_sheet(width, height := pitch * len(rows))
    for line, (begin, end) in enumerate(rows):
        top = height - line * pitch - 16
        for place in range(begin, end):
            across = cell * (place - begin)
            own, step = shown[place]
            for rank, (what, value) in enumerate(_top_candidates(own, step, ranks)):
                drawn, below = what == own, top - high * (rank + 1)
                depth = MAX_OPACITY * math.exp(value)
                axes.bar(across + cell / 2, high - 3, cell - 3, below + 1.5, color=HEAT, alpha=depth, linewidth=0)
                if drawn:
                    frame = {"color": "none", "edgecolor": INK, "linewidth": 1.2}
                    axes.bar(across + cell / 2, high - 3, cell - 3, below + 1.5, **frame)
                name = canvas.shorten(readable_token(what), letters)
                hue = INK if drawn or math.exp(value) >= 0.05 else SOFT
                axes.text(
                    across + cell / 2, below + high / 2, name, ha="center", va="center_baseline", size=SMALL, color=hue
                )
            if place in begins:
                _mark_step(axes, begins.index(place) + 1, across, top - high * ranks, top + 8, inside=place > begin)
    told = "The likeliest candidates of each of the teacher's tokens along one chain."
    return canvas.to_svg(figure, "candidates", told)


def _visible_tokens(chain: Chain, figure: str) -> tuple[list[tuple[bytes | End, tuple[Candidate, ...]]], list[int]]:
    """Each step's token and candidates, the end's too where it is known, and the places at which steps begin."""
    own: list[bytes | End] = [*chain.tokens, *([END] if len(chain.candidates) > len(chain.tokens) else [])]
    found = list(zip(own, chain.candidates, strict=True))[: MAX_TOKENS[figure]]
    assert found, "a chain without candidates has no figure"
    return found, [place for place in step_starts(chain.tokens) if place < len(found)]


def _line_ranges(begins: Sequence[int], tokens: int, room: int) -> list[tuple[int, int]]:
    return break_lines([b - a for a, b in pairwise([*begins, tokens])], room)


def _new_sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty drawing whose coordinates are CSS pixels."""
    figure = canvas.new_figure(width, height)
    axes = canvas.new_axes(figure, 0, 0, width, height)
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_axis_off()
    return figure, axes


def _mark_step(axes: Axes, number: int, across: float, low: float, high: float, *, inside: bool) -> None:
    """The number of a step of reasoning where it begins, and a line before it inside of a line of tokens."""
    if inside:
        axes.vlines(across, low, high + 4, color=SOFT, linewidth=1, linestyle=(0, (3, 3)))
    text = f"step {number}" if number == 1 else f"{number}"
    axes.text(across + (5 if inside else 1), high, text, ha="left", va="center", size=SMALL, color=SOFT)


def _drawn_probability(own: bytes | End, step: Sequence[Candidate]) -> float | None:
    return next((math.exp(value) for what, value in step if what == own), None)


def _top_candidates(own: bytes | End, step: Sequence[Candidate], ranks: int) -> list[Candidate]:
    """The likeliest, in order, with the drawn one in the last place where it is not among them."""
    ordered = sorted(step, key=lambda candidate: -candidate[1])
    first = ordered[:ranks]
    return first if own in [what for what, _ in first] else first[: ranks - 1] + [c for c in ordered if c[0] == own]


def _bare_token(what: bytes | End) -> str:
    """A token below its bar: its outer spaces are seen anyway."""
    return readable_token(what.strip(b" ") if isinstance(what, bytes) and what.strip(b" ") else what)


WIDE, NARROW = 960, 380
GLYPHS, CONTROLS = "▽△◁▷", "v^<>"  # how a control is marked, in words and by matplotlib
SPECIALIZED_GROUPS: Final[tuple[SetGroup, ...]] = ("in-distribution", "out-of-distribution")


def draw_figures(story: ReportData) -> dict[str, str]:
    """Every figure that the story has data for: `name` for a wide page and `name-narrow` for a phone."""
    found: dict[str, str] = {}
    steps, best = scores_by_checkpoint(story), story.choice.checkpoint if story.choice else None
    pure, chosen = [row for row in steps if row.checkpoint.is_plain], best.step if best else None
    mine = main_comparisons(story)
    for suffix, width in (("", WIDE), ("-narrow", NARROW)):
        if mine and has_trained_choice(story):
            found["before-after" + suffix] = draw_before_after(mine, story.groups, story.controls, width=width)
        if _has_tradeoff(steps):
            found["tradeoff" + suffix] = draw_tradeoff(steps, best, width=width)
        if len(pure) > 1:
            found["accuracy" + suffix] = draw_accuracy(pure, story.groups, chosen, width=width)
        if sum(math.isfinite(loss) for _, loss in story.losses) > 1:
            found["loss" + suffix] = draw_losses(story.losses, chosen, width=width)
        if story.pictured:
            [(chain, _)] = story.pictured.chains
            found["probabilities" + suffix] = draw_probabilities(chain, width=width)
            found["candidates" + suffix] = draw_candidates(chain, width=width)
    return found


@rc_context(MATPLOTLIB_STYLE)
def draw_before_after(
    rows: Sequence[Comparison],
    groups: Mapping[str, SetGroup],
    controls: Sequence[ControlRun] = (),
    *,
    width: int = WIDE,
) -> str:
    """A row per set: base (hollow), controls (grey) and chosen (filled) with intervals, and the difference in words."""
    rows = sorted(rows, key=lambda row: list(GROUP_COLOURS).index(groups[row.base.set]))
    narrow = width < 600
    gap = 9.0 if narrow else 10.0  # between the lines of one set
    own = gap * (len(controls) + 1)
    key = [
        "hollow: base, filled: chosen",
        *(f"{GLYPHS[at % 4]} {shorten(c.taught, 40)}" for at, c in enumerate(controls)),
    ]
    keys = key if narrow else [",  ".join(key)]
    pitch, top, bottom = own + (44 if narrow else 32), 12 + 17 * len(keys) + (17 if narrow else 0), 34
    left, right = (10, 16) if narrow else (160, 225)
    figure = canvas.new_figure(width, height := top + pitch * len(rows) + bottom)
    axes = canvas.new_axes(figure, left, bottom, width - left - right, height - top - bottom)
    theirs = [{each.chosen.set: each.chosen for each in control.comparisons} for control in controls]
    shown = [[row.base, *(each[row.base.set] for each in theirs), row.chosen] for row in rows]
    limit = percent_axis(axes, "x", [score.high for scores in shown for score in scores])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    for at, (row, scores) in enumerate(zip(rows, shown, strict=True)):
        colour, marker = GROUP_COLOURS[groups[row.base.set]], GROUP_MARKERS[groups[row.base.set]]
        for number, score in enumerate(scores):
            up = at + (number * gap - own / 2 + (10 if narrow else 0)) / pitch
            control = 0 < number < len(scores) - 1
            hue = SOFT if control else colour
            axes.hlines(up, score.low, score.high, color=hue, linewidth=2, alpha=0.55)
            dot = {"color": hue, "markerfacecolor": colour if number == len(scores) - 1 else PAPER, "clip_on": False}
            shape, size = (CONTROLS[(number - 1) % 4], 6.5) if control else (marker, 8)
            axes.plot(score.accuracy, up, shape, markersize=size, **dot)
        name, change = shorten(row.base.set, 22), format_change(row.difference)
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
    return canvas.to_svg(figure, "before-after", "Accuracy on the test split, base and chosen, with 95 % intervals.")


@rc_context(MATPLOTLIB_STYLE)
def draw_tradeoff(rows: Sequence[CheckpointScores], chosen: Checkpoint | None, *, width: int = WIDE) -> str:
    """Specialized accuracy against generic accuracy through training: a panel for each specialized group."""
    shown: list[SetGroup] = [group for group in SPECIALIZED_GROUPS if any(group in row.groups for row in rows)]
    narrow = width < 600
    columns, panel = (1, 300) if narrow else (len(shown), 330)
    lines = len(shown) if narrow else 1
    left, right, top, bottom, gap = 56, 14, 34, 52, 44
    each = (width - left - right - gap * (columns - 1)) / columns
    figure = canvas.new_figure(width, lines * panel)
    values = [bound for row in rows for value in row.groups.values() for bound in (value.low, value.high)]
    for at, group in enumerate(shown):
        start, below = (left, (lines - 1 - at) * panel) if narrow else (left + at * (each + gap), 0)
        axes = canvas.new_axes(figure, start, below + bottom, each, panel - top - bottom)
        both = [row for row in rows if {"generic", group} <= set(row.groups)]
        dots = [(row.checkpoint, row.groups["generic"], row.groups[group]) for row in both]
        path = [(x.value, y.value) for who, x, y in dots if who.is_plain]
        hue = GROUP_COLOURS[group]
        percent_axis(axes, "x", values)
        percent_axis(axes, "y", values)
        axes.set_title(f"{group} accuracy", loc="left", size=SIZE, weight="bold", color=hue, pad=12)
        axes.set_xlabel("generic accuracy", color=SOFT, labelpad=8)
        axes.plot([x for x, _ in path], [y for _, y in path], color=hue, alpha=0.45)
        for who, x, y in dots:
            axes.hlines(y.value, x.low, x.high, color=hue, linewidth=1.2, alpha=0.3)
            axes.vlines(x.value, y.low, y.high, color=hue, linewidth=1.2, alpha=0.3)
            face, size = (hue, 10) if who == chosen else (PAPER, 7 if who.is_plain else 5)
            axes.plot(x.value, y.value, GROUP_MARKERS[group], color=hue, markerfacecolor=face, markersize=size)
        label_points(axes, dots, chosen)
    return canvas.to_svg(
        figure, "tradeoff", "Validation: specialized accuracy against generic, one point a checkpoint."
    )


@rc_context(MATPLOTLIB_STYLE)
def draw_accuracy(
    rows: Sequence[CheckpointScores], groups: Mapping[str, SetGroup], chosen: int | None, *, width: int = WIDE
) -> str:
    """Accuracy by step with its interval: a panel for each set, all on the same axes."""
    names = sorted({name for row in rows for name in row.sets}, key=list(groups).index)
    names = sorted(names, key=lambda name: list(GROUP_COLOURS).index(groups[name]))
    most = 2 if width < 600 else 4
    lines = -(-len(names) // most)
    columns = -(-len(names) // lines)
    left, right, gap, head, foot, panel = 46, 14, 30, 30, 26, 170
    each = (width - left - right - gap * (columns - 1)) / columns
    figure = canvas.new_figure(width, height := lines * panel + 18)
    values = [bound for row in rows for value in row.sets.values() for bound in (value.low, value.high)]
    for at, name in enumerate(names):
        line, column = divmod(at, columns)
        start, below = left + column * (each + gap), height - (line + 1) * panel + foot
        axes = canvas.new_axes(figure, start, below, each, panel - head - foot)
        dots = [(row.checkpoint.step, row.sets[name]) for row in rows if name in row.sets]
        percent_axis(axes, "y", values, ticks=4)
        step_axis(axes, [row.checkpoint.step for row in rows], chosen)
        if column:
            axes.tick_params(labelleft=False)
        colour, marker = GROUP_COLOURS[groups[name]], GROUP_MARKERS[groups[name]]
        steps, lows, highs = [step for step, _ in dots], [y.low for _, y in dots], [y.high for _, y in dots]
        axes.fill_between(steps, lows, highs, color=colour, alpha=0.16, linewidth=0)
        axes.plot(steps, [y.value for _, y in dots], color=colour, marker=marker, markersize=4.5, clip_on=False)
        axes.set_title(shorten(name, 22), loc="left", size=SIZE, weight="bold", color=colour, pad=8)
    figure.text(left / width, 6 / height, "step", ha="left", va="bottom", color=SOFT, size=SMALL)
    return canvas.to_svg(figure, "accuracy", "Validation accuracy of every set by training step, with 95 % intervals.")


@rc_context(MATPLOTLIB_STYLE)
def draw_losses(rows: Sequence[tuple[int, float]], chosen: int | None, *, width: int = WIDE) -> str:
    """Training loss by step (faint) and its centred mean over a twentieth of the steps; finite losses only."""
    rows = _average_runs([row for row in rows if math.isfinite(row[1])], 480)
    steps, values = [step for step, _ in rows], [value for _, value in rows]
    window = max(1, len(rows) // 20)
    runs = [values[max(0, at - window // 2) : at + window // 2 + 1] for at in range(len(values))]
    smooth = [sum(run) / len(run) for run in runs]
    figure = canvas.new_figure(width, 250)
    axes = canvas.new_axes(figure, 46, 46, width - 58, 250 - 62)
    axes.grid(axis="y", color=RULE, linewidth=1)
    if window > 1:
        axes.plot(steps, values, color=INK, alpha=0.28, linewidth=1)
    axes.plot(steps, smooth, color=INK, linewidth=2)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.set_ylim(min(0.0, *values), 1.05 * max(0.01, *values))
    step_axis(axes, steps, chosen)
    axes.set_xlabel("step", color=SOFT, loc="left")
    return canvas.to_svg(figure, "loss", "Training loss by step.")


def format_change(change: Interval) -> str:
    """A difference of shares in points, with its bounds."""
    return f"{format_points(change.value)} ({format_points(change.low)} to {format_points(change.high)})"


def _has_tradeoff(rows: Sequence[CheckpointScores]) -> bool:
    """Whether there is something to set against something: two steps with a generic and a specialized accuracy."""
    return len([row for row in rows if "generic" in row.groups and set(SPECIALIZED_GROUPS) & set(row.groups)]) > 1


def _average_runs(rows: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """At most `most` rows: the means of equal runs of steps."""
    size = -(-len(rows) // most)
    runs = [rows[at : at + size] for at in range(0, len(rows), size)]
    return [(run[-1][0], sum(value for _, value in run) / len(run)) for run in runs]
