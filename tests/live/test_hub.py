"""Models and sets of the hub: the real client huggingface_hub against a small hub on the loopback interface."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from huggingface_hub import constants
from pyarrow import parquet

import hub_server
import tiny
from expect import user_error
from potstill import dry_run, hub, models, storage, tokenization
from potstill.cli import push
from potstill.errors import UserError
from potstill.models import sources
from potstill.run_reader import open_run
from potstill.storage import manifest

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 4096, "README.md": b"hi"}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    """A hub with no repository, and an empty cache."""
    with hub_server.serve() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)  # what a break loses
        set_offline(monkeypatch, False)
        sources.locate_model.cache_clear()
        yield server
        sources.locate_model.cache_clear()


def set_offline(monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    """As HF_HUB_OFFLINE is read by a new process: the client reads it when it is imported."""
    monkeypatch.setenv("HF_HUB_OFFLINE", str(int(offline)))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)


def refused(name: str, revision: str | None = None) -> UserError:
    with pytest.raises(UserError) as error:
        hub.download_model(name, revision, key="student.model")
    assert error.value.where == "student.model" and error.value.hint and name in error.value.found
    return error.value


def test_a_model_is_downloaded_once_and_its_commit_is_known(served: hub_server.Hub) -> None:
    commit = served.model("owner/tiny", {**FILES, "pytorch_model.bin": b"pickle", "onnx/model.onnx": b"copy"})
    snapshot = hub.download_model("owner/tiny", None, key="student.model")
    assert snapshot.commit == commit
    assert {path.name: path.read_bytes() for path in snapshot.folder.iterdir()} == FILES, "safetensors only"
    assert hub.download_model("owner/tiny", "main", key="student.model") == snapshot
    assert sum(request.startswith("GET /owner/tiny/resolve") for request in served.requests) == len(FILES)


def test_a_commit_in_the_cache_needs_no_network(served: hub_server.Hub) -> None:
    commit = served.model("owner/tiny", FILES)
    snapshot = hub.download_model("owner/tiny", None, key="student.model")
    count = len(served.requests)
    assert hub.download_model("owner/tiny", commit, key="student.model") == snapshot and len(served.requests) == count


def test_a_branch_that_moved_gives_another_commit(served: hub_server.Hub) -> None:
    first = served.model("owner/tiny", FILES)
    assert hub.download_model("owner/tiny", None, key="student.model").commit == first
    second = served.repositories["models/owner/tiny"].commit({**FILES, "README.md": b"new"})
    snapshot = hub.download_model("owner/tiny", None, key="student.model")
    assert snapshot.commit == second != first and (snapshot.folder / "README.md").read_bytes() == b"new"
    assert hub.download_model("owner/tiny", first, key="student.model").commit == first


def test_an_interrupted_download_resumes(served: hub_server.Hub) -> None:
    served.model("owner/tiny", FILES)
    served.cut["model.safetensors"] = [5 << 16, 3 << 16]
    snapshot = hub.download_model("owner/tiny", None, key="student.model")
    assert (snapshot.folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert served.ranges == [f"model.safetensors {5 << 16}", f"model.safetensors {8 << 16}"]


def test_a_download_that_died_resumes_in_the_next_process(
    served: hub_server.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = served.model("owner/tiny", FILES)
    served.cut["model.safetensors"] = [5 << 16] + [0] * 20
    assert refused("owner/tiny").code == "E-hub-failed"
    set_offline(monkeypatch, True)
    assert refused("owner/tiny", commit).code == "E-hub-offline", "half a model is no model"
    set_offline(monkeypatch, False)
    served.cut.clear()
    snapshot = hub.download_model("owner/tiny", None, key="student.model")
    assert (snapshot.folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert served.ranges[-1] == f"model.safetensors {5 << 16}"


def test_what_is_not_there_and_what_is_closed(served: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    served.model("owner/tiny", FILES)
    served.model("owner/gated", FILES, gated=True)
    served.model("owner/private", FILES, private=True)
    assert refused("owner/none").code == "E-hub-no-repository"
    assert refused("owner/private").code == "E-hub-no-repository", "the hub does not tell strangers that it exists"
    assert refused("owner/tiny", "nope").code == "E-hub-no-revision"
    assert refused("owner/tiny", "f" * 40).code == "E-hub-no-revision"
    gated = refused("owner/gated")
    assert gated.code == "E-hub-gated" and f"{served.url}/owner/gated" in gated.hint
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    for name in ("owner/gated", "owner/private"):
        assert (hub.download_model(name, None, key="student.model").folder / "config.json").is_file()


def test_offline_the_cache_is_used_or_the_error_says_so(
    served: hub_server.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.model("owner/tiny", FILES)
    snapshot = hub.download_model("owner/tiny", None, key="student.model")
    set_offline(monkeypatch, True)
    count = len(served.requests)
    assert hub.download_model("owner/tiny", None, key="student.model") == snapshot
    assert refused("owner/other").code == "E-hub-offline" and len(served.requests) == count


def test_a_hub_that_cannot_be_reached_is_never_the_cache_in_silence(
    served: hub_server.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.model("owner/tiny", FILES)
    hub.download_model("owner/tiny", None, key="student.model")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert refused("owner/tiny").code == "E-hub-failed"


def test_a_run_trains_a_model_by_its_name(served: hub_server.Hub, world: Path, tmp_path: Path) -> None:
    """The same weights as from the folder; the commit is part of the run, so a branch that moves stops it."""
    folder, tokenizer = tmp_path / "student", tokenization.load_tokenizer(world / "student-tokenizer")
    folder.mkdir()
    models.random_student(models.Shape("t5", 32, 1, 2, 64, 16, tokenizer.size), tokenizer, 1).save(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    commit = served.model("owner/student", files)
    for name, student in (("hub", "owner/student"), ("folder", str(folder))):
        tiny.make(world, tmp_path / name, f"student={{model: {student}}}", until="train")
        sources.locate_model.cache_clear()
    for path in (tmp_path / "folder" / "train" / "checkpoints").rglob("*.safetensors"):
        same = tmp_path / "hub" / path.relative_to(tmp_path / "folder")
        assert same.read_bytes() == path.read_bytes()
    begun = manifest.read_begun(tmp_path / "hub" / "train")
    assert begun is not None and commit in begun.inputs.values()
    served.repositories["models/owner/student"].commit({**files, "README.md": b"moved"})
    with pytest.raises(UserError) as error:
        tiny.make(world, tmp_path / "hub", "student={model: owner/student}", until="train")
    assert error.value.code == "E-run-stage-differs"
    sources.locate_model.cache_clear()
    pinned = f"student={{model: owner/student, revision: {commit}}}"
    tiny.make(world, tmp_path / "hub", pinned, until="train")


def test_a_revision_needs_a_model_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        models.locate_model(str(tmp_path), key="student.model", revision="main")
    assert error.value.code == "E-model-revision"


def test_a_run_reads_a_set_of_the_hub(served: hub_server.Hub, world: Path, tmp_path: Path) -> None:
    rows = (world / "sets" / "sums.jsonl").read_bytes()
    table = pyarrow.Table.from_pylist([*tiny.rows("more", 24)])
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(table, sink)
    commit = served.dataset("owner/set", {"data/a b.jsonl": rows, "more.parquet": sink.getvalue().to_pybytes()})
    digest = hashlib.sha256(rows).hexdigest()
    change = f"sets.sums={{hub: owner/set, file: data/a b.jsonl, revision: '{commit}', sha256: {digest}, task: number}}"
    tiny.make(world, tmp_path / "fetched", change, "teacher={kind: human}", until="collect")
    tiny.make(world, tmp_path / "here", "teacher={kind: human}", until="collect")
    for path in (tmp_path / "here" / "collect").glob("*.*.jsonl"):
        assert (tmp_path / "fetched" / "collect" / path.name).read_bytes() == path.read_bytes()
    begun = manifest.read_begun(tmp_path / "fetched" / "collect")
    assert begun is not None and begun.inputs["sets.sums"] == digest == storage.file_digest(
        world / "sets" / "sums.jsonl"
    )
    wrong = change.replace(digest, "0a" * 32)
    with pytest.raises(UserError) as error:
        tiny.make(world, tmp_path / "wrong", wrong, "teacher={kind: human}", until="collect")
    assert error.value.code == "E-data-download-digest"


# Uploads


@pytest.fixture
def token(served: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that may write. Large files are sent by LFS, since the small hub has no Xet storage."""
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def push_run(run_dir: Path, name: str = "owner/tiny", **options: Any) -> list[str]:
    settings: dict[str, Any] = {"private": False, "revision": None, "accept_terms": False} | options
    return push.push_student(run_dir, name, **settings)


