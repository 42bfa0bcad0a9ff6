"""What the job reports. Rank 0 appends one JSON object a line to the attempt's spool; the worker ships the lines.

The trainer writes these, the worker forwards them unread, the API applies them to the run's record and serves them.
`seq` counts from 1 within the attempt, without gaps: a line that arrives twice is applied once.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True, allow_inf_nan=False)

    seq: int = Field(ge=1, lt=10**15)
    """Number of the event within the attempt, from 1."""
    time: float
    """Unix time in seconds."""


class Started(_Event):
    """The job is up: its ranks have met and the images are counted."""

    kind: Literal["started"] = "started"
    num_images: int
    num_steps: int
    """Of the whole run."""
    start_step: int
    """The step that this attempt starts at; above 0 after a resume."""
    world_size: int
    device: str
    """A sentence: device, precision, threads per rank."""


class Phase(_Event):
    """What the job does besides training steps, so that no wait is silent."""

    kind: Literal["phase"] = "phase"
    phase: Literal["indexing", "prior", "similarity", "training", "evaluating", "exporting"]


class Progress(_Event):
    """Every log_every_steps."""

    kind: Literal["progress"] = "progress"
    step: int
    """Steps done."""
    num_steps: int
    epoch: float
    """Epochs done."""
    num_epochs: float
    loss: float
    """Mean over the steps since the last report, over all ranks."""
    learning_rate: float
    images_per_second: float
    """Over all ranks, since the last report; views count once per image."""
    data_wait: float
    """Share of the time since the last report that rank 0 waited for images, 0 to 1."""
    eta_seconds: float
    """Expected time to the end of the run."""


class Evaluated(_Event):
    """kNN accuracy of the backbone, in percent. Epoch 0 is the random encoder, with BatchNorm statistics of the images; it also
    carries that of raw pixels."""

    kind: Literal["evaluated"] = "evaluated"
    step: int
    epoch: float
    knn: float
    knn_pixels: float | None = None


class Checkpointed(_Event):
    """A checkpoint is complete on disk."""

    kind: Literal["checkpointed"] = "checkpointed"
    step: int
    epoch: float
    path: str
    num_bytes: int
    knn: float | None = None
    """Of the last evaluation at this step, if any."""
    removed: list[str] = Field(default_factory=list)
    """Paths of older checkpoints that made room for this one."""


class Straggler(_Event):
    """A rank computes much longer per step than its peers, who wait for it."""

    kind: Literal["straggler"] = "straggler"
    step: int
    rank: int
    seconds: float
    """Its own compute and loading time per step, without waiting for others."""
    median_seconds: float
    """Of all ranks."""


class Exported(_Event):
    """The backbone is written in the form that timm loads, and the load was verified."""

    kind: Literal["exported"] = "exported"
    path: str


class Warned(_Event):
    """Something a person should know, e.g. an image that cannot be decoded."""

    kind: Literal["warned"] = "warned"
    message: str


class Failed(_Event):
    """Why the job ends, in words, with the remedy."""

    kind: Literal["failed"] = "failed"
    code: Literal["bad_spec", "bad_data", "non_finite_loss", "out_of_memory", "disk", "storage", "internal"]
    message: str


JobEvent = Annotated[
    Started | Phase | Progress | Evaluated | Checkpointed | Straggler | Exported | Warned | Failed, Field(discriminator="kind")
]
job_event: TypeAdapter[JobEvent] = TypeAdapter(JobEvent)


class ExitCode:
    """What the job's exit code says to the worker."""

    FINISHED = 0
    FAULTY = 64
    """The specification or the data are at fault: no further attempt (EX_USAGE)."""
    STOPPED = 75
    """Stopped on request, with a checkpoint where there was anything to save (EX_TEMPFAIL)."""
    FENCED = 76
    """A newer attempt of the run has begun: this one wrote nothing more (EX_PROTOCOL)."""
