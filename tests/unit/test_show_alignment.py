"""The terminal shows a chain above its target: every token of both sides appears once, in aligned columns."""

from __future__ import annotations

from functools import cache

import pytest
from rich.console import Console

from potstill.alignment.cross_tokenizer import transfer
from potstill.cli import show
from potstill.records import END, Chain
from potstill.tokenization import Tokenizer
from tools.toy_models.tokenizer_training import train_unigram

TEXTS = ["Weng earns $12 for 3 hours of babysitting.\nThe answer is 36"] * 4


@cache
def student() -> Tokenizer:
    return train_unigram(TEXTS, 70)


def weng(stop: str = "end", last: bool = True) -> Chain:
    tokens = [b"W", b"eng", b" earns", b" $", b"12", b".", b"\n", b"So"]
    steps = [[(token, -0.5), (b" other", -2.0)] for token in tokens] + ([[(END, -0.1), (b"!", -3.0)]] if last else [])
    return Chain.from_tokens("q", 0, tokens, steps, stop=stop)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["one-hot", "span", "text"])
@pytest.mark.parametrize("stop, last", [("end", True), ("end", False), ("length", False)])
def test_every_step_and_every_position_lies_in_one_block(rule: str, stop: str, last: bool) -> None:
    chain = weng(stop, last)
    target = transfer(chain, student(), rule)
    found = show.aligned_blocks(chain, target, student())
    assert [step for block in found for step in block.steps] == list(range(len(chain.tokens) + last))
    assert [position for block in found for position in block.positions] == list(range(len(target)))


@pytest.mark.parametrize("width", [30, 60, 200])
def test_lines_hold_both_sides_at_the_same_columns(width: int) -> None:
    chain = weng()
    target = transfer(chain, student(), "span")
    lines = list(show.interlinear_lines(chain, target, student(), width))
    above, below = lines[0::3], lines[1::3]
    assert [a.cell_len for a in above] == [b.cell_len for b in below]
    assert "W│eng" in above[0].plain and "␣$  12" in "".join(line.plain for line in above)
    written = "".join(line.plain.replace("│", "").replace(" ", "") for line in above)
    assert written == "Weng␣earns␣$12.⏎SoEND"
    assert "".join(line.plain.replace("│", "").replace(" ", "") for line in below).endswith("</s>")


def test_the_table_has_masses_and_what_is_certain_stays_bare() -> None:
    chain = weng()
    target = transfer(chain, student(), "span")
    console = Console(width=140, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as capture:
        console.print(show.candidate_table(chain, target, student()))
    rows = capture.get().splitlines()
    [stop] = [row for row in rows if row.startswith(".")]
    assert "0.607" in stop and "␣other 0.135" in stop and "same" in stop and stop.rstrip().endswith("0.393")
    hard = [row for row in rows if " hard " in f"{row} "]
    assert hard and not any(row.rstrip()[-1].isdigit() for row in hard), "a certain position has no masses to show"
    assert (
        "hard" in show.kind_legend(target).plain
        and "one candidate, no teacher distribution" in show.kind_legend(target).plain
    )
