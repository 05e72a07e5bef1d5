"""Reference page of a run's files: makes a small run, lists its files and columns, and joins them with the meanings in
`file_meanings`. A file or a column without a meaning stops the build.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from file_meanings import COLUMNS, FILES, FOLDERS, SOMETIMES
from names import ROOT, TOY_STUDENT
from recipe_keys import HEADER

QUESTIONS: Final = [
    (f"Ann has {a} kites and finds {b} more. How many kites has she?", a + b) for a in range(2, 12) for b in (3, 4, 6)
]
RECIPE: Final = {
    "name": "small",
    "sets": {"sums": {"file": "sums.jsonl"}, "other": {"file": "other.jsonl"}, "generic": {"file": "generic.jsonl"}},
    "questions": {
        "train": ["sums"],
        "in_distribution": ["sums"],
        "out_of_distribution": ["other"],
        "generic": ["generic"],
        "limit": {"validation": 3, "test": 3},
    },
    "teacher": {"kind": "human"},
    "student": {"model": str(TOY_STUDENT)},
    "train": {
        "steps": 4,
        "prompts_per_step": 4,
        "checkpoint_every": 2,
        "replay": {"share": 0.1, "sets": ["generic"]},
        "on_policy": {"share": 0.25, "max_tokens": 8, "scorers": {"own": {"sets": ["generic"], "model": "base"}}},
    },
    "select": {"retain": {"generic": 100.0}},
    "evaluate": {"max_tokens": 24, "test_decodings": ["vote-2"]},
    "on_policy": {"sets": ["generic"], "steps": 1, "checkpoint_every": 1, "max_tokens": 8},
}


def page() -> str:
    """One heading for each folder of a run: its files, and the columns of each."""
    with tempfile.TemporaryDirectory() as folder:
        files = dict(sorted(contents(make_run(Path(folder))).items()))
    unknown = [name for name in files if name not in FILES]
    unknown += [f"{n} {c}" for n, columns in files.items() for c in columns if _meaning(n, c) is None]
    if unknown:
        raise SystemExit("no meaning in tools/docs/file_meanings.py: " + "; ".join(unknown))
    lines = [
        HEADER.format(title="Files of a run"),
        "# Files of a run\n",
        "A run is the folder `runs/NAME`. Each stage has its own folder. `N` is a step, `SET` a data set, and `FORMAT`",
        "a prompt format. A JSONL file has one record on each line. potstill writes no other files.\n",
    ]
    for folder, meaning in FOLDERS.items():
        title = f"`{folder}/`" if folder else "In the run's folder"
        lines += [f"## {title} {{ #{folder.replace('/', '-') or 'run'} }}\n", meaning + "\n"]
        names = [name for name in FILES if _folder(name) == folder and (name in files or name in SOMETIMES)]
        lines += ["| file | content |", "|---|---|"]
        lines += [f"| `{name}` | {FILES[name]} {SOMETIMES.get(name, '')}|" for name in names]
        lines.append("")
        for name in names:
            if files.get(name) and not any(files[name] == files.get(earlier) for earlier in names[: names.index(name)]):
                lines += [f"### `{name}`\n", "| column | type | meaning |", "|---|---|---|"]
                lines += [f"| `{c}` | {kind} | {_meaning(name, c)} |" for c, kind in files[name].items()]
                lines.append("")
    return "\n".join(lines) + "\n"


def make_run(folder: Path) -> Path:
    """A small run with every stage, in a folder."""
    for name, verb in (("sums", "finds"), ("other", "buys"), ("generic", "sees")):
        rows = [
            {"question": q.replace("finds", verb), "answer": str(a), "rationale": f"The sum is {a}."}
            for q, a in QUESTIONS
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "small.yaml").write_text(json.dumps(RECIPE), "utf-8")
    paths = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "potstill", "run", "small.yaml"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"the small run failed:\n{done.stdout}{done.stderr}")
    return folder / "runs" / "small"


def contents(run: Path) -> dict[str, dict[str, str]]:
    """Pattern of a file name -> its columns and their types."""
    files: dict[str, dict[str, str]] = {}
    for path in sorted(run.rglob("*")):
        if path.is_file():
            files.setdefault(pattern(path.relative_to(run).as_posix()), {}).update(columns(path))
    return files


def pattern(name: str) -> str:
    """A file name with N for a step, SET for a set, FORMAT for a format, and one name for folders of one kind."""
    name = re.sub(r"(?<=^collect/)(sums|other|generic)\.(train|validation|test)(?=\.jsonl$)", "SET.SPLIT", name)
    name = re.sub(r"(zero|few)-shot-(rationale|answer)(?=\.)", "FORMAT", name)
    name = re.sub(r"(?<=FORMAT\.)(greedy|(vote|best)-\d+)(?=\.)", "DECODING", name)
    name = re.sub(r"(?<=^align/)[^/]+(?=/)", "student-RULE", name)
    name = re.sub(r"^\w+/(\d+(\+\d+)?/)?(?=(begun|manifest)\.json$)", "STAGE/", name)
    name = re.sub(r"^\w+/\d+(\+\d+)?/", "ANSWERS/", name)
    return re.sub(r"^(student|\w+/checkpoints/\d+)/", "MODEL/", name)


def columns(path: Path) -> dict[str, str]:
    """The columns of a table, or the keys of records, with their types. Nothing for any other file."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return {field.name: f"`{field.type}`" for field in parquet.read_schema(path)}
    if path.suffix == ".csv":
        with open(path, encoding="utf-8", newline="") as opened:
            rows = list(csv.DictReader(opened))
        return {name: _cells([row[name] for row in rows]) for name in (rows[0] if rows else ())}
    if path.suffix == ".jsonl":
        kinds_of: dict[str, set[str]] = {}
        for line in path.read_text("utf-8").splitlines():
            for key, value in json.loads(line).items():
                kinds_of.setdefault(key, set()).add(_kind(value))
        return {key: _either(kinds) for key, kinds in kinds_of.items()}
    return {}


def _cells(cells: list[str]) -> str:
    filled = [cell for cell in cells if cell]
    return "number" if filled and all(re.fullmatch(r"-?[0-9.]+(e-?[0-9]+)?", cell) for cell in filled) else "text"


def _kind(value: Any) -> str:
    kinds = {
        "NoneType": "null",
        "str": "text",
        "int": "integer",
        "float": "number",
        "bool": "true or false",
        "dict": "object",
    }
    return kinds.get(type(value).__name__, type(value).__name__)


def _either(kinds: set[str]) -> str:
    return " or ".join(sorted(kinds, key=lambda kind: (kind == "null", kind)))


def _folder(name: str) -> str:
    return name.partition("/")[0] if "/" in name else ""


def _meaning(name: str, column: str) -> str | None:
    return COLUMNS.get(f"{name} {column}", COLUMNS.get(column))
