"""The errors of the service, free of HTTP. `api/problems.py` maps each to a status code in one table.

MillionwayError
    InvalidSpec           the specification is wrong: a list of FieldError
    RunNotFound
    TransitionRefused     the run's status does not allow what was asked
    AttemptLost           a report from an attempt that is no longer the run's
    IdempotencyConflict   the key was used with another body
    EventGap              events are missing between what is applied and what was sent
    LogGap                bytes are missing between what is stored and what was sent
    CheckpointNotFound    the run has no checkpoint of this step
    EditConflict          the run was changed since it was read
    QueueFull             the owner has as many queued runs as one may have
    RunIdTaken            a random id came twice
    KeyNotFound           no API key has this id
    Unauthenticated       the request carries no key, or none that is known
    Forbidden             the key's role does not allow this
    RateLimited           too many requests with this key
    FilesNotHere          the API does not see the workers' files
    DiskFull              the API's disk takes no more
    WorkerNotFound
    WorkerNameTaken       another machine polls under this name
    WorkerReplaced        a newer process polls under this name
    StoreUnavailable      Redis does not answer
    ApiUnavailable        the API does not answer (client side)
    ApiProblem            the API answered with a problem document (client side)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FieldError:
    """One mistake in a document. `field` is dotted ("data.path"; "" for the whole); `message` carries the remedy."""

    field: str
    value: Any
    message: str

    @property
    def pointer(self) -> str:
        """RFC 6901 JSON pointer of the field."""
        parts = [part.replace("~", "~0").replace("/", "~1") for part in self.field.split(".") if part]
        return "".join(f"/{part}" for part in parts)

    def __str__(self) -> str:
        return self.message if not self.field or self.message.startswith(self.field) else f"{self.field}: {self.message}"


class MillionwayError(Exception):
    """What a user or an operator can act upon; the message carries the values and the remedy."""


class InvalidSpec(MillionwayError):
    """The specification is wrong."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        self.errors = list(errors)
        super().__init__("\n".join(str(error) for error in self.errors))


class RunNotFound(MillionwayError):
    """No run has this id."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"no run {run_id!r}: list the runs with `millionway runs` or GET /runs")


class TransitionRefused(MillionwayError):
    """The run's status does not allow what was asked."""

    def __init__(self, run_id: str, status: str, event: str) -> None:
        self.run_id, self.status, self.event = run_id, status, event
        super().__init__(f"run {run_id} is {status}: {event} is not possible from there")


class AttemptLost(MillionwayError):
    """The report comes from an attempt that is no longer the run's: the sender must stop its processes."""

    def __init__(self, run_id: str, attempt: int, current: int, status: str) -> None:
        self.run_id, self.attempt, self.current, self.status = run_id, attempt, current, status
        super().__init__(f"attempt {attempt} of run {run_id} is over (the run is {status}, its attempt {current}): stop its processes")


class IdempotencyConflict(MillionwayError):
    """The Idempotency-Key was used with another body."""

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"Idempotency-Key {key!r} was used with another body: use a new key for a new run")


class EventGap(MillionwayError):
    """Events were sent beyond the next one that is due."""

    def __init__(self, run_id: str, attempt: int, last_seq: int, seq: int) -> None:
        self.run_id, self.attempt, self.last_seq, self.seq = run_id, attempt, last_seq, seq
        super().__init__(f"event {seq} of attempt {attempt} of run {run_id} follows {last_seq} here: send from {last_seq + 1}")


class LogGap(MillionwayError):
    """A piece of log was sent beyond the end of what is stored."""

    def __init__(self, name: str, size: int, offset: int) -> None:
        self.name, self.size, self.offset = name, size, offset
        super().__init__(f"log {name} has {size} bytes here, the piece starts at {offset}: send from {size}")


class CheckpointNotFound(MillionwayError):
    """The run has no checkpoint of this step."""

    def __init__(self, run_id: str, step: int) -> None:
        self.run_id, self.step = run_id, step
        super().__init__(f"run {run_id} has no checkpoint of step {step}: GET /runs/{run_id}/checkpoints lists those that it has")


class EditConflict(MillionwayError):
    """The run was changed since it was read."""

    def __init__(self, run_id: str, expected: int, current: int) -> None:
        super().__init__(f"If-Match is {expected}, and run {run_id} was changed since (ETag {current} now): read it again, then change it")


class QueueFull(MillionwayError):
    """The owner has as many queued runs as one may have."""

    def __init__(self, owner: str, queued: int, limit: int) -> None:
        super().__init__(f"{owner} has {queued} queued runs, and the limit is {limit} (MILLIONWAY_MAX_QUEUED): wait, or cancel some")


class RunIdTaken(MillionwayError):
    """A random id came twice: draw another."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"the id {run_id!r} is taken")


class KeyNotFound(MillionwayError):
    """No API key has this id."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"no key {key_id!r}: `millionway keys list` shows those that there are")


class Unauthenticated(MillionwayError):
    """The request carries no key, or none that is known."""


class Forbidden(MillionwayError):
    """The key's role does not allow this."""


class RateLimited(MillionwayError):
    """Too many requests with this key."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(message)


class FilesNotHere(MillionwayError):
    """The API does not see the workers' files, or the file is gone from there."""


class DiskFull(MillionwayError):
    """The API's disk takes no more."""


class WorkerNotFound(MillionwayError):
    """No worker of this name was heard of within a day."""

    def __init__(self, worker: str) -> None:
        super().__init__(f"no worker {worker!r} was heard of within a day: GET /workers lists those that were")


class WorkerNameTaken(MillionwayError):
    """Another machine polls under this name."""

    def __init__(self, worker: str, host: str) -> None:
        super().__init__(
            f"the worker name {worker!r} is in use on host {host}: give another --name; if that host is gone, wait for its lease to end"
        )


class WorkerReplaced(MillionwayError):
    """A newer process polls under this name."""

    def __init__(self, worker: str, host: str) -> None:
        super().__init__(f"a newer process on host {host} took over the worker name {worker!r}: this one must kill its jobs and end")


class StoreUnavailable(MillionwayError):
    """Redis does not answer."""


class ApiUnavailable(MillionwayError):
    """The API does not answer."""


class ApiProblem(MillionwayError):
    """The API answered with a problem document."""

    def __init__(self, status: int, document: dict[str, Any]) -> None:
        self.status, self.document = status, document
        lines = [error["message"] for error in document.get("errors", [])]
        super().__init__("\n".join(lines) or f"{status}: {document.get('detail') or document.get('title') or document}")
