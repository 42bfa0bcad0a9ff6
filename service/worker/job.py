"""The processes of one attempt on this machine."""

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
MAX_TERM_SECONDS = 10.0
"""Between SIGTERM and SIGKILL, at most as long as the grace before them."""
KILL_SECONDS = 60.0
STACKS_SECONDS = 1.0


class Job:
    """A launcher and what it started. `poll` also carries out what has become due of a stop, so call it often.

    Call it from one thread: when that ends, the kernel kills the launcher.
    """

    def __init__(
        self,
        run_id: str,
        attempt: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        stop_file: Path,
        grace_seconds: float,
        worker: str,
    ) -> None:
        """`worker`: the mark of who starts it."""
        self._run_id, self._attempt, self._worker = run_id, attempt, worker
        self._stop_file, self._grace_seconds = stop_file, grace_seconds
        self._term_at: float | None = None
        self._kill_at: float | None = None
        self.killed = False
        """Whether it outlived its grace."""
        marked = {**environment, **processes.attempt_mark(run_id, attempt, worker)}
        self._process = processes.spawn(command, environment=marked, log=log, niceness=NICENESS)

    def poll(self) -> int | None:
        """The launcher's exit code, negative for a signal; None while it runs."""
        code = self._process.poll()
        now = time.monotonic()
        if code is None and self._term_at is not None and now >= self._term_at:
            self._term_at = None
            self._signal(signal.SIGTERM)
        if code is None and self._kill_at is not None and now >= self._kill_at:
            self.killed = True
            return self.kill()
        return code

    def stop(self) -> None:
        """Ask for a checkpoint and an end, by file; SIGTERM after the grace, then SIGKILL. Once; more calls do nothing."""
        if self._kill_at is not None:
            return
        self._term_at = time.monotonic() + self._grace_seconds
        try:
            self._stop_file.touch()
        except OSError:  # a full disk: the signal asks for the same
            self._term_at = time.monotonic()
        self._kill_at = self._term_at + min(MAX_TERM_SECONDS, self._grace_seconds)

    def collect_stacks(self) -> None:
        """Have each rank write its threads' stacks into its log (trainer: faulthandler on SIGUSR1)."""
        for pid in processes.rank_processes(self._run_id, self._attempt, self._worker):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)
        time.sleep(STACKS_SECONDS)

    def kill(self) -> int:
        """SIGKILL to every process of the attempt, also to those that outlived the launcher. Returns the launcher's exit code.

        Raises TimeoutError when something is left.
        """
        if self._process.poll() is None:
            self._signal(signal.SIGKILL)
        processes.kill_attempt(self._run_id, self._attempt, worker=self._worker, timeout_seconds=KILL_SECONDS)
        return self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
