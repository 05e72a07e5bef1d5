"""Draws the figures as inline SVG, with plain functions from data to text.

    >>> svg = draw_losses([(1, 2.5), (2, 1.5), (3, 1.25)], chosen=2, width=380)
    >>> svg.startswith('<svg class="figure"'), draw_losses([(1, 2.5), (2, 1.5), (3, 1.25)], chosen=2, width=380) == svg
    (True, True)

The same data give the same bytes: the SVG has no date, its ids are fixed, and matplotlib's own font measures the text.
Text remains text, in the page's font. `width` is in CSS pixels. No letter may be smaller than 11 pixels, so the page has
every figure in a wide and in a narrow version. Two figures show a chain token by token. Their lines have as many tokens
as fit, and break between reasoning steps if possible.

    >>> steps = [[(b"4", -0.1), (b"5", -2.4)], [(b".", -0.01)], [(b"\\n", -0.3)], [(b"So", -0.7), (b"The", -0.9)]]
    >>> chain = Chain.from_tokens("q", 0, [b"4", b".", b"\\n", b"So"], steps)
    >>> step_starts(chain.tokens), break_lines([3, 2, 4], 5)
    ([0, 3], [(0, 5), (5, 9)])
    >>> draw_probabilities(chain, width=380).startswith('<svg class="figure"')
    True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Final

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from potstill.records import END, Candidate, Chain, Checkpoint, End, TargetKind
from potstill.report import canvas, summary
from potstill.report.canvas import (
    DASHED,
    GROUP_COLOURS,
    GROUP_MARKERS,
    HEAT,
    INK,
    MATPLOTLIB_STYLE,
    NARROW,
    PAPER,
    RULE,
    SIZE,
    SMALL,
    SOFT,
    WIDE,
    label_points,
    percent_axis,
    shorten,
    smooth_by_step,
    step_axis,
)
from potstill.report.model import SET_GROUPS, Comparison, ControlRun, ReportData, SetGroup
from potstill.report.own_text_figures import draw_own_texts
from potstill.report.summary import SPECIALIZED_GROUPS, CheckpointScores, readable_token

GLYPHS, CONTROLS = "▽△◁▷", "v^<>"  # markers of the controls, in text and in matplotlib
MAX_TOKENS: Final = {"probabilities": 240, "candidates": 120}  # by figure; a longer chain is cut
LIKELY_PROBABILITY: Final = 0.8  # the bar of a less likely token is in colour
KIND_COLOURS: Final[Mapping[TargetKind, str]] = {
    "same": canvas.INSIDE,
    "merged": canvas.OUTSIDE,
    "split": canvas.GENERIC,
    "mixed": HEAT,
    "hard": INK,
    "end": SOFT,
}
MAX_OPACITY: Final = 0.8  # opacity of a candidate with probability 1


def draw_figures(data: ReportData) -> dict[str, str]:
    """Every figure for which the report has data, by name: `name` for a wide page and `name-narrow` for a phone."""
    rows, chosen = summary.scores_by_checkpoint(data), data.choice.checkpoint if data.choice else None
    plain, step = [row for row in rows if row.checkpoint.is_plain], chosen.step if chosen else None
    both = [row for row in rows if "generic" in row.groups and set(SPECIALIZED_GROUPS) & set(row.groups)]
    comparisons = summary.main_comparisons(data)
    drawings: dict[str, Callable[..., str]] = {}
    if comparisons and summary.has_trained_choice(data):
        drawings["before-after"] = partial(draw_before_after, comparisons, data.groups, data.controls)
    if len(both) > 1:
        drawings["tradeoff"] = partial(draw_tradeoff, rows, chosen)
    if len(plain) > 1:
        drawings["accuracy"] = partial(draw_accuracy, plain, data.groups, step)
    if sum(math.isfinite(loss) for _, loss in data.losses) > 1:
        drawings["loss"] = partial(draw_losses, data.losses, step)
    kinds: list[tuple[int, TargetKind, float]] = [
        (at, kind, loss) for at, by_kind in data.kind_losses for kind, loss in by_kind.items()
    ]
    if len({at for at, _, loss in kinds if 0 < loss < math.inf}) > 1:
        drawings["loss-kinds"] = partial(draw_kind_losses, kinds, step)
    for texts in data.written:
        if sum(bool(row.measures) for row in texts.steps) > 1:
            drawings[texts.name] = partial(draw_own_texts, texts, step if texts.stage == "train" else None)
    if data.figure_chain:
        [(chain, _)] = data.figure_chain.chains
        drawings["probabilities"] = partial(draw_probabilities, chain)
        drawings["candidates"] = partial(draw_candidates, chain)
    widths = {"": WIDE, "-narrow": NARROW}
    return {name + suffix: draw(width=width) for suffix, width in widths.items() for name, draw in drawings.items()}


@rc_context(MATPLOTLIB_STYLE)
def draw_before_after(
    rows: Sequence[Comparison],
    groups: Mapping[str, SetGroup],
    controls: Sequence[ControlRun] = (),
    *,
    width: int = WIDE,
) -> str:
    """Accuracies on test with intervals, in one row per set: the base (hollow), the controls (grey) and the chosen
    checkpoint (filled). The difference is given as text."""
    rows = sorted(rows, key=lambda row: SET_GROUPS.index(groups[row.base.set]))
    narrow, heading = width < 600, "change in points (95 % interval)"
    gap = 9.0 if narrow else 10.0  # distance between the lines of a set
    span = gap * (len(controls) + 1)
    keys = ["hollow: base, filled: chosen"]
    keys += [f"{GLYPHS[index % 4]} {shorten(control.training, 40)}" for index, control in enumerate(controls)]
    head = [*keys, heading] if narrow else [",  ".join(keys)]
    pitch, top, bottom = span + (44 if narrow else 32), 12 + 17 * len(head), 34
    left, right = (10, 16) if narrow else (160, 225)
    plot_width = width - left - right
    figure = canvas.new_figure(width, height := top + pitch * len(rows) + bottom)
    axes = canvas.new_axes(figure, left, bottom, plot_width, height - top - bottom)
    by_set = [{row.chosen.set: row.chosen for row in control.comparisons} for control in controls]
    all_scores = [[row.base, *(scores[row.base.set] for scores in by_set), row.chosen] for row in rows]
    limit = percent_axis(axes, "x", [score.high for scores in all_scores for score in scores])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    for index, (row, scores) in enumerate(zip(rows, all_scores, strict=True)):
        group = groups[row.base.set]
        for number, score in enumerate(scores):
            y = index + (number * gap - span / 2 + (10 if narrow else 0)) / pitch
            colour, face, shape, size = GROUP_COLOURS[group], PAPER, GROUP_MARKERS[group], 8.0
            if number == len(scores) - 1:
                face = colour
            elif number:
                colour, shape, size = SOFT, CONTROLS[(number - 1) % 4], 6.5
            axes.hlines(y, score.low, score.high, color=colour, linewidth=2, alpha=0.55, clip_on=False)
            axes.plot(score.accuracy, y, shape, markersize=size, color=colour, markerfacecolor=face, clip_on=False)
        name, change = shorten(row.base.set, 22), summary.format_change(row.difference)
        tint = {"gained": canvas.GOOD, "lost": canvas.BAD, "unclear": SOFT}[summary.judge_change(row.difference)]
        above = index - (span / 2 + 8) / pitch
        if narrow:
            axes.text(0, above, name, ha="left", va="center", weight="bold")
            axes.text(limit, above, change, ha="right", va="center", color=tint, size=SMALL)
        else:
            axes.text(-0.02 * limit, index, name, ha="right", va="center", weight="bold", clip_on=False)
            axes.text(1.03 * limit, index, change, ha="left", va="center", color=tint, clip_on=False)
        if index and groups[rows[index - 1].base.set] != group:
            start, end = -left / plot_width, 1 + right / plot_width
            axes.axhline(index - 0.5, color=RULE, linewidth=1, xmin=start, xmax=end, clip_on=False)
    style = {"ha": "left", "va": "center", "color": SOFT, "size": SMALL}
    for line, text in enumerate(head):
        figure.text(left / width, 1 - (12 + 17 * line) / height, text, **style)
    if not narrow:
        figure.text((left + 1.03 * plot_width) / width, 1 - 12 / height, heading, **style)
    description = "Accuracy on the test split of the base and the chosen checkpoint, with 95 % intervals."
    return canvas.to_svg(figure, "before-after", description)


@rc_context(MATPLOTLIB_STYLE)
def draw_tradeoff(rows: Sequence[CheckpointScores], chosen: Checkpoint | None, *, width: int = WIDE) -> str:
    """Specialized accuracy against generic accuracy, with one point per checkpoint and one panel per specialized group. A
    dashed line joins the Pareto front; checkpoints that are not on it are pale."""
    groups: list[SetGroup] = [group for group in SPECIALIZED_GROUPS if any(group in row.groups for row in rows)]
    narrow = width < 600
    columns, panel = (1, 300) if narrow else (len(groups), 330)
    lines = len(groups) if narrow else 1
    left, right, top, bottom, gap = 56, 14, 34, 52, 44
    panel_width = (width - left - right - gap * (columns - 1)) / columns
    figure = canvas.new_figure(width, lines * panel)
    values = [bound for row in rows for value in row.groups.values() for bound in (value.low, value.high)]
    for index, group in enumerate(groups):
        start, bottom_edge = (left, (lines - 1 - index) * panel) if narrow else (left + index * (panel_width + gap), 0)
        axes = canvas.new_axes(figure, start, bottom_edge + bottom, panel_width, panel - top - bottom)
        scored = [row for row in rows if {"generic", group} <= set(row.groups)]
        dots = [(row.checkpoint, row.groups["generic"], row.groups[group]) for row in scored]
        path = [(x.value, y.value) for checkpoint, x, y in dots if checkpoint.is_plain]
        colour = GROUP_COLOURS[group]
        percent_axis(axes, "x", values)
        percent_axis(axes, "y", values)
        axes.set_title(f"{group} accuracy", loc="left", size=SIZE, weight="bold", color=colour, pad=12)
        axes.set_xlabel("generic accuracy", color=SOFT, labelpad=8)
        axes.plot([x for x, _ in path], [y for _, y in path], color=colour, alpha=0.45, clip_on=False)
        front = [point for point in summary.tradeoff_points(scored) if point.group == group and point.is_optimal]
        front.sort(key=lambda point: point.generic)
        optimal, line = {point.checkpoint for point in front}, [(point.generic, point.specialized) for point in front]
        axes.plot(
            [x for x, _ in line], [y for _, y in line], color=SOFT, linewidth=1.2, linestyle=DASHED, clip_on=False
        )
        for checkpoint, x, y in dots:
            axes.hlines(y.value, x.low, x.high, color=colour, linewidth=1.2, alpha=0.3, clip_on=False)
            axes.vlines(x.value, y.low, y.high, color=colour, linewidth=1.2, alpha=0.3, clip_on=False)
            face, size = (colour, 10) if checkpoint == chosen else (PAPER, 7 if checkpoint.is_plain else 5)
            strength = 1.0 if checkpoint in optimal or checkpoint == chosen else 0.4
            axes.plot(
                *(x.value, y.value, GROUP_MARKERS[group]),
                **{"color": colour, "markerfacecolor": face, "markersize": size, "alpha": strength, "clip_on": False},
            )
        label_points(axes, dots, chosen)
    description = "Validation: specialized accuracy against generic accuracy, one point per checkpoint."
    return canvas.to_svg(figure, "tradeoff", description)


@rc_context(MATPLOTLIB_STYLE)
def draw_accuracy(
    rows: Sequence[CheckpointScores], groups: Mapping[str, SetGroup], chosen: int | None, *, width: int = WIDE
) -> str:
    """Accuracy by step with its interval, in one panel per set. All panels have the same limits."""
    names = sorted({name for row in rows for name in row.sets}, key=list(groups).index)
    names = sorted(names, key=lambda name: SET_GROUPS.index(groups[name]))
    max_columns = 2 if width < 600 else 4
    lines = -(-len(names) // max_columns)
    columns = -(-len(names) // lines)
    left, right, gap, head, foot, panel = 46, 14, 30, 30, 26, 170
    panel_width = (width - left - right - gap * (columns - 1)) / columns
    figure = canvas.new_figure(width, height := lines * panel + 18)
    values = [bound for row in rows for value in row.sets.values() for bound in (value.low, value.high)]
    for index, name in enumerate(names):
        line, column = divmod(index, columns)
        start, bottom_edge = left + column * (panel_width + gap), height - (line + 1) * panel + foot
        axes = canvas.new_axes(figure, start, bottom_edge, panel_width, panel - head - foot)
        dots = [(row.checkpoint.step, row.sets[name]) for row in rows if name in row.sets]
        percent_axis(axes, "y", values, ticks=4)
        step_axis(axes, [row.checkpoint.step for row in rows], chosen)
        if column:
            axes.tick_params(labelleft=False)
        colour, marker = GROUP_COLOURS[groups[name]], GROUP_MARKERS[groups[name]]
        steps, lows, highs = [step for step, _ in dots], [y.low for _, y in dots], [y.high for _, y in dots]
        axes.fill_between(steps, lows, highs, color=colour, alpha=0.16, linewidth=0, clip_on=False)
        axes.plot(steps, [y.value for _, y in dots], color=colour, marker=marker, markersize=4.5, clip_on=False)
        axes.set_title(shorten(name, 22), loc="left", size=SIZE, weight="bold", color=colour, pad=8)
    figure.text(left / width, 6 / height, "step", ha="left", va="bottom", color=SOFT, size=SMALL)
    return canvas.to_svg(figure, "accuracy", "Validation accuracy of every set by training step, with 95 % intervals.")


@rc_context(MATPLOTLIB_STYLE)
def draw_losses(rows: Sequence[tuple[int, float]], chosen: int | None, *, width: int = WIDE) -> str:
    """The training loss by step (faint), and its centred mean over a twentieth of the steps. Losses that are not finite are
    left out."""
    finite = [row for row in rows if math.isfinite(row[1])]
    steps, values, smooth = smooth_by_step(finite)
    figure = canvas.new_figure(width, 250)
    axes = canvas.new_axes(figure, 46, 46, width - 58, 250 - 62)
    axes.grid(axis="y", color=RULE, linewidth=1)
    if smooth != values:
        axes.plot(steps, values, color=INK, alpha=0.28, linewidth=1)
    axes.plot(steps, smooth, color=INK, linewidth=2)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.set_ylim(min(0.0, *values), 1.05 * max(0.01, *values))
    step_axis(axes, steps, chosen)
    axes.set_xlabel("step", color=SOFT, loc="left")
    return canvas.to_svg(figure, "loss", "Training loss by step.")


@rc_context(MATPLOTLIB_STYLE)
def draw_kind_losses(rows: Sequence[tuple[int, TargetKind, float]], chosen: int | None, *, width: int = WIDE) -> str:
    """The training loss by step and kind of position, on a logarithmic axis. Each line is the mean over up to 60 groups of
    steps, and is labelled at its end. Losses that are zero or not finite are left out."""
    finite = [row for row in rows if 0 < row[2] < math.inf]
    steps = sorted({step for step, _, _ in finite})
    size = -(-len(steps) // 60)
    group = {step: steps[min(index // size * size + size - 1, len(steps) - 1)] for index, step in enumerate(steps)}
    lines: dict[TargetKind, dict[int, list[float]]] = {}
    for step, kind, loss in finite:
        lines.setdefault(kind, {}).setdefault(group[step], []).append(loss)
    height, right = 290, 72
    figure = canvas.new_figure(width, height)
    axes = canvas.new_axes(figure, 52, 46, width - 52 - right, height - 62)
    axes.set_yscale("log")
    axes.grid(axis="y", color=RULE, linewidth=1)
    ends: list[tuple[float, TargetKind]] = []
    for kind, points in lines.items():
        means = {step: math.fsum(losses) / len(losses) for step, losses in points.items()}
        axes.plot(list(means), list(means.values()), color=KIND_COLOURS[kind], linewidth=2)
        ends.append((means[max(means)], kind))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)
    step_axis(axes, steps, chosen)
    axes.set_xlabel("step", color=SOFT, loc="left")
    bottom = -math.inf
    for value, kind in sorted(ends):
        y = max(float(axes.transData.transform((0, value))[1]), bottom + canvas.LABEL_HEIGHT)
        bottom = y
        place = {"ha": "left", "va": "center_baseline", "size": SMALL, "weight": "bold"}
        figure.text(1 - (right - 8) / width, y / height, kind, color=KIND_COLOURS[kind], **place)
    return canvas.to_svg(figure, "loss-kinds", "Training loss by step and kind of position, on a logarithmic axis.")


# One chain, token by token


def step_starts(tokens: Sequence[bytes]) -> list[int]:
    """The indices of the tokens that begin a reasoning step. A step is a line; in a chain of fewer than three lines, it is
    a sentence."""
    by_line = b"".join(tokens).strip().count(b"\n") > 1
    starts, before = [0], b""
    for index, token in enumerate(tokens):
        after_line = before.rstrip(b" ").endswith(b"\n")
        after_sentence = before.endswith((b".", b"!", b"?")) and token[:1] == b" "
        if index and (after_line or (after_sentence and not by_line)):
            starts.append(index)
        before += token
    return starts


def break_lines(steps: Sequence[int], room: int) -> list[tuple[int, int]]:
    """The (begin, end) of each line, for lines of at most `room` tokens.

    steps  number of tokens of each reasoning step

    A step that does not fit into the rest of a line begins a new line. A step that is longer than a line is cut into
    parts of nearly equal length.
    """
    lines: list[tuple[int, int]] = []
    begin = end = 0
    for length in steps:
        parts = -(-length // room)
        for part in range(parts):
            size = length * (part + 1) // parts - length * part // parts
            if end > begin and end + size - begin > room:
                lines.append((begin, end))
                begin = end
            end += size
    return [*lines, (begin, end)] if end > begin else lines


@rc_context(MATPLOTLIB_STYLE)
def draw_probabilities(chain: Chain, *, width: int) -> str:
    """A bar for each token, whose height is its probability, with a dashed line at the start of each reasoning step."""
    least, most, high, head, left = 15, 28, 84, 24, 46
    steps, starts = _visible_steps(chain, "probabilities")
    lines = _line_ranges(starts, len(steps), int((width - left) // least))
    cell = min(most, (width - left) / max(end - begin for begin, end in lines))
    labels = [shorten(_bare_token(drawn), 11) for drawn, _ in steps]
    pitch = head + high + 22 + 7 * max(map(len, labels))
    figure, axes = _new_sheet(width, height := pitch * len(lines))
    for line, (begin, end) in enumerate(lines):
        base = height - line * pitch - head - high
        for share in (0, 0.5, 1):
            y = base + high * share
            axes.hlines(y, left, left + cell * (end - begin), color=RULE, linewidth=1)
            axes.text(left - 6, y, f"{100 * share:g} %", ha="right", va="center", size=SMALL, color=SOFT)
        for index in range(begin, end):
            x = left + cell * (index - begin)
            drawn, candidates = steps[index]
            probability = next((math.exp(log) for token, log in candidates if token == drawn), None)
            if probability is not None:
                colour, depth = (SOFT, 0.5) if probability >= LIKELY_PROBABILITY else (HEAT, 0.95)
                axes.bar(x + cell / 2, high * probability, 0.74 * cell, base, color=colour, alpha=depth, linewidth=0)
            axes.text(x + cell / 2, base - 7, labels[index], ha="center", va="top", rotation=90, size=SMALL)
            if index in starts:
                _mark_step(axes, starts.index(index) + 1, x, base, base + high + 11, inside=index > begin)
    return canvas.to_svg(figure, "probabilities", "Probability of each of the teacher's tokens in one chain.")


@rc_context(MATPLOTLIB_STYLE)
def draw_candidates(chain: Chain, *, width: int) -> str:
    """The most likely candidates of each token, the most likely on top. A deeper colour means a higher probability, and
    the sampled token has a frame."""
    narrow = width < 600
    cell, high, gap, ranks = (53, 21, 20, 3) if narrow else (63, 22, 22, 5)
    steps, starts = _visible_steps(chain, "candidates")
    ranks = min(ranks, max(len(candidates) for _, candidates in steps))
    lines, pitch = _line_ranges(starts, len(steps), int(width // cell)), high * ranks + gap
    cell = min(80, width / max(end - begin for begin, end in lines))
    figure, axes = _new_sheet(width, height := pitch * len(lines))
    for line, (begin, end) in enumerate(lines):
        top = height - line * pitch - 16
        for index in range(begin, end):
            x = cell * (index - begin)
            drawn, candidates = steps[index]
            for rank, (token, log) in enumerate(_top_candidates(drawn, candidates, ranks)):
                below, probability = top - high * (rank + 1), math.exp(log)
                box = (x + cell / 2, high - 3, cell - 3, below + 1.5)
                axes.bar(*box, color=HEAT, alpha=MAX_OPACITY * probability, linewidth=0)
                if token == drawn:
                    axes.bar(*box, color="none", edgecolor=INK, linewidth=1.2)
                name = shorten(readable_token(token), int((cell - 10) / 7.2))
                colour = INK if token == drawn or probability >= 0.05 else SOFT
                style = {"ha": "center", "va": "center_baseline", "size": SMALL, "color": colour}
                axes.text(x + cell / 2, below + high / 2, name, **style)
            if index in starts:
                _mark_step(axes, starts.index(index) + 1, x, top - high * ranks, top + 8, inside=index > begin)
    description = "The most likely candidates for each of the teacher's tokens in one chain."
    return canvas.to_svg(figure, "candidates", description)


def _visible_steps(chain: Chain, figure: str) -> tuple[list[tuple[bytes | End, tuple[Candidate, ...]]], list[int]]:
    """(sampled token, candidates) of each step, with the end if its probability is known, and the indices at which
    reasoning steps start. Steps after the figure's MAX_TOKENS are left out."""
    drawn: list[bytes | End] = [*chain.tokens, *([END] if len(chain.candidates) > len(chain.tokens) else [])]
    steps = list(zip(drawn, chain.candidates, strict=True))[: MAX_TOKENS[figure]]
    assert steps, "a chain without candidates has no figure"
    return steps, [index for index in step_starts(chain.tokens) if index < len(steps)]


