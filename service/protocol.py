"""What travels over HTTP besides RunSpec and the records of service/runs.py. Server and clients share these models.

Every request but those for the health routes, the page's files and the OpenAPI document carries a key: `Authorization: Bearer mw_...`.
Roles: U user (its own runs), A admin, W worker.

For people and their programs
    POST  /runs                          U  RunSpec -> 201 Run, Location; Idempotency-Key honoured for 24 h
    POST  /runs:plan                     U  RunSpec -> Plan: whether, where and when it would run; nothing is submitted
    GET   /runs?status=&owner=&label=&cursor=&limit=   U  RunPage, newest first
    GET   /runs/{id}?wait_for_version=&timeout= U  Run, ETag; waits until the version is reached, at most `timeout` s
    PATCH /runs/{id}                     U  RunPatch, If-Match -> Run: priority, labels
    POST  /runs/{id}/cancel|kill|pause|resume   U  202 Run; again: 202; not possible from its status: 409
    POST  /runs/{id}/fork                U  Fork -> 201 Run: a new run from a checkpoint
    GET   /runs/{id}/history             U  list[Transition]
    GET   /runs/{id}/attempts            U  list[Attempt]
    GET   /runs/{id}/events?after=&limit=&kinds=  U  EventPage, oldest first; the newest thousand are kept, and `truncated` says
                                            when some are missing; with Accept: text/event-stream as SSE, Last-Event-ID honoured
    GET   /runs/{id}/metrics?points=&series=    U  MetricSeries: minimum, maximum and mean over at most `points` buckets of steps
    GET   /runs/{id}/checkpoints         U  list[Checkpoint]
    PUT, DELETE /runs/{id}/checkpoints/{step}/pin  U  Checkpoint
    GET   /runs/{id}/checkpoints/{step}/files      U  list[StoredFile]
    GET   /runs/{id}/checkpoints/{step}/files/{name}   U  bytes; Range and ETag
    GET   /runs/{id}/export, /runs/{id}/export/{name}  U  as files
    GET   /runs/{id}/logs?attempt=&name=&offset=&limit=&follow=   U  text/plain; header Millionway-Next-Offset; defaults: newest attempt,
                                            rank-0.log; follow=true streams until the attempt ends; of a
                                            long one the beginning and the newest part are kept
    GET   /runs/{id}/logs/index          U  list[LogFile]
    GET   /workers                       U  list[Worker]
    POST  /workers/{worker}/drain        A  Drain -> 202 Worker
    DELETE /workers/{worker}/drain       A  Worker
    GET   /healthz, /readyz              -  200 when the process lives; when Redis answers
    GET   /metrics                       -  for Prometheus

For workers; a report carries the attempt, and one from a lost attempt gets 409 `attempt_lost`
    POST /workers/{worker}/poll                      W  Poll -> PollReply; waits up to `wait_seconds` for something new
    POST /runs/{id}/attempts/{n}/events              W  EventBatch -> EventAck; a gap: 409 `event_gap` with the last_seq here
    PUT  /runs/{id}/attempts/{n}/logs/{name}?offset= W  bytes -> LogAck; a gap: 409 `log_gap` with the size here; 507
                                            `disk_full`: send it again later
    POST /runs/{id}/attempts/{n}/exit                W  ExitReport -> Run

Errors are RFC 9457 problem documents: type, title, status, detail, code, and errors[] of {field, pointer, value, message}.
Beside them `attempt_lost` has current_attempt and run_status, `log_gap` size, `event_gap` last_seq. One body: at most 4 MiB, a
specification 256 KiB, as application/json or application/yaml. An unknown query parameter is refused where people ask; `kinds`, `series`
and `label` take several values by repetition.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.lifecycle import Status
from service.numbers import NumbersAreNumbers
from service.runs import Parent, Run, RunEvent, WaitReason
from service.spec import LabelKey, LabelValue, StoredSpec

LOG_NAME = r"^(launcher|rank)-[0-9]{1,6}\.log$"
RUN_ID = r"^[0-9a-z]{1,32}$"
MAX_ATTEMPT = 1_000_000
WORKER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
MAX_WAIT_SECONDS = 60.0
"""Longest that a request waits for news."""
MAX_STREAM_SECONDS = 3600.0
"""After so long an event stream or a followed log ends, and its reader opens it anew where it stopped: a key that was revoked meanwhile
reads no longer than that."""

Outcome = Literal["finished", "faulty", "crashed", "lost", "released", "stopped"]
"""Events of service/lifecycle.py with which an attempt can end on a node."""
Command = Literal["continue", "stop", "kill", "abort"]
"""What a worker does with an attempt. `stop`: have it write a checkpoint and end, then report `stopped`; `kill`: the same without a
checkpoint and at once; `abort`: the attempt is over elsewhere: kill its processes and say so by no longer holding it."""


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Request(NumbersAreNumbers):
    """What a person writes: unknown keys are refused."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, extra="forbid", allow_inf_nan=False)


class RunPage(Message):
    runs: list[Run]
    has_more: bool
    next_cursor: str | None
    """Give it as `cursor` for the next page."""


class RunPatch(Request):
    priority: int | None = Field(default=None, ge=-100, le=100)
    labels: dict[LabelKey, LabelValue | None] | None = Field(default=None, max_length=32)
    """Laid over those that the run has; null removes one."""


