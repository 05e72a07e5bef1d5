"""Storage: no file is ever half written, torn lines are cut off, manifests refuse inputs that do not fit."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill import storage
from potstill.errors import UserError
from potstill.records import END, Chain, Choice, Verdict
from potstill.storage import atomic, manifest, parquet, run_folder


class Crash(BaseException):
    """What a test raises where a machine would stop."""


@pytest.fixture
def crash_at() -> Iterator[object]:
    """Call with an operation and a moment: the next such moment stops the program."""

    def arm(operation: str, moment: str) -> None:
        def stop(now_operation: str, now_moment: str, path: Path) -> None:
            if (now_operation, now_moment) == (operation, moment):
                raise Crash

        atomic.crash = stop

    yield arm
    atomic.crash = atomic._no_crash


@pytest.mark.parametrize("moment, content", [("before", b"old"), ("middle", b"old"), ("after", b"new, and longer")])
def test_a_write_is_whole_or_not_at_all(tmp_path: Path, crash_at, moment: str, content: bytes) -> None:
    path = tmp_path / "a"
    storage.write_file(path, b"old")
    crash_at("write", moment)
    with pytest.raises(Crash):
        storage.write_file(path, b"new, and longer")
    assert path.read_bytes() == content
    atomic.crash = atomic._no_crash
    storage.delete_partial_files(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("moment, rows", [("before", [1]), ("middle", [1]), ("after", [1, 2])])
def test_an_append_tears_at_most_its_own_rows(tmp_path: Path, crash_at, moment: str, rows: list[int]) -> None:
    path = tmp_path / "a.jsonl"
    with storage.Appender(path) as lines:
        lines.append([{"x": 1}])
        crash_at("append", moment)
        with pytest.raises(Crash):
            lines.append([{"x": 2}])
    atomic.crash = atomic._no_crash
    with storage.Appender(path) as lines:
        assert [row["x"] for _, row in storage.read_jsonl(path)] == rows
        lines.append([{"x": 3}])
    assert [row["x"] for _, row in storage.read_jsonl(path)] == [*rows, 3]


@pytest.mark.parametrize("moment, there", [("before", False), ("middle", False), ("after", True)])
def test_a_folder_appears_whole(tmp_path: Path, crash_at, moment: str, there: bool) -> None:
    crash_at("folder", moment)
    with pytest.raises(Crash), storage.write_folder(tmp_path / "model") as inside:
        (inside / "weights").write_bytes(b"w")
    atomic.crash = atomic._no_crash
    storage.delete_partial_files(tmp_path)
    assert (tmp_path / "model" / "weights").exists() == there
    assert len(list(tmp_path.iterdir())) == there


@pytest.mark.parametrize("moment, there", [("before", False), ("middle", False), ("after", True)])
def test_a_complete_folder_gets_its_name_at_once(tmp_path: Path, crash_at, moment: str, there: bool) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "file").write_bytes(b"whole")
    crash_at("folder", moment)
    with pytest.raises(Crash):
        storage.rename_folder(tmp_path / "copy", tmp_path / "run")
    assert (tmp_path / "run").exists() == there != (tmp_path / "copy").exists()
    assert (tmp_path / ("run" if there else "copy") / "file").read_bytes() == b"whole"


@pytest.mark.parametrize("moment, there", [("before", True), ("middle", False), ("after", False)])
def test_a_removed_folder_is_gone_from_its_name_at_once(tmp_path: Path, crash_at, moment: str, there: bool) -> None:
    storage.write_file(tmp_path / "model" / "weights", b"w")
    crash_at("remove", moment)
    with pytest.raises(Crash):
        storage.remove(tmp_path / "model")
    atomic.crash = atomic._no_crash
    storage.delete_partial_files(tmp_path)
    assert (tmp_path / "model").exists() == there


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=5), st.integers(0, 400))
def test_the_last_newline_is_where_a_file_ends(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], cut: int
) -> None:
    path = tmp_path_factory.mktemp("torn") / "a.jsonl"
    whole = b"".join(atomic.encode_json_line({"x": text}) for text in texts)
    path.write_bytes(whole[:cut])
    with storage.Appender(path):
        pass
    kept = path.read_bytes()
    assert whole.startswith(kept) and (not kept or kept.endswith(b"\n"))
    assert len(whole[:cut]) - len(kept) < max((len(atomic.encode_json_line({"x": text})) for text in texts), default=1)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.text() | st.integers() | st.none(), max_size=4))
def test_a_line_reads_back(row: dict[str, object]) -> None:
    assert atomic.encode_json_line(row).count(b"\n") == 1
    assert json.loads(atomic.encode_json_line(row)) == row


@pytest.mark.parametrize(
    "code, advice", [(errno.ENOSPC, "free some disk space"), (errno.EACCES, "give yourself the permission")]
)
def test_a_full_disk_is_one_message_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, advice: str
) -> None:
    path = tmp_path / "a"
    storage.write_file(path, b"old")

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic.os, "fsync", refuse)
    with pytest.raises(UserError, match=advice):
        storage.write_file(path, b"new")
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_disk_that_is_full_in_the_middle_of_an_append_takes_the_rows_back(tmp_path: Path) -> None:
    """A real full disk: a file-size limit in a process of its own stops the write half way."""
    path = tmp_path / "a.jsonl"
    program = f"""
