"""Who gives way to a run of higher priority: the lowest priorities that suffice, among these the fewest, the latest started."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from service.scheduling.model import Live, Queued, Shape
from service.scheduling.pool import KINDS_OF_NODE, OPEN, Fit
from service.scheduling.tenants import Tenants


class Price(NamedTuple):
    """What clearing a node costs; the cheapest sorts first."""

    level: float
    """Highest priority among the victims; -inf where none is needed: there is room, or what is in the way stops already."""
    num_victims: int
    num_slots: int
    """That the victims hold, on all their nodes."""
    seniority: float
    """Minus the time since which the longest-running victim runs."""
    node: str
    victims: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Clearing:
    """Where a run goes once the victims are gone."""

    fit: Fit
    victims: tuple[str, ...]


class Preemption:
    """Prices are made once a pass; nodes that were given away since are left alone until the next."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self._prices: dict[tuple[bool, int], list[Price]] = {}
        self._given: set[str] = set()
        can_give_way = (run.priority for run in tenants.runs.values() if run.can_be_preempted and not run.is_stopping)
        self.lowest: float = min(can_give_way, default=math.inf)
        """Only runs above this priority can preempt any."""

    def give(self, nodes: Sequence[str]) -> None:
        self._given.update(nodes)

    def clear(
        self, queued: Queued, below: float, zones: tuple[str, ...] = (OPEN,), preferred: frozenset[str] = frozenset()
    ) -> Clearing | None:
        """Room for the first of the run's shapes for which runs of priority less than `below` can make it. None: for none."""
        avoid = self._tenants.pool.avoided(queued)
        for shape in queued.shapes:
            for is_cuda in KINDS_OF_NODE[queued.device]:
                prices = self._eligible(queued, shape, is_cuda, below, zones, avoid, preferred)
                groups = [group for group in prices.values() if len(group) >= shape[0]]
                if groups:
                    group = min(groups, key=lambda group: (group[shape[0] - 1].level, group[0]))
                    return _choose(group, shape, preferred)
        return None

    def _eligible(
        self,
        queued: Queued,
        shape: Shape,
        is_cuda: bool,
        below: float,
        zones: tuple[str, ...],
        avoid: frozenset[str],
        preferred: frozenset[str],
    ) -> dict[str, list[Price]]:
        """Nodes that can be cleared, by file system, the cheapest first."""
        pool = self._tenants.pool
        found: dict[str, list[Price]] = defaultdict(list)
        for price in self._price_list(shape):
            if price.victims and price.level >= below:
                break
            node = pool.nodes[price.node]
            if (
                node.is_cuda == is_cuda
                and node.num_slots >= shape[1]
                and queued.storage in (None, node.storage)
                and node.id not in avoid
                and node.id not in self._given
                and pool.zone.get(node.id, OPEN) in zones
            ):
                found[node.storage].append(price)
                if shape[0] == 1 and not preferred:
                    break
        return found

    def _price_list(self, shape: Shape) -> list[Price]:
        key = (True, 0) if shape[0] > 1 else (False, shape[1])
        if key not in self._prices:
            prices = (self._price(id, shape) for id in self._tenants.pool.nodes)
            self._prices[key] = sorted(price for price in prices if price)
        return self._prices[key]

    def _price(self, id: str, shape: Shape) -> Price | None:
        """None: not to be had, because a run that cannot be preempted is in the way."""
        need = self._tenants.need(id, shape[0], shape[1] if shape[0] == 1 else 1)
        if need is None:
            return None
        missing = need - len(self._tenants.pool.free[id]) - self._tenants.ownerless(id)
        candidates: list[Live] = []
        for run in self._tenants.on[id] if missing > 0 else ():
            if run.is_stopping:
                missing -= len(run.slots[id])
            elif run.can_be_preempted:
                candidates.append(run)
        if missing <= 0:
            return Price(-math.inf, 0, 0, 0.0, id, ())
        victims = _fewest(candidates, id, missing)
        if not victims:
            return None
        return Price(
            level=max(run.priority for run in victims),
            num_victims=len(victims),
            num_slots=sum(self._tenants.num_slots[run.run_id] for run in victims),
            seniority=-min(run.started_at for run in victims),
            node=id,
            victims=tuple(sorted(run.run_id for run in victims)),
        )


def _fewest(candidates: list[Live], id: str, missing: int) -> list[Live]:
    """Runs with so many slots of the node: of the lowest priorities that suffice, the fewest. None, where all do not suffice."""
    if sum(len(run.slots[id]) for run in candidates) < missing:
        return []
    if len(candidates) == 1:
        return candidates
    candidates.sort(key=lambda run: (run.priority, -run.started_at, run.run_id))
    totals = accumulate(len(run.slots[id]) for run in candidates)
    last = next(index for index, total in enumerate(totals) if total >= missing)
    rest = candidates[: last + 1]
    chosen = []
    while missing > 0:
        enough = [run for run in rest if len(run.slots[id]) >= missing]
        run = min(enough, key=lambda run: len(run.slots[id])) if enough else max(rest, key=lambda run: len(run.slots[id]))
        chosen.append(run)
        rest.remove(run)
        missing -= len(run.slots[id])
    return chosen


def _choose(prices: list[Price], shape: Shape, preferred: frozenset[str]) -> Clearing:
    """Of nodes in the order of their prices, enough for the shape. A run of several nodes has them whole, so two nodes have either the same
    victim or none in common: the victims are chosen by how many nodes each gives."""
    num_nodes = shape[0]
    nodes = sorted((price.node for price in prices if not price.victims), key=lambda id: (id not in preferred, id))[:num_nodes]
    victims: list[str] = []
    missing = num_nodes - len(nodes)
    groups: dict[tuple[str, ...], list[Price]] = defaultdict(list)
    for price in prices:
        if price.victims and price.level <= prices[num_nodes - 1].level:
            groups[price.victims].append(price)
    most = max(map(len, groups.values()), default=0)
    by_yield = iter(sorted(groups.values(), key=lambda group: group[0].num_victims / len(group)))
    while missing > 0:
        enough = [group for group in groups.values() if len(group) >= missing] if missing <= most else []
        group = min(enough, key=lambda group: group[0].num_victims) if enough else next(by_yield)
        del groups[group[0].victims]
        nodes += [price.node for price in group[:missing]]
        victims += group[0].victims
        missing = num_nodes - len(nodes)
    return Clearing(Fit(shape, tuple(sorted(nodes))), tuple(victims))
