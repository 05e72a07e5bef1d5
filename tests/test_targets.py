"""Targets at rest: what goes in comes out, to 1 part in 65,535, at less than 20 bytes a token."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import UserError
from potstill.records import Target
from potstill.targets import KINDS, NAMES, ONE, Targets, pack

HARD = Target((3, 1), (0, 1, 2), (3, 1), (1.0, 1.0), ("hard", "end"))


def made(rows: list[dict[int, float]], ids: list[int] | None = None) -> Target:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(int).tolist()
    own = tuple(ids or [next(iter(row)) for row in rows])
    candidates = tuple(token for row in rows for token in row)
    probabilities = tuple(p for row in rows for p in row.values())
    return Target(own, tuple(offsets), candidates, probabilities, ("same",) * len(rows))


def opened(arrays: dict[str, np.ndarray], folder: Path) -> Targets:
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return Targets(folder)


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    soft = made([{70_000: 0.5, 4: 0.25}, {5: 1.0}, {6: 0.1, 7: 0.9}], ids=[4, 5, 6])
    empty = Target((), (0,), (), (), ())
    keys = [("q1", "teacher", 0), ("q é/\n", "teacher", 1), ("q1", "human", 0)]
    targets = opened(pack(zip(keys, [soft, empty, HARD], strict=True)), tmp_path)
    assert len(targets) == 3 and targets.lengths.tolist() == [3, 0, 2]
    assert targets[2] == HARD and targets[1] == empty
    assert targets[0].ids == soft.ids and targets[0].kinds == soft.kinds
    for place in range(3):
        assert targets[0].distribution(place) == pytest.approx(soft.distribution(place), abs=1 / ONE)
    assert [targets.key(place) for place in range(3)] == keys == list(targets.keys)
    assert [targets.find(key) for key in keys] == [0, 1, 2] and targets.find(("q1", "teacher", 7)) is None
    with pytest.raises(IndexError):
        targets[3]


def test_nothing_is_a_table_of_nothing(tmp_path: Path) -> None:
    targets = opened(pack([]), tmp_path)
    assert len(targets) == 0 and targets.lengths.tolist() == [] and targets.keys == ()
    assert set(pack([])) == set(NAMES)


def test_a_certain_position_costs_its_id_alone() -> None:
    arrays = pack([(("q", "t", 0), made([{5: 1.0}, {6: 1.0 - 1e-6, 7: 1e-6}, {6: 1.0}], ids=[5, 6, 9]))])
    assert arrays["counts"].tolist() == [0, 0, 1], "the last is certain of another token than its own"
    assert arrays["ids"].dtype == np.uint16 and len(arrays["probabilities"]) == 1
    assert pack([(("q", "t", 0), made([{70_000: 1.0}]))])["ids"].dtype == np.uint32


def test_the_threshold_sends_to_the_tail_but_never_everything(tmp_path: Path) -> None:
    target = made([{5: 0.6, 6: 0.3, 7: 0.0009}, {5: 0.0004, 6: 0.0003}])
    read = opened(pack([(("q", "t", 0), target)], threshold=0.001), tmp_path)[0]
    assert list(read.distribution(0)) == [5, 6] and list(read.distribution(1)) == [5]
    assert read.tail(0) == pytest.approx(0.1, abs=2 / ONE)


ROWS = st.lists(
    st.dictionaries(st.integers(0, 40_000), st.floats(1e-9, 1.0), min_size=1, max_size=8), min_size=1, max_size=6
)


@settings(max_examples=40, deadline=None)
@given(ROWS, st.booleans())
def test_mass_and_tail_are_exactly_one(tmp_path_factory: pytest.TempPathFactory, rows: list[dict], full: bool) -> None:
    totals = [sum(row.values()) if full else max(1.0, sum(row.values())) for row in rows]
    scaled = [{token: p / total for token, p in row.items()} for row, total in zip(rows, totals, strict=True)]
    target = made([{token: min(p, 1.0) for token, p in row.items()} for row in scaled])
    folder = tmp_path_factory.getbasetemp() / "exact"
    read = opened(pack([(("q", "t", 0), target)]), folder)[0]
    assert read.ids == target.ids
    for place in range(len(target)):
        units = [round(p * ONE) for p in read.distribution(place).values()]
        assert min(units) > 0 and sum(units) <= ONE
        assert sum(read.distribution(place).values()) == pytest.approx(sum(units) / ONE, abs=1e-12)
        before, after = target.distribution(place), read.distribution(place)
        assert all(abs(after.get(token, 0.0) - p) <= len(before) / ONE for token, p in before.items())
    assert opened(pack([(("q", "t", 0), read)]), folder)[0] == read, "a second time changes nothing"


def test_size_on_rows_like_those_of_a_teacher() -> None:
    # PAPER section 4's printed example: 28 of 51 positions soft, kept mass 0.976 on the mean; top 5.
    draw = random.Random(0)
    packed = []
    for index in range(300):
        rows, ids = [], []
        for _ in range(130):
            token = draw.randrange(32_100)
            ids.append(token)
            first = min(1.0, draw.betavariate(6, 0.6))
            rest = [(1 - first) * share for share in (0.6, 0.25, 0.1, 0.03)]
            others = {draw.randrange(32_100): p for p in rest if p > 0}
            rows.append({token: first, **others} if draw.random() < 28 / 51 else {token: 1.0})
        packed.append((("gsm8k/train/1234", "teacher", index), made(rows, ids)))
    size = sum(array.nbytes for array in pack(packed).values()) / (300 * 130)
    assert size < 20
    assert sum(array.nbytes for array in pack(packed, threshold=1e-3).values()) / (300 * 130) < size


def test_wrong_targets_are_refused() -> None:
    with pytest.raises(UserError, match="two targets with one key"):
        pack([(("q", "t", 0), HARD), (("q", "t", 0), HARD)])
    with pytest.raises(UserError, match="more than 255 candidates"):
        pack([(("q", "t", 0), made([dict.fromkeys(range(300), 1 / 300)]))])
    with pytest.raises(AssertionError, match="not a probability"):
        pack([(("q", "t", 0), made([{5: 1.5}]))])
    with pytest.raises(AssertionError, match="without a candidate"):
        pack([(("q", "t", 0), Target((5,), (0, 0), (), (), ("same",)))])


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    arrays = pack([(("q", "t", 0), HARD)])
    opened(arrays, tmp_path)
    (tmp_path / "kinds.npy").write_bytes((tmp_path / "kinds.npy").read_bytes()[:40])
    with pytest.raises(UserError, match=r"kinds\.npy: not an array"):
        Targets(tmp_path)
    (tmp_path / "kinds.npy").unlink()
    with pytest.raises(UserError, match=r"kinds\.npy: no such array"):
        Targets(tmp_path)
    with pytest.raises(UserError, match="do not belong together"):
        opened({**arrays, "kinds": arrays["kinds"][:1]}, tmp_path)


def test_kinds_are_those_of_the_records() -> None:
    wanted = ("same", "merged", "split", "mixed", "hard", "end")
    assert wanted == KINDS, "their places are in files"
