"""Parts: lines in a new folder of files, none longer or larger than it may be.

>>> import tempfile; out = Path(tempfile.mkdtemp()) / "out"
>>> [path.name for path in write(out, [b"a\\n", b"bb\\n", b"c\\n"], "lines", most_lines=2, most_bytes=5)]
['lines-0001.jsonl', 'lines-0002.jsonl']
>>> (out / "lines-0002.jsonl").read_bytes()
b'c\\n'
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from potstill.errors import UserError
from potstill.files import disk


def write(out: Path, lines: Iterable[bytes], name: str, *, most_lines: int, most_bytes: int) -> list[Path]:
    """Put lines into as many files as they need; the folder appears with all of them or not at all. No line: no folder.

    Raises UserError where something stands at `out` already, before the first line is asked for.
    """
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise UserError("there is something already", where=out, do="name a new folder")
    rows = iter(lines)
    first = next(rows, None)
    if first is None:
        return []
    names: list[str] = []
    with disk.folder(out) as folder, contextlib.ExitStack() as opened:
        file: BinaryIO | None = None
        count = size = 0
        for line in chain([first], rows):
            if file is None or count == most_lines or size + len(line) > most_bytes:
                opened.close()
                names.append(f"{name}-{len(names) + 1:04}.jsonl")
                file = opened.enter_context(disk.stream(folder / names[-1]))
                count = size = 0
            file.write(line)
            count, size = count + 1, size + len(line)
    return [out / each for each in names]
