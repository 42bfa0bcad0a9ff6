"""The order in which queued runs are tried: priority with age, then fair share between owners, then submission."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from service.scheduling.model import Cluster, Policy, Queued

SHARE_SECONDS = 3600.0
"""A slot counts as so long used from the moment that it is given, so that within a pass the owners take turns."""


def effective_priority(queued: Queued, now: float, policy: Policy) -> int:
    """Whole points: runs that came within the same aging_seconds compare by their owners' shares."""
    return queued.priority + int(max(0.0, now - queued.queued_at) // policy.aging_seconds)


class Turns:
    """Iterates over the queued runs. `charge` what a run is given before the next turn: it moves the owner's others back."""

    def __init__(self, cluster: Cluster, policy: Policy) -> None:
        self.share: dict[str, float] = defaultdict(float, cluster.usage)
        """Slot-seconds of each owner: those of ended attempts, decayed; of live ones so far; and SHARE_SECONDS for each slot held."""
        for run in cluster.live:
            self.share[run.owner] += sum(map(len, run.slots.values())) * (max(0.0, cluster.now - run.started_at) + SHARE_SECONDS)
        self._levels: dict[int, dict[str, deque[Queued]]] = defaultdict(lambda: defaultdict(deque))
        for queued in sorted(cluster.queued, key=lambda queued: queued.sequence):
            self._levels[effective_priority(queued, cluster.now, policy)][queued.owner].append(queued)

    def charge(self, owner: str, num_slots: int) -> None:
        self.share[owner] += num_slots * SHARE_SECONDS

    def __iter__(self) -> Iterator[Queued]:
        for level in sorted(self._levels, reverse=True):
            waiting = self._levels[level]
            heap = [(self.share[owner], owner) for owner in waiting]
            heapify(heap)
            while heap:
                _, owner = heappop(heap)
                yield waiting[owner].popleft()
                if waiting[owner]:
                    heappush(heap, (self.share[owner], owner))


def positions(cluster: Cluster, policy: Policy) -> dict[str, int]:
    """By run, from 1: its place in the order in which the runs are served if each gets the first of its shapes in its turn."""
    turns = Turns(cluster, policy)
    found = {}
    for position, queued in enumerate(turns, start=1):
        found[queued.run_id] = position
        turns.charge(queued.owner, queued.shapes[0][0] * queued.shapes[0][1])
    return found
