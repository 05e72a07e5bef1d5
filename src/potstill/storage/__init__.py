"""The files of a run: writing, reading, locking and checking.

`atomic` has every operation that writes, and `read` the operations that read. `manifest` records the files and the
inputs of a finished stage. `parquet` and `segments` store chains. `run_folder` has the lock and the log of a run.
"""

from potstill.storage.atomic import (
    Appender,
    copy_mode,
    delete_partial_files,
    encode_json_line,
    open_message_file,
    remove,
    rename_folder,
    resume_stream,
    write_file,
    write_folder,
    write_json,
    write_jsonl,
    write_stream,
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
from potstill.storage.run_folder import cache_folder, hold_lock, list_saved_steps

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
    "list_saved_steps",
    "open_message_file",
    "read_bytes",
    "read_complete_lines",
    "read_json",
    "read_jsonl",
    "read_record",
    "read_records",
    "remove",
    "rename_folder",
    "resume_stream",
    "write_file",
    "write_folder",
    "write_json",
    "write_jsonl",
    "write_stream",
]