def with_licence(run_dir: Path, licence: str, folder: Path) -> Path:
    """A copy of a run whose student has a base with this licence."""
    copy = Path(shutil.copytree(run_dir, folder / licence))
    recipe = (copy / "recipe.yaml").read_text("utf-8")
    student = "student: {model: owner/base}"
    (copy / "recipe.yaml").write_text(re.sub(r"(?ms)^student:.*?(?=^\S)", f"{student}\n", recipe))
    (copy / "student" / "README.md").write_text(f"---\nlicense: {licence}\n---\n\n# tiny\n")
    return copy


def test_a_student_is_pushed_and_found_by_its_name(served: hub_server.Hub, token: None, finished: Path) -> None:
    printed = push_run(finished)
    stored = served.repositories["models/owner/tiny"]
    commit = stored.branches["main"]
    own = {path.name: path.read_bytes() for path in (finished / "student").iterdir()}
    assert stored.commits[commit] == own | {".gitattributes": b""} and not stored.private
    assert {"README.md", "model.safetensors"} <= own.keys()
    assert f"{served.url}/owner/tiny" in printed[0] and commit in printed[0]
    found = models.find_model(open_run(finished).recipe, "owner/tiny", "student.model")
    assert found.commit == commit
    pushed, local = (models.open_student(folder) for folder in (found.folder, finished / "student"))
    assert all(torch.equal(value, local.weights()[name]) for name, value in pushed.weights().items())


