"""Child processes that end with their parent, and the processes of a job wherever they have gone.

A job's launcher puts every rank into a session of its own, so a process group does not reach them all. Each process of
an attempt therefore carries the attempt and its worker in its environment, where /proc shows them, and children inherit it.
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
WORKER_VARIABLE = "MILLIONWAY_WORKER"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def spawn(command: Sequence[str], *, environment: Mapping[str, str], log: Path, niceness: int = 0) -> subprocess.Popen[bytes]:
    """Start `command` in its own session, with stdout and stderr appended to `log`.

    On Linux the kernel kills it when the thread that called this ends, whatever ends that: call it from a thread that outlives the child.
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


def attempt_mark(run_id: str, attempt: int, worker: str) -> dict[str, str]:
    """The variables that mark the processes of an attempt on a worker."""
    return {ATTEMPT_VARIABLE: f"{run_id}/{attempt}", WORKER_VARIABLE: worker}


def attempt_processes(
    run_id: str | None = None, attempt: int | None = None, *, before: int | None = None, worker: str | None = None
) -> list[int]:
    """Ids of the living processes of jobs: those that match all that is given. Empty where there is no /proc (macOS).

    `before`: of attempts of a lower number; `worker`: started by the worker with this mark.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        variables = _variables(entry)
        of_run, _, number = variables.get(ATTEMPT_VARIABLE, "").rpartition("/")
        if (
            number.isdigit()
            and run_id in (None, of_run)
            and attempt in (None, int(number))
            and (before is None or int(number) < before)
            and worker in (None, variables.get(WORKER_VARIABLE))
        ):
            found.append(int(entry.name))
    return found


def rank_processes(run_id: str, attempt: int, worker: str) -> list[int]:
    """Those of `attempt_processes` that are ranks or their children; the launcher is none."""
    return [pid for pid in attempt_processes(run_id, attempt, worker=worker) if "RANK" in _variables(Path("/proc", str(pid)))]


def _variables(process: Path) -> dict[str, str]:
    try:
        text = (process / "environ").read_bytes().decode(errors="replace")
    except OSError:  # another user's, or gone
        return {}
    return {name: value for name, _, value in (line.partition("=") for line in text.split("\0"))}


def kill_attempt(
    run_id: str | None = None,
    attempt: int | None = None,
    *,
    before: int | None = None,
    worker: str | None = None,
    timeout_seconds: float = 10.0,
) -> list[int]:
    """SIGKILL what `attempt_processes` finds until nothing is left. Returns the ids of those found first.

    Raises TimeoutError when something outlives SIGKILL, as a process stuck in a device or a dead file system does.
    """
    first = left = attempt_processes(run_id, attempt, before=before, worker=worker)
    deadline = time.monotonic() + timeout_seconds
    while left:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {left} outlive SIGKILL: look at them with `ps -o pid,stat,wchan,args -p PID`")
        time.sleep(0.05)
        left = attempt_processes(run_id, attempt, before=before, worker=worker)
    return first