class Fork(Request):
    step: int | None = Field(default=None, ge=0)
    """Of the checkpoint to start from. Default: the newest."""
    spec: dict[str, Any] = Field(default_factory=dict)
    """What the new run's specification changes, laid over the parent's section by section."""


class Drain(Request):
    mode: Literal["finish", "checkpoint"] = "checkpoint"
    """`finish`: what runs there runs to its end; `checkpoint`: it writes a checkpoint and goes back to the queue."""


class MemoryEstimate(Message):
    """Per rank, in bytes. null: not known for this backbone."""

    rows: int
    """The rank's share of the class rows; with classifier.rows_on host in host memory, and not in `total`."""
    rows_momentum: int
    """Their momentum, likewise."""
    classifier_work: int
    """A tile of scores, a chunk of rows and the gathered features."""
    encoder: int | None
    """Parameters, gradients and momentum, as the ZeRO stage divides them."""
    activations: int | None
    total: int | None


class Plan(Message):
    """What would become of a specification if it were submitted now."""

    feasible: bool
    """Whether the workers that are heard of could ever run it."""
    starts_now: bool
    reasons: list[WaitReason]
    """Why not, or not yet."""
    starts_if: list[str]
    placement: list[str] | None
    """The workers that it would get now, by node rank."""
    ranks: int | None
    """It would start on so many."""
    position: int
    starts_at: float | None
    memory: MemoryEstimate | None
    """null while the number of images is not known."""
    num_images: int | None
    eta_seconds: float | None
    """Duration of training once it has started, from the throughput of earlier runs like it; null where there was none."""


class MetricPoint(Message):
    """One bucket of steps of one series."""

    first_step: int
    last_step: int
    minimum: float
    maximum: float
    mean: float
    last: float


class MetricSeries(Message):
    series: dict[str, list[MetricPoint]]
    """By name: loss, learning_rate, images_per_second, data_wait, knn."""


class EventPage(Message):
    events: list[RunEvent]
    has_more: bool
    next_cursor: str
    """Give it as `after` to go on from here, also once all has been read."""
    truncated: bool
    """Whether events between `after` and the first one here are not kept any more."""
    status: Status
    """Of the run. After a terminal one nothing follows what is here, unless has_more says so."""


class LogFile(Message):
    attempt: int
    name: str
    size: int
    """Bytes that came so far, those included that are not kept."""


class StoredFile(Message):
    name: str
    num_bytes: int
    sha256: str | None
    """From the manifest, where it has one."""


class Held(Message):
    """An attempt that a worker executes."""

    run_id: str = Field(pattern=RUN_ID)
    attempt: int = Field(ge=1, le=MAX_ATTEMPT)
    master_port: int | None = Field(default=None, ge=1, le=65535)
    """Where the ranks are to meet; the lead's worker has found it free."""
    command: Command = "continue"
    pins: list[int] = Field(default_factory=list)
    """With `command` the newest that the worker knows of; the poll returns at once where others hold."""


class Poll(Message):
    incarnation: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    """Random, of this process. A worker that starts anew holds nothing of what the last one held."""
    host: str = Field(max_length=255)
    address: str = Field(max_length=255)
    """Where other workers reach it."""
    slots: int = Field(ge=1, le=1024)
    """Ranks that the worker can run at once."""
    device: str = Field(max_length=200)
    """cpu, or cuda with the GPUs' name."""
    shared: bool = False
    """Whether several attempts may run at once."""
    storage: str = Field(max_length=64, pattern=r"^[A-Za-z0-9._-]*$")
    """Identifies the file system of its runs directory."""
    held: list[Held] = Field(default_factory=list, max_length=1024)
    leaving: bool = False
    """It stops: offer nothing more."""
    number: int = Field(ge=1)
    """Counts the polls of this process: one that arrives after a later one is not taken for news."""
    wait_seconds: float = Field(default=0.0, ge=0.0, le=MAX_WAIT_SECONDS)


class Offer(Message):
    """An attempt to execute. Offered again until the worker holds it."""

    run_id: str
    attempt: int
    spec: StoredSpec
    node_rank: int
    """0 leads."""
    num_nodes: int
    ranks_per_node: int
    slots: list[int]
    master_address: str
    master_port: int | None = None
    """null for the lead, which finds one; the others are offered the attempt once it is known."""
    pins: list[int]
    """Steps of checkpoints that are never removed."""
    parent: Parent | None = None
    """Where to start from while the run has no checkpoint of its own."""


class Instruction(Message):
    run_id: str
    attempt: int
    command: Command
    collect_stacks: bool = False
    """Before it kills: have each rank write its stacks into its log."""
    pins: list[int] = Field(default_factory=list)


class PollReply(Message):
    lease_seconds: float
    """Poll at least three times as often."""
    offers: list[Offer] = Field(default_factory=list)
    instructions: list[Instruction] = Field(default_factory=list)
    """One for each attempt that the worker says it holds."""


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
    """A node's last word on an attempt; its processes are gone. Sent again, or after the attempt's end, it does no harm."""

    worker: str = Field(pattern=WORKER_NAME)
    outcome: Outcome
    exit_code: int | None = None
    """Negative: the signal that ended the process."""
    reason: str = Field(max_length=4000)
    """In words, with the remedy."""
    signature: str | None = Field(default=None, max_length=200)
    """The same for the same error, where the job named one: twice at the same step ends the run."""
    stalled: bool = False
    """Whether the job had stopped moving: the other nodes are to collect their ranks' stacks."""
    log_tail: str = Field(default="", max_length=16_384)
