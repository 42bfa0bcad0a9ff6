"""The processes of one attempt."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from service import processes

NICENESS = 5
"""The API and the worker answer while training loads every core."""


class Job:
    """A launcher and what it started. `poll` also carries out a kill that has become due, so call it often."""

    def __init__(
        self,
        run_id: str,
        attempt: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        grace_seconds: float,
    ) -> None:
        self._run_id, self._attempt, self._grace_seconds = run_id, attempt, grace_seconds
        self._kill_at: float | None = None
        self.killed = False
        """Whether it outlived its grace."""
        marked = {**environment, **processes.attempt_mark(run_id, attempt)}
        self._process = processes.spawn(command, environment=marked, log=log, niceness=NICENESS)

    def poll(self) -> int | None:
        """The launcher's exit code, negative for a signal; None while it runs."""
        code = self._process.poll()
        if code is None and self._kill_at is not None and time.monotonic() >= self._kill_at:
            self.killed = True
            return self.kill()
        return code

    def stop(self) -> None:
        """SIGTERM: the launcher passes it to the ranks, which write a checkpoint. SIGKILL after the grace. Once; more calls do nothing."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + self._grace_seconds
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)

    def kill(self) -> int:
        """SIGKILL to every process of the attempt, also to those that outlived the launcher. Returns the launcher's exit code."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        processes.kill_attempt(self._run_id, self._attempt)
        return code
