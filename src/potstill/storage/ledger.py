"""The ledger of a run: what its teacher was paid.

It lies beside the stages: no redo of a stage forgets it, and it goes along when the run's folder is copied or renamed.

    >>> import tempfile; run = Path(tempfile.mkdtemp())
    >>> with LedgerWriter(ledger_path(run)) as bill:
    ...     bill.risk(900, 0.5)                                # what is under way may cost so much
    ...     bill.pay({"requests": 1, "completion_tokens": 40, "money": 0.02})
    >>> total_usage(run)["completion_tokens"]
    40.0

`spent-0000.jsonl`, or `spent-0003-of-0008.jsonl` of a shard, has rows of what was spent since the row before. `open` is
the most that the requests under way can cost: where a process was killed, its last row has it still, and it counts as
spent, because a server may have billed it. `ids` are the results of batch files that are counted already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from potstill.errors import UserError
from potstill.storage import atomic, read, run_folder
from potstill.storage.segments import UNSHARDED, Shard

USAGE_FIELDS: Final[tuple[str, ...]] = ("requests", "prompt_tokens", "completion_tokens", "money")
SHARES_FILE: Final = "spent.json"  # how the ceilings are shared among shards: what was spent when they began


class LedgerWriter:
    """A bill that one process writes: opened once, and closed when nothing is under way any more."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        self._open = _sum_rows(self.path)[1]
        self._file = atomic.Appender(self.path).__enter__()
        if any(self._open):  # a killed process left requests under way
            self._write({"completion_tokens": self._open[0], "money": self._open[1]}, (0.0, 0.0))
        self._paid: dict[str, float] = {}
        return self

    def risk(self, tokens: float, money: float) -> None:
        """Note the most that is under way, before it is: rows are written only where it grows."""
        most = max(self._open[0], tokens), max(self._open[1], money)
        if most != self._open:
            self._write({}, most)

    def pay(self, now: Mapping[str, float], ids: Sequence[str] = ()) -> None:
        """Write down what this process has spent since the last call. now: all that it has spent."""
        more = {name: round(value - self._paid.get(name, 0), 9) for name, value in now.items()}
        self._paid = dict(now)
        if any(more.values()) or ids:
            self._write(more, self._open, ids)

    def __exit__(self, *fault: object) -> None:
        if any(self._open):
            self._write({}, (0.0, 0.0))
        self._file.__exit__(*fault)

    def _write(self, more: Mapping[str, float], most: tuple[float, float], ids: Sequence[str] = ()) -> None:
        row: dict[str, Any] = dict(more)
        if any(most):
            row["open"] = [round(most[0]), round(most[1], 9)]
        if ids:
            row["ids"] = list(ids)
        self._file.append([row])
        self._open = most


def ledger_path(run_dir: Path, shard: Shard = UNSHARDED) -> Path:
    """The bill of a shard."""
    return run_dir / (
        "spent-0000.jsonl" if shard == UNSHARDED else f"spent-{shard.number:04}-of-{shard.count:04}.jsonl"
    )


def ledger_paths(run_dir: Path) -> list[Path]:
    """The bills of a run, and those in the place where older versions put them."""
    own = sorted(run_dir.glob("spent-*.jsonl"))
    names = {bill.name for bill in own}
    return own + [old for old in sorted((run_dir / "sample").glob("spent-*.jsonl")) if old.name not in names]


def move_old_ledgers(run_dir: Path) -> None:
    """Move the bills of a run that an older version began out of the stage's folder. For who holds the run's lock."""
    for old in sorted((run_dir / "sample").glob("spent-*.jsonl")):
        if not (run_dir / old.name).exists():
            atomic.write_file(run_dir / old.name, read.read_bytes(old))
        atomic.remove(old)


def total_usage(run_dir: Path) -> dict[str, float]:
    """What all processes of a run have spent, and what may have been billed when they were killed."""
    return _sum_usage(_ledger_usage(bill) for bill in ledger_paths(run_dir))


def describe_usage(run_dir: Path) -> str:
    """What a run has spent, in words."""
    spent = total_usage(run_dir)
    if not any(spent.values()):
        return "no requests"
    asked, written = (round(spent[name]) for name in ("prompt_tokens", "completion_tokens"))
    money = f", {spent['money']:.4f} in money" if spent["money"] else ", no prices given"
    return f"{round(spent['requests'])} requests, {asked + written} tokens ({written} of them written){money}"


def billed_result_ids(run_dir: Path) -> set[str]:
    """The results of batch files that are in the ledger."""
    return {
        name for bill in ledger_paths(run_dir) for row in read.read_complete_lines(bill) for name in row.get("ids", ())
    }


def split_budget(run_dir: Path, shard: Shard) -> None:
    """Give a shard that begins its part of the ceilings: what was left when the first of its fellows began is shared
    evenly. For who holds the run's lock, and the shard's.

    Raises UserError while shards of another division sample: they would ask the same questions again.
    """
    if others := [held for held in run_folder.running_shards(run_dir) if not held.endswith(f"-of-{shard.count}")]:
        raise UserError(
            "shards of another division of this run are being sampled",
            where=run_dir,
            found=f"{others[0]}, and now {shard.number}-of-{shard.count}",
            hint=f"wait until they end, or divide by {others[0].rpartition('-')[2]} as they do",
        )
    now = {bill.name: _ledger_usage(bill) for bill in ledger_paths(run_dir)}
    before = _read_shares(run_dir)
    fellow = f"-of-{shard.count:04}.jsonl"
    rest = {name: spent for name, spent in now.items() if not name.endswith(fellow)}
    then = {name: spent for name, spent in (before or {}).get("before", {}).items() if not name.endswith(fellow)}
    if before is not None and before["shards"] == shard.count and rest == then:
        return
    atomic.write_json(run_dir / SHARES_FILE, {"shards": shard.count, "before": now})


def budget_usage(run_dir: Path, shard: Shard) -> tuple[dict[str, float], dict[str, float]]:
    """What was spent before the ceilings were shared, and what the shard itself has spent of its part since."""
    if shard == UNSHARDED:
        return {}, total_usage(run_dir)
    shares = _read_shares(run_dir)
    begun = shares["before"] if shares is not None and shares["shards"] == shard.count else {}
    own = ledger_path(run_dir, shard)
    now, then = _ledger_usage(own), begun.get(own.name, {})
    return _sum_usage(begun.values()), {name: value - then.get(name, 0) for name, value in now.items()}


def _read_shares(run_dir: Path) -> dict[str, Any] | None:
    return read.read_json(run_dir / SHARES_FILE) if (run_dir / SHARES_FILE).exists() else None


def _ledger_usage(bill: Path) -> dict[str, float]:
    spent, (tokens, money) = _sum_rows(bill)
    return _sum_usage([spent, {"completion_tokens": tokens, "money": money}])


def _sum_rows(bill: Path) -> tuple[dict[str, float], tuple[float, float]]:
    """What the rows of a bill add up to, and what was under way at the last."""
    spent, under_way = _sum_usage([]), (0.0, 0.0)
    for row in read.read_complete_lines(bill):
        spent = _sum_usage([spent, row])
        tokens, money = row.get("open", (0.0, 0.0))
        under_way = float(tokens), float(money)
    return spent, under_way


def _sum_usage(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    rows = list(rows)
    return {name: round(float(sum(row.get(name, 0) for row in rows)), 9) for name in USAGE_FIELDS}
