"""`potstill data`: public files from a server on this machine, which has ranges, cuts, redirects of none and faults."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from typer.testing import CliRunner

import hub_server
from potstill import cli, data
from potstill.data import download, public_files
from potstill.data.public_files import PublicFile, PublicSet, fetch_files, find_state
from potstill.errors import UserError

CONTENT = b"".join(b"%d\n" % number for number in range(20_000))
COMMIT = "0123456789abcdef" * 2 + "01234567"


def public_file(path: str, content: bytes = CONTENT, **changes: object) -> PublicFile:
    digest = hashlib.sha256(content).hexdigest()
    place = {"repository": "owner/name", "commit": COMMIT, "source": f"data/{Path(path).name}", **changes}
    return PublicFile(path, len(content), digest, **place)  # type: ignore[arg-type]


@dataclass
class Site:
    """pages      path at the server -> content
    cuts       path -> numbers of bytes after which its next answers break off
    statuses   path -> the status that it answers
    no_ranges  whether the server sends whole files only
    asked      path and Range of every request
    """

    url: str = ""
    pages: dict[str, bytes] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    no_ranges: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)

    def serve(self, file: PublicFile, content: bytes = CONTENT) -> str:
        path = f"/{file.repository}/{file.commit}/{file.source}"
        self.pages[path] = content
        return path


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    here = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range") or ""
            here.asked.append((self.path, wanted))
            content = here.pages.get(self.path)
            status = here.statuses.get(self.path, 404 if content is None else 200)
            body, start = (content or b"") if status == 200 else b"no", 0
            if status == 200 and not here.no_ranges and (match := re.fullmatch(r"bytes=(\d+)-", wanted)):
                start = int(match[1])
                status = 206 if start < len(body) else 416
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            body = body[start:]
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            cuts = here.cuts.get(self.path)
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body[: cuts.pop(0)] if cuts else body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    here.url = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setattr(public_files, "GITHUB", here.url)
    monkeypatch.setattr(download, "RETRY_WAITS", (0.0, 0.0))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield here
    server.shutdown()
    server.server_close()


def refused(name: str, files: list[PublicFile], folder: Path, **options: bool) -> UserError:
    with pytest.raises(UserError) as error:
        fetch_files(name, files, folder, **options)
    return error.value


def left(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "lock" not in path.name
    )


def test_files_are_fetched_to_their_places_and_right_ones_are_not_fetched_again(site: Site, tmp_path: Path) -> None:
    files = [public_file("set/a.jsonl"), public_file("set/deep/b.txt", b"b")]
    pages = [site.serve(files[0]), site.serve(files[1], b"b")]
    assert fetch_files("set", files, tmp_path) == files
    assert left(tmp_path) == ["set/a.jsonl", "set/deep/b.txt"]
    assert (tmp_path / "set/a.jsonl").read_bytes() == CONTENT
    assert fetch_files("set", files, tmp_path) == [] and [path for path, _ in site.asked] == pages
    (tmp_path / "set/a.jsonl").unlink()
    assert fetch_files("set", files, tmp_path) == files[:1]


def test_a_cut_download_is_continued_in_one_call_and_by_a_later_one(site: Site, tmp_path: Path) -> None:
    file = public_file("set/a.jsonl")
    page = site.serve(file)
    site.cuts[page] = [1000, 2000]
    fetch_files("set", [file], tmp_path)
    assert [wanted for _, wanted in site.asked] == ["", "bytes=1000-", "bytes=3000-"]
    assert find_state(file, tmp_path) == "here" and left(tmp_path) == ["set/a.jsonl"]

    (tmp_path / "set/a.jsonl").unlink()
    site.asked.clear()
    site.cuts[page] = [500, 500, 500]
    error = refused("set", [file], tmp_path)
    assert error.code == "E-data-download" and left(tmp_path) == ["set/.a.jsonl.potstill-part"]
    fetch_files("set", [file], tmp_path)
    assert site.asked[-1] == (page, "bytes=1500-") and left(tmp_path) == ["set/a.jsonl"]
    assert (tmp_path / "set/a.jsonl").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [CONTENT[:999] + b"x", CONTENT + b"more", b"x" * len(CONTENT), CONTENT], ids=len)
def test_what_an_earlier_download_left_is_checked(site: Site, tmp_path: Path, part: bytes) -> None:
    file = public_file("set/a.jsonl")
    site.serve(file)
    (tmp_path / "set").mkdir()
    (tmp_path / "set/.a.jsonl.potstill-part").write_bytes(part)
    fetch_files("set", [file], tmp_path)
    assert find_state(file, tmp_path) == "here" and left(tmp_path) == ["set/a.jsonl"]
    assert bool(site.asked) == (part != CONTENT)


def test_a_server_without_ranges_sends_the_whole_file(site: Site, tmp_path: Path) -> None:
    file = public_file("set/a.jsonl")
    page = site.serve(file)
    site.no_ranges, site.cuts[page] = True, [1000]
    fetch_files("set", [file], tmp_path)
    assert [wanted for _, wanted in site.asked] == ["", "bytes=1000-"] and find_state(file, tmp_path) == "here"


@pytest.mark.parametrize("sent", [CONTENT[:-1] + b"x", CONTENT + b"x", b"<html>sign in</html>"], ids=len)
def test_another_content_is_refused_and_nothing_stays(site: Site, tmp_path: Path, sent: bytes) -> None:
    file = public_file("set/a.jsonl")
    site.serve(file, sent)
    error = refused("set", [file], tmp_path)
    wrong = "E-data-download-digest" if len(sent) >= len(CONTENT) else "E-data-download"
    assert error.code == wrong and file.sha256 in error.hint and find_state(file, tmp_path) == "missing"
    assert left(tmp_path) == ([] if len(sent) >= len(CONTENT) else ["set/.a.jsonl.potstill-part"])
    site.serve(file)
    fetch_files("set", [file], tmp_path)
    assert find_state(file, tmp_path) == "here"


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (503, 3)])
def test_a_refusal_names_every_missing_file_with_place_address_and_digest(
    site: Site, tmp_path: Path, status: int, tries: int
) -> None:
    files = [public_file("set/a.jsonl"), public_file("set/b.jsonl"), public_file("set/c.jsonl", b"c")]
    pages = [site.serve(file) for file in files]
    site.serve(files[2], b"c")
    site.statuses[pages[1]] = status
    error = refused("set", files, tmp_path)
    assert (error.code, error.where) == ("E-data-download", "potstill data set") and f"HTTP {status}" in error.found
    for file in files[1:]:
        assert all(text in error.hint for text in (str(tmp_path / file.path), file.sha256, file.url)), error.hint
    assert files[0].url not in error.hint and left(tmp_path) == ["set/a.jsonl"]
    assert [path for path, _ in site.asked].count(pages[1]) == tries
    site.statuses.clear()
    assert fetch_files("set", files, tmp_path) == files[1:]


def test_without_a_network_the_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = public_file("set/a.jsonl")
    monkeypatch.setattr(public_files, "GITHUB", "http://127.0.0.1:9/")
    monkeypatch.setattr(download, "RETRY_WAITS", (0.0, 0.0))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    error = refused("set", [file], tmp_path)
    assert error.code == "E-data-download" and file.sha256 in error.hint and str(tmp_path / file.path) in error.hint
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error = refused("set", [file], tmp_path / "new")
    assert error.code == "E-data-offline" and file.sha256 in error.hint and not (tmp_path / "new").exists()
    (tmp_path / "set").mkdir(exist_ok=True)
    (tmp_path / file.path).write_bytes(CONTENT)  # as the message says
    assert fetch_files("set", [file], tmp_path) == []


def test_a_file_with_another_content_is_refused_or_replaced(site: Site, tmp_path: Path) -> None:
    files = [public_file("set/a.jsonl"), public_file("set/b.jsonl")]
    for file in files:
        site.serve(file)
    (tmp_path / "set").mkdir()
    (tmp_path / "set/b.jsonl").write_bytes(CONTENT[:-1] + b"x")
    error = refused("set", files, tmp_path)
    assert error.code == "E-data-other-content" and str(tmp_path / "set/b.jsonl") in error.found and not site.asked
    assert fetch_files("set", files, tmp_path, replace=True) == files
    assert [find_state(file, tmp_path) for file in files] == ["here", "here"]


def test_a_file_of_which_no_public_place_is_known(site: Site, tmp_path: Path) -> None:
    unknown = {"repository": "", "commit": "", "source": ""}
    needed, optional = public_file("set/a", **unknown), public_file("set/b", optional="for one thing", **unknown)
    assert fetch_files("set", [optional], tmp_path) == []
    error = refused("set", [needed, optional], tmp_path)
    assert error.code == "E-data-no-source" and str(tmp_path / "set/a") in error.hint and needed.sha256 in error.hint
    assert not site.asked


def test_a_file_of_the_hub_comes_through_its_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_server.serve() as hub:
        commit = hub.model("owner/name", {"spiece.model": CONTENT})
        for name, value in (("HF_ENDPOINT", hub.url), ("HF_HUB_CACHE", str(tmp_path / "cache"))):
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        file = public_file("t5/spiece.model", commit=commit, source="spiece.model", on_hub=True)
        assert fetch_files("t5", [file], tmp_path / "data") == [file]
        assert find_state(file, tmp_path / "data") == "here" and hub.url in file.url
        gone = public_file("t5/gone.model", commit=commit, source="gone.model", on_hub=True)
        error = refused("t5", [gone], tmp_path / "data")
        assert error.code == "E-hub-no-file" and gone.sha256 in error.hint
        wrong = public_file("t5/wrong.model", b"other", commit=commit, source="spiece.model", on_hub=True)
        error = refused("t5", [wrong], tmp_path / "data")
        assert error.code == "E-data-download-digest" and left(tmp_path / "data") == ["t5/spiece.model"]


def test_a_hub_without_a_network_is_not_called_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("cannot locate the file on the Hub")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    file = public_file("t5/spiece.model", on_hub=True)
    for offline, code in (("0", "E-hub-failed"), ("1", "E-hub-offline")):
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        error = refused("t5", [file], tmp_path)
        assert error.code == code and file.sha256 in error.hint and file.url in error.hint


# The table


def test_the_table_pins_every_file_and_agrees_with_the_built_in_sets() -> None:
    sets = public_files.read_public_sets()
    assert set(sets) == {*data.SETS, "prompts", "t5-tokenizer"}
    files = [file for public in sets.values() for file in public.files]
    assert len({file.path for file in files}) == len(files) == 68
    for file in files:
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256) and file.size > 0 and ".." not in file.path
        assert re.fullmatch(r"[0-9a-f]{40}", file.commit) or (not file.repository and file.optional)
        assert file.path[0] != "/" and (file.source != "") == (file.repository != "")
    for name, builtin in data.SETS.items():
        assert sets[name].licence == builtin.licence
        assert builtin.source.removeprefix("https://github.com/") in {file.repository for file in sets[name].files}
    assert [name for name, public in sets.items() if public.noncommercial] == ["asdiv"]


def test_readme_and_documentation_name_source_commit_licence_and_size() -> None:
    root = Path(__file__).parents[2]
    for page in ("README.md", "docs/how-to/get-the-data.md"):
        rows = {
            row.split("`")[1]: row for row in (root / page).read_text("utf-8").splitlines() if row.startswith("| `")
        }
        for name, public in public_files.read_public_sets().items():
            size = f"{public.size / 1e6:.1f} MB" if public.size >= 1e5 else f"{public.size / 1e3:.0f} kB"
            for file in public.files:
                assert f"{file.repository}/tree/{file.commit}" in rows[name] or not file.repository
            assert all(text in rows[name] for text in (public.licence or "none stated", size))
            assert public.noncommercial == ("NonCommercial" in rows[name])


def test_the_table_is_of_the_real_files(data: Path) -> None:
    missing = [file.path for public in public_files.read_public_sets().values() for file in public.files
               if find_state(file, data) != "here"]  # fmt: skip
    assert missing == []


def test_all_sets_are_fetched_and_read(data: Path, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every set of the table from a server that has the real files at their public paths; the loaders read them."""
    from potstill.data import SETS, load_set

    sets = public_files.read_public_sets()
    for public in sets.values():
        for file in public.files:
            if file.on_hub:
                (tmp_path / file.path).parent.mkdir(parents=True)
                shutil.copy(data / file.path, tmp_path / file.path)
            elif file.repository:
                site.serve(file, (data / file.path).read_bytes())
    monkeypatch.setenv("POTSTILL_DATA", str(tmp_path))
    result = CliRunner().invoke(cli.app, ["data", *sets])
    assert result.exit_code == 0, result.output
    assert "NonCommercial" in result.output and "golden/authors_validation_indices.json" in result.output
    for name in SETS:
        assert load_set(name, tmp_path) == load_set(name, data)
    assert "yes" in CliRunner().invoke(cli.app, ["data"]).output