import resource, signal
from pathlib import Path
from potstill import storage
from potstill.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with storage.Appender(Path({str(path)!r})) as lines:
    lines.append([{{"x": 1}}])
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    try:
        lines.append([{{"x": "y" * 500}}])
    except (UserError, OSError) as fault:
        print(type(fault).__name__)
"""
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == "UserError"
    assert path.read_bytes() == b'{"x":1}\n'


def test_reading_names_the_file_and_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"x": 1}\n{"x": \n')
    with pytest.raises(UserError) as caught:
        list(storage.read_jsonl(path))
    assert (caught.value.code, caught.value.where) == ("E-storage-invalid-json", f"{path} line 2")
    assert caught.value.found
    path.write_text("[1]\n")
    with pytest.raises(UserError, match=r"line 1: (.|\n)*E-storage-invalid-record"):
        list(storage.read_jsonl(path))
    with pytest.raises(UserError, match="E-storage-os-error"):
        list(storage.read_jsonl(tmp_path / "absent.jsonl"))


def test_whole_rows_are_those_that_were_written_to_their_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert list(storage.read_complete_lines(path)) == [] and not path.exists()
    path.write_bytes(b'{"x": 1}\n\n{"x": 2}\n{"x"')
    rows = storage.read_complete_lines(path)
    assert [next(rows), next(rows)] == [{"x": 1}, {"x": 2}]
    assert next(rows, None) is None and path.read_bytes().endswith(b'{"x"'), "nothing is cut: somebody may be writing"
    rows = storage.read_complete_lines(path)
    assert [row["x"] for row in itertools.islice(rows, 2)] == [1, 2]
    with open(path, "ab") as file:  # by somebody else, between two of our reads
        file.write(b': 3}\n{"x": 4')
    assert [row["x"] for row in rows] == [3]
    path.write_bytes(b'{"x": 4}')
    assert list(storage.read_complete_lines(path)) == []
    path.write_bytes(b'{"x"\n{"x": 2}\n')
    with pytest.raises(UserError, match=r"line 1: (.|\n)*E-storage-invalid-json"):
        list(storage.read_complete_lines(path))


@pytest.mark.parametrize("content", [b'{"x": NaN}', b"[" * 100_000, b"\xff"])
def test_what_is_no_json_is_one_message(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(content + b"\n")
    with pytest.raises(UserError, match=r"line 1: (.|\n)*E-storage-invalid-json"):
        list(storage.read_jsonl(tmp_path / "a.jsonl"))


def test_a_file_where_a_folder_belongs_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="E-storage-os-error"), run_folder.lock_run(tmp_path / "runs" / "x"):
        pass
    with pytest.raises(UserError, match="E-storage-os-error"):
        storage.write_file(tmp_path / "runs" / "x", b"")
    with pytest.raises(UserError, match="E-storage-os-error"):
        storage.write_file(tmp_path / ("a" * 300), b"")


def test_a_link_is_removed_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    storage.write_file(tmp_path / "there" / "a", b"a")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    storage.remove(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["there"] and (tmp_path / "there" / "a").exists()


def test_a_manifest_without_its_fields_is_one_message(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "filter" / manifest.BEGUN_FILE, {"format": manifest.FORMAT_VERSION})
    with pytest.raises(UserError, match="E-run-invalid-manifest"):
        manifest.read_begun(tmp_path / "filter")


def test_a_fingerprint_sees_names_sizes_and_ends(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    seen = set()
    for content in (b"a", b"b", b"a" * (3 << 20), b"a" * (3 << 20) + b"b", b"b" + b"a" * (3 << 20)):
        (tmp_path / "m" / "w").write_bytes(content)
        seen.add(storage.folder_fingerprint(tmp_path / "m"))
    (tmp_path / "m" / "w").rename(tmp_path / "m" / "v")
    seen.add(storage.folder_fingerprint(tmp_path / "m"))
    assert len(seen) == 6


def _identity(**change: object) -> manifest.Identity:
    values = {
        "stage": "filter",
        "versions": {"answers": 1},
        "recipe": {"filter.max_per_question": None},
        "inputs": {"sample": "ab"},
    }
    return manifest.Identity(**{**values, **change})  # type: ignore[arg-type]


def test_a_stage_that_was_begun_goes_on_and_a_finished_one_is_known(tmp_path: Path) -> None:
    at = tmp_path / "filter"
    assert manifest.begin_stage(at, _identity()) is None
    assert manifest.begin_stage(at, _identity()) is None
    storage.write_file(at / "verdicts", b"v")
    made = manifest.finish_stage(at, _identity(), [at / "verdicts"], {"kept": 1})
    again = manifest.begin_stage(at, _identity())
    assert again == made and again is not None and again.digest == made.digest


def test_a_stage_made_from_something_else_names_the_keys_and_the_stages(tmp_path: Path) -> None:
    at = tmp_path / "filter"
    manifest.begin_stage(at, _identity())
    assert manifest.begin_stage(at, _identity(versions={"answers": 9})) is None, (
        "nothing was made yet, so nothing is lost"
    )
    manifest.begin_stage(at, _identity())
    storage.write_file(at / "verdicts", b"v")
    with pytest.raises(UserError) as caught:
        manifest.begin_stage(
            at, _identity(recipe={"filter.max_per_question": 4}, versions={"answers": 2}), ("filter", "align")
        )
    assert (caught.value.code, caught.value.where) == ("E-run-stage-differs", str(at))
    assert caught.value.found == "filter.max_per_question: null -> 4; version of answers: 1 -> 2"
    assert "--redo filter (makes filter, align again)" in caught.value.hint


def test_an_output_that_changed_since_is_refused(tmp_path: Path) -> None:
    at = tmp_path / "filter"
    manifest.begin_stage(at, _identity())
    storage.write_file(at / "verdicts", b"v")
    manifest.finish_stage(at, _identity(), [at / "verdicts"], {})
    (at / "verdicts").write_bytes(b"longer")
    with pytest.raises(UserError, match="E-run-file-changed"):
        manifest.read_finished(at)


def test_a_run_of_another_format_is_refused(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "filter" / manifest.BEGUN_FILE, {"format": 99})
    with pytest.raises(UserError, match="E-run-file-format"):
        manifest.read_begun(tmp_path / "filter")


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from potstill.storage import run_folder
with run_folder.lock_run(Path({str(tmp_path)!r})):
    pass
"""
    with run_folder.lock_run(tmp_path):
        completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "E-run-locked" in completed.stderr
    subprocess.run([sys.executable, "-c", program], check=True)


