"""Files: the only writer, the manifests, and the tables at rest.

`disk` has the operations that write, `reading` those that read, `manifest` says what a stage folder holds and whether
it still fits the recipe, `tables` owns Parquet and arrays, `run_folder` holds the lock and the log of one run.
"""

from potstill.files.disk import Appender, copy_mode, folder, line, remove, sweep, write, write_json, write_jsonl
from potstill.files.reading import (
    as_written,
    digest,
    fingerprint,
    read_bytes,
    read_json,
    read_jsonl,
    read_record,
    read_records,
    records,
    whole_rows,
)
from potstill.files.run_folder import held

__all__ = [
    "Appender",
    "as_written",
    "copy_mode",
    "digest",
    "fingerprint",
    "folder",
    "held",
    "line",
    "read_bytes",
    "read_json",
    "read_jsonl",
    "read_record",
    "read_records",
    "records",
    "remove",
    "sweep",
    "whole_rows",
    "write",
    "write_json",
    "write_jsonl",
]
