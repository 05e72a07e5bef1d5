"""Workers: a process of its own that answers one request after the other, and is ended when it takes too long.

A library that may not come to an end (symbolic algebra) runs there. A signal would not do: it reaches the main thread
only, and no call that is busy inside a C library. A worker starts when it is first asked and ends with the process that
asked.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from typing import Any

START = 120.0  # seconds that a worker may take to load its libraries


class Worker:
    """A process `python -m module` that reads a JSON value a line and writes one a line, the first when it is ready."""

    def __init__(self, module: str) -> None:
        self.module = module
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        atexit.register(self.close)

    def ask(self, request: Any, seconds: float) -> Any:
        """The answer to a request, None where none came in time or the worker ended. Any thread may ask."""
        with self._lock:
            if self._owner != os.getpid():  # after a fork the worker is the parent's
                self._process, self._owner = None, os.getpid()
            if self._process is None or self._process.poll() is not None:
                self._start()
            process = self._process
            assert process is not None and process.stdin is not None
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                return self._line(seconds)
            except OSError:
                self._stop()
                return None

    def close(self) -> None:
        """End the worker, if this process has one."""
        if self._owner == os.getpid():
            self._stop()

    def _start(self) -> None:
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
        )
        if self._line(START) is None:
            raise RuntimeError(f"{self.module} did not start")

    def _line(self, seconds: float) -> Any:
        """The next line of the worker; None, and no worker any more, where it does not come in time."""
        assert self._process is not None and self._process.stdout is not None
        descriptor, line = self._process.stdout.fileno(), b""
        end = time.monotonic() + seconds
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
            part = os.read(descriptor, 1 << 16) if ready else b""
            if not part:
                self._stop()
                return None
            line += part
        return json.loads(line)

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
