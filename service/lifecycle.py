"""The life of a run: one table. Callers say what happened; the table says what follows.

queued -> starting -> running -> succeeded | failed
   ^---------|-----------|        lost worker, released, a crash within its budget: another attempt
preempt, drain, time limit:  starting, running -> preempting -> queued
pause:   queued -> paused;    starting, running, preempting -> pausing -> paused;    resume: paused -> queued
cancel:  queued, paused -> cancelled;    any that is held -> cancelling -> cancelled

A stop may only become more severe: preempting, pausing, cancelling.
"""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    PREEMPTING = "preempting"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Event(StrEnum):
    PLACE = "place"
    """The scheduler gave the run its nodes: a new attempt."""
    STARTED = "started"
    """The job reports that it trains."""
    FINISHED = "finished"
    """The job ended with exit code 0."""
    FAULTY = "faulty"
    """The job ended because of the specification or the data: trying again would end alike."""
    CRASHED = "crashed"
    """The job ended by an error of its own, and the budget allows another attempt."""
    LOST = "lost"
    """The infrastructure failed: a worker fell silent, a rank was killed, the job stopped moving. Another attempt follows."""
    RELEASED = "released"
    """A worker stops and gives the run back, with a checkpoint."""
    STOPPED = "stopped"
    """The job ended after it was told to stop."""
    EXHAUSTED = "exhausted"
    """As CRASHED or LOST, with no attempt left or with the same error at the same step again."""
    PREEMPT = "preempt"
    """The slots are needed otherwise: a run of higher priority, a drained node, a time limit."""
    PAUSE = "pause"
    """A person wants it to wait."""
    RESUME = "resume"
    """A person wants it to go on."""
    CANCEL = "cancel"
    """A person wants it stopped for good."""


_S, _E = Status, Event

TRANSITIONS: dict[tuple[Status, Event], Status] = {
    (_S.QUEUED, _E.PLACE): _S.STARTING,
    (_S.QUEUED, _E.PAUSE): _S.PAUSED,
    (_S.QUEUED, _E.CANCEL): _S.CANCELLED,
    # Another node of the last attempt reports what truly ended it.
    (_S.QUEUED, _E.FAULTY): _S.FAILED,
    (_S.PAUSED, _E.RESUME): _S.QUEUED,
    (_S.PAUSED, _E.CANCEL): _S.CANCELLED,
    (_S.PAUSED, _E.FAULTY): _S.FAILED,
    (_S.STARTING, _E.STARTED): _S.RUNNING,
}
for _held in (_S.STARTING, _S.RUNNING):
    TRANSITIONS |= {
        # A job may end before its first report reaches us.
        (_held, _E.FINISHED): _S.SUCCEEDED,
        (_held, _E.FAULTY): _S.FAILED,
        (_held, _E.CRASHED): _S.QUEUED,
        (_held, _E.LOST): _S.QUEUED,
        (_held, _E.RELEASED): _S.QUEUED,
        (_held, _E.EXHAUSTED): _S.FAILED,
        (_held, _E.PREEMPT): _S.PREEMPTING,
        (_held, _E.PAUSE): _S.PAUSING,
        (_held, _E.CANCEL): _S.CANCELLING,
    }
# Whatever ends a job that was told to stop, it ends as it was told, unless it had finished its work already or failed at it.
for _stopping, _after in ((_S.PREEMPTING, _S.QUEUED), (_S.PAUSING, _S.PAUSED), (_S.CANCELLING, _S.CANCELLED)):
    TRANSITIONS |= {
        (_stopping, _E.FINISHED): _S.SUCCEEDED,
        (_stopping, _E.STOPPED): _after,
        (_stopping, _E.FAULTY): _S.CANCELLED if _stopping == _S.CANCELLING else _S.FAILED,
        (_stopping, _E.CRASHED): _after,
        (_stopping, _E.LOST): _after,
        (_stopping, _E.RELEASED): _after,
        (_stopping, _E.EXHAUSTED): _S.CANCELLED if _stopping == _S.CANCELLING else _S.FAILED,
        (_stopping, _E.CANCEL): _S.CANCELLING,
    }
TRANSITIONS[_S.PREEMPTING, _E.PAUSE] = _S.PAUSING

TERMINAL: frozenset[Status] = frozenset(Status) - {before for before, _ in TRANSITIONS}
"""Statuses with no way out, computed from the table."""

LIVE: frozenset[Status] = frozenset({Status.STARTING, Status.RUNNING, Status.PREEMPTING, Status.PAUSING, Status.CANCELLING})
"""Statuses in which an attempt holds the run."""

STOPPING: frozenset[Status] = frozenset({Status.PREEMPTING, Status.PAUSING, Status.CANCELLING})
"""Statuses in which the attempt has been told to stop."""


class Termination(StrEnum):
    """Why a run ended."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAULTY = "faulty"
    """The specification or the data are at fault."""
    CRASHES_EXHAUSTED = "crashes_exhausted"
    INFRASTRUCTURE_EXHAUSTED = "infrastructure_exhausted"
    REPEATED_ERROR = "repeated_error"
    """The same error at the same step twice: a further attempt would meet it again."""


def targets(event: Event) -> dict[str, str]:
    """Where `event` leads, by the status before it; what is absent is refused."""
    return {str(before): str(after) for (before, happened), after in TRANSITIONS.items() if happened == event}
