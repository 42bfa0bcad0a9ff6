"""One rank of a job: `python -m trainer --run-dir DIR --attempt N [--start-from CHECKPOINT]`, started by PyTorch's launcher
(service/launch.py)."""

from __future__ import annotations

import argparse
import atexit
import ctypes
import errno
import faulthandler
import logging
import os
import platform
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from service.events import ExitCode
from service.layout import AttemptDir, RunDir
from service.spec import stored_spec
from trainer.beats import Beats
from trainer.fence import Fence, Fenced
from trainer.spool import EventSpool


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--start-from", type=Path, help="another run's checkpoint, where this run has none of its own yet")
    arguments = parser.parse_args()
    _die_with_parent()
    run_dir, rank = RunDir(arguments.run_dir), int(os.environ["RANK"])
    attempt = run_dir.attempt(arguments.attempt)
    _log_to(attempt, rank)
    # The worker asks a stuck job where it is; both streams are the log by now, and in a decoder stderr is listened to (complaints.py).
    faulthandler.register(signal.SIGUSR1, file=sys.stdout, all_threads=True)
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s", stream=sys.stdout)
    fence = Fence(run_dir, arguments.attempt)
    fence.watch()
    try:
        beats = Beats(attempt.beat(rank))
        from trainer.train import train  # seconds of imports: not before there is a log, and a parent to die with

        return train(stored_spec(run_dir.spec.read_bytes()), run_dir, fence, beats, arguments.start_from)
    except Fenced as fenced:
        sys.stderr.write(f"{fenced}\n")
        return ExitCode.FENCED
    except BaseException as error:
        traceback.print_exc()
        if _is_fenced(fence):  # a peer saw the newer attempt first and left: the connection lost with it is no failure of this run
            sys.stderr.write("a newer attempt of this run has begun: this one ends\n")
            return ExitCode.FENCED
        code, message = _explain(error)
        EventSpool(attempt.events).append("failed", code=code, message=message)
        return ExitCode.FAULTY if code not in ("disk", "storage", "internal") else 1


def _is_fenced(fence: Fence) -> bool:
    try:
        return fence.passed
    except OSError:  # perhaps what failed: the event says so
        return False


def _explain(error: BaseException) -> tuple[str, str]:
    """The `failed` event's code and message."""
    code = getattr(error, "code", None)
    if isinstance(code, str) and type(error).__module__ == "trainer.errors":
        return code, str(error)
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return "out_of_memory", (
            f"{error}: raise optimizer.gradient_accumulation_steps, lower optimizer.global_batch_size, raise "
            "resources.ranks_per_node, or set zero_stage higher"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk", f"{error}: make room on the worker's disk"
    return "internal", f"{type(error).__name__}: {error}"


def _die_with_parent() -> None:
    """Ask Linux for SIGKILL when the launcher dies, so that no rank outlives a worker that was killed with -9."""
    if platform.system() != "Linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)  # 1: PR_SET_PDEATHSIG
    if os.getppid() == 1:  # it died before the call; the launcher itself is always somebody's child
        os.kill(os.getpid(), signal.SIGKILL)


def _log_to(attempt: AttemptDir, rank: int) -> None:
    """Standard output and error of this rank, also of native code, go to its log file."""
    attempt.path.mkdir(parents=True, exist_ok=True)
    log = os.open(attempt.rank_log(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _run() -> NoReturn:
    """Exit with `main`'s code after all other exit handlers, and without the interpreter's finalisation: that aborts the process
    now and then ("terminate called without an active exception") where a thread wakes up in it, and what was a success is a crash.
    """
    code = [1]

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code[0])

    atexit.register(leave)  # the first to be registered is the last to be called
    code[0] = main()
    sys.exit(code[0])


if __name__ == "__main__":
    _run()
