"""TensorBoard: event files in the run's folder, so that `tensorboard --logdir runs` shows every run.

Written anew by every process: an event file only grows, and two of them may not tell the same step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from potstill import files
from potstill.trackers.points import Point


class Run:
    def __init__(self, folder: Path, name: str, id: str, project: str) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog  # pyright: ignore
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # pyright: ignore[reportMissingImports]

        at = folder / "tensorboard"
        files.remove(at)
        self.writer = EventFileWriter(str(at))
        # One that is looking at the files that were here forgets what it has read.
        self._add(0, session_log=SessionLog(status=SessionLog.START))

    def send(self, points: Sequence[Point]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore

        for point in points:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
            self._add(point.step, summary=Summary(value=values))
        self.writer.flush()

    def _add(self, step: int, **what: object) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore

        self.writer.add_event(Event(wall_time=time.time(), step=step, **what))

    def close(self) -> None:
        self.writer.close()