# The command


@pytest.fixture
def one_set(site: Site, monkeypatch: pytest.MonkeyPatch) -> PublicFile:
    file = public_file("mine/mine.jsonl")
    site.serve(file)
    table = {
        "mine": PublicSet("mine", "Mine", "cc-by-nc-4.0", (file,)),
        "other": PublicSet("other", "Other", None, (file,)),
    }
    monkeypatch.setattr(public_files, "read_public_sets", lambda: table)
    return file


def test_the_list_says_what_is_here(one_set: PublicFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POTSTILL_DATA", raising=False)
    lines = CliRunner().invoke(cli.app, ["data"]).output.splitlines()
    assert lines[0].split() == ["name", "here", "size", "licence"]
    assert lines[1].split() == ["mine", "-", "0.1", "MB", "cc-by-nc-4.0,", "NonCommercial"]
    assert lines[3] == f"  github.com/owner/name@{COMMIT[:7]}" and lines[4].split()[4:] == ["none", "stated"]
    for content, state in ((None, "no"), (b"x", "other content"), (CONTENT, "yes")):
        if content is not None:
            (tmp_path / "mine").mkdir(exist_ok=True)
            (tmp_path / one_set.path).write_bytes(content)
        output = CliRunner().invoke(cli.app, ["data", "--to", str(tmp_path)]).output
        assert output.splitlines()[1].removeprefix("mine").strip().startswith(state)


def test_a_fetch_says_the_licence_and_where_the_files_are(
    one_set: PublicFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POTSTILL_DATA", raising=False)
    result = CliRunner().invoke(cli.app, ["data", "mine", "--to", str(tmp_path / "new")])
    assert result.exit_code == 0 and find_state(one_set, tmp_path / "new") == "here"
    assert "licence: cc-by-nc-4.0. NonCommercial" in result.output
    assert f"export POTSTILL_DATA={tmp_path / 'new'}" in result.output
    again = CliRunner().invoke(cli.app, ["data", "mine", "--to", str(tmp_path / "new")])
    assert "all files were here" in again.output


@pytest.mark.parametrize(
    ("arguments", "code"), [(["mine"], "E-data-no-folder"), (["mime", "--to", "x"], "E-data-unknown-set")]
)
def test_a_wrong_name_and_no_folder(
    one_set: PublicFile, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: str
) -> None:
    monkeypatch.delenv("POTSTILL_DATA", raising=False)
    error = CliRunner().invoke(cli.app, ["data", *arguments]).exception
    assert isinstance(error, UserError) and error.code == code