log_probabilities = st.floats(-50, 0, width=32)
steps = st.lists(st.tuples(st.binary(max_size=4) | st.just(END), log_probabilities), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=6), steps), max_size=5), st.booleans(), st.text(max_size=5))
def test_chains_survive_parquet(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[bytes, list]], last: bool, question: str
) -> None:
    path = tmp_path_factory.mktemp("chains") / "c.parquet"
    candidates = [step for _, step in drawn] + ([[(END, -0.5)]] if last else [])
    chains = [
        Chain.from_tokens(question, 0, [token for token, _ in drawn], candidates),
        Chain.from_text(question, 1, "plain", source="human"),
    ]
    parquet.write_chains(path, chains)
    assert list(parquet.read_chains(path)) == chains


def test_verdicts_survive_parquet(tmp_path: Path) -> None:
    rows = [(("q", "s", 0), Verdict("right", "7")), (("q", "s", 1), Verdict("no answer", None, "duplicate"))]
    parquet.write_verdicts(tmp_path / "v.parquet", rows)
    assert list(parquet.read_verdicts(tmp_path / "v.parquet")) == list(rows)


def test_a_file_that_is_no_parquet_is_the_users(tmp_path: Path) -> None:
    (tmp_path / "c.parquet").write_bytes(b"no")
    with pytest.raises(UserError, match="E-storage-invalid-parquet"):
        list(parquet.read_chains(tmp_path / "c.parquet"))


