"""Weights & Biases: one run, that later processes go on with; WANDB_MODE=offline writes it into the run's folder.

Its own steps can only grow, and validation is told after training: so the step is a value, and every other is drawn
against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from potstill.trackers.points import Point


class Run:
    def __init__(self, folder: Path, name: str, id: str, project: str) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self.run = wandb.init(project=project, name=name, id=id, resume="allow", dir=str(folder))
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def send(self, points: Sequence[Point]) -> None:
        for point in points:
            self.run.log({"step": point.step, **point.values})

    def close(self) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self.run.finish()
        wandb.teardown()  # finish alone may come back before the file of an offline run is whole
