"""Sets from a URL, served by the standard library on this machine."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

import tiny
from potstill import storage
from potstill.data import custom_set, download
from potstill.errors import UserError

ROWS = b"".join(storage.encode_json_line(row) for row in tiny.rows("sums", 12))
PIN = hashlib.sha256(ROWS).hexdigest()


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = 0  # bytes that are promised and do not come


@dataclass
class Site:
    """Path -> what is answered, one after the other, the last one for ever; and every path that was asked for."""

    pages: dict[str, list[Answer]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    here = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.replace("%20", " ")
            here.asked.append(path)
            left = here.pages.get(path, [Answer(status=404)])
            answer = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body) + answer.cut))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    here.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "RETRY_WAITS", (0.0, 0.0))
    yield here
    server.shutdown()
    server.server_close()


def by_url(site: Site, pin: str = PIN, path: str = "/mine.jsonl") -> tuple[str, str, str]:
    return "sets.mine", site.url + path, pin


def refused(source: tuple[str, str, str], site: Site) -> tuple[str, str]:
    """Code, and what was found, of the one error; it names the recipe's key and says what to do."""
    with pytest.raises(UserError) as error:
        download.fetch_url(*source)
    assert error.value.where == "sets.mine" and error.value.hint
    return error.value.code, error.value.found.replace(site.url, "SITE")


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != ".lock")


def test_a_pinned_url_is_fetched_once_and_verified_at_every_use(site: Site, tmp_path: Path) -> None:
    site.pages["/mine.jsonl"] = [Answer(ROWS)]
    path = download.fetch_url(*by_url(site))
    assert path.read_bytes() == ROWS and path.is_relative_to(tmp_path / "cache")
    assert download.fetch_url(*by_url(site)) == path and site.asked == ["/mine.jsonl"]
    path.write_bytes(ROWS[:-9])
    assert download.fetch_url(*by_url(site)).read_bytes() == ROWS and len(site.asked) == 2
    path.write_bytes(ROWS[:-9])
    site.pages["/mine.jsonl"] = [Answer(ROWS + b"{}")]
    assert refused(by_url(site), site)[0] == "E-data-download-digest"


def test_a_changed_download_is_refused_and_nothing_stays(site: Site, tmp_path: Path) -> None:
    site.pages["/mine.jsonl"] = [Answer(ROWS[:-9])]
    found = hashlib.sha256(ROWS[:-9]).hexdigest()
    error = refused(by_url(site), site)
    assert error == ("E-data-download-digest", f"SHA-256 {found}, {len(ROWS) - 9} bytes from SITE/mine.jsonl")
    assert not (tmp_path / "cache").exists()


def test_a_torn_download_is_tried_again_and_then_refused(site: Site, tmp_path: Path) -> None:
    site.pages["/mine.jsonl"] = [Answer(ROWS, cut=5), Answer(status=503), Answer(ROWS)]
    assert download.fetch_url(*by_url(site)).read_bytes() == ROWS
    site.pages["/torn.jsonl"] = [Answer(ROWS, cut=5)]
    code, found = refused(by_url(site, "0" * 64, "/torn.jsonl"), site)
    assert (
        code == "E-data-download"
        and found.startswith("RemoteProtocolError ")
        and found.endswith("from SITE/torn.jsonl")
    )
    assert site.asked.count("/torn.jsonl") == 3 and left(tmp_path) == ["mine.jsonl"]


@pytest.mark.parametrize(
    ("status", "tries"),
    [(404, 1), (403, 1), (500, 3)],
)
def test_what_a_server_refuses_is_said(site: Site, tmp_path: Path, status: int, tries: int) -> None:
    site.pages["/mine.jsonl"] = [Answer(b"no", status)]
    assert refused(by_url(site), site) == ("E-data-download", f"HTTP {status} from SITE/mine.jsonl")
    assert len(site.asked) == tries and not (tmp_path / "cache").exists()


def test_a_server_that_is_not_there_and_a_redirect_without_end(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.pages["/round"] = [Answer(status=302, headers={"Location": "/round"})]
    assert refused(by_url(site, path="/round"), site)[0] == "E-data-download"
    gone = ("sets.mine", "http://127.0.0.1:9/mine.jsonl", PIN)
    assert refused(gone, site)[1].startswith("ConnectError")
    monkeypatch.setattr(download, "MAX_BYTES", 10)
    site.pages["/mine.jsonl"] = [Answer(ROWS)]
    assert refused(by_url(site), site)[0] == "E-data-download-size"


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POTSTILL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert storage.cache_folder() == Path("/x/potstill")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(sys, "platform", "linux")
    assert storage.cache_folder() == Path.home() / ".cache" / "potstill"
    odd = Path(download.cache_path("http://a/..%2F?x=1", PIN))
    assert odd.parts[:2] == ("url", PIN) and len(odd.parts) == 3 and ".." not in str(odd)


def test_parquet_is_read_as_jsonl_is(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([{**row, "answer": int(row["answer"])} for row in tiny.rows("sums", 12)])
    parquet.write_table(table, tmp_path / "mine.parquet", row_group_size=5)
    (tmp_path / "mine.jsonl").write_bytes(ROWS)
    found, expected = (
        custom_set.read_custom("m", [tmp_path / f"mine.{kind}"], None, None) for kind in ("parquet", "jsonl")
    )
    assert [(q.id, q.text, q.gold) for q in found] == [(q.id, q.text, q.gold) for q in expected]
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "mine.parquet").read_bytes()[:-3])
    with pytest.raises(UserError) as error:
        custom_set.read_custom("m", [tmp_path / "torn.parquet"], None, None)
    assert error.value.where.endswith("torn.parquet")
    with pytest.raises(UserError) as error:
        custom_set.read_custom("m", [tmp_path / "no.parquet"], None, None)
    assert error.value.where.endswith("no.parquet") and error.value.code == "E-data-missing-file"


def test_bodies_without_measure(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A packed body that unfolds, one behind a redirect, and one in a redirect: none is held in memory whole."""
    monkeypatch.setattr(download, "MAX_BYTES", 1 << 16)
    bomb = gzip.compress(bytes(1 << 26))
    packed = {"Content-Encoding": "gzip"}
    site.pages["/bomb.jsonl"] = [Answer(bomb, headers=packed)]
    site.pages["/twice.jsonl"] = [Answer(gzip.compress(bomb), headers={"Content-Encoding": "gzip, gzip"})]
    site.pages["/moved.jsonl"] = [Answer(bomb, 302, {"Location": "/mine.jsonl", **packed})]
    site.pages["/mine.jsonl"] = [Answer(gzip.compress(ROWS), headers=packed)]
    for name, code in (("bomb", "E-data-download-size"), ("twice", "E-data-download")):
        with pytest.raises(UserError) as error:
            download.fetch_url("sets.mine", f"{site.url}/{name}.jsonl", PIN)
        assert error.value.code == code
    assert download.fetch_url("sets.mine", f"{site.url}/moved.jsonl", PIN).read_bytes() == ROWS
