"""What the end of a job means, from its exit code, its `failed` events and its logs."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from service.events import ExitCode, Failed, job_event
from service.layout import AttemptDir
from service.protocol import ExitReport

FAULTY = {"bad_spec", "bad_data", "non_finite_loss", "out_of_memory"}
"""Codes of failures that another attempt would meet again."""
TAIL_BYTES = 64 * 1024
TAIL_LINES = 12
KILLED = "; it did not end within the grace and was killed"

# PyTorch's launcher exits with 1 whatever a rank exited with, and names the rank that failed first in its log.
_FIRST_FAILURE = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")


def exit_report(code: int, directory: AttemptDir, *, told_to: Literal["stopped", "released"] | None, killed: bool) -> ExitReport:
    """The report for a launcher that exited with `code`. `told_to`: what it was stopped for; `killed`: it outlived the grace."""
    if code == ExitCode.FINISHED:
        return ExitReport(outcome="finished", exit_code=code, reason="the job finished")
    if told_to == "stopped":
        return ExitReport(outcome="stopped", exit_code=code, reason="stopped on request" + (KILLED if killed else ""))
    failed = failure(directory.events)
    if failed is not None and failed.code in FAULTY:
        return ExitReport(outcome="faulty", exit_code=code, reason=_short(failed.message))
    if told_to == "released":
        reason = "the worker was stopped and gave the run back" + (KILLED if killed else "")
        return ExitReport(outcome="released", exit_code=code, reason=reason)
    rank, rank_code = _first_failed_rank(directory, code)
    # A rank that a signal ended says nothing itself, and its peers report only that they lost it. With SIGTERM the
    # launcher ends the others itself.
    silent = rank_code < 0 and rank_code != -signal.SIGTERM
    if failed is not None and not (failed.code == "internal" and silent):
        return ExitReport(outcome="crashed", exit_code=code, reason=_short(failed.message))

    if rank_code == ExitCode.STOPPED:
        return ExitReport(outcome="released", exit_code=rank_code, reason="the job was stopped from outside and gave the run back")
    log = directory.launcher_log if rank is None else directory.rank_log(rank)
    if not log.exists():  # the rank ended before it had opened its own
        log = directory.launcher_log
    who = "the job's launcher" if rank is None else f"rank {rank}"
    reason = f"{who} {_how(rank_code)}; the end of {log.name}:\n{tail(log) or '(empty)'}"
    return ExitReport(outcome="faulty" if rank_code == ExitCode.FAULTY else "crashed", exit_code=rank_code, reason=_short(reason))


def failure(spool: Path) -> Failed | None:
    """Why the job failed. A rank that loses its peers reports that as well, as `internal`: so a fault counts above all, then
    another cause, and among equals the first."""
    failures = []
    for line in _end_of(spool):
        try:
            event = job_event.validate_json(line)
        except ValidationError:
            continue
        if isinstance(event, Failed):
            failures.append(event)
    return min(failures, key=lambda event: (event.code not in FAULTY, event.code == "internal"), default=None)


def tail(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(_end_of(log)[-TAIL_LINES:])


def _end_of(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()


def _first_failed_rank(directory: AttemptDir, code: int) -> tuple[int | None, int]:
    """The rank that failed first with its exit code; no rank, and the launcher's, where its log names none."""
    match = _FIRST_FAILURE.search("\n".join(_end_of(directory.launcher_log)))
    return (int(match[2]), int(match[1])) if match else (None, code)


def _how(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    hint = " (the kernel does that when memory runs out: use a smaller global_batch_size or fewer ranks)" if code == -signal.SIGKILL else ""
    return f"was ended by signal {-code}, {signal.strsignal(-code)}{hint}"


def _short(reason: str, limit: int = 4000) -> str:
    """The reason within the protocol's length: the end of a log tells more than its beginning."""
    if len(reason) <= limit:
        return reason
    head = reason[:500]
    return f"{head}\n...\n{reason[-(limit - len(head) - 5) :]}"
