"""Stored targets are read back within 1 part in 65,536, take under 20 bytes a token, or are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import printed_rows
from potstill import storage
from potstill.alignment.target_store import (
    ARRAY_NAMES,
    ORIGIN_FILE,
    POSITION_KINDS,
    UNITS_PER_ONE,
    TargetOrigin,
    TargetStore,
    pack_targets,
)
from potstill.errors import UserError
from potstill.records import Chain, Target

HARD = Target((3, 1), (0, 1, 2), (3, 1), (1.0, 1.0), ("hard", "end"))
ORIGIN = TargetOrigin("tokenizer-1", "teacher-1", "span", 1, "settings-1")


def chain(question: str = "q", index: int = 0, text: str = "a b", source: str = "teacher") -> Chain:
    return Chain.from_text(question, index, text, source=source)


def made(rows: list[dict[int, float]], ids: list[int] | None = None) -> Target:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(int).tolist()
    own = tuple(ids or [next(iter(row)) for row in rows])
    candidates = tuple(token for row in rows for token in row)
    probabilities = tuple(p for row in rows for p in row.values())
    return Target(own, tuple(offsets), candidates, probabilities, ("same",) * len(rows))


def opened(arrays: dict[str, np.ndarray], folder: Path, origin: TargetOrigin | None = None) -> TargetStore:
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return TargetStore(folder, origin)


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    soft = made([{70_000: 0.5, 4: 0.25}, {5: 1.0}, {6: 0.1, 7: 0.9}], ids=[4, 5, 6])
    empty = Target((), (0,), (), (), ())
    chains = [chain("q1", 0), chain("q é/\n", 1), chain("q1", 0, source="human")]
    targets = opened(pack_targets(zip(chains, [soft, empty, HARD], strict=True)), tmp_path)
    assert len(targets) == 3 and targets.lengths.tolist() == [3, 0, 2]
    assert targets[2] == HARD and targets[1] == empty
    assert targets[0].ids == soft.ids and targets[0].kinds == soft.kinds
    assert targets[0].distribution(0) == {70_000: 0.5, 4: 0.25} and targets[0].tail(0) == 0.25
    assert targets[0].distribution(2) == pytest.approx(soft.distribution(2), abs=1 / UNITS_PER_ONE)
    assert [targets.keys[position] for position in range(3)] == [each.key for each in chains] == list(targets.keys)
    assert [targets.find(each.key) for each in chains] == [0, 1, 2] and targets.find(("q1", "teacher", 7)) is None
    with pytest.raises(IndexError):
        targets[3]


def test_nothing_is_a_table_of_nothing(tmp_path: Path) -> None:
    targets = opened(pack_targets([]), tmp_path)
    assert len(targets) == 0 and targets.lengths.tolist() == [] and targets.keys == ()
    assert set(pack_targets([])) == set(ARRAY_NAMES)


def test_a_certain_position_costs_its_id_and_one_byte() -> None:
    arrays = pack_targets([(chain(), made([{5: 1.0}, {6: 1.0 - 1e-6, 7: 1e-6}, {6: 1.0}], ids=[5, 6, 9]))])
    assert arrays["marks"].tolist() == [0, 0, len(POSITION_KINDS)], "the last is certain of another token than its own"
    assert arrays["ids"].dtype == np.uint16 and arrays["probabilities"].tolist() == [UNITS_PER_ONE - 1]
    rows = [{5: 1.0}] * 1000
    assert sum(pack_targets([(chain(), made(rows))])[name].nbytes for name in ARRAY_NAMES[:4]) == 3 * len(rows)


def test_ids_take_two_bytes_unless_more_than_65536_of_a_large_vocabulary_are_used(tmp_path: Path) -> None:
    few = made([{70_000: 0.5, 9: 0.25}, {151_935: 1.0}, {9: 1.0}], ids=[70_000, 151_935, 65_536])
    arrays = pack_targets([(chain(), few)])
    assert arrays["ids"].dtype == arrays["candidate_ids"].dtype == np.uint16
    assert arrays["used"].tolist() == [9, 65_536, 70_000, 151_935]
    assert opened(arrays, tmp_path)[0] == few
    many = made([{token: 1.0} for token in range(65_537)])
    arrays = pack_targets([(chain(), many)])
    assert arrays["ids"].dtype == np.uint32 and not len(arrays["used"]) and opened(arrays, tmp_path)[0].ids == many.ids
    assert len(pack_targets([(chain(), made([{65_535: 1.0}]))])["used"]) == 0


def test_many_candidates_need_a_wider_mark_and_nothing_else(tmp_path: Path) -> None:
    for n, kind in ((41, np.uint8), (43, np.uint16), (5_000, np.uint16)):
        target = made([dict.fromkeys(range(n), 1 / n)])
        arrays = pack_targets([(chain(), target)])
        read = opened(arrays, tmp_path)[0]
        assert arrays["marks"].dtype == kind and len(read.distribution(0)) == n
        assert sum(read.distribution(0).values()) == 1.0, "no error adds up, however many share the mass"
        assert max(abs(p - 1 / n) for p in read.distribution(0).values()) < 1 / UNITS_PER_ONE


def test_the_threshold_sends_to_the_tail_but_never_everything(tmp_path: Path) -> None:
    target = made([{5: 0.6, 6: 0.3, 7: 0.0009}, {5: 0.0004, 6: 0.0003}])
    read = opened(pack_targets([(chain(), target)], threshold=0.001), tmp_path)[0]
    assert list(read.distribution(0)) == [5, 6] and list(read.distribution(1)) == [5]
    assert read.tail(0) == pytest.approx(0.1, abs=1 / UNITS_PER_ONE)


ROWS = st.lists(
    st.dictionaries(st.integers(0, 40_000), st.floats(1e-9, 1.0), min_size=1, max_size=8), min_size=1, max_size=6
)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.booleans(), st.sampled_from([np.float32, np.float64]))
def test_mass_and_tail_are_exactly_one(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict], full: bool, kind: type
) -> None:
    totals = [sum(row.values()) if full else max(1.0, sum(row.values())) for row in rows]
    scaled = [{token: p / total for token, p in row.items()} for row, total in zip(rows, totals, strict=True)]
    target = made([{token: min(p, 1.0) for token, p in row.items()} for row in scaled])
    folder = tmp_path_factory.getbasetemp() / "exact"
    read = opened(pack_targets([(chain(), target)]), folder)[0]
    assert read.ids == target.ids
    for position in range(len(target)):
        before, after = target.distribution(position), read.distribution(position)
        shares = np.array(list(after.values()), kind)
        assert shares.sum() + kind(read.tail(position)) == 1, "exact in 32 bits too, in the order of storage"
        assert shares[::-1].sum() + kind(read.tail(position)) == 1, "and in any other"
        assert shares.min() > 0 and all(
            abs(after.get(token, 0.0) - p) < 1 / UNITS_PER_ONE for token, p in before.items()
        )
        if sum(before.values()) > 1 / UNITS_PER_ONE:
            assert abs(sum(after.values()) - min(1.0, sum(before.values()))) <= 0.5 / UNITS_PER_ONE + 1e-9
    assert opened(pack_targets([(chain(), read)]), folder)[0] == read, "a second time changes nothing"


def test_size_on_rows_like_those_of_the_paper() -> None:
    rows = printed_rows.targets(26_000)
    size = sum(array.nbytes for array in pack_targets(rows).values()) / 26_000
    assert size < 20
    assert sum(array.nbytes for array in pack_targets(rows, threshold=1e-3).values()) / 26_000 < size


def test_a_target_is_joined_to_its_own_chain_only(tmp_path: Path) -> None:
    whole = Chain.from_tokens("q", 0, [b"3", b" + 4"])
    targets = opened(pack_targets([(whole, HARD)]), tmp_path)
    assert targets.get(whole) == HARD
    other = Chain.from_tokens("q", 0, [b"3 +", b" 4"])
    for changed in (replace(whole, content=b"3 + 5"), other, replace(whole, stop="length")):
        with pytest.raises(UserError, match="E-align-other-chain"):
            targets.get(changed)
    with pytest.raises(UserError, match="E-align-no-target"):
        targets.get(replace(whole, index=1))


@pytest.mark.parametrize(
    "change, name",
    [
        ({"tokenizer": "other"}, "tokenizer"), ({"teacher": "other"}, "teacher"), ({"rule": "paper"}, "rule"),
        ({"version": 2}, "version of the rules"), ({"settings": "other"}, "settings"),
    ],
)  # fmt: skip
def test_targets_made_with_something_else_are_refused(tmp_path: Path, change: dict, name: str) -> None:
    storage.write_json(tmp_path / ORIGIN_FILE, replace(ORIGIN, **change).as_json())
    with pytest.raises(UserError, match=rf"another {name}\n(.*\n)*.*E-align-other-origin"):
        opened(pack_targets([(chain(), HARD)]), tmp_path, ORIGIN)


def test_targets_that_do_not_say_what_made_them_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="E-align-no-origin"):
        opened(pack_targets([(chain(), HARD)]), tmp_path, ORIGIN)
    storage.write_json(tmp_path / ORIGIN_FILE, ORIGIN.as_json())
    assert len(opened(pack_targets([(chain(), HARD)]), tmp_path, ORIGIN)) == 1


def test_wrong_targets_are_refused() -> None:
    with pytest.raises(UserError, match="E-align-duplicate-key"):
        pack_targets([(chain(), HARD), (chain(), HARD)])
    with pytest.raises(UserError, match="E-align-too-many-candidates"):
        pack_targets([(chain(), made([dict.fromkeys(range(11_000), 1 / 11_000)]))])
    with pytest.raises(AssertionError, match="not a probability"):
        pack_targets([(chain(), made([{5: 1.5}]))])
    with pytest.raises(AssertionError, match="without a candidate"):
        pack_targets([(chain(), Target((5,), (0, 0), (), (), ("same",)))])


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    arrays = pack_targets([(chain(), HARD)])
    opened(arrays, tmp_path)
    (tmp_path / "marks.npy").write_bytes((tmp_path / "marks.npy").read_bytes()[:40])
    with pytest.raises(UserError, match=r"marks\.npy: (.*\n)*.*E-align-not-an-array"):
        TargetStore(tmp_path)
    (tmp_path / "marks.npy").unlink()
    with pytest.raises(UserError, match=r"marks\.npy: (.*\n)*.*E-align-no-array"):
        TargetStore(tmp_path)
    with pytest.raises(UserError, match="E-align-torn-store"):
        opened({**arrays, "marks": arrays["marks"][:1]}, tmp_path)


def test_kinds_are_those_of_the_records() -> None:
    wanted = ("same", "merged", "split", "mixed", "hard", "end")
    assert wanted == POSITION_KINDS, "their places are in files"
