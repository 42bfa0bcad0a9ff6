"""The life of a run: one table. Callers say what happened; the table says what follows.

queued -> starting -> running -> succeeded | failed
   ^---------|-----------|        lease lost, worker stopping, or a crash: another attempt
cancel: queued -> cancelled; starting, running -> cancelling -> cancelled
"""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Event(StrEnum):
    CLAIM = "claim"
    """A worker took the run: a new attempt with a lease."""
    STARTED = "started"
    """The job reports that it trains."""
    FINISHED = "finished"
    """The job ended with exit code 0."""
    FAULTY = "faulty"
    """The job ended because of the specification or the data: trying again would end alike."""
    CRASHED = "crashed"
    """The job ended in another way, and attempts are left."""
    RELEASED = "released"
    """The worker stops and gives the run back, with a checkpoint."""
    LEASE_EXPIRED = "lease_expired"
    """The worker was not heard of for longer than its lease, and attempts are left."""
    EXHAUSTED = "exhausted"
    """As CRASHED or LEASE_EXPIRED, with no attempt left."""
    CANCEL = "cancel"
    """A person wants it stopped."""
    STOPPED = "stopped"
    """The job ended after it was told to stop."""


TRANSITIONS: dict[tuple[Status, Event], Status] = {
    (Status.QUEUED, Event.CLAIM): Status.STARTING,
    (Status.QUEUED, Event.CANCEL): Status.CANCELLED,
    (Status.STARTING, Event.STARTED): Status.RUNNING,
    # A job may end before its first report reaches us.
    (Status.STARTING, Event.FINISHED): Status.SUCCEEDED,
    (Status.STARTING, Event.FAULTY): Status.FAILED,
    (Status.STARTING, Event.CRASHED): Status.QUEUED,
    (Status.STARTING, Event.RELEASED): Status.QUEUED,
    (Status.STARTING, Event.LEASE_EXPIRED): Status.QUEUED,
    (Status.STARTING, Event.EXHAUSTED): Status.FAILED,
    (Status.STARTING, Event.CANCEL): Status.CANCELLING,
    (Status.RUNNING, Event.FINISHED): Status.SUCCEEDED,
    (Status.RUNNING, Event.FAULTY): Status.FAILED,
    (Status.RUNNING, Event.CRASHED): Status.QUEUED,
    (Status.RUNNING, Event.RELEASED): Status.QUEUED,
    (Status.RUNNING, Event.LEASE_EXPIRED): Status.QUEUED,
    (Status.RUNNING, Event.EXHAUSTED): Status.FAILED,
    (Status.RUNNING, Event.CANCEL): Status.CANCELLING,
    # Whatever ends a run that is being cancelled, it ends cancelled, unless it had finished its work already.
    (Status.CANCELLING, Event.FINISHED): Status.SUCCEEDED,
    (Status.CANCELLING, Event.STOPPED): Status.CANCELLED,
    (Status.CANCELLING, Event.FAULTY): Status.CANCELLED,
    (Status.CANCELLING, Event.CRASHED): Status.CANCELLED,
    (Status.CANCELLING, Event.RELEASED): Status.CANCELLED,
    (Status.CANCELLING, Event.LEASE_EXPIRED): Status.CANCELLED,
    (Status.CANCELLING, Event.EXHAUSTED): Status.CANCELLED,
}

TERMINAL: frozenset[Status] = frozenset(Status) - {before for before, _ in TRANSITIONS}
"""Statuses with no way out, computed from the table."""

LIVE: frozenset[Status] = frozenset({Status.STARTING, Status.RUNNING, Status.CANCELLING})
"""Statuses in which an attempt holds the run, with a lease."""


def targets(event: Event) -> dict[str, str]:
    """Where `event` leads, by the status before it; what is absent is refused."""
    return {str(before): str(after) for (before, happened), after in TRANSITIONS.items() if happened == event}
