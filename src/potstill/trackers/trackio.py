"""trackio: a run in its own folder of projects (TRACKIO_DIR), which `trackio show` reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from potstill.trackers.points import Point


class Run:
    def __init__(self, folder: Path, name: str, id: str, project: str) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self.run = trackio.init(project=project, name=f"{name}-{id}", resume="allow")

    def send(self, points: Sequence[Point]) -> None:
        for point in points:
            self.run.log(dict(point.values), step=point.step)

    def close(self) -> None:
        self.run.finish()
