"""Files and folders in object stores, named by URL (`s3://bucket/models/student`), through fsspec.

    >>> is_url("s3://bucket/sets/mine.jsonl"), is_url("models/student"), is_url("https://example.org/mine.jsonl")
    (True, False, False)

Each scheme needs its library: s3fs for `s3://` (`pip install 'potstill[s3]'`), gcsfs for `gs://`, adlfs for `az://`. They
read credentials and addresses from their own environment variables and files, such as AWS_PROFILE and AWS_ENDPOINT_URL; a
recipe has none of them.

`copies` reads: each file is copied once into potstill's cache. `upload` writes. A run in progress is never in an object
store, because these have neither locks nor files that grow.
"""

from potstill.object_store.copies import Copy, download_folder, fetch, fetch_matches
from potstill.object_store.listing import is_url, refuse_run_url
from potstill.object_store.upload import Upload, upload_folder

__all__ = [
    "Copy",
    "Upload",
    "download_folder",
    "fetch",
    "fetch_matches",
    "is_url",
    "refuse_run_url",
    "upload_folder",
]
