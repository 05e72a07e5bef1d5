"""The files of a run: how they are written, read, locked and checked.

`atomic` holds every operation that writes, `read` those that read, `manifest` records what a finished stage holds and
what it was made from, `parquet` and `segments` store chains, and `run_folder` holds the lock and the log of a run.
"""

from potstill.storage.atomic import (
    Appender,
    copy_mode,
    delete_partial_files,
    encode_json_line,
    remove,
    resume_stream,
    write_file,
    write_folder,
    write_json,
    write_jsonl,
)
from potstill.storage.read import (
    as_format_errors,
    file_digest,
    folder_fingerprint,
    iter_records,
    read_bytes,
    read_complete_lines,
    read_json,
    read_jsonl,
    read_record,
    read_records,
)
from potstill.storage.run_folder import cache_folder, hold_lock

__all__ = [
    "Appender",
    "as_format_errors",
    "cache_folder",
    "copy_mode",
    "delete_partial_files",
    "encode_json_line",
    "file_digest",
    "folder_fingerprint",
    "hold_lock",
    "iter_records",
    "read_bytes",
    "read_complete_lines",
    "read_json",
    "read_jsonl",
    "read_record",
    "read_records",
    "remove",
    "resume_stream",
    "write_file",
    "write_folder",
    "write_json",
    "write_jsonl",
]
