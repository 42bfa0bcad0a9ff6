"""What travels over HTTP besides RunSpec, Run, Checkpoint and Worker. Server and clients share these models.

For people and their programs
    POST /runs                          RunSpec -> 201 Run, Location; Idempotency-Key honoured for 24 h
    GET  /runs?status=&cursor=&limit=   RunPage, newest first
    GET  /runs/{id}                     Run
    POST /runs/{id}/cancel              202 Run; again: 202; ended otherwise: 409
    GET  /runs/{id}/history             list[Transition]
    GET  /runs/{id}/metrics?after=&limit=   MetricPage: progress and evaluations, oldest first
    GET  /runs/{id}/checkpoints         list[Checkpoint]
    GET  /runs/{id}/logs?attempt=&name=&offset=&limit=   text/plain; header Millionway-Next-Offset; defaults: newest attempt,
                                        rank-0.log
    GET  /runs/{id}/logs/index          list[LogFile]
    GET  /workers                       list[Worker]
    GET  /healthz, /readyz              200 when the process lives; when Redis answers

For workers; every write carries the attempt, and a report from a lost attempt gets 409 `attempt_lost`
    POST /workers/{worker}/claim                     ClaimRequest -> 200 Claim, or 204: nothing to do
    POST /runs/{id}/attempts/{n}/heartbeat           -> HeartbeatReply
    POST /runs/{id}/attempts/{n}/events              EventBatch -> EventAck; a gap: 409 `event_gap` with the last_seq here
    PUT  /runs/{id}/attempts/{n}/logs/{name}?offset= bytes -> LogAck; a gap: 409 `log_gap` with the size here
    POST /runs/{id}/attempts/{n}/exit                ExitReport -> Run

Errors are RFC 9457 problem documents: type, title, status, detail, code, and errors[] of {field, pointer, value, message}.
Beside them `attempt_lost` has current_attempt and run_status, `log_gap` size, `event_gap` last_seq. One body: at most 4 MiB, a
specification 256 KiB, as application/json or application/yaml. An unknown query parameter is refused where people ask.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.events import Evaluated, Progress
from service.runs import Run
from service.spec import StoredSpec

LOG_NAME = r"^(launcher|rank-[0-9]{1,4})\.log$"


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class RunPage(Message):
    runs: list[Run]
    has_more: bool
    next_cursor: str | None
    """Give it as `cursor` for the next page."""


class Metric(Message):
    attempt: int
    metric: Progress | Evaluated = Field(discriminator="kind")


class MetricPage(Message):
    metrics: list[Metric]
    has_more: bool
    next_cursor: str | None
    """Give it as `after` to go on from here, also once all has been read."""


class LogFile(Message):
    attempt: int
    name: str
    size: int
    """Bytes stored so far."""


class ClaimRequest(Message):
    host: str = Field(max_length=255)
    slots: int = Field(ge=1, le=1024)
    """Ranks that the worker can run at once."""
    device: str = Field(max_length=200)
    """cpu, or cuda with the GPUs' name."""


class Claim(Message):
    run_id: str
    attempt: int
    spec: StoredSpec
    lease_seconds: float
    """Heartbeat at least three times as often."""


class HeartbeatReply(Message):
    command: Literal["continue", "stop"]
    """`stop`: a person cancelled the run: SIGTERM, grace, SIGKILL, then report `stopped`."""
    lease_seconds: float


class EventBatch(Message):
    events: list[dict[str, Any]] = Field(min_length=1, max_length=1000)
    """Lines of the spool (service/events.py), in order."""


class EventAck(Message):
    last_seq: int
    """The newest event applied; send from the next one."""


class LogAck(Message):
    size: int
    """Bytes stored; send from there."""


class ExitReport(Message):
    outcome: Literal["finished", "faulty", "crashed", "released", "stopped"]
    exit_code: int | None = None
    """Negative: the signal that ended the process."""
    reason: str = Field(max_length=4000)
    """In words, with the remedy."""
