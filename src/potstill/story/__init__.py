"""What the page of a run tells, as plain data: `account` fills a `Story`, `plots` and `page` only show it.

    >>> Story("demo", student="tiny", teacher="local", groups={}, recipe="seed: 1").comparisons
    ()

Shares are in 0 to 1 and differences of shares in -1 to 1; only the page multiplies by 100. All intervals are 95 %.
`nouns` has the pieces, `means` what follows from them, `words` how numbers and texts are written.
"""

from potstill.story.means import (
    Cell,
    Change,
    Checkpoint,
    Line,
    changes,
    checkpoints,
    interval,
    lines,
    main_comparisons,
    main_format,
    mean,
    outcome,
    trained,
)
from potstill.story.nouns import (
    GROUPS,
    OUTCOMES,
    Alignment,
    Comparison,
    Control,
    Cost,
    Coverage,
    Group,
    Interval,
    Outcome,
    Sample,
    Source,
    Speed,
    Story,
    Time,
)
from potstill.story.words import ONE_SEED, THESE_WEIGHTS, percent, points, readable, visible

__all__ = [
    "GROUPS",
    "ONE_SEED",
    "OUTCOMES",
    "THESE_WEIGHTS",
    "Alignment",
    "Cell",
    "Change",
    "Checkpoint",
    "Comparison",
    "Control",
    "Cost",
    "Coverage",
    "Group",
    "Interval",
    "Line",
    "Outcome",
    "Sample",
    "Source",
    "Speed",
    "Story",
    "Time",
    "changes",
    "checkpoints",
    "interval",
    "lines",
    "main_comparisons",
    "main_format",
    "mean",
    "outcome",
    "percent",
    "points",
    "readable",
    "trained",
    "visible",
]
