"""What the model of the store knows of runs, attempts and workers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from service.lifecycle import LIVE, TERMINAL, TRANSITIONS, Event, Status

Slots = tuple[int, ...]
Owner = tuple[str, int]
"""Of slots: a run and the number of its attempt."""


class Refused(Exception):
    """The script must refuse, with an error of this class name."""


@dataclass
class Part:
    """An attempt on one node."""

    slots: Slots
    state: str | None = None
    """None: offered."""
    has_reported: bool = False


@dataclass
class Attempt:
    parts: dict[str, Part]
    """By worker; the first leads."""
    has_port: bool = False
    is_stalled: bool = False
    outcome: str | None = None

    @property
    def lead(self) -> str:
        return next(iter(self.parts))


@dataclass
class Run:
    id: str
    owner: str
    priority: int
    sequence: int
    retries: dict[str, int]
    status: Status = Status.QUEUED
    attempts: list[Attempt] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    termination: str | None = None
    is_killed: bool = False
    last_seq: int = 0
    step: int = 0
    checkpoint_step: int = -1
    last_error: tuple[str, int] | None = None
    preemptions: int = 0
    avoid: set[str] = field(default_factory=set)

    def is_held(self, number: int) -> bool:
        return number == len(self.attempts) and self.status in LIVE

    def happens(self, event: Event, termination: str | None = None) -> None:
        after = TRANSITIONS.get((self.status, event))
        if after is None:
            raise Refused("TransitionRefused")
        self.status = after
        if after in TERMINAL:
            self.termination = "cancelled" if after == Status.CANCELLED else termination


@dataclass
class Worker:
    num_slots: int
    owned: dict[int, Owner] = field(default_factory=dict)
    incarnation: str | None = None
    former: set[str] = field(default_factory=set)
    number: int = 0
    has_lease: bool = False
    is_late: bool = False
    """The lease is over, and nobody has looked yet."""
    drain: str = ""
    is_leaving: bool = False

    @property
    def is_heard(self) -> bool:
        return self.has_lease and not self.is_late

    def attempts(self) -> set[Owner]:
        return set(self.owned.values())

    def free(self, owner: Owner) -> None:
        self.owned = {slot: other for slot, other in self.owned.items() if other != owner}
