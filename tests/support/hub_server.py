"""A small Hugging Face hub on the loopback interface, for the real client huggingface_hub.

It serves repositories from memory: listings, files with ranges, redirects of none, gates, private repositories and tokens,
and it takes uploads (regular and LFS). A test sets `cut` to break off the next downloads of a file after some bytes.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LFS_BYTES = 100_000  # larger files are uploaded by their digest
TOKEN = "hf_loopback"


@dataclass
class Repository:
    """files    path -> content, one dict for each commit, the oldest first
    gated    files need an accepted licence, which only TOKEN has
    private  the repository exists for TOKEN only
    branches name -> its last commit
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit that holds exactly these files; returns its 40 hexadecimal digits."""
        parts = [name.encode() + hashlib.sha256(data).digest() for name, data in sorted(files.items())]
        sha = hashlib.sha1(str(len(self.commits)).encode() + b"".join(parts)).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Hub:
    """repositories  "models/owner/name" or "datasets/owner/name" -> repository
    requests      method and path of every request, in order
    cut           path of a file -> numbers of bytes after which its next downloads break off
    uploaded      digest -> content of the large files that were uploaded
    refuse_commits  HTTP statuses with which the next commits are refused
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    cut: dict[str, list[int]] = field(default_factory=dict)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    refuse_commits: list[int] = field(default_factory=list)

    def model(self, name: str, files: dict[str, bytes], **settings: bool) -> str:
        """Serve a model repository with one commit; returns the commit."""
        repository = self.repositories[f"models/{name}"] = Repository(**settings)
        return repository.commit(files)

    def dataset(self, name: str, files: dict[str, bytes], **settings: bool) -> str:
        repository = self.repositories[f"datasets/{name}"] = Repository(**settings)
        return repository.commit(files)


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """Run a hub until the block ends; the client finds it with HF_ENDPOINT set to `Hub.url`."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def stored_digest(data: bytes | None) -> str | None:
    """The digest by which git knows a file's content, or LFS a large one's; None for a file that is not there."""
    if data is None:
        return None
    if len(data) > LFS_BYTES:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.answer()

        do_HEAD = do_POST = do_PUT = do_GET

        def answer(self) -> None:
            path, _, _query = self.path.partition("?")
            path = path.replace("%20", " ").replace("%2F", "/")
            hub.requests.append(f"{self.command} {path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            for method, pattern, action in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method:
                    action(self, match, body)
                    return
            self.reply(404, {"error": "no such path"})

        @property
        def authorized(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {TOKEN}"

        def reply(self, status: int, value: Any, code: str = "") -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", str(value))
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def repository(self, kind: str, name: str) -> Repository | None:
            """The repository, or None after the refusal was sent."""
            found = hub.repositories.get(f"{kind}/{name}")
            if found is None or (found.private and not self.authorized):
                self.reply(401, {"error": "Repository not found"}, "RepoNotFound")
                return None
            return found

        def files(self, repository: Repository, revision: str) -> tuple[str, dict[str, bytes]] | None:
            commit = repository.resolve(revision)
            if commit is None:
                self.reply(404, {"error": "Invalid rev id"}, "RevisionNotFound")
                return None
            return commit, repository.commits[commit]

    return _with_routes(Handler, hub)


ROUTES: list[tuple[str, str, Any]] = []


def _with_routes(handler: type[BaseHTTPRequestHandler], hub: Hub) -> type[BaseHTTPRequestHandler]:
    def info(self: Any, match: re.Match[str], body: bytes) -> None:
        if (repository := self.repository(match["kind"], match["name"])) and (
            resolved := self.files(repository, match["revision"] or "main")
        ):
            commit, files = resolved
            self.reply(
                200,
                {
                    "id": match["name"],
                    "sha": commit,
                    "private": repository.private,
                    "gated": "manual" if repository.gated else False,
                    "siblings": [{"rfilename": name} for name in files],
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                },
            )

    def tree(self: Any, match: re.Match[str], body: bytes) -> None:
        if (repository := self.repository(match["kind"], match["name"])) and (
            resolved := self.files(repository, match["revision"])
        ):
            self.reply(
                200,
                [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in resolved[1].items()
                ],
            )

    def file(self: Any, match: re.Match[str], body: bytes) -> None:
        kind = match["kind"] or "models"
        repository = self.repository(kind, match["name"])
        if repository is None:
            return
        if repository.gated and not self.authorized:
            self.reply(403, {"error": "Access to this model is restricted"}, "GatedRepo")
            return
        resolved = self.files(repository, match["revision"])
        if resolved is None:
            return
        commit, files = resolved
        data = files.get(match["path"])
        if data is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        if wanted := re.fullmatch(r"bytes=(\d+)-\d*", self.headers.get("Range") or ""):
            start = int(wanted[1])
            hub.ranges.append(f"{match['path']} {start}")
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = hub.cut.get(match["path"])
        part = data[start:]
        if cuts:
            part = part[: cuts.pop(0)]
            self.close_connection = True
        with contextlib.suppress(ConnectionError):
            self.wfile.write(part)

    def whoami(self: Any, match: re.Match[str], body: bytes) -> None:
        if self.authorized:
            self.reply(200, {"name": "owner", "type": "user", "orgs": []})
        else:
            self.reply(401, {"error": "Invalid token"})

    def create(self: Any, match: re.Match[str], body: bytes) -> None:
        if not self.authorized:
            self.reply(401, {"error": "Invalid token"})
            return
        request = json.loads(body)
        name = f"{request.get('organization') or 'owner'}/{request['name'].rpartition('/')[2]}"
        key = f"{request.get('type') or 'model'}s/{name}"
        if key in hub.repositories:
            self.reply(409, {"error": "You already created this repository", "url": f"{hub.url}/{name}"})
            return
        hub.repositories[key] = Repository(
            private=bool(request.get("private")) or request.get("visibility") == "private"
        )
        hub.repositories[key].commit({".gitattributes": b""})
        self.reply(200, {"url": f"{hub.url}/{name}", "name": name, "id": name})

    def validate(self: Any, match: re.Match[str], body: bytes) -> None:
        self.reply(200, {"errors": [], "warnings": []})

    def preupload(self: Any, match: re.Match[str], body: bytes) -> None:
        repository = self.repository(match["kind"], match["name"])
        resolved = repository and self.files(repository, match["revision"])
        if not resolved:
            return
        modes = [
            {
                "path": entry["path"],
                "uploadMode": "lfs" if entry["size"] > LFS_BYTES else "regular",
                "shouldIgnore": False,
                "oid": stored_digest(resolved[1].get(entry["path"])),
            }
            for entry in json.loads(body)["files"]
        ]
        self.reply(200, {"files": modes})

    def batch(self: Any, match: re.Match[str], body: bytes) -> None:
        if not self.authorized:
            self.reply(401, {"error": "Invalid token"})
            return
        objects = [
            {"oid": entry["oid"], "size": entry["size"]}
            | (
                {}
                if entry["oid"] in hub.uploaded
                else {"actions": {"upload": {"href": f"{hub.url}/lfs/{entry['oid']}"}}}
            )
            for entry in json.loads(body)["objects"]
        ]
        self.reply(200, {"transfer": "basic", "objects": objects})

    def put(self: Any, match: re.Match[str], body: bytes) -> None:
        assert hashlib.sha256(body).hexdigest() == match["oid"], "an upload has its digest as its name"
        hub.uploaded[match["oid"]] = body
        self.reply(200, {})

    def commit(self: Any, match: re.Match[str], body: bytes) -> None:
        if not self.authorized:
            self.reply(401, {"error": "Invalid token"})
            return
        repository = self.repository(match["kind"], match["name"])
        if repository is None:
            return
        if hub.refuse_commits:
            self.reply(hub.refuse_commits.pop(0), {"error": "refused by the test"})
            return
        files = dict(repository.commits[repository.resolve(match["revision"]) or ""])
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = hub.uploaded[value["oid"]]
            elif operation["key"] == "deletedFile":
                files.pop(value["path"], None)
        sha = repository.commit(files, match["revision"])
        self.reply(200, {"commitUrl": f"{hub.url}/{match['name']}/commit/{sha}", "commitOid": sha, "success": True})

    def branch(self: Any, match: re.Match[str], body: bytes) -> None:
        if not self.authorized:
            self.reply(401, {"error": "Invalid token"})
        elif repository := self.repository(match["kind"], match["name"]):
            if match["revision"] in repository.branches:
                self.reply(409, {"error": "Reference already exists"})
                return
            repository.branches[match["revision"]] = repository.branches["main"]
            self.reply(200, {})

    kind, name = r"(?P<kind>models|datasets)", r"(?P<name>[\w.-]+/[\w.-]+)"
    ROUTES[:] = [
        ("GET", r"/api/whoami-v2", whoami),
        ("POST", r"/api/repos/create", create),
        ("POST", r"/api/validate-yaml", validate),
        ("POST", rf"/api/{kind}/{name}/branch/(?P<revision>[\w.-]+)", branch),
        ("POST", rf"/api/{kind}/{name}/preupload/(?P<revision>[\w.-]+)", preupload),
        ("POST", rf"/api/{kind}/{name}/commit/(?P<revision>[\w.-]+)", commit),
        ("POST", rf"/(?:datasets/)?{name}\.git/info/lfs/objects/batch", batch),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", put),
        ("GET", rf"/api/{kind}/{name}/tree/(?P<revision>[\w.-]+)", tree),
        ("GET", rf"/api/{kind}/{name}(?:/revision/(?P<revision>[\w.-]+))?", info),
        ("GET HEAD", rf"/(?:(?P<kind>datasets)/)?{name}/resolve/(?P<revision>[\w.-]+)/(?P<path>.+)", file),
    ]
    return handler
