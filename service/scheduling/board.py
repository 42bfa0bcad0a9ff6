"""What a pass has left, and what changes of it would let a run start: the arithmetic behind explain.py."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import cached_property

from service.scheduling.decide import decide
from service.scheduling.model import Cluster, Decisions, Live, Node, Policy, Queued, Shape
from service.scheduling.order import positions
from service.scheduling.pool import KINDS_OF_NODE, OPEN, Fit, Pool
from service.scheduling.preempt import Preemption
from service.scheduling.reserve import earliest, zones_for
from service.scheduling.tenants import Tenants

MAX_AHEAD = 200
"""A change is tried with the runs ahead, who might take what it frees; a run behind more than so many is not told of changes."""


class Board:
    """Build one for a snapshot and its decisions, and ask it about many runs."""

    def __init__(self, cluster: Cluster, decisions: Decisions, policy: Policy) -> None:
        self.cluster, self.decisions, self.policy = cluster, decisions, policy
        self.places = {place.run_id: place for place in decisions.places}
        self.reservations = {kept.run_id: kept for kept in decisions.reservations}
        self.live = {run.run_id: run for run in cluster.live}

    @cached_property
    def positions(self) -> dict[str, int]:
        return positions(self.cluster, self.policy)

    @cached_property
    def pool(self) -> Pool:
        return self._after_pass(self.cluster.nodes)

    @cached_property
    def undrained(self) -> Pool:
        """Were no node draining."""
        return self._after_pass([replace(node, drain="") for node in self.cluster.nodes])

    @cached_property
    def tenants(self) -> Tenants:
        tenants = Tenants(self.pool, self.cluster.live, self.cluster.now)
        queued = {run.run_id: run for run in self.cluster.queued}
        for place in self.decisions.places:
            run = queued[place.run_id]
            ends_at = None if run.max_seconds is None else self.cluster.now + run.max_seconds
            tenants.add(Live(run.run_id, run.owner, run.priority, place.slots, self.cluster.now, ends_at, can_be_preempted=False))
        for stop in self.decisions.stops:
            tenants.stop(stop.run_id)
        return tenants

    @cached_property
    def preemption(self) -> Preemption:
        return Preemption(self.tenants)

    def fit(self, queued: Queued, pool: Pool | None = None) -> Fit | None:
        """Where the run could go now, or with another pool."""
        pool = pool or self.pool
        return pool.find(queued, zones_for(queued, self.decisions.reservations, self.cluster.now), pool.avoided(queued))

    def victims_of(self, queued: Queued) -> list[str]:
        """Who stops so that the run can start."""
        stopping = [stop.run_id for stop in self.decisions.stops if stop.in_favour_of == queued.run_id]
        return sorted({*stopping, *(run.run_id for run in self.cluster.live if run.stopped_for == queued.run_id)})

    def other_shape(self, queued: Queued, pool: Pool) -> Shape | None:
        """The most ranks, on the fewest nodes, on which the run would find room, of those numbers that divide the run's ranks: these
        divide its batch as well."""
        largest = max((node.num_slots for node in pool.nodes.values()), default=0)
        world_size = queued.shapes[0][0] * queued.shapes[0][1]
        for num_ranks in _divisors(world_size):
            for ranks_per_node in _divisors(num_ranks):
                shape = (num_ranks // ranks_per_node, ranks_per_node)
                if ranks_per_node <= largest and shape not in queued.shapes and self.fit(replace(queued, shapes=(shape,)), pool):
                    return shape
        return None

    def at_priority(self, queued: Queued, highest: int = 100) -> tuple[int, tuple[str, ...]] | None:
        """The least priority at which others would give way to the run, and who."""
        if not self.policy.preemption:
            return None
        levels = []
        for shape in queued.shapes:
            clearing = self.preemption.clear(replace(queued, shapes=(shape,)), highest, (queued.run_id, OPEN))
            if clearing and clearing.victims:
                levels.append(max(self.tenants.runs[run_id].priority for run_id in clearing.victims))
        if not levels or (priority := min(levels) + 1) <= queued.priority:
            return None
        raised = replace(queued, priority=priority)
        others = (run for run in self.cluster.queued if run.run_id != queued.run_id)
        decisions = decide(replace(self.cluster, queued=(*others, raised)), self.policy, until=queued.run_id)
        victims = tuple(stop.run_id for stop in decisions.stops if stop.in_favour_of == queued.run_id)
        return (priority, victims) if victims else None

    def when_ended(self, queued: Queued) -> tuple[float, list[str]] | None:
        """The live runs whose end lets the run start, the earliest that suffice, and when that is expected; infinite: not known. None where
        runs ahead of it would take their slots."""
        if self.positions[queued.run_id] > MAX_AHEAD:
            return None
        first = earliest(queued, self.tenants, zones_for(queued, self.decisions.reservations, self.cluster.now))
        if first is None:
            return None
        starts_at, fit = first
        ending = sorted({run.run_id for id in fit.nodes for run in self.tenants.leaving(id, fit.shape)})
        return (starts_at, ending) if ending and self._starts(queued, without(self.cluster, ending)) else None

    def more_nodes(self, queued: Queued) -> tuple[int, int] | None:
        """How many more free nodes of how many slots would let the run start. None where runs ahead of it would take them."""
        if self.positions[queued.run_id] > MAX_AHEAD:
            return None
        pattern = self._pattern(queued)
        new: list[Node] = []
        pool = self.pool.copy()
        for number in range(max(num_nodes for num_nodes, _ in queued.shapes)):
            # A space sorts before every name.
            new.append(replace(pattern, id=f" {number}", free=tuple(range(pattern.num_slots)), drain=""))
            pool.join(new[-1])
            if self.fit(queued, pool):
                starts = self._starts(queued, replace(self.cluster, nodes=(*self.cluster.nodes, *new)))
                return (len(new), pattern.num_slots) if starts else None
        return None

    def _pattern(self, queued: Queued) -> Node:
        """A node like those that the run could be on, of the kind and file system with the most free."""
        kinds = KINDS_OF_NODE[queued.device]
        ranks = min(ranks for _, ranks in queued.shapes)
        free = Counter(
            replace(node, id="", free=())
            for node in self.pool.nodes.values()
            if node.is_cuda in kinds and queued.storage in (None, node.storage) and node.num_slots >= ranks and self.pool.is_whole(node.id)
        )
        if free:
            return max(free, key=lambda node: (free[node], -node.num_slots, node.storage))
        alike = (node for node in self.cluster.nodes if node.is_cuda in kinds and node.num_slots >= ranks)
        unknown = Node("", ranks, (), kinds[0], queued.storage or "", is_shared=kinds[0])
        return min(alike, key=lambda node: (queued.storage not in (None, node.storage), node.num_slots, node.id), default=unknown)

    def _starts(self, queued: Queued, changed: Cluster) -> bool:
        return any(place.run_id == queued.run_id for place in decide(changed, self.policy, until=queued.run_id).places)

    def _after_pass(self, nodes: Iterable[Node]) -> Pool:
        pool = Pool(nodes)
        for place in self.decisions.places:
            pool.take(place.slots)
        for kept in self.decisions.reservations:
            pool.keep(kept.nodes, kept.run_id)
        return pool


def without(cluster: Cluster, run_ids: Collection[str]) -> Cluster:
    """With these live runs over: their slots are free, and charged to their owners."""
    usage, freed = dict(cluster.usage), defaultdict[str, set[int]](set)
    for run in cluster.live:
        if run.run_id in run_ids:
            seconds = max(0.0, cluster.now - run.started_at)
            usage[run.owner] = usage.get(run.owner, 0.0) + sum(map(len, run.slots.values())) * seconds
            for id, slots in run.slots.items():
                freed[id].update(slots)
    nodes = (replace(node, free=tuple(sorted({*node.free, *freed[node.id]}))) if node.id in freed else node for node in cluster.nodes)
    live = (run for run in cluster.live if run.run_id not in run_ids)
    return replace(cluster, nodes=tuple(nodes), live=tuple(live), usage=usage)


def _divisors(number: int) -> list[int]:
    """The largest first."""
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)}, reverse=True)
