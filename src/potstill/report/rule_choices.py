"""What each rule of selection would choose among the checkpoints of a run, and the test results of these choices.

    [(row.name, row.checkpoint.label, row.value) for row in collect_rule_choices(RunFiles(run_dir, recipe))]

All values are from validation answers. Test answers are read only for checkpoints that the stage `test` has tested: the
choice of the run, and those of `select.also`. This module opens no test split.
"""

from __future__ import annotations

from collections.abc import Iterator

from potstill.evaluation import choice as choices
from potstill.records import BASE, Checkpoint
from potstill.report.model import Comparison, RuleChoice
from potstill.report.run_files import RunFiles, compare_answers


def collect_rule_choices(files: RunFiles) -> Iterator[RuleChoice]:
    """The choice of the run, then the other choices of its recipe, which may be the same checkpoint."""
    own, recipe = files.choice, files.recipe
    tested = {Checkpoint.parse(step) for step in files.counts("test")["steps"]}
    yield RuleChoice(own.rule, own.checkpoint, dict(own.table)[own.checkpoint], _compare(files, BASE, own.checkpoint))
    for name in choices.list_other_choices(recipe):
        selected = choices.choose_other(files.run_dir, recipe, name)
        best, result, price = selected.best, (), ()
        if best in tested:
            result = _compare(files, BASE, best)
            price = () if best == own.checkpoint else _compare(files, best, own.checkpoint)
        yield RuleChoice(name, best, dict(selected.table)[best], result, price)


def _compare(files: RunFiles, before: Checkpoint, after: Checkpoint) -> tuple[Comparison, ...]:
    """Two checkpoints on every test set, in the format and decoding of the choice."""
    base, chosen = (files.test_answers(each, files.choice.format, files.choice.decoding) for each in (before, after))
    return tuple(compare_answers(base, chosen, name) for name in chosen.scores)
