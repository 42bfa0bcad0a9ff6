"""A rank of an older attempt ends at once: the fence in the run's directory holds the number of the attempt that may write there.

A worker that was cut off, or a process that slept, may wake when the run has long gone on elsewhere. What it would publish then
is checked right before (`check`); what it would go on computing ends within about a second (`watch`). No torch here: the watch
starts before the seconds that its import takes.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass

from service.events import ExitCode
from service.layout import RunDir

WATCH_SECONDS = 1.0


class Fenced(Exception):
    """A newer attempt of the run has begun: this one must publish nothing more."""


@dataclass(frozen=True)
class Fence:
    run_dir: RunDir
    attempt: int
    """This process's."""

    @property
    def passed(self) -> bool:
        """Whether a newer attempt has begun. Without the file there is no fence (`millionway train`)."""
        return self.run_dir.newest_attempt() > self.attempt

    def check(self) -> None:
        """Call right before what others will see. Raises Fenced."""
        if self.passed:
            raise Fenced(self._why())

    def watch(self) -> None:
        """Look every WATCH_SECONDS in a thread, and end the process with ExitCode.FENCED when a newer attempt has begun."""
        threading.Thread(target=self._watch, name="fence", daemon=True).start()

    def _watch(self) -> None:
        while True:
            try:
                if self.passed:
                    break
            except OSError:  # a network file system that hiccups: nothing can be published there either
                pass
            time.sleep(WATCH_SECONDS)
        sys.stderr.write(f"{self._why()}\n")
        sys.stderr.flush()
        os._exit(ExitCode.FENCED)  # a collective, or a write to a dead disk, would hold back any other way out

    def _why(self) -> str:
        return f"attempt {self.run_dir.newest_attempt()} of this run has begun: attempt {self.attempt} ends without writing anything more"
