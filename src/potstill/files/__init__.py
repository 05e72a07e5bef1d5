"""Files: the only writer, the manifests, and the tables at rest.

`disk` has the operations, `manifest` says what a stage folder holds and whether it still fits the recipe, `tables`
owns Parquet and arrays, `run_folder` holds the lock and the log of one run.
"""

from potstill.files.disk import (
    Appender,
    digest,
    fingerprint,
    folder,
    read_bytes,
    read_json,
    read_jsonl,
    remove,
    sweep,
    write,
    write_json,
    write_jsonl,
)

__all__ = [
    "Appender",
    "digest",
    "fingerprint",
    "folder",
    "read_bytes",
    "read_json",
    "read_jsonl",
    "remove",
    "sweep",
    "write",
    "write_json",
    "write_jsonl",
]
