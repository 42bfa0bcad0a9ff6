"""What the end of a job means, from its exit code, its `failed` events and its logs."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from service.events import ExitCode, Failed, job_event
from service.launch import Launch
from service.layout import AttemptDir
from service.protocol import ExitReport, Outcome
from service.worker.logtail import end_of, failed_ranks, tail

FAULTY = {"bad_spec", "bad_data", "non_finite_loss", "out_of_memory"}
"""Codes of failures that another attempt would meet again."""
ToldTo = Literal["stopped", "released", "aborted"]
KILLED = "; it did not end within the grace and was killed"
LOST_PEERS = "the ranks of this node lost those of another one"
MAX_REASON, MAX_SIGNATURE, MAX_TAIL, TAIL_LINES = 4000, 200, 16_000, 100

_PORT_IN_USE = re.compile(r"EADDRINUSE|[Aa]ddress already in use")
_PEER_IS_GONE = re.compile(  # in the words of gloo, NCCL and PyTorch's store
    r"[Cc]onnection (was )?(closed|reset|refused|aborted|likely closed)|[Bb]roken pipe|[Ss]ocket [Cc]losed|[Rr]emote process exited"
    r"|failed to recv, got 0 bytes|ncclRemoteError|ncclSystemError|Timed out waiting|[Ww]ait timeout|DistNetworkError|DistStoreError"
)
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit|Warning)\b.*|[A-Za-z_]\w*(\.\w+)+: .*")
# What differs between two occurrences of one error.
_VARIABLE = re.compile(r"0x[0-9a-fA-F]+|(/[\w.@+-]+)+/?|\b[0-9a-fA-F]*\d[0-9a-fA-F]*\b|\d+")


def exit_report(
    worker: str, code: int, directory: AttemptDir, launch: Launch, *, told_to: ToldTo | None = None, killed: bool = False
) -> ExitReport:
    """The report for a launcher that exited with `code`. `told_to`: what it was stopped for; `killed`: it outlived the grace."""
    ranks = [
        (launch.node_rank * launch.ranks_per_node + rank, rank_code)
        for rank, rank_code in failed_ranks(directory.launcher_log(launch.node_rank))
    ]
    telling = _telling_log(directory, launch, ranks)

    def report(outcome: Outcome, reason: str, exit_code: int = code, signature: str | None = None) -> ExitReport:
        # Of a clean end the lead's is enough: a run on many nodes may give way very often, and each attempt is kept.
        is_dull = outcome == "finished" or (outcome in ("stopped", "released") and launch.node_rank > 0)
        log_tail = "" if is_dull else tail(telling, TAIL_LINES)[-MAX_TAIL:]
        return ExitReport(
            worker=worker, outcome=outcome, exit_code=exit_code, reason=_short(reason), signature=signature, log_tail=log_tail
        )

    if code == ExitCode.FINISHED:
        return report("finished", "the job finished")
    failed = failure(directory.events)
    if failed is not None and failed.code in FAULTY:
        return report("faulty", failed.message)
    if told_to == "stopped":
        return report("stopped", "stopped on request" + (KILLED if killed else ""))
    if told_to == "released":
        return report("released", "the worker was stopped and gave the run back" + (KILLED if killed else ""))
    if told_to == "aborted" and not ranks:
        return report("stopped", "the attempt ended elsewhere: its processes here were killed")

    rank, rank_code = ranks[0] if ranks else (None, code)
    if rank_code == ExitCode.FENCED:
        return report("lost", "a newer attempt of the run had begun: this one wrote nothing more", rank_code)
    if rank_code == ExitCode.STOPPED:
        return report("released", "the job was asked to stop from outside and gave the run back", rank_code)
    # A rank that a signal ended says nothing itself, and its peers report only that they lost it.
    named = failed is not None and not _lost_peer(failed)
    signalled = next(((number, c) for number, c in ranks if _is_cause(c)), None)
    if signalled and (failed is None or failed.code == "internal") and (not named or signalled == ranks[0]):
        return report("lost", f"rank {signalled[0]} {_how(signalled[1])}; {_end(telling)}", signalled[1])
    if not ranks and code < 0 and not named:
        return report("lost", f"the launcher of the job {_how(code)}; {_end(telling)}")
    if _PORT_IN_USE.search("\n".join([*end_of(directory.launcher_log(launch.node_rank)), failed.message if failed else ""])):
        meeting = f"{launch.master_address}:{launch.master_port}"
        return report("lost", f"{meeting}, where the ranks were to meet, was taken by another program")
    if failed is not None and failed.code == "storage":  # perhaps of this node alone: the next attempt goes elsewhere if it can
        return report("lost", failed.message)
    if failed is not None and named:
        return report("crashed", failed.message, signature=signature(failed.code, failed.message))
    if launch.num_nodes > 1 and (failed is not None or _PEER_IS_GONE.search(tail(telling))):
        return report("lost", f"{LOST_PEERS}: {failed.message if failed else tail(telling, 1)}")
    if failed is not None:
        return report("crashed", failed.message)
    reason = f"{'the launcher of the job' if rank is None else f'rank {rank}'} {_how(rank_code)}; {_end(telling)}"
    if rank_code == ExitCode.FAULTY:
        return report("faulty", reason, rank_code)
    error = _exception(telling)
    return report("crashed", reason, rank_code, signature("traceback", error) if error else None)


def stall_report(worker: str, directory: AttemptDir, reason: str, rank: int) -> ExitReport:
    """The report for a job that was killed because it had stopped moving; `rank` tells most."""
    stacks = tail(directory.rank_log(rank), TAIL_LINES)[-MAX_TAIL:]
    return ExitReport(worker=worker, outcome="lost", reason=_short(reason), stalled=True, log_tail=stacks)


def failure(spool: Path) -> Failed | None:
    """Why the job failed. A rank that loses its peers reports that as well, as `internal`: so a fault counts above all, then
    another cause, and among equals the first."""
    failures = []
    for line in end_of(spool):
        try:
            event = job_event.validate_json(line)
        except ValidationError:
            continue
        if isinstance(event, Failed):
            failures.append(event)
    return min(failures, key=lambda event: (event.code not in FAULTY, event.code == "internal", _lost_peer(event)), default=None)


def signature(code: str, message: str) -> str:
    """Equal for two occurrences of one error: without numbers, addresses and paths."""
    return " ".join(f"{code}: {_VARIABLE.sub('#', message)}".split())[:MAX_SIGNATURE]


def _lost_peer(failed: Failed) -> bool:
    return failed.code == "internal" and bool(_PEER_IS_GONE.search(failed.message))


def _is_cause(code: int) -> bool:
    """Whether a signal ended the rank that was not the launcher's own: with SIGTERM it ends the others once one has failed."""
    return code < 0 and code != -signal.SIGTERM


