"""The ledger of a run: the tokens and money spent on its teacher's server.

    >>> import tempfile; run_dir = Path(tempfile.mkdtemp())
    >>> with LedgerWriter(ledger_path(run_dir)) as ledger:
    ...     ledger.reserve(900, 0.5)                     # maximum cost of the requests in flight
    ...     ledger.record({"requests": 1, "completion_tokens": 40, "money": 0.02})
    >>> total_usage(run_dir)["completion_tokens"]
    40.0

The ledger is in the run's folder, next to the stages. No redo of a stage deletes it, and a copied or renamed run keeps it.

Each row of `spent-0000.jsonl` (of a shard: `spent-0003-of-0008.jsonl`) has the usage since the previous row. `open` is
the maximum cost of the requests in flight. If a process is killed, `open` of its last row counts as spent, because the
server may have billed these requests. `ids` are results of batch files that are already counted.

In a run with several sources of chains, each source has ledgers and a budget of its own: `spent-0000@NAME.jsonl`. So have
the requests that only score texts (`SCORES`): `spent-0000@+scores.jsonl`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from potstill.errors import UserError
from potstill.storage import atomic, read, run_folder
from potstill.storage.segments import UNSHARDED, Shard

# A source that scores texts in training; several have longer names. No name in a recipe begins with +.
SCORES: Final = "+scores"
USAGE_FIELDS: Final[tuple[str, ...]] = ("requests", "prompt_tokens", "completion_tokens", "money")


class LedgerWriter:
    """The ledger of one process. Closing it records that no request is in flight."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        self._reserved = _sum_rows(self.path)[1]
        self._file = atomic.Appender(self.path).__enter__()
        if any(self._reserved):  # a process was killed with requests in flight
            self._write({"completion_tokens": self._reserved[0], "money": self._reserved[1]}, (0.0, 0.0))
        self._recorded: dict[str, float] = {}
        return self

    def reserve(self, tokens: float, money: float) -> None:
        """Record the maximum cost of the requests in flight, before they are sent.

        A row is written only if the maximum grows.
        """
        reserved = max(self._reserved[0], tokens), max(self._reserved[1], money)
        if reserved != self._reserved:
            self._write({}, reserved)

    def record(self, usage: Mapping[str, float], ids: Sequence[str] = ()) -> None:
        """Write the usage of this process since the last call. usage: its total usage."""
        new = {name: round(value - self._recorded.get(name, 0), 9) for name, value in usage.items()}
        self._recorded = dict(usage)
        if any(new.values()) or ids:
            self._write(new, self._reserved, ids)

    def sync(self) -> None:
        """Flush all rows to the disk."""
        self._file.sync()

    def __exit__(self, *fault: object) -> None:
        if any(self._reserved):
            self._write({}, (0.0, 0.0))
        self._file.__exit__(*fault)

    def _write(self, usage: Mapping[str, float], reserved: tuple[float, float], ids: Sequence[str] = ()) -> None:
        row: dict[str, Any] = dict(usage)
        if any(reserved):
            row["open"] = [round(reserved[0]), round(reserved[1], 9)]
        if ids:
            row["ids"] = list(ids)
        self._file.append([row])
        self._reserved = reserved


def ledger_path(run_dir: Path, shard: Shard = UNSHARDED, source: str = "") -> Path:
    """The path of a shard's ledger. source: the name of the source, in a run with several sources."""
    name = "spent-0000" if shard == UNSHARDED else f"spent-{shard.number:04}-of-{shard.count:04}"
    return run_dir / f"{name}{_suffix(source)}.jsonl"


def ledger_paths(run_dir: Path, source: str | None = None) -> list[Path]:
    """The paths of all ledgers of a run. source: only those of this source, in a run with several sources."""
    paths = sorted(run_dir.glob("spent-*.jsonl"))
    return paths if source is None else [path for path in paths if path.stem.partition("@")[2] == source]


def _suffix(source: str) -> str:
    return f"@{source}" if source else ""  # no name contains an @


def total_usage(run_dir: Path, source: str | None = None) -> dict[str, float]:
    """The usage of all processes of a run, including requests that may have been billed when a process was killed.

    source  only the usage of this source, in a run with several sources
    """
    return _sum_usage(_ledger_usage(path) for path in ledger_paths(run_dir, source))


