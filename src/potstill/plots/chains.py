"""One chain token by token: how likely its source found each, and what else might have stood there.

    >>> steps = [[(b"4", -0.1), (b"5", -2.4)], [(b".", -0.01)], [(b"\\n", -0.3)], [(b"So", -0.7), (b"The", -0.9)]]
    >>> chain = Chain.from_tokens("q", 0, [b"4", b".", b"\\n", b"So"], steps)
    >>> starts(chain.tokens), lines([3, 2, 4], 5)
    ([0, 3], [(0, 5), (5, 9)])
    >>> probabilities(chain, width=380).startswith('<svg class="figure"')
    True

Both figures are written like music: as many tokens a line as the width has room for, steps of reasoning kept together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from potstill.plots import canvas
from potstill.plots.canvas import HEAT, INK, RULE, SMALL, SOFT, STYLE
from potstill.records import END, Candidate, Chain, End
from potstill.story import readable

MOST: Final = {"probabilities": 240, "candidates": 120}  # tokens that a figure shows of a longer chain
LIKELY: Final = 0.8  # below it a bar is drawn in colour
DEEPEST: Final = 0.8  # opacity of a certain candidate


def starts(tokens: Sequence[bytes]) -> list[int]:
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


def lines(steps: Sequence[int], room: int) -> list[tuple[int, int]]:
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


@rc_context(STYLE)
def probabilities(chain: Chain, *, width: int) -> str:
    """A bar for each token, as high as its probability was; dashed lines where steps of reasoning begin."""
    least, most, high, head, left = 15, 28, 84, 24, 46
    shown, begins = _shown(chain, "probabilities")
    rows = _rows(begins, len(shown), int((width - left) // least))
    cell = min(most, (width - left) / max(end - begin for begin, end in rows))
    labels = [canvas.label(_bare(own), 11) for own, _ in shown]
    names = 22 + 7 * max(map(len, labels))
    pitch = head + high + names
    figure, axes = _sheet(width, height := pitch * len(rows))
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
            value = _own(own, step)
            if value is not None:
                hue, depth = (SOFT, 0.5) if value >= LIKELY else (HEAT, 0.95)
                axes.bar(across + cell / 2, high * value, 0.74 * cell, base, color=hue, alpha=depth, linewidth=0)
            axes.text(across + cell / 2, base - 7, labels[place], ha="center", va="top", rotation=90, size=SMALL)
            if place in begins:
                _mark(axes, begins.index(place) + 1, across, base, base + high + 11, inside=place > begin)
    return canvas.svg(figure, "probabilities", "Probability of each of the teacher's tokens along one chain.")


@rc_context(STYLE)
def candidates(chain: Chain, *, width: int) -> str:
    """Above each other the likeliest candidates of each token, deeper in colour the likelier; the drawn one framed."""
    narrow = width < 600
    cell, high, gap, ranks = (53, 21, 20, 3) if narrow else (63, 22, 22, 5)
    shown, begins = _shown(chain, "candidates")
    ranks = min(ranks, max(len(step) for _, step in shown))
    rows, pitch = _rows(begins, len(shown), int(width // cell)), high * ranks + gap
    cell = min(80, width / max(end - begin for begin, end in rows))
    letters = int((cell - 10) / 7.2)
    figure, axes = _sheet(width, height := pitch * len(rows))
    for line, (begin, end) in enumerate(rows):
        top = height - line * pitch - 16
        for place in range(begin, end):
            across = cell * (place - begin)
            own, step = shown[place]
            for rank, (what, value) in enumerate(_ranked(own, step, ranks)):
                drawn, below = what == own, top - high * (rank + 1)
                depth = DEEPEST * math.exp(value)
                axes.bar(across + cell / 2, high - 3, cell - 3, below + 1.5, color=HEAT, alpha=depth, linewidth=0)
                if drawn:
                    frame = {"color": "none", "edgecolor": INK, "linewidth": 1.2}
                    axes.bar(across + cell / 2, high - 3, cell - 3, below + 1.5, **frame)
                name = canvas.label(readable(what), letters)
                hue = INK if drawn or math.exp(value) >= 0.05 else SOFT
                axes.text(
                    across + cell / 2, below + high / 2, name, ha="center", va="center_baseline", size=SMALL, color=hue
                )
            if place in begins:
                _mark(axes, begins.index(place) + 1, across, top - high * ranks, top + 8, inside=place > begin)
    told = "The likeliest candidates of each of the teacher's tokens along one chain."
    return canvas.svg(figure, "candidates", told)


def _shown(chain: Chain, figure: str) -> tuple[list[tuple[bytes | End, tuple[Candidate, ...]]], list[int]]:
    """Each step's token and candidates, the end's too where it is known, and the places at which steps begin."""
    own: list[bytes | End] = [*chain.tokens, *([END] if len(chain.candidates) > len(chain.tokens) else [])]
    found = list(zip(own, chain.candidates, strict=True))[: MOST[figure]]
    assert found, "a chain without candidates has no figure"
    return found, [place for place in starts(chain.tokens) if place < len(found)]


def _rows(begins: Sequence[int], tokens: int, room: int) -> list[tuple[int, int]]:
    return lines([b - a for a, b in pairwise([*begins, tokens])], room)


def _sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty drawing whose coordinates are CSS pixels."""
    figure = canvas.figure(width, height)
    axes = canvas.axes(figure, 0, 0, width, height)
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_axis_off()
    return figure, axes


def _mark(axes: Axes, number: int, across: float, low: float, high: float, *, inside: bool) -> None:
    """The number of a step of reasoning where it begins, and a line before it inside of a line of tokens."""
    if inside:
        axes.vlines(across, low, high + 4, color=SOFT, linewidth=1, linestyle=(0, (3, 3)))
    text = f"step {number}" if number == 1 else f"{number}"
    axes.text(across + (5 if inside else 1), high, text, ha="left", va="center", size=SMALL, color=SOFT)


def _own(own: bytes | End, step: Sequence[Candidate]) -> float | None:
    return next((math.exp(value) for what, value in step if what == own), None)


def _ranked(own: bytes | End, step: Sequence[Candidate], ranks: int) -> list[Candidate]:
    """The likeliest, in order, with the drawn one in the last place where it is not among them."""
    ordered = sorted(step, key=lambda candidate: -candidate[1])
    first = ordered[:ranks]
    return first if own in [what for what, _ in first] else first[: ranks - 1] + [c for c in ordered if c[0] == own]


def _bare(what: bytes | End) -> str:
    """A token below its bar: its outer spaces are seen anyway."""
    return readable(what.strip(b" ") if isinstance(what, bytes) and what.strip(b" ") else what)
