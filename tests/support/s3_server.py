"""A server of S3 on the loopback interface (moto), which writes down the requests and fails as asked.

with serve() as server:
    server.put("bucket", {"sets/mine.jsonl": b"..."})
    server.fail = lambda method, path: method == "PUT"      # these are answered 403
"""

from __future__ import annotations

import contextlib
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

BUCKET = "bucket"


@dataclass
class Server:
    url: str = ""
    requests: list[str] = field(default_factory=list)  # "GET /bucket/name RANGE"
    fail: Callable[[str, str], bool] = lambda method, path: False

    def put(self, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            self._client().put_object(Bucket=BUCKET, Key=name, Body=content)

    def files(self, folder: str = "") -> dict[str, bytes]:
        """The files whose names begin with `folder`, without it."""
        pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=folder)
        names = [row["Key"] for page in pages for row in page.get("Contents", ())]
        got = {name: self._client().get_object(Bucket=BUCKET, Key=name)["Body"].read() for name in names}
        return {name.removeprefix(folder): content for name, content in got.items()}

    def _client(self) -> Any:
        import boto3

        keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.url, **keys)

    def reads(self) -> list[str]:
        """The requests that read a file."""
        return [request for request in self.requests if request.startswith("GET /bucket/") and "?" not in request]


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """A server with an empty bucket."""
    import moto.server
    from werkzeug.serving import make_server

    moto.server.create_backend_app("s3")
    inner = moto.server.DomainDispatcherApplication(moto.server.create_backend_app)
    server = Server()

    def answer(environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path, query = (environment[name] for name in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING"))
        server.requests.append(f"{method} {path}{'?' if query else ''} {environment.get('HTTP_RANGE', '')}".strip())
        if server.fail(method, path):
            body = b"<Error><Code>AccessDenied</Code><Message>as asked</Message></Error>"
            start("403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [] if method == "HEAD" else [body]
        return inner(environment, start)

    listener = make_server("127.0.0.1", 0, answer, threaded=True)
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{listener.server_port}"
    server._client().create_bucket(Bucket=BUCKET)
    try:
        yield server
    finally:
        server.fail = lambda method, path: False
        urllib.request.urlopen(f"{server.url}/moto-api/reset", data=b"").close()  # the data are of the whole process
        listener.shutdown()
        thread.join()


__all__ = ["BUCKET", "Server", "serve"]
