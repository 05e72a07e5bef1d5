"""Distil an ability of a large language model into a small model, and measure which other abilities it loses.

    >>> import potstill as ps
    >>> ps.grade("So she pays 2 x 9 dollars. The answer is $18.", "18", task="gsm8k").grade
    'right'
    >>> chunks = ps.align.spans([(0, 2), (2, 5)], [(0, 5)])

Every name is loaded at its first use, so that `import potstill` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from potstill import alignment as align
    from potstill import losses, teachers
    from potstill.alignment.cross_tokenizer import transfer
    from potstill.alignment.text_rule_completions import completions
    from potstill.errors import UserError
    from potstill.grading import grade
    from potstill.records import END, Chain, Checkpoint, LabelTable, Prediction, Question, Score, Target, Verdict
    from potstill.run_reader import Run, open_run, run
    from potstill.tokenization import load_tokenizer
    from potstill.tokenization.encoder import encode

__version__ = "0.1.0"

# Public name -> (module, name in the module); None: the module itself.
_EXPORTS: Final[dict[str, tuple[str, str | None]]] = {
    "run": ("run_reader", "run"),
    "open_run": ("run_reader", "open_run"),
    "Run": ("run_reader", "Run"),
    "grade": ("data", "grade"),  # `data` registers the graders of the built-in sets
    "load_tokenizer": ("tokenization", "load_tokenizer"),
    "encode": ("tokenization.encoder", "encode"),
    "align": ("alignment", None),
    "transfer": ("alignment.cross_tokenizer", "transfer"),
    "completions": ("alignment.text_rule_completions", "completions"),
    "losses": ("losses", None),
    "teachers": ("teachers", None),
    "UserError": ("errors", "UserError"),
    "END": ("records", "END"),
    "Chain": ("records", "Chain"),
    "Checkpoint": ("records", "Checkpoint"),
    "LabelTable": ("records", "LabelTable"),
    "Prediction": ("records", "Prediction"),
    "Question": ("records", "Question"),
    "Score": ("records", "Score"),
    "Target": ("records", "Target"),
    "Verdict": ("records", "Verdict"),
}

__all__ = [
    "END",
    "Chain",
    "Checkpoint",
    "LabelTable",
    "Prediction",
    "Question",
    "Run",
    "Score",
    "Target",
    "UserError",
    "Verdict",
    "__version__",
    "align",
    "completions",
    "encode",
    "grade",
    "load_tokenizer",
    "losses",
    "open_run",
    "run",
    "teachers",
    "transfer",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'potstill' has no attribute {name!r}")
    module, attribute = _EXPORTS[name]
    loaded = importlib.import_module(f"potstill.{module}")
    return loaded if attribute is None else getattr(loaded, attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