def _line_ranges(starts: Sequence[int], tokens: int, room: int) -> list[tuple[int, int]]:
    return break_lines([b - a for a, b in pairwise([*starts, tokens])], room)


def _new_sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty drawing, whose coordinates are CSS pixels."""
    figure = canvas.new_figure(width, height)
    axes = canvas.new_axes(figure, 0, 0, width, height)
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_axis_off()
    return figure, axes


def _mark_step(axes: Axes, number: int, x: float, low: float, high: float, *, inside: bool) -> None:
    """Write the number of a reasoning step at its start. Inside a line of tokens, also draw a dashed line."""
    if inside:
        axes.vlines(x, low, high + 4, color=SOFT, linewidth=1, linestyle=DASHED)
    text = f"step {number}" if number == 1 else f"{number}"
    axes.text(x + (5 if inside else 1), high, text, ha="left", va="center", size=SMALL, color=SOFT)


def _top_candidates(drawn: bytes | End, step: Sequence[Candidate], ranks: int) -> list[Candidate]:
    """The most likely candidates in order. If the sampled token is not among them, it takes the last rank."""
    ordered = sorted(step, key=lambda candidate: -candidate[1])
    first = ordered[:ranks]
    if drawn in [token for token, _ in first]:
        return first
    return first[: ranks - 1] + [candidate for candidate in ordered if candidate[0] == drawn]


def _bare_token(token: bytes | End) -> str:
    """The label of a token below its bar, without spaces at its start and end."""
    return readable_token(token.strip(b" ") if isinstance(token, bytes) and token.strip(b" ") else token)