def _end(log: Path) -> str:
    return f"the end of {log.name}:\n{tail(log) or '(empty)'}"


def _telling_log(directory: AttemptDir, launch: Launch, ranks: list[tuple[int, int]]) -> Path:
    """Of the rank that failed first; of the launcher where none is named, or where it ended before it had opened its own."""
    if ranks and (log := directory.rank_log(ranks[0][0])).exists():
        return log
    return directory.launcher_log(launch.node_rank)


def _exception(log: Path) -> str | None:
    """The last line of the last traceback in a log."""
    lines = end_of(log)
    begins = [i for i, line in enumerate(lines) if "Traceback (most recent call last)" in line]
    return next((line for line in reversed(lines[begins[-1] :]) if _EXCEPTION.match(line)), None) if begins else None


def _how(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    hint = " (the kernel does that when memory runs out: use a smaller global_batch_size or fewer ranks)" if code == -signal.SIGKILL else ""
    return f"was ended by signal {-code}, {signal.strsignal(-code)}{hint}"


def _short(reason: str, limit: int = MAX_REASON) -> str:
    """The reason within the protocol's length: the end of a log tells more than its beginning."""
    if len(reason) <= limit:
        return reason
    head = reason[:500]
    return f"{head}\n...\n{reason[-(limit - len(head) - 5) :]}"
