"""Who is on which node: when a node will be free, and who would have to give way on it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from service.scheduling.model import Live, Shape
from service.scheduling.pool import Pool


class Tenants:
    def __init__(self, pool: Pool, live: Iterable[Live], now: float) -> None:
        self.pool, self.now = pool, now
        self.runs: dict[str, Live] = {}
        self.on: dict[str, list[Live]] = defaultdict(list)
        """By node."""
        self.num_slots: dict[str, int] = {}
        """By run, on all its nodes."""
        self._owned: dict[str, int] = defaultdict(int)
        """Slots by node."""
        for run in live:
            self.add(run)

    def add(self, run: Live) -> None:
        self.runs[run.run_id] = run
        self.num_slots[run.run_id] = sum(map(len, run.slots.values()))
        for id, slots in run.slots.items():
            if id in self.pool.nodes:
                self.on[id].append(run)
                self._owned[id] += len(slots)

    def stop(self, run_id: str) -> None:
        """It will be gone soon."""
        self.runs[run_id] = stopping = replace(self.runs[run_id], is_stopping=True)
        for id in stopping.slots:
            self.on[id] = [stopping if run.run_id == run_id else run for run in self.on[id]]

    def need(self, id: str, num_nodes: int, ranks: int) -> int | None:
        """How many slots must be free on the node for a shape: all of a node that is taken whole. None: it has too few."""
        node = self.pool.nodes[id]
        if ranks > node.num_slots:
            return None
        return ranks if num_nodes == 1 and node.is_shared else node.num_slots

    def ownerless(self, id: str) -> int:
        """Slots that are neither free nor a live run's: the processes of an attempt that is over are about to be gone from them."""
        return self.pool.nodes[id].num_slots - len(self.pool.free[id]) - self._owned[id]

    def ends_at(self, run: Live) -> float:
        """A run that stops, or that has outrun its estimate, is expected to end at any moment."""
        if run.is_stopping:
            return self.now
        return math.inf if run.ends_at is None else max(self.now, run.ends_at)

    def free_at(self, id: str, need: int) -> float:
        """When so many slots of the node are expected to be free; infinite where it is not known."""
        free = len(self.pool.free[id]) + self.ownerless(id)
        if free >= need:
            return self.now
        for end, num_slots in sorted((self.ends_at(run), len(run.slots[id])) for run in self.on[id]):
            free += num_slots
            if free >= need:
                return end
        return math.inf

    def leaving(self, id: str, shape: Shape) -> list[Live]:
        """Who must end before the shape fits on the node, those that end first."""
        missing = (self.need(id, *shape) or 0) - len(self.pool.free[id]) - self.ownerless(id)
        found = []
        for run in sorted(self.on[id], key=lambda run: (self.ends_at(run), run.run_id)):
            if missing > 0:
                found.append(run)
                missing -= len(run.slots[id])
        return found
