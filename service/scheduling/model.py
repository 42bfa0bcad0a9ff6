"""What the scheduler sees of the cluster, and what it decides. Times are Unix seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Shape = tuple[int, int]
"""(nodes, ranks on each) of an attempt."""


@dataclass(frozen=True, slots=True)
class Node:
    """A worker that is heard of."""

    id: str
    num_slots: int
    free: tuple[int, ...]
    """Indices of the slots that no attempt owns, ascending."""
    is_cuda: bool
    storage: str
    """Which file system its runs directory is on: ranks of one run, and attempts of one run, must share it."""
    is_shared: bool
    """Whether several runs may use it at once (GPU nodes); else a run takes it whole, with all its cores."""
    drain: str = ""
    """"" takes work; "finish": nothing new; "checkpoint": its runs are to checkpoint and go elsewhere."""


@dataclass(frozen=True, slots=True)
class Queued:
    """A run that waits."""

    run_id: str
    owner: str
    priority: int
    """-100 to 100; higher first."""
    sequence: int
    """Number of its submission."""
    queued_at: float
    shapes: tuple[Shape, ...]
    """What an attempt may occupy, in order of preference; more than one where the specification allows a range."""
    device: str
    """cpu, cuda, or auto: any node, with its GPUs where it has some."""
    max_seconds: float | None = None
    """An attempt is checkpointed and queued again after so long; None: not known how long it takes."""
    storage: str | None = None
    """Where its checkpoints are; None: nowhere yet."""
    avoid: frozenset[str] = frozenset()
    """Nodes that failed it lately: taken only where no others could ever do."""


@dataclass(frozen=True, slots=True)
class Live:
    """A run that holds slots. `slots` may outlive the run's stop for the time until its processes are known to be gone."""

    run_id: str
    owner: str
    priority: int
    slots: Mapping[str, tuple[int, ...]]
    """By node."""
    started_at: float
    ends_at: float | None
    """When it will be done, at the latest, where that is known: its time limit or its own ETA."""
    deadline: float | None = None
    """When its time limit is over: then it is to checkpoint and queue again."""
    is_stopping: bool = False
    """It has been asked to stop already."""
    stopped_for: str | None = None
    """The run that preempted it."""
    can_be_preempted: bool = True
    """False once its preemption budget is used up."""


@dataclass(frozen=True, slots=True)
class Cluster:
    now: float
    nodes: tuple[Node, ...]
    queued: tuple[Queued, ...]
    live: tuple[Live, ...] = ()
    usage: Mapping[str, float] = field(default_factory=dict)
    """Slot-seconds of each owner's past attempts, decayed (half-life one day)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Start an attempt: all of it or nothing."""

    run_id: str
    shape: Shape
    slots: Mapping[str, tuple[int, ...]]
    """Those that the attempt owns, by node, in the order of node ranks."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Have a live run checkpoint and go back to the queue."""

    run_id: str
    cause: str
    """preempted | time_limit | drained"""
    reason: str
    """A sentence."""
    in_favour_of: str | None = None
    """The run that gets its slots."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Nodes kept for a run that waits too long; others use them only if they end in time."""

    run_id: str
    nodes: frozenset[str]
    starts_at: float | None
    """When they are expected to be free; None: unknown, so nothing may be put there."""


@dataclass(frozen=True, slots=True)
class Decisions:
    places: tuple[Place, ...] = ()
    stops: tuple[Stop, ...] = ()
    reservations: tuple[Reservation, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """What an operator may set."""

    reserve_after_seconds: float = 300.0
    """A run that waited so long gets a reservation."""
    max_reservations: int = 4
    aging_seconds: float = 3600.0
    """A waiting run gains one point of priority in so long, so that none starves behind a stream of better ones. Preemption goes by the
    priority without this."""
    preemption: bool = True


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that holds a queued run back."""

    token: str
    message: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a queued run waits: every reason that holds, the decisive one first; what would let it start now; when it may start."""

    reasons: tuple[Reason, ...]
    starts_if: tuple[str, ...]
    """Sentences, e.g. "2 nodes of 8 free slots: 1 is free now"; "at priority 6 it would preempt run x"."""
    starts_at: float | None
    """Expected start; None where it is not known."""
    position: int
    """In the order in which the scheduler tries the queued runs, from 1."""
