"""The output file of `potstill ask --out`, which appears when it is complete. Until then, `FILE.unfinished` has the answers.

    with UnfinishedAnswers(Path("answers.csv"), asked) as answers:   # asked: what determines the answers
        answers.stored                                                # the rows that an earlier process wrote
        answers.append(rows)
        answers.finish()                                              # writes answers.csv

A command that was killed continues after the last complete row if it asks the same student the same questions.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from potstill import storage
from potstill.errors import UserError

UNFINISHED_SUFFIX: Final = ".unfinished"
ASKED: Final = "asked"  # the only field of the first line: the digest of what determines the answers


class UnfinishedAnswers:
    """The rows of an output file that is not complete, in the order of the questions.

    stored  all rows so far, also those of earlier processes

    Raises UserError if the unfinished file has answers to other questions, of another student or with other options.
    """

    def __init__(self, out: Path, asked: object) -> None:
        """asked: everything that determines the answers, as JSON"""
        self.out, self.path = out, out.with_name(out.name + UNFINISHED_SUFFIX)
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        first, *self.stored = [*storage.read_complete_lines(self.path)] or [{ASKED: digest}]
        if first != {ASKED: digest}:
            raise UserError(
                "an earlier command has not finished this file, and it asked something else",
                code="E-cli-ask-unfinished",
                where=self.path,
                found="another student, other questions or other options",
                hint="remove this file, or name another --out",
            )
        self._file = storage.Appender(self.path, ordered=True)
        if not self.path.stat().st_size:
            self._file.append([first])

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        self._file.append(rows)
        self.stored += rows

    def finish(self) -> None:
        """Write the output file from all rows, and remove the unfinished one."""
        write_answers(self.out, self.stored)
        storage.remove(self.path)

    def __enter__(self) -> UnfinishedAnswers:
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)


def write_answers(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSONL or CSV, by the name of the file. In CSV, a value that is no text or number is JSON."""
    if path.suffix == ".jsonl":
        storage.write_jsonl(path, rows)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    for row in rows:
        cells = {name: "" if value is None else value for name, value in row.items()}
        plain = {
            name: value if isinstance(value, str | int | float) and not isinstance(value, bool) else json.dumps(value)
            for name, value in cells.items()
        }
        writer.writerow(plain)
    storage.write_file(path, text.getvalue().encode())
