"""Segments and their merging: every complete line once, in the order of keys, and one message for each disk error."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.dataset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import UserError
from potstill.records import END, Chain
from potstill.serialization import to_json
from potstill.storage import Appender, encode_json_line, parquet, segments
from potstill.storage.flat_chains import build_table, chain_schema, decode_row, encode_row, flatten
from potstill.storage.segments import UNSHARDED, ChainKeySet, Shard

NAMES = st.sampled_from(["s/1", "s/10", "s/2", "é/\u2028", 'a","text":"b', ""])
KEYS = st.tuples(NAMES, st.sampled_from(["t", 'u","text":', "v"]), st.integers(0, 70))


def chain(question: str = "q", source: str = "t", index: int = 0, note: str = "") -> Chain:
    steps = [[(b"4", -0.5), (END, -2.5)], [(b"\xff", -0.25)], [(END, -0.125)]]
    tokens = [b"4", b"\xff", note.encode()]
    return Chain.from_tokens(question, index, tokens, steps, source=source)


def store(folder: Path, shard: Shard, chains: list[Chain]) -> None:
    with Appender(folder / segments.segment_name(shard)) as lines:
        lines.append(to_json(chain) for chain in chains)


def sealed(folder: Path) -> list[Chain]:
    parquet.write_chains(folder / "c.parquet", segments.merge_segments(folder))
    return list(parquet.read_chains(folder / "c.parquet"))


@settings(deadline=None)
@given(st.lists(KEYS), KEYS)
def test_keys_are_a_set(keys, other) -> None:
    stored = ChainKeySet()
    assert [stored.add(key) for key in keys] == [key not in keys[:index] for index, key in enumerate(keys)]
    assert len(stored) == len(set(keys)) and all(key in stored for key in keys)
    assert (other in stored) == (other in keys)


@settings(deadline=None)
@given(st.lists(st.tuples(KEYS, st.integers(1, 3)), max_size=30))
def test_segments_are_put_in_the_order_of_keys_each_chain_once(tmp_path_factory, rows) -> None:
    folder = tmp_path_factory.mktemp("run")
    for number in (1, 2, 3):
        store(folder, Shard(number, 3), [chain(*key, note=str(number)) for key, at in rows if at == number])
    kept: dict[tuple[str, str, int], Chain] = {}
    for key, at in sorted(rows, key=lambda row: row[1]):
        kept.setdefault(key, chain(*key, note=str(at)))
    assert sealed(folder) == [kept[key] for key in sorted(kept)]
    assert len(segments.stored_keys(segments.segment_paths(folder))) == len(kept)


def test_a_torn_line_is_nobodys(tmp_path: Path) -> None:
    store(tmp_path, UNSHARDED, [chain(index=0), chain(index=1)])
    path = tmp_path / segments.segment_name(UNSHARDED)
    whole = path.read_bytes()
    for cut in (1, 2, len(encode_json_line(to_json(chain(index=1)))) - 1):
        path.write_bytes(whole[:-cut])
        assert [each.index for each in segments.merge_segments(tmp_path)] == [0]
        assert ("q", "t", 1) not in segments.stored_keys(segments.segment_paths(tmp_path))
    store(tmp_path, UNSHARDED, [chain(index=1)])  # opening cuts it off
    assert path.read_bytes() == whole


def test_a_line_that_is_no_chain_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "segment-0000.jsonl").write_bytes(
        encode_json_line(to_json(chain())) + b'{"question":"q","index":1,"text":"4"}\n'
    )
    for read in (
        lambda folder: segments.stored_keys(segments.segment_paths(folder)),
        lambda folder: list(segments.merge_segments(folder)),
    ):
        with pytest.raises(
            UserError, match=r"segment-0000\.jsonl line 2: .*\n  found: no field 'source'(.|\n)*E-storage-invalid-chain"
        ):
            read(tmp_path)
    (tmp_path / "segment-0000.jsonl").write_bytes(b'{"question":"q","source":"t","index":1,"text":4}\n')
    with pytest.raises(UserError, match=r"segment-0000\.jsonl byte 0: (.|\n)*E-storage-invalid-chain"):
        list(segments.merge_segments(tmp_path))


def test_no_segment_is_no_chain(tmp_path: Path) -> None:
    assert (
        list(segments.merge_segments(tmp_path)) == []
        and len(segments.stored_keys(segments.segment_paths(tmp_path))) == 0
    )


# --- tables ----------------------------------------------------------------------------------------------------------

outcome = st.one_of(st.just(END), st.binary(max_size=3))
step = st.lists(st.tuples(outcome, st.sampled_from([-0.5, -2.0, 0.0])), max_size=3)


@st.composite
def chains(draw) -> Chain:
    tokens = draw(st.lists(st.binary(max_size=3), max_size=4))
    steps = draw(st.lists(step, min_size=len(tokens), max_size=len(tokens)))
    more = draw(st.sampled_from([[], [[(END, -0.25)]]]))
    question, source, index = draw(KEYS)
    return Chain.from_tokens(question, index, tokens, [*steps, *more] if draw(st.booleans()) else [], source=source)


@settings(deadline=None)
@given(chains())
def test_a_chain_comes_back_from_its_line_and_from_its_table(each) -> None:
    spread = replace(each, spans=tuple((2 * start, 2 * end) for start, end in each.spans), defects=("entries missing",))
    for one in (each, spread):
        assert segments.decode_chain(segments.encode_chain(one)) == one
        assert list(parquet.chains_from_table(parquet.build_chain_table([one]))) == [one]


@settings(deadline=None)
@given(st.lists(chains(), min_size=1, max_size=6))
def test_flat_and_nested_lines_are_the_same_chains_in_the_same_table(rows) -> None:
    flat = [decode_row(encode_row(flatten(row))) for row in rows]
    nested = [decode_row(encode_json_line(to_json(row))) for row in rows]
    assert flat == nested and [row.as_chain() for row in flat] == rows
    table = build_table(flat)
    assert table.equals(parquet.build_chain_table(rows)) and table.schema == chain_schema()
    columns = table.to_pydict()  # the definition of the columns, without flat lists
    assert columns["spans"] == [[list(span) for span in row.spans] for row in rows]
    assert columns["tokens"] == [list(row.tokens) for row in rows]
    assert columns["candidates"] == [
        [[{"bytes": None if o is END else o, "log_probability": value} for o, value in step] for step in row.candidates]
        for row in rows
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_log_probability_that_is_not_finite_is_not_stored(value: float) -> None:
    with pytest.raises(ValueError):
        segments.encode_chain(Chain.from_tokens("q", 0, [b"4"], [[(b"4", value), (END, -1.0)]]))


def test_a_question_with_half_a_surrogate_pair_comes_back() -> None:
    one = chain("q\ud800")
    assert segments.decode_chain(segments.encode_chain(one)) == one


@pytest.mark.parametrize(
    "old, new",
    [
        (b'"log_probabilities":[-0.5,', b'"log_probabilities":['),
        (b'"log_probabilities":[-0.5,', b'"log_probabilities":[null,'),
        (b'"log_probabilities":[-0.5,', b'"log_probabilities":["a",'),
        (b'"step_sizes":[2,', b'"step_sizes":[3,'),
        (b'"step_sizes":[2,1,1]', b'"step_sizes":[1,1,1,1,0]'),
        (b'{"base64":"/w=="}', b'{"base64":"?"}'),
        (b'{"base64":"/w=="}', b'{"base46":"/w=="}'),
        (b'{"base64":"/w=="}', b"7"),
        (b'"tokens":["4",', b'"tokens":["4","5",'),
        (b'"semantics":"raw"', b'"semantics":"cooked"'),
        (b'"index":0', b'"index":0,"more":1'),
    ],
)
def test_a_damaged_line_is_one_message_that_names_its_place(tmp_path: Path, old: bytes, new: bytes) -> None:
    line = segments.encode_chain(chain())
    assert old in line
    (tmp_path / "segment-0000.jsonl").write_bytes(segments.encode_chain(chain(index=3)) + line.replace(old, new))
    place = len(segments.encode_chain(chain(index=3)))
    for read in (lambda: sealed(tmp_path), lambda: list(parquet.read_stored_chains(tmp_path))):
        with pytest.raises(UserError, match=rf"segment-0000\.jsonl byte {place}: (.|\n)*E-storage-invalid-chain"):
            read()


@settings(deadline=None)
@given(st.lists(chains(), max_size=12), st.integers(1, 4))
def test_chains_come_back_whatever_the_row_groups(tmp_path_factory, rows, size) -> None:
    path = tmp_path_factory.mktemp("table") / "chains.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "ROW_GROUP_ROWS", size)
        parquet.write_chains(path, rows)
    assert list(parquet.read_chains(path)) == rows
    assert parquet.count_rows(path) == len(rows)
    assert parquet.count_chains(path)["tokens"] == sum(len(row.tokens) for row in rows)
    for name in {row.question for row in rows} | {"s/"}:
        assert list(parquet.read_chains(path, {name})) == [row for row in rows if row.question == name]


def test_row_groups_are_bounded_by_what_they_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_CELLS", 20)
    rows = [chain(index=index) for index in range(10)]  # seven cells each
    parquet.write_chains(tmp_path / "c.parquet", rows)
    [file] = pyarrow.dataset.dataset(tmp_path / "c.parquet").get_fragments()
    assert [group.num_rows for group in file.row_groups] == [3, 3, 3, 1]
    assert list(parquet.read_chains(tmp_path / "c.parquet")) == rows


def test_sealing_onto_a_full_disk_is_one_message_and_loses_nothing(tmp_path: Path) -> None:
    store(tmp_path, UNSHARDED, [chain(index=index, note=str(index) * 50) for index in range(300)])
    stored = (tmp_path / segments.segment_name(UNSHARDED)).read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match=r"chains\.parquet: File too large(.|\n)*E-storage-os-error"):
            parquet.write_chains(tmp_path / "chains.parquet", segments.merge_segments(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == [segments.segment_name(UNSHARDED)]
    assert (tmp_path / segments.segment_name(UNSHARDED)).read_bytes() == stored
    parquet.write_chains(tmp_path / "chains.parquet", segments.merge_segments(tmp_path))
    assert parquet.count_rows(tmp_path / "chains.parquet") == 300


def test_verdicts_of_other_chains_are_refused(tmp_path: Path) -> None:
    from potstill.records import Verdict

    parquet.write_chains(tmp_path / "c.parquet", [chain(index=0), chain(index=1)])

    def told(*indices: int) -> Iterator[tuple[tuple[str, str, int], Verdict]]:
        return ((("q", "t", index), Verdict("right", "4")) for index in indices)

    parquet.write_verdicts(tmp_path / "v.parquet", told(0, 1))
    assert [each.index for each, _ in parquet.chains_with_verdicts(tmp_path / "c.parquet", tmp_path / "v.parquet")] == [
        0,
        1,
    ]
    for indices in ((0,), (0, 2)):
        parquet.write_verdicts(tmp_path / "v.parquet", told(*indices))
        with pytest.raises(UserError, match="E-run-verdicts-differ"):
            list(parquet.chains_with_verdicts(tmp_path / "c.parquet", tmp_path / "v.parquet"))
