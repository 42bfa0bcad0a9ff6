"""Child processes that end with their parent, and the processes of a job wherever they have gone.

A job's launcher puts every rank into a session of its own, so a process group does not reach them all. Each process of
an attempt therefore carries the attempt in its environment, where /proc shows it, and children inherit it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ATTEMPT_VARIABLE = "MILLIONWAY_ATTEMPT"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def spawn(command: Sequence[str], *, environment: Mapping[str, str], log: Path, niceness: int = 0) -> subprocess.Popen[bytes]:
    """Start `command` in its own session, with stdout and stderr appended to `log`.

    On Linux the kernel kills it when the thread that called this ends, whatever ends that; call it from the main thread.
    """
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def in_child() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)
        if niceness:
            os.nice(niceness)

    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=in_child,
        )


def end(process: subprocess.Popen[bytes], grace_seconds: float) -> int:
    """SIGTERM, at most `grace_seconds` of patience, then SIGKILL to the group. Returns the exit code."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def attempt_mark(run_id: str, attempt: int) -> dict[str, str]:
    """The variable that marks the processes of an attempt."""
    return {ATTEMPT_VARIABLE: f"{run_id}/{attempt}"}


def attempt_processes(run_id: str, attempt: int | None = None) -> list[int]:
    """Ids of the living processes of an attempt, or of every attempt of the run. Empty where there is no /proc (macOS)."""
    wanted = f"{ATTEMPT_VARIABLE}={run_id}/{'' if attempt is None else attempt}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # another user's, or gone
            continue
        if any(v == wanted or (attempt is None and v.startswith(wanted)) for v in variables):
            found.append(int(entry.name))
    return found


def kill_attempt(run_id: str, attempt: int | None = None, *, timeout_seconds: float = 10.0) -> list[int]:
    """SIGKILL what `attempt_processes` finds until nothing is left. Returns the ids of those found first.

    Raises TimeoutError when something outlives SIGKILL, as a process stuck in a device or a dead file system does.
    """
    first = left = attempt_processes(run_id, attempt)
    deadline = time.monotonic() + timeout_seconds
    while left:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {left} of run {run_id} outlive SIGKILL: look at them with `ps -o pid,stat,wchan,args -p PID`")
        time.sleep(0.05)
        left = attempt_processes(run_id, attempt)
    return first
