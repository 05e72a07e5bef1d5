"""The ledger of a run: what its teacher was paid.

It lies beside the stages: no redo of a stage forgets it, and it goes along when the run's folder is copied or renamed.

    >>> import tempfile; run = Path(tempfile.mkdtemp())
    >>> with Bill(path(run)) as bill:
    ...     bill.risk(900, 0.5)                                # what is under way may cost so much
    ...     bill.pay({"requests": 1, "completion_tokens": 40, "money": 0.02})
    >>> total(run)["completion_tokens"]
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
from potstill.files import disk, reading, run_folder
from potstill.files.segments import WHOLE, Shard

FIELDS: Final[tuple[str, ...]] = ("requests", "prompt_tokens", "completion_tokens", "money")
SHARES: Final = "spent.json"  # how the ceilings are shared among shards: what was spent when they began


class Bill:
    """A bill that one process writes: opened once, and closed when nothing is under way any more."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        self._open = _rows(self.path)[1]
        self._file = disk.Appender(self.path).__enter__()
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


def path(run: Path, shard: Shard = WHOLE) -> Path:
    """The bill of a shard."""
    return run / ("spent-0000.jsonl" if shard == WHOLE else f"spent-{shard.number:04}-of-{shard.count:04}.jsonl")


def bills(run: Path) -> list[Path]:
    """The bills of a run, and those in the place where older versions put them."""
    own = sorted(run.glob("spent-*.jsonl"))
    names = {bill.name for bill in own}
    return own + [old for old in sorted((run / "sample").glob("spent-*.jsonl")) if old.name not in names]


def adopt(run: Path) -> None:
    """Move the bills of a run that an older version began out of the stage's folder. For who holds the run's lock."""
    for old in sorted((run / "sample").glob("spent-*.jsonl")):
        if not (run / old.name).exists():
            disk.write(run / old.name, reading.read_bytes(old))
        disk.remove(old)


def total(run: Path) -> dict[str, float]:
    """What all processes of a run have spent, and what may have been billed when they were killed."""
    return _sum(_of(bill) for bill in bills(run))


def told(run: Path) -> str:
    """What a run has spent, in words."""
    spent = total(run)
    if not any(spent.values()):
        return "no requests"
    asked, written = (round(spent[name]) for name in ("prompt_tokens", "completion_tokens"))
    money = f", {spent['money']:.4f} in money" if spent["money"] else ", no prices given"
    return f"{round(spent['requests'])} requests, {asked + written} tokens ({written} of them written){money}"


def counted(run: Path) -> set[str]:
    """The results of batch files that are in the ledger."""
    return {name for bill in bills(run) for row in reading.whole_rows(bill) for name in row.get("ids", ())}


def share(run: Path, shard: Shard) -> None:
    """Give a shard that begins its part of the ceilings: what was left when the first of its fellows began is shared
    evenly. For who holds the run's lock, and the shard's.

    Raises UserError while shards of another division sample: they would ask the same questions again.
    """
    if others := [held for held in run_folder.shards_running(run) if not held.endswith(f"-of-{shard.count}")]:
        raise UserError(
            "shards of another division of this run are being sampled",
            where=run,
            found=f"{others[0]}, and now {shard.number}-of-{shard.count}",
            do=f"wait until they end, or divide by {others[0].rpartition('-')[2]} as they do",
        )
    now = {bill.name: _of(bill) for bill in bills(run)}
    before = _shares(run)
    fellow = f"-of-{shard.count:04}.jsonl"
    rest = {name: spent for name, spent in now.items() if not name.endswith(fellow)}
    then = {name: spent for name, spent in (before or {}).get("before", {}).items() if not name.endswith(fellow)}
    if before is not None and before["shards"] == shard.count and rest == then:
        return
    disk.write_json(run / SHARES, {"shards": shard.count, "before": now})


def seen_by(run: Path, shard: Shard) -> tuple[dict[str, float], dict[str, float]]:
    """What was spent before the ceilings were shared, and what the shard itself has spent of its part since."""
    if shard == WHOLE:
        return {}, total(run)
    shares = _shares(run)
    begun = shares["before"] if shares is not None and shares["shards"] == shard.count else {}
    own = path(run, shard)
    now, then = _of(own), begun.get(own.name, {})
    return _sum(begun.values()), {name: value - then.get(name, 0) for name, value in now.items()}


def _shares(run: Path) -> dict[str, Any] | None:
    return reading.read_json(run / SHARES) if (run / SHARES).exists() else None


def _of(bill: Path) -> dict[str, float]:
    spent, (tokens, money) = _rows(bill)
    return _sum([spent, {"completion_tokens": tokens, "money": money}])


def _rows(bill: Path) -> tuple[dict[str, float], tuple[float, float]]:
    """What the rows of a bill add up to, and what was under way at the last."""
    spent, under_way = _sum([]), (0.0, 0.0)
    for row in reading.whole_rows(bill):
        spent = _sum([spent, row])
        tokens, money = row.get("open", (0.0, 0.0))
        under_way = float(tokens), float(money)
    return spent, under_way


def _sum(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    rows = list(rows)
    return {name: round(float(sum(row.get(name, 0) for row in rows)), 9) for name in FIELDS}
