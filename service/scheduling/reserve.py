"""The nodes that a run could have first."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from heapq import nsmallest

from service.scheduling.model import Queued, Reservation
from service.scheduling.pool import KINDS_OF_NODE, OPEN, Fit
from service.scheduling.tenants import Tenants


def earliest(queued: Queued, tenants: Tenants, zones: tuple[str, ...] = (OPEN,)) -> tuple[float, Fit] | None:
    """When and where the run could start if nobody else came; infinite: when is not known. None: never in these zones.

    Free nodes come first, so that what a reservation has gathered is in it again in the next pass.
    """
    pool = tenants.pool
    avoid = pool.avoided(queued)
    found: list[tuple[float, int, int, str, Fit]] = []
    for preference, (num_nodes, ranks) in enumerate(queued.shapes):
        groups: dict[tuple[bool, str], list[tuple[float, str]]] = defaultdict(list)
        for node in pool.nodes.values():
            if queued.storage not in (None, node.storage) or node.id in avoid or pool.zone.get(node.id, OPEN) not in zones:
                continue
            need = tenants.need(node.id, num_nodes, ranks)
            if need is not None:
                groups[node.is_cuda, node.storage].append((tenants.free_at(node.id, need), node.id))
        for order, is_cuda in enumerate(KINDS_OF_NODE[queued.device]):
            for (kind, storage), nodes in groups.items():
                if kind == is_cuda and len(nodes) >= num_nodes:
                    first = nsmallest(num_nodes, nodes)
                    fit = Fit((num_nodes, ranks), tuple(sorted(id for _, id in first)))
                    found.append((first[-1][0], preference, order, storage, fit))
    if not found:
        return None
    starts_at, *_, fit = min(found, key=lambda candidate: candidate[:4])
    return starts_at, fit


def zones_for(queued: Queued, reservations: Iterable[Reservation], now: float) -> tuple[str, ...]:
    """Where the run may go: nodes that are kept for itself, for nobody, or for others whom it would not delay."""
    ends_at = math.inf if queued.max_seconds is None else now + queued.max_seconds
    reserved = (kept.run_id for kept in reservations if kept.run_id == queued.run_id or ends_at <= (kept.starts_at or -math.inf))
    return (*reserved, OPEN)


def known(time: float) -> float | None:
    return None if math.isinf(time) else time