def test_who_holds_a_run_is_said_with_since_when(tmp_path: Path) -> None:
    """By the run's log; of a process that is gone nothing is said, and nothing of another lock's."""
    import os
    import platform

    from potstill.storage import run_folder

    with run_folder.lock_run(tmp_path):
        run_folder.append_log(tmp_path, "start", host=platform.node(), pid=2**22 + 1)
        with pytest.raises(UserError) as caught, run_folder.lock_run(tmp_path):
            pass
        assert caught.value.found == ""
        run_folder.append_log(tmp_path, "start", host=platform.node(), pid=os.getpid())
        run_folder.append_log(tmp_path, "start", host="other", pid=7, shard="1/2")
        with pytest.raises(UserError) as caught, run_folder.lock_run(tmp_path):
            pass
    assert caught.value.found.startswith(f"process {os.getpid()} on {platform.node()}, since 20")
    with run_folder.lock_shard(tmp_path, 1, 2):
        with pytest.raises(UserError, match="process 7 on other, since 20"), run_folder.lock_shard(tmp_path, 1, 2):
            pass
        assert run_folder.running_shards(tmp_path) == ["1-of-2"]


def test_sweeping_deletes_only_what_potstill_named(tmp_path: Path, crash_at) -> None:
    mine = ["notes.tmp", ".notes.partial", ".hidden", "a.partial", ".nfs0001", "potstill-partial", "x.potstill-partial"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".folder.partial").mkdir()
    crash_at("write", "middle")
    with pytest.raises(Crash):
        storage.write_file(tmp_path / "a", b"a")
    atomic.crash = atomic._no_crash
    assert len(list(tmp_path.iterdir())) == len(mine) + 2
    storage.delete_partial_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*mine, ".folder.partial"}


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EIO])
def test_a_disk_that_cannot_lock_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """As NFS without lockd, Lustre without -o flock, or a FUSE file system."""

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError) as caught, run_folder.lock_run(tmp_path / "run"):
        pass
    assert caught.value.where == str(tmp_path / "run" / ".lock") and caught.value.hint
    monkeypatch.undo()
    with run_folder.lock_run(tmp_path / "run"):
        pass  # nothing was left that keeps others out


@pytest.mark.parametrize("name", ["run", "run/filter"])
def test_a_link_to_itself_is_one_message(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path.name)
    with pytest.raises(UserError) as caught, run_folder.lock_run(tmp_path / "run"):
        manifest.begin_stage(tmp_path / "run" / "filter", _identity())
    assert caught.value.hint


