"""The ledger of a run: the tokens and money that its teacher's server has used.

    >>> import tempfile; run_dir = Path(tempfile.mkdtemp())
    >>> with LedgerWriter(ledger_path(run_dir)) as ledger:
    ...     ledger.reserve(900, 0.5)                     # the requests under way may cost up to this
    ...     ledger.record({"requests": 1, "completion_tokens": 40, "money": 0.02})
    >>> total_usage(run_dir)["completion_tokens"]
    40.0

It lies next to the stages, so no redo of a stage loses it, and a copied or renamed run keeps it.

`spent-0000.jsonl` (of a shard: `spent-0003-of-0008.jsonl`) has rows of what was spent since the row before. `open` is
the maximum cost of the requests under way. If a process is killed, its last row still has it, and it counts as spent,
because the server may have billed it. `ids` are the results of batch files that are already counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from potstill.errors import UserError
from potstill.storage import atomic, read, run_folder
from potstill.storage.segments import UNSHARDED, Shard

USAGE_FIELDS: Final[tuple[str, ...]] = ("requests", "prompt_tokens", "completion_tokens", "money")
SHARES_FILE: Final = "spent.json"  # what was spent when the budget was split among shards


class LedgerWriter:
    """The ledger of one process. Closing it states that no request is under way any more."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        self._reserved = _sum_rows(self.path)[1]
        self._file = atomic.Appender(self.path).__enter__()
        if any(self._reserved):  # a killed process left requests under way
            self._write({"completion_tokens": self._reserved[0], "money": self._reserved[1]}, (0.0, 0.0))
        self._recorded: dict[str, float] = {}
        return self

    def reserve(self, tokens: float, money: float) -> None:
        """State the maximum cost of the requests under way, before they are sent. It writes a row only if the maximum
        grows."""
        reserved = max(self._reserved[0], tokens), max(self._reserved[1], money)
        if reserved != self._reserved:
            self._write({}, reserved)

    def record(self, usage: Mapping[str, float], ids: Sequence[str] = ()) -> None:
        """Write what this process has spent since the last call. usage: all that it has spent."""
        new = {name: round(value - self._recorded.get(name, 0), 9) for name, value in usage.items()}
        self._recorded = dict(usage)
        if any(new.values()) or ids:
            self._write(new, self._reserved, ids)

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


def ledger_path(run_dir: Path, shard: Shard = UNSHARDED) -> Path:
    """The ledger of a shard."""
    name = "spent-0000.jsonl" if shard == UNSHARDED else f"spent-{shard.number:04}-of-{shard.count:04}.jsonl"
    return run_dir / name


def ledger_paths(run_dir: Path) -> list[Path]:
    """The ledgers of all processes of a run."""
    return sorted(run_dir.glob("spent-*.jsonl"))


def total_usage(run_dir: Path) -> dict[str, float]:
    """What all processes of a run have spent, and what may have been billed when they were killed."""
    return _sum_usage(_ledger_usage(path) for path in ledger_paths(run_dir))


def describe_usage(run_dir: Path) -> str:
    """The requests, tokens and cost of a run, as a phrase."""
    usage = total_usage(run_dir)
    if not any(usage.values()):
        return "no requests"
    prompt, completion = (round(usage[name]) for name in ("prompt_tokens", "completion_tokens"))
    money = f", cost {usage['money']:.4f}" if usage["money"] else ", no prices given"
    return f"{round(usage['requests'])} requests, {prompt + completion} tokens ({completion} of them generated){money}"


def billed_result_ids(run_dir: Path) -> set[str]:
    """The ids of the batch results that are in the ledger."""
    return {
        name for path in ledger_paths(run_dir) for row in read.read_complete_lines(path) for name in row.get("ids", ())
    }


def split_budget(run_dir: Path, shard: Shard) -> None:
    """Split the rest of the budget evenly among the shards, when the first of them starts. The caller holds the locks
    of the run and of the shard.

    Raises UserError while another number of shards is being sampled: they would send the same requests again.
    """
    others = [name for name in run_folder.running_shards(run_dir) if not name.endswith(f"-of-{shard.count}")]
    if others:
        what = "this run is being sampled in another number of shards"
        found = f"{others[0]}, and now {shard.number}-of-{shard.count}"
        hint = f"wait until they end, or use {others[0].rpartition('-')[2]} shards too"
        raise UserError(what, code="E-run-shard-count", where=run_dir, found=found, hint=hint)
    usage = {path.name: _ledger_usage(path) for path in ledger_paths(run_dir)}
    shares = _read_shares(run_dir)
    suffix = f"-of-{shard.count:04}.jsonl"
    others_now = {name: spent for name, spent in usage.items() if not name.endswith(suffix)}
    others_then = {name: spent for name, spent in (shares or {}).get("before", {}).items() if not name.endswith(suffix)}
    if shares is not None and shares["shards"] == shard.count and others_now == others_then:
        return
    atomic.write_json(run_dir / SHARES_FILE, {"shards": shard.count, "before": usage})


def budget_usage(run_dir: Path, shard: Shard) -> tuple[dict[str, float], dict[str, float]]:
    """What was spent before the budget was split, and what this shard has spent of its part since."""
    if shard == UNSHARDED:
        return {}, total_usage(run_dir)
    shares = _read_shares(run_dir)
    before = shares["before"] if shares is not None and shares["shards"] == shard.count else {}
    path = ledger_path(run_dir, shard)
    own_before = before.get(path.name, {})
    return _sum_usage(before.values()), {
        name: value - own_before.get(name, 0) for name, value in _ledger_usage(path).items()
    }


def _read_shares(run_dir: Path) -> dict[str, Any] | None:
    return read.read_json(run_dir / SHARES_FILE) if (run_dir / SHARES_FILE).exists() else None


def _ledger_usage(path: Path) -> dict[str, float]:
    spent, (tokens, money) = _sum_rows(path)
    return _sum_usage([spent, {"completion_tokens": tokens, "money": money}])


def _sum_rows(path: Path) -> tuple[dict[str, float], tuple[float, float]]:
    """The sum of a ledger's rows, and the cost reserved in the last one."""
    spent, reserved = _sum_usage([]), (0.0, 0.0)
    for row in read.read_complete_lines(path):
        spent = _sum_usage([spent, row])
        tokens, money = row.get("open", (0.0, 0.0))
        reserved = float(tokens), float(money)
    return spent, reserved


def _sum_usage(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    rows = list(rows)
    return {name: round(float(sum(row.get(name, 0) for row in rows)), 9) for name in USAGE_FIELDS}
