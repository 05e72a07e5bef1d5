"""The tool that fills docs/findings.md: verdicts follow from intervals, and nothing outside the markers changes."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tools.docs import findings

POINTS = st.floats(-100, 100, allow_nan=False)


@given(POINTS, POINTS, st.sampled_from([-1, 1]))
def test_a_verdict_is_the_side_of_the_interval(one: float, other: float, sign: int) -> None:
    low, high = sorted((one, other))
    said = findings.verdict(low, high, sign)
    assert (said == "not shown") == (low <= 0 <= high)
    assert findings.verdict(-high, -low, -sign) == said, "the claim turned round has the same verdict"
    assume(said != "not shown")
    assert {said, findings.verdict(low, high, -sign)} == {"shown", "reversed"}


def row(group: str, share: float, difference: float | None = None, kind: str = "in-distribution") -> dict[str, str]:
    values = {"answers": findings.ZERO_SHOT, "of": "mean over sets", "set": kind, "group": group, "n": "400"}
    values |= {"seeds": "1 2 3", "share": str(share), "low": str(share - 0.1), "high": str(share + 0.1)}
    bounds = {"": difference, "_low": difference and difference - 0.05, "_high": difference and difference + 0.05}
    return values | {f"difference{name}": "" if value is None else str(value) for name, value in bounds.items()}


def test_tables_and_verdicts_have_the_numbers_of_the_study() -> None:
    rows = [row("base", 0.03, -0.43), row("text", 0.46), row("one-hot", 0.43, -0.03)]
    table = findings.table_lines(rows)
    assert "| base | 1 2 3 | 3.0 (-7.0 to 13.0) |" in table and "| text | 1 2 3 | 46.0 (36.0 to 56.0) |" in table
    said = findings.verdict_lines({"distribution": rows})
    assert any("base is worse in distribution" in line and "-43.0 (-48.0 to -38.0) | *shown*" in line for line in said)
    assert any("hard targets" in line and "-3.0 (-8.0 to +2.0) | *not shown*" in line for line in said)


def test_only_what_stands_between_markers_is_written() -> None:
    page = "# Title\n<!-- a -->\nold\n<!-- end -->\ntext\n<!-- b -->\n<!-- end -->\n"
    filled = findings.fill(page, {"a": ["", "new"], "b": ["", "other"]})
    assert filled == "# Title\n<!-- a -->\n\nnew\n\n<!-- end -->\ntext\n<!-- b -->\n\nother\n\n<!-- end -->\n"
    assert findings.fill(filled, {"a": ["", "new"], "b": ["", "other"]}) == filled
    with pytest.raises(SystemExit):
        findings.fill(page, {"a": []})
