"""A service for batch files: a server answers each request of the file."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any

import stub

Change = Callable[[dict[str, Any]], dict[str, Any] | None]


def served(server: stub.Stub, requests: Iterable[dict[str, Any]], change: Change = lambda row: row) -> list[bytes]:
    """What a service gives back for requests: a line each, whose body a server wrote."""
    lines = []
    for request in requests:
        assert request["method"] == "POST"
        url = server.url.removesuffix("/v1") + request["url"]
        sent = urllib.request.Request(url, json.dumps(request["body"]).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(sent) as answer:
                status, body = answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as fault:
            status, body = fault.code, json.loads(fault.read())
        row = change({
            "id": "batch_req_1", "custom_id": request["custom_id"],
            "response": {"status_code": status, "request_id": "r", "body": body}, "error": None,
        })  # fmt: skip
        if row is not None:
            lines.append(json.dumps(row).encode() + b"\n")
    return lines
