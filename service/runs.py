"""The records that the API serves: a run, its checkpoints, a worker."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from service.events import Progress
from service.lifecycle import Status
from service.spec import StoredSpec


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class Checkpoint(Record):
    step: int
    epoch: float
    path: str
    """On the worker's file system."""
    num_bytes: int
    knn: float | None = None
    """kNN accuracy in percent, where it was evaluated at this step."""
    attempt: int
    created_at: float
    """Unix time in seconds."""


class Transition(Record):
    """One entry of a run's history."""

    time: float
    event: str
    status: Status
    """After the event."""
    attempt: int
    reason: str


class Run(Record):
    id: str
    name: str
    status: Status
    reason: str
    """Why the run is in this status, in words."""
    version: int
    """Grows with every change of the record."""
    attempt: int
    """0 before the first claim."""
    worker: str | None = None
    """Who holds the run now, or held it last."""
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
    export: str | None = None
    """Path of the exported backbone."""
    warnings: list[str] = Field(default_factory=list)
    """The last few things that the job warned of."""
    created_at: float
    """Unix time in seconds; so are the others."""
    updated_at: float
    started_at: float | None = None
    """When the first attempt was claimed."""
    finished_at: float | None = None
    spec: StoredSpec


class Worker(Record):
    id: str
    host: str
    slots: int
    """Ranks that it can run at once."""
    device: str
    """cpu, or cuda with the GPUs' name."""
    run: str | None = None
    """The run it holds."""
    last_seen: float
    """Unix time in seconds."""
    alive: bool
    """Whether it was heard of within its lease."""
