"""The records that the API serves: a run, its attempts, its checkpoints, its history; a worker; a key."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.events import Progress
from service.lifecycle import LIVE, TERMINAL, Status, Termination
from service.spec import StoredSpec


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class Checkpoint(Record):
    step: int
    epoch: float
    path: str
    """On the workers' file system."""
    num_bytes: int
    knn: float | None = None
    """kNN accuracy in percent, where it was evaluated at this step."""
    loss: float | None = None
    """Of the last report before it."""
    attempt: int
    created_at: float
    """Unix time in seconds."""
    pinned: bool = False
    """Whether it is kept whatever comes after it."""


class Transition(Record):
    """One entry of a run's history."""

    time: float
    event: str
    status: Status
    """After the event."""
    attempt: int
    reason: str


class Member(Record):
    """One node of an attempt."""

    worker: str
    host: str
    address: str
    slots: list[int]
    """Indices of the slots that the attempt owns there; on a GPU node, of its GPUs."""
    state: str = "offered"
    """offered, held, then the outcome that the worker reported; `gone` where it never did."""
    exit_code: int | None = None
    reason: str = ""
    """In the worker's words, with the remedy."""
    log_tail: str = ""
    """The last lines of the log that tells most."""


class Attempt(Record):
    number: int
    members: list[Member]
    """By node rank; the first leads: its address is where the ranks meet, its end is the attempt's."""
    ranks_per_node: int
    master_port: int | None = None
    placed_at: float
    started_at: float | None = None
    """When the job reported that it trains."""
    start_step: int | None = None
    ended_at: float | None = None
    outcome: str | None = None
    """The event of service/lifecycle.py that ended it."""
    reason: str = ""


class WaitReason(Record):
    token: str
    """Stable, for programs."""
    message: str


class Wait(Record):
    """Why a queued run does not run yet."""

    reasons: list[WaitReason]
    """Every one that holds, the decisive one first."""
    starts_if: list[str]
    """What would let it start now, each a sentence."""
    starts_at: float | None
    """Unix time at which it is expected to start; null where that is not known."""
    position: int | None
    """In the order in which queued runs are tried, from 1; null where the scheduler did not look at it in its last pass."""


class Parent(Record):
    """The checkpoint that a run was forked from."""

    run_id: str
    step: int


class Run(Record):
    id: str
    name: str
    owner: str
    """Name of the key that submitted it."""
    status: Status
    reason: str
    """Why the run is in this status, in words."""
    termination_reason: Termination | None = None
    """Once it has ended."""
    version: int
    """Grows with every change of the record; GET /runs/{id}?wait_for_version=N waits for one."""
    edits: int = 0
    """Grows with every PATCH; the ETag."""
    priority: int = 0
    labels: dict[str, str] = Field(default_factory=dict)
    wait: Wait | None = None
    """While it is queued."""
    attempt: int
    """0 before the first."""
    workers: list[str] = Field(default_factory=list)
    """Who holds the run now, or held it last, by node rank."""
    ranks: int | None = None
    """Ranks of the newest attempt."""
    phase: str | None = None
    """What the job does now: indexing, prior, training, evaluating, exporting."""
    progress: Progress | None = None
    knn: float | None = None
    """Of the last evaluation, in percent."""
    knn_random: float | None = None
    """Of the random encoder, on the same protocol."""
    knn_pixels: float | None = None
    """Of raw pixels, on the same protocol."""
    num_images: int | None = None
    checkpoint: str | None = None
    """Path of the newest complete checkpoint."""
    checkpoint_step: int | None = None
    export: str | None = None
    """Path of the exported backbone."""
    warnings: list[str] = Field(default_factory=list)
    """The last few things that the job warned of."""
    parent: Parent | None = None
    created_at: float
    """Unix time in seconds; so are the others."""
    updated_at: float
    queued_at: float | None = None
    """When it was queued last."""
    started_at: float | None = None
    """When the first attempt was placed."""
    finished_at: float | None = None
    spec: StoredSpec


def has_ended(run: Run, attempt: int) -> bool:
    """Whether this attempt of the run has ended, or will never come."""
    is_newest = attempt == run.attempt and run.status not in LIVE
    return attempt < run.attempt or is_newest or run.status in TERMINAL


class WorkerState(StrEnum):
    READY = "ready"
    DRAINING = "draining"
    """Takes no more work, and still has some."""
    DRAINED = "drained"
    SILENT = "silent"
    """Not heard of within its lease."""


class Holding(Record):
    """An attempt that owns slots of a worker."""

    run_id: str
    attempt: int
    slots: list[int]


class Worker(Record):
    id: str
    host: str
    address: str
    slots: int
    """Ranks that it can run at once."""
    device: str
    """cpu, or cuda with the GPUs' name."""
    shared: bool
    """Whether several runs may use it at once."""
    storage: str
    """Which file system its runs directory is on."""
    drain: Literal["", "finish", "checkpoint"] = ""
    state: WorkerState
    holds: list[Holding] = Field(default_factory=list)
    last_seen: float
    """Unix time in seconds."""
    alive: bool
    """Whether it was heard of within its lease."""


class Role(StrEnum):
    USER = "user"
    """Submits runs and sees and changes its own."""
    WORKER = "worker"
    """Executes runs."""
    ADMIN = "admin"
    """Everything."""


class Key(Record):
    """An API key. The secret itself is shown once and never stored."""

    id: str
    """The key's first letters, for people to tell keys apart."""
    name: str
    """The owner of the runs that it submits."""
    role: Role
    created_at: float
    revoked_at: float | None = None


class RunEvent(Record):
    """One entry of a run's events: transitions and what its job reports, in one order."""

    cursor: str
    """Give it as `after`, or as Last-Event-ID, to go on from here."""
    time: float
    kind: str
    """transition, or the kind of the job's event (service/events.py)."""
    attempt: int
    data: dict[str, Any]