def test_without_a_change_nothing_is_committed(served: hub_server.Hub, token: None, finished: Path) -> None:
    push_run(finished)
    before = list(served.repositories["models/owner/tiny"].commits)
    printed = push_run(finished, private=True)
    assert list(served.repositories["models/owner/tiny"].commits) == before and before[-1] in printed[0]
    assert not served.repositories["models/owner/tiny"].private  # an existing repository keeps its visibility


def test_an_interrupted_upload_sends_no_weights_twice(
    served: hub_server.Hub, token: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    served.refuse_commits = [400]
    weights = bytes(range(256)) * 1000
    with user_error("E-hub-upload-failed"):
        hub.upload_model("owner/tiny", {"model.safetensors": weights}, "first")
    sent = [request for request in served.requests if request.startswith("PUT")]
    assert len(sent) == 1 and list(served.uploaded.values()) == [weights]
    upload = hub.upload_model("owner/tiny", {"model.safetensors": weights}, "again")
    assert [request for request in served.requests if request.startswith("PUT")] == sent
    assert (
        upload.is_new
        and served.repositories["models/owner/tiny"].commits[upload.commit]["model.safetensors"] == weights
    )


def test_a_storage_that_cannot_be_reached_is_one_message(
    served: hub_server.Hub, token: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own storage client raises another type of error than its other parts."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    with user_error("E-hub-upload-failed", found="xet"):
        hub.upload_model("owner/tiny", {"model.safetensors": bytes(200_000)}, "first")


def test_weights_of_an_earlier_push_do_not_stay_beside_new_ones(served: hub_server.Hub, token: None) -> None:
    shards = {f"model-0000{i}-of-00002.safetensors": b"part" for i in (1, 2)}
    hub.upload_model("owner/tiny", {**shards, "model.safetensors.index.json": b"{}", "config.json": b"{}"}, "first")
    served.repositories["models/owner/tiny"].commit(
        served.repositories["models/owner/tiny"].commits[served.repositories["models/owner/tiny"].branches["main"]]
        | {"example.png": b"of the owner"}
    )
    upload = hub.upload_model("owner/tiny", {"model.safetensors": b"whole", "config.json": b"{}"}, "second")
    stored = served.repositories["models/owner/tiny"].commits[upload.commit]
    assert sorted(stored) == [".gitattributes", "config.json", "example.png", "model.safetensors"]


def test_a_branch_is_made_and_the_main_one_stays(served: hub_server.Hub, token: None, finished: Path) -> None:
    printed = push_run(finished, private=True, revision="second-try")
    stored = served.repositories["models/owner/tiny"]
    assert stored.private and stored.commits[stored.branches["main"]] == {".gitattributes": b""}
    commit = stored.branches["second-try"]
    assert "config.json" in stored.commits[commit] and f"revision: {commit}" in printed[1]
    recipe = open_run(finished).recipe
    assert models.find_model(recipe, "owner/tiny", "student.model", "second-try").commit == commit


def test_no_upload_without_token_network_or_right(
    served: hub_server.Hub, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with user_error("E-hub-no-token", hint="HF_TOKEN"):
        push_run(finished)
    assert served.requests == []
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with user_error("E-hub-no-write", found="owner/tiny"):
        push_run(finished)
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    served.refuse_commits = [403]
    with user_error("E-hub-no-write"):
        push_run(finished)
    assert all(list(stored.commits.values()) == [{".gitattributes": b""}] for stored in served.repositories.values())
    set_offline(monkeypatch, True)
    with user_error("E-hub-offline-upload"):
        push_run(finished)


@pytest.mark.parametrize("name", ["tiny", "owner/tiny/more", "owner/..", ""])
def test_a_name_that_the_hub_does_not_know_is_refused(finished: Path, name: str) -> None:
    with user_error("E-push-name", found=name):
        push_run(finished, name)


@pytest.mark.parametrize("licence", ["gemma", "llama3.2", "cc-by-nd-4.0", "other", "unknown"])
def test_a_base_with_terms_needs_consent(
    served: hub_server.Hub, token: None, finished: Path, tmp_path: Path, licence: str
) -> None:
    run_dir = with_licence(finished, licence, tmp_path)
    with user_error("E-push-licence", found="owner/base", hint="--accept-terms"):
        push_run(run_dir)
    assert served.requests == []
    printed = push_run(run_dir, accept_terms=True)
    stored = served.repositories["models/owner/tiny"]
    notice = stored.commits[stored.branches["main"]].get("NOTICE", b"")
    assert (b"ai.google.dev/gemma/terms" in notice) == (licence == "gemma")
    assert (len(printed) == 3) == (licence in push.TERMS)


def test_a_free_base_needs_no_consent(served: hub_server.Hub, token: None, finished: Path, tmp_path: Path) -> None:
    run_dir = with_licence(finished, "apache-2.0", tmp_path)
    (run_dir / "student" / "adapter").mkdir()
    (run_dir / "student" / "adapter" / "adapter_config.json").write_text("{}")
    assert len(push_run(run_dir)) == 2
    stored = served.repositories["models/owner/tiny"]
    assert stored.commits[stored.branches["main"]]["adapter/adapter_config.json"] == b"{}"


def test_a_run_without_a_student_is_not_pushed(finished: Path, tmp_path: Path) -> None:
    early = tiny.before(finished, tmp_path / "early", "report")
    with user_error("E-push-no-student", hint="potstill report"):
        push_run(early)


def test_a_plan_downloads_no_weights(
    served: hub_server.Hub, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "potstill"))
    folder, tokenizer = tmp_path / "student", tokenization.load_tokenizer(world / "student-tokenizer")
    folder.mkdir()
    student = models.random_student(models.Shape("t5", 32, 1, 2, 64, 16, tokenizer.size), tokenizer, 1)
    student.save(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    commit = served.model("owner/student", files)
    recipe = tiny.recipe(world, f"student={{model: owner/student, revision: {commit}}}")
    plan = dry_run.describe_run(recipe, tmp_path / "none")
    assert "owner/student (the run downloads 0.00 GiB of weights)" in plan and "problems          none found" in plan
    assert f"parameters      {sum(p.numel() for p in student.model.parameters())}" in plan and "no estimate" not in plan
    assert not [request for request in served.requests if "safetensors" in request]
    # The run does not take the folder without weights for the model, and a later plan uses the downloaded model.
    run_dir = tiny.make(world, tmp_path / "run", f"student={{model: owner/student, revision: {commit}}}", until="train")
    assert (run_dir / "train" / "manifest.json").exists()
    sources.locate_model.cache_clear()
    plan = dry_run.describe_run(recipe, run_dir)
    assert "the run downloads" not in plan and "train           up to date" in plan
    served.model("owner/pickled", {name: data for name, data in files.items() if not name.endswith(".safetensors")})
    pickled = tiny.recipe(world, "student={model: owner/pickled}")
    assert "E-hub-no-weights" in dry_run.describe_run(pickled, tmp_path / "none")