def scoring_usage(run_dir: Path) -> dict[str, float]:
    """The part of `total_usage` that scored texts in training: of the sources whose names begin with SCORES."""
    return _sum_usage(
        _ledger_usage(path) for path in ledger_paths(run_dir) if path.stem.partition("@")[2].startswith(SCORES)
    )


def describe_usage(run_dir: Path) -> str:
    """The requests, tokens and cost of a run, as a phrase. Requests for scores in training are also counted alone."""
    usage, scoring = total_usage(run_dir), scoring_usage(run_dir)
    if not any(usage.values()):
        return "no requests"
    prompt, completion = (round(usage[name]) for name in ("prompt_tokens", "completion_tokens"))
    money = f", cost {usage['money']:.4f}" if usage["money"] else ", no prices given"
    text = f"{round(usage['requests'])} requests, {prompt + completion} tokens ({completion} generated){money}"
    if not any(scoring.values()):
        return text
    tokens = round(scoring["prompt_tokens"] + scoring["completion_tokens"])
    return f"{text}; {round(scoring['requests'])} of these requests and {tokens} tokens for scores of own texts"


def billed_result_ids(run_dir: Path) -> set[str]:
    """The ids of the batch results that are in the ledger."""
    return {
        name for path in ledger_paths(run_dir) for row in read.read_complete_lines(path) for name in row.get("ids", ())
    }


def split_budget(run_dir: Path, shard: Shard, source: str = "") -> None:
    """Split the remaining budget of a source evenly among the shards when the first shard starts.

    The caller holds the locks of the run and of the shard. Raises UserError if processes sample the run in another
    number of shards now, because both would send the same requests.
    """
    others = [name for name in run_folder.running_shards(run_dir) if not name.endswith(f"-of-{shard.count}")]
    if others:
        what = "other processes sample this run in another number of shards"
        found = f"{others[0]}, and now {shard.number}-of-{shard.count}"
        hint = f"wait until they end, or use {others[0].rpartition('-')[2]} shards, too"
        raise UserError(what, code="E-run-shard-count", where=run_dir, found=found, hint=hint)
    usage = {path.name: _ledger_usage(path) for path in ledger_paths(run_dir, source)}
    shares = _read_shares(run_dir, source)
    suffix = f"-of-{shard.count:04}{_suffix(source)}.jsonl"
    others_now = {name: spent for name, spent in usage.items() if not name.endswith(suffix)}
    others_then = {name: spent for name, spent in (shares or {}).get("before", {}).items() if not name.endswith(suffix)}
    if shares is not None and shares["shards"] == shard.count and others_now == others_then:
        return
    atomic.write_json(_shares_path(run_dir, source), {"shards": shard.count, "before": usage})


def budget_usage(run_dir: Path, shard: Shard, source: str = "") -> tuple[dict[str, float], dict[str, float]]:
    """The usage of a source before the budget was split, and the usage of this shard since then."""
    if shard == UNSHARDED:
        return {}, total_usage(run_dir, source)
    shares = _read_shares(run_dir, source)
    before = shares["before"] if shares is not None and shares["shards"] == shard.count else {}
    path = ledger_path(run_dir, shard, source)
    own_before = before.get(path.name, {})
    return _sum_usage(before.values()), {
        name: value - own_before.get(name, 0) for name, value in _ledger_usage(path).items()
    }


def _shares_path(run_dir: Path, source: str) -> Path:
    """The file with the usage before the budget was split among shards."""
    return run_dir / f"spent{_suffix(source)}.json"


def _read_shares(run_dir: Path, source: str) -> dict[str, Any] | None:
    path = _shares_path(run_dir, source)
    return read.read_json(path) if path.exists() else None


def _ledger_usage(path: Path) -> dict[str, float]:
    spent, (tokens, money) = _sum_rows(path)
    return _sum_usage([spent, {"completion_tokens": tokens, "money": money}])


def _sum_rows(path: Path) -> tuple[dict[str, float], tuple[float, float]]:
    """The sum of a ledger's rows, and the cost reserved in its last row."""
    spent, reserved = _sum_usage([]), (0.0, 0.0)
    for row in read.read_complete_lines(path):
        spent = _sum_usage([spent, row])
        tokens, money = row.get("open", (0.0, 0.0))
        reserved = float(tokens), float(money)
    return spent, reserved


def _sum_usage(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    rows = list(rows)
    return {name: round(float(sum(row.get(name, 0) for row in rows)), 9) for name in USAGE_FIELDS}
