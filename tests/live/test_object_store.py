"""Data, models and finished runs in an object store: the real client s3fs against a server of S3 on the loopback interface
(moto), and other file systems of fsspec."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest

import tiny
from expect import user_error
from potstill import dry_run, models, object_store, run_reader, runner
from potstill.cli import check, push, stage_commands
from potstill.errors import UserError
from potstill.models import sources
from potstill.object_store import copies, listing, upload
from potstill.storage import manifest

s3fs = pytest.importorskip("s3fs", reason="the extra s3 is not installed")
pytest.importorskip("moto", reason="moto, a server of S3, is not installed")
import s3_server  # noqa: E402

FILES = {"config.json": b"{}", "weights/a.safetensors": bytes(range(256)) * 1024, "README.md": b"hi"}
URL = "s3://bucket/models/tiny"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache."""
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(copies, "BLOCK_BYTES", 1 << 16)
    forget()
    yield tmp_path / "cache"
    forget()
    fsspec.filesystem("memory").store.clear()


def forget() -> None:
    """What a new process does not know."""
    object_store.fetch.cache_clear()
    sources.locate_model.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[s3_server.Server]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with s3_server.serve() as server:
        named = {"AWS_ENDPOINT_URL": server.url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        for name, value in (named | {"AWS_DEFAULT_REGION": "us-east-1", "NO_PROXY": "127.0.0.1"}).items():
            monkeypatch.setenv(name, value)
        yield server


def below(folder: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def local(folder: Path, files: Mapping[str, bytes]) -> dict[str, Path]:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return {name: folder / name for name in files}


# Reading


def test_a_folder_is_copied_once(served: s3_server.Server) -> None:
    served.put(below("models/tiny", FILES))
    copy = object_store.fetch(URL, "student.model")
    assert contents(copy.path) == FILES
    count = len(served.reads())
    forget()
    assert object_store.fetch(URL, "student.model") == copy and len(served.reads()) == count
    (copy.path / "README.md").write_bytes(b"changed here")
    forget()
    assert object_store.fetch(URL, "student.model") == copy and contents(copy.path) == FILES
    assert len(served.reads()) == count + 1, "only the damaged copy"


def test_other_contents_are_another_copy(served: s3_server.Server) -> None:
    served.put(below("models/tiny", FILES))
    first = object_store.fetch(URL, "student.model")
    served.put({"models/tiny/README.md": b"ho"})  # of the same size
    forget()
    second = object_store.fetch(URL, "student.model")
    assert first.digest != second.digest and (second.path / "README.md").read_bytes() == b"ho"
    served.put(below("models/tiny", FILES))
    forget()
    assert object_store.fetch(URL, "student.model").digest == first.digest, "of the contents, not of the time"


def test_an_interrupted_copy_continues_within_the_file(served: s3_server.Server, cache: Path) -> None:
    served.put(below("models/tiny", FILES))
    served.fail = lambda method, path: len(served.reads()) > 3 and path.endswith("safetensors") and method == "GET"
    with user_error("E-remote-refused", where="student.model"):
        object_store.fetch(URL, "student.model")
    assert {path.name for path in cache.rglob("*.safetensors")} == set(), "no half file under its name"
    served.fail, before = (lambda method, path: False), len(served.reads())
    forget()
    assert contents(object_store.fetch(URL, "student.model").path) == FILES
    ranges = [request.rpartition("bytes=")[2] for request in served.reads()[before:] if "bytes=" in request]
    assert ranges and all(int(each.split("-")[0]) > 0 for each in ranges)
    assert not any("config.json" in request for request in served.reads()[before:])


@pytest.mark.parametrize("name", ["README.md", "config.json"])  # one that was copied, and the next one
def test_files_that_change_during_the_copy_are_refused(
    served: s3_server.Server, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    served.put(below("models/tiny", FILES))
    copy_file = copies._copy_file

    def change_later(*arguments: Any) -> None:
        copy_file(*arguments)
        served.put({f"models/tiny/{name}": b"[]"})

    monkeypatch.setattr(copies, "_copy_file", change_later)
    with user_error("E-remote-changed", where="student.model"):
        object_store.fetch(URL, "student.model")
    assert not list(cache.rglob("config.json"))


def test_what_is_not_there_and_what_is_closed(served: s3_server.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    served.put(below("models/tiny", FILES))
    for url in ("s3://bucket/models/none", "s3://none/models"):
        with user_error("E-remote-missing", where="data"):
            object_store.fetch(url, "data")
    with user_error("E-remote-missing", where="data"):
        object_store.fetch(URL, "data", only=("*.parquet",))
    with user_error("E-remote-scheme", where="data"):
        object_store.fetch("nowhere://bucket/a", "data")
    with user_error("E-remote-password", where="data") as error:
        object_store.fetch("s3://me:secret@bucket/a", "data")
    assert "secret" not in str(error.value)
    served.fail = lambda method, path: True
    with user_error("E-remote-refused", where="data"):
        object_store.fetch(URL, "data")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    forget()
    with user_error("E-remote-failed", where="data"):
        object_store.fetch(URL, "data")


def test_a_pattern_names_several_files(served: s3_server.Server) -> None:
    served.put({"parts/b.jsonl": b"b", "parts/a.jsonl": b"a", "parts/c.txt": b"c", "parts/inner/d.jsonl": b"d"})
    paths = object_store.fetch_matches("s3://bucket/parts/*.jsonl", "sets.mine.file")
    assert [path.read_bytes() for path in paths] == [b"a", b"b"]
    with user_error("E-remote-missing"):
        object_store.fetch_matches("s3://bucket/parts/*.csv", "sets.mine.file")


# Uploads


def test_an_upload_sends_what_has_changed(served: s3_server.Server, tmp_path: Path) -> None:
    files = local(tmp_path / "one", FILES)
    assert object_store.upload_folder(files, URL, "push") == object_store.Upload(3, 0, 0)
    assert object_store.upload_folder(files, URL, "push") == object_store.Upload(0, 3, 0)
    changed = local(tmp_path / "two", {"config.json": b"[]", "README.md": b"hi", "new": b"new"})
    assert object_store.upload_folder(changed, URL, "push") == object_store.Upload(2, 1, 1)
    stored = served.files("models/tiny/")
    sums = listing.parse_sums(stored.pop("SHA256SUMS"))
    assert stored == {name: path.read_bytes() for name, path in changed.items()} and sums.keys() == stored.keys()
    assert contents(object_store.fetch(URL, "student.model").path) == stored


def test_an_upload_spares_the_files_of_others(served: s3_server.Server, tmp_path: Path) -> None:
    files = local(tmp_path / "one", FILES)
    served.put({"models/tiny/mine": b"mine", "one": b"1"})
    for url in (URL, "s3://bucket/one"):
        with user_error("E-remote-occupied", where="push"):
            object_store.upload_folder(files, url, "push")
    assert served.files() == {"models/tiny/mine": b"mine", "one": b"1"}


def test_a_file_that_differs_from_its_digest_is_refused(served: s3_server.Server, tmp_path: Path, cache: Path) -> None:
    object_store.upload_folder(local(tmp_path / "one", FILES), URL, "push")
    served.put({"models/tiny/README.md": b"ho"})
    with user_error("E-remote-digest", where="student.model"):
        object_store.fetch(URL, "student.model")
    assert not list(cache.rglob("README.md"))


class Interrupted(Exception):
    pass


class Interruptions:
    """Counts the operations of an upload that change the store, and raises before one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, system: Any) -> None:
        self.count, self.at = 0, -1
        for name in ("put_file", "pipe_file", "rm_file", "mv"):
            monkeypatch.setattr(system, name, self._counted(getattr(system, name)))

    def _counted(self, operation: Any) -> Any:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                raise Interrupted
            return operation(*arguments, **keywords)

        return counted


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_an_upload_may_be_interrupted_anywhere(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the upload is complete, readers get the old contents or an error; the same command completes it."""
    first = local(tmp_path / "one", FILES)
    second = local(tmp_path / "two", {"config.json": b"[]", "README.md": b"hi", "new": b"new"})  # one of the same size
    wanted = {name: path.read_bytes() for name, path in second.items()}
    system = fsspec.filesystem(scheme)
    interruptions = Interruptions(monkeypatch, system)
    at, outcomes = 0, set()
    while "complete" not in outcomes:
        at += 1
        url = f"{scheme}://{tmp_path}/store-{at}"
        interruptions.at = -1
        object_store.upload_folder(first, url, "push")
        interruptions.count, interruptions.at = 0, at
        try:
            object_store.upload_folder(second, url, "push")
            outcomes.add("complete")
        except UserError as error:
            assert isinstance(error.__cause__, Interrupted)
        interruptions.at = -1
        try:
            found = contents(object_store.fetch(url, "student.model").path)
            assert found in (FILES, wanted)
            outcomes.add("old" if found == FILES else "new")
        except UserError as error:
            assert error.code == "E-remote-incomplete"
            outcomes.add("incomplete")
        forget()
        if at % 2:  # in between, something else
            object_store.upload_folder(first, url, "push")
        object_store.upload_folder(second, url, "push")
        assert contents(object_store.fetch(url, "student.model").path) == wanted
        assert not [name for name in system.find(str(tmp_path / f"store-{at}")) if "potstill-partial" in name]
    assert outcomes == {"old", "incomplete", "new", "complete"} and at > 5


# Recipes, runs and commands


def put_world(served: s3_server.Server, world: Path) -> None:
    served.put(below("data", contents(world)))


STORED = (
    "teacher.model=s3://bucket/data/teacher",
    "student.tokenizer=s3://bucket/data/student-tokenizer",
    "sets.sums.file=s3://bucket/data/sets/sum*.jsonl",
    "sets.other.file=s3://bucket/data/sets/other.jsonl",
)


def test_a_run_of_data_and_models_in_a_store(served: s3_server.Server, world: Path, tmp_path: Path) -> None:
    put_world(served, world)
    plain = tiny.make(world, tmp_path / "plain", until="align")
    run_dir = tiny.make(world, tmp_path / "run", *STORED, until="align")
    ours, theirs = tiny.contents(run_dir), tiny.contents(plain)
    names = [name for name in theirs if not name.endswith(("begun.json", "manifest.json"))]
    assert [name for name in names if ours[name] != theirs[name]] == []
    begun = manifest.read_begun(run_dir / "sample")
    assert begun is not None and "teacher.model (contents)" in begun.inputs

    forget()
    count = len(served.reads())
    tiny.make(world, run_dir, *STORED, until="align")
    assert len(served.reads()) == count, "nothing is copied again"
    served.put({"data/teacher/generation_config.json": b"{}"})
    forget()
    with user_error("E-run-stage-differs"):
        tiny.make(world, run_dir, *STORED, until="align")


def test_the_data_folder_may_be_in_a_store(served: s3_server.Server, world: Path, tmp_path: Path) -> None:
    put_world(served, world)
    recipe = tiny.recipe(world, "data=s3://bucket/data")
    run_dir = runner.run(recipe, tmp_path / "run", until="collect")
    plain = tiny.make(world, tmp_path / "plain", until="collect")
    assert tiny.contents(run_dir) == tiny.contents(plain)


def test_a_dry_run_copies_no_weights(served: s3_server.Server, world: Path, tmp_path: Path) -> None:
    put_world(served, world)
    recipe = tiny.recipe(world, "student={model: s3://bucket/data/teacher}", "teacher={kind: human}")
    text = dry_run.describe_run(recipe, tmp_path / "run")
    assert "s3://bucket/data/teacher" in text
    assert not any("safetensors" in request for request in served.reads())
    with sources.without_weights(), user_error("E-model-not-downloaded"):
        models.find_model(recipe, "s3://bucket/data/teacher", "student.model").identity("student.model")
    found = models.find_model(recipe, "s3://bucket/data/teacher", "student.model")
    assert found.identity("student.model").keys() == {"student.model", "student.model (contents)"}
    with user_error("E-model-revision"):
        models.find_model(recipe, "s3://bucket/data/teacher", "student.model", "main")


def test_a_finished_run_goes_to_a_store_and_back(
    served: s3_server.Server, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = push.push_to_store(finished, "s3://bucket/runs/tiny", whole_run=True)
    assert "potstill pull s3://bucket/runs/tiny" in lines[-1]
    assert "nothing has changed" in push.push_to_store(finished, "s3://bucket/runs/tiny", whole_run=True)[0]
    back = tmp_path / "back"
    served.fail = lambda method, path: method == "GET" and path.endswith("README.md")
    with user_error("E-remote-refused", where="pull"):
        push.pull_folder("s3://bucket/runs/tiny", back)
    assert not back.exists()
    served.fail, before = (lambda method, path: False), len(served.reads())
    push.pull_folder("s3://bucket/runs/tiny", back)
    assert len(served.reads()) - before < len(contents(back)) / 2, "the second one continues"
    assert tiny.contents(back) == {name: data for name, data in tiny.contents(finished).items() if ".lock" not in name}
    assert list(tmp_path.glob(".*pull*")) == []
    assert check.check_run(back) and "no difference" in capsys.readouterr().out
    with user_error("E-storage-folder-exists"):
        push.pull_folder("s3://bucket/runs/tiny", back)

    push.push_to_store(finished, "s3://bucket/students/tiny", whole_run=False)
    found = models.locate_model("s3://bucket/students/tiny", key="student.model")
    names = {name for name in contents(finished / "student") if not name.endswith(".py")}
    assert names <= contents(found.folder).keys() and "SHA256SUMS" not in contents(found.folder)


def test_a_run_in_progress_stays_in_its_folder(finished: Path, world: Path, tmp_path: Path) -> None:
    run_dir = tiny.before(finished, tmp_path / "run", "select")
    with user_error("E-push-unfinished"):
        push.push_to_store(run_dir, "memory://runs/tiny", whole_run=True)
    for path in ("s3://bucket/runs/tiny", Path("s3://bucket/runs/tiny")):
        with user_error("E-remote-run") as error:
            run_reader.open_run(path)
        assert "potstill pull s3://bucket/runs/tiny" in error.value.hint
    with user_error("E-remote-run"):
        stage_commands.open_run_or_recipe(Path("s3://bucket/runs/tiny"))
    with user_error("E-remote-run"):
        run_reader.run(run_dir / "recipe.yaml", run_dir="s3://bucket/runs/tiny")


def test_options_of_the_hub_are_not_for_a_store() -> None:
    for options in ({"private": True, "revision": None}, {"private": False, "revision": "main"}):
        with user_error("E-push-hub-option"):
            push.refuse_hub_options("s3://bucket/a", **options)
    with user_error("E-push-run"):
        push.refuse_hub_options("owner/name", private=False, revision=None)
    with user_error("E-pull-url"):
        push.pull_folder("owner/name", Path("never"))


def test_schemes_whose_stores_show_only_complete_files() -> None:
    assert "s3" in upload.OBJECT_SCHEMES and "file" not in upload.OBJECT_SCHEMES