def test_a_folder_that_cannot_be_flushed_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        plain(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    storage.write_file(tmp_path / "a" / "b", b"c")
    assert (tmp_path / "a" / "b").read_bytes() == b"c"


def test_a_line_that_a_power_loss_has_torn_is_skipped_or_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"x":1}\n{"x"\0\0\0}\n{"x":3}\n')
    assert [row["x"] for row in storage.read_complete_lines(path)] == [1, 3]
    with storage.Appender(path) as lines:
        lines.append([{"x": 4}])
    assert [row["x"] for row in storage.read_complete_lines(path)] == [1, 3, 4], (
        "bills and chains: their order is no result"
    )
    with storage.Appender(path, ordered=True) as lines:
        lines.append([{"x": 2}])
    assert [row["x"] for _, row in storage.read_jsonl(path)] == [1, 2], "answers: what follows is made again"


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"null", b'"x"', b"7", b"1e999", b"[" * 100_000, b"9" * 5000, b"\xff", b"\0", b'{"format":1}'],
)
@pytest.mark.parametrize("name", [manifest.BEGUN_FILE, manifest.MANIFEST_FILE])
def test_a_hostile_manifest_is_one_message(tmp_path: Path, content: bytes, name: str) -> None:
    storage.write_file(tmp_path / "filter" / name, content)
    with pytest.raises(UserError) as caught:
        (manifest.read_begun if name == manifest.BEGUN_FILE else manifest.read_finished)(tmp_path / "filter")
    assert str(tmp_path / "filter" / name) in caught.value.where


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": []}, {"outputs": None}, {"counts": 3}, {"versions": []}, {"recipe": "x"}, {"inputs": None},
        {"stage": 3}, {"outputs": {"a": 1}}, {"outputs": {"a": {"sha256": 1, "bytes": 1}}},
        {"outputs": {"a": {"sha256": "ab", "bytes": 1.5}}}, {"outputs": {"a": {"sha256": "ab", "bytes": True}}},
        {"outputs": {"/etc/passwd": {"sha256": "ab", "bytes": 1}}},
        {"outputs": {"filter/../../x": {"sha256": "ab", "bytes": 1}}},
        {"outputs": {"a\0b": {"sha256": "ab", "bytes": 1}}},
    ],
)  # fmt: skip
def test_a_manifest_with_a_hostile_field_is_one_message(tmp_path: Path, change: dict[str, object]) -> None:
    row = {**_identity().as_json(), "outputs": {}, "counts": {}, **change}
    storage.write_json(tmp_path / "filter" / manifest.MANIFEST_FILE, row)
    with pytest.raises(UserError, match="E-run-invalid-manifest"):
        manifest.read_finished(tmp_path / "filter")


CHOICE = {"step": 2, "rule": "r", "format": "f", "decoding": "greedy", "table": [[2, 0.5]], "tied": []}


@pytest.mark.parametrize(
    "change",
    [
        {"step": "x"}, {"step": None}, {"step": [2]}, {"step": "9" * 5000}, {"rule": 3}, {"format": None},
        {"table": 3}, {"table": [3]}, {"table": [[2]]}, {"tied": {}}, {"tied": ["x"]}, {"further": 1},
    ],
)  # fmt: skip
def test_a_hostile_record_is_one_message(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "choice.json"
    storage.write_json(path, CHOICE)
    assert storage.read_record(Choice, path).checkpoint.step == 2
    for row in ({**CHOICE, **change}, [CHOICE], None, {}):
        storage.write_json(path, row)
        with pytest.raises(UserError, match="E-storage-invalid-record"):
            storage.read_record(Choice, path)
        storage.write_json(path, [row])
        with pytest.raises(UserError, match="E-storage-invalid-record"):
            storage.read_records(Choice, path)


def test_a_table_with_a_changed_byte_is_read_or_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    parquet.write_chains(path, [Chain.from_text("q", index, "some text " * 20, source="human") for index in range(50)])
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        with contextlib.suppress(UserError):
            list(parquet.read_chains(path))
