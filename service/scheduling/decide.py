"""One pass of the scheduler: who starts where, who stops, which nodes are kept.

Runs are tried in the order of order.py. Each takes all of its nodes or nothing; one that does not fit lets those after it try, except that
- a run of higher priority has others give way (preempt.py), and the nodes are kept for it until they have;
- a run that waited too long has the nodes reserved that are expected free first (reserve.py); others use them only if they end in time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import replace

from service.scheduling.model import Cluster, Decisions, Live, Place, Policy, Queued, Reservation, Stop
from service.scheduling.order import Turns, effective_priority
from service.scheduling.pool import Pool, kind_of
from service.scheduling.preempt import Preemption
from service.scheduling.reserve import earliest, known, zones_for
from service.scheduling.tenants import Tenants

MAX_PREEMPTING = 32
"""Runs for which others are stopped in one pass; more follow in the next: not all victims write their checkpoints at once."""


def decide(cluster: Cluster, policy: Policy = Policy(), until: str | None = None) -> Decisions:
    """Equal snapshots give equal decisions. A pass costs one look at each queued run, and one search for each that starts and for each
    kind of run that does not. With `until`, what was decided when that run had had its turn: nothing after it matters to it."""
    turns = Turns(cluster, policy)
    this = _Pass(cluster, policy, turns)
    this.serve_awaited()
    for queued in turns:
        if queued.run_id not in this.awaited and not this.place(queued) and not this.preempt(queued):
            this.reserve(queued)
        if queued.run_id == until:
            break
    return this.decisions()


class _Pass:
    def __init__(self, cluster: Cluster, policy: Policy, turns: Turns) -> None:
        self.cluster, self.policy, self.turns = cluster, policy, turns
        self.places: list[Place] = []
        self.stops = list(_due_stops(cluster))
        self.kept: list[Reservation] = []
        """For runs that others give way to."""
        self.reservations: list[Reservation] = []
        stopping = {stop.run_id for stop in self.stops}
        live = [replace(run, is_stopping=True) if run.run_id in stopping else run for run in cluster.live]
        self.pool = Pool(cluster.nodes)
        self.tenants = Tenants(self.pool, live, cluster.now)
        self.preemption = Preemption(self.tenants)
        self.awaited: set[str] = set()
        """Runs for which others stop since an earlier pass."""
        # Slots are only ever taken in a pass, so what failed for one run fails for all like it.
        self._unplaceable: set[object] = set()
        self._unreservable: set[object] = set()
        self._not_cleared: dict[object, float] = {}
        """By kind of run, the highest priority for which nobody gave way."""
        self._num_preempting = 0

    def serve_awaited(self) -> None:
        """What was stopped for a run goes to it before others are tried, though its nodes become free one after the other."""
        victims: dict[str, set[str]] = {}
        for run in self.cluster.live:
            if run.stopped_for is not None:
                victims.setdefault(run.stopped_for, set()).update(id for id in run.slots if id in self.pool.nodes)
        awaiting = [queued for queued in self.cluster.queued if victims.get(queued.run_id)]
        for queued in sorted(awaiting, key=lambda run: (-effective_priority(run, self.cluster.now, self.policy), run.sequence)):
            self.awaited.add(queued.run_id)
            clearing = self.preemption.clear(queued, -math.inf, preferred=frozenset(victims[queued.run_id]))
            if clearing is None:
                if nodes := victims[queued.run_id] - self.pool.zone.keys():
                    self._keep(queued, nodes)
                continue
            # Not a shape that is less than what the others stop for.
            shapes = queued.shapes[: queued.shapes.index(clearing.fit.shape) + 1]
            if not self.place(replace(queued, shapes=shapes)):
                self._keep(queued, clearing.fit.nodes)

    def place(self, queued: Queued) -> bool:
        zones = zones_for(queued, self.reservations, self.cluster.now)
        key = (kind_of(queued), zones)
        if key in self._unplaceable:
            return False
        fit = self.pool.find(queued, zones, self.pool.avoided(queued))
        if fit is None:
            self._unplaceable.add(key)
            return False
        slots = self.pool.slots(fit)
        self.places.append(Place(queued.run_id, fit.shape, slots))
        self.pool.take(slots)
        self.preemption.give(fit.nodes)
        ends_at = None if queued.max_seconds is None else self.cluster.now + queued.max_seconds
        self.tenants.add(Live(queued.run_id, queued.owner, queued.priority, slots, self.cluster.now, ends_at, can_be_preempted=False))
        self.turns.charge(queued.owner, sum(map(len, slots.values())))
        return True

    def preempt(self, queued: Queued) -> bool:
        """Whether room is being made for the run."""
        kind = kind_of(queued)
        if not self.policy.preemption or self._num_preempting >= MAX_PREEMPTING:
            return False
        if queued.priority <= max(self.preemption.lowest, self._not_cleared.get(kind, -math.inf)):
            return False
        clearing = self.preemption.clear(queued, queued.priority)
        if clearing is None:
            self._not_cleared[kind] = queued.priority
            return False
        self._num_preempting += bool(clearing.victims)
        for run_id in clearing.victims:
            victim = self.tenants.runs[run_id]
            reason = f"priority {victim.priority}: gives way to run {queued.run_id} of priority {queued.priority}"
            self.stops.append(Stop(run_id, "preempted", reason, in_favour_of=queued.run_id))
            self.tenants.stop(run_id)
            self.preemption.give(tuple(victim.slots))
        self._keep(queued, clearing.fit.nodes)
        return True

    def reserve(self, queued: Queued) -> None:
        kind = kind_of(queued)
        if self.cluster.now - queued.queued_at < self.policy.reserve_after_seconds or kind in self._unreservable:
            return
        if len(self.reservations) >= self.policy.max_reservations:
            return
        first = earliest(queued, self.tenants)
        if first is None:
            self._unreservable.add(kind)
            return
        starts_at, fit = first
        self.pool.keep(fit.nodes, queued.run_id)
        self.reservations.append(Reservation(queued.run_id, frozenset(fit.nodes), known(starts_at)))

    def decisions(self) -> Decisions:
        return Decisions(tuple(self.places), tuple(self.stops), (*self.kept, *self.reservations))

    def _keep(self, queued: Queued, nodes: Collection[str]) -> None:
        self.pool.keep(nodes, queued.run_id)
        self.kept.append(Reservation(queued.run_id, frozenset(nodes), None))


def _due_stops(cluster: Cluster) -> Iterator[Stop]:
    drained = {node.id for node in cluster.nodes if node.drain == "checkpoint"}
    for run in cluster.live:
        if run.is_stopping:
            continue
        if on := sorted(drained & run.slots.keys()):
            yield Stop(run.run_id, "drained", f"node {on[0]} is drained")
        elif run.deadline is not None and run.deadline <= cluster.now:
            yield Stop(run.run_id, "time_limit", "its time limit is over: it makes room for others and goes on later")
