"""Small clusters for tests of the scheduler."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from service.scheduling.model import Cluster, Decisions, Live, Node, Queued

NOW = 1_000_000.0


def node(id: str, num_slots: int = 8, **changes: Any) -> Node:
    """A free GPU node that several runs may share."""
    return Node(
        **{"id": id, "num_slots": num_slots, "free": tuple(range(num_slots)), "is_cuda": True, "storage": "nfs", "is_shared": True}
        | changes
    )


def cpu_node(id: str, num_slots: int = 4, **changes: Any) -> Node:
    return node(id, num_slots, **{"is_cuda": False, "is_shared": False} | changes)


def queued(run_id: str, *shapes: tuple[int, int], waited: float = 0.0, **changes: Any) -> Queued:
    fields = {"run_id": run_id, "owner": "ann", "priority": 0, "sequence": int(run_id.strip("abcdefghijklmnopqrstuvwxyz-") or 0)}
    return Queued(**fields | {"queued_at": NOW - waited, "shapes": shapes or ((1, 1),), "device": "auto"} | changes)


def live(run_id: str, slots: Mapping[str, Iterable[int]] | list[str], **changes: Any) -> Live:
    """`slots` by node, or names of nodes of which it has 8 slots each."""
    by_node = {name: tuple(range(8)) for name in slots} if isinstance(slots, list) else {name: tuple(of) for name, of in slots.items()}
    return Live(**{"run_id": run_id, "owner": "bob", "priority": 0, "slots": by_node, "started_at": NOW - 100.0, "ends_at": None} | changes)


def cluster(nodes: Iterable[Node], waiting: Iterable[Queued] = (), running: Iterable[Live] = (), **changes: Any) -> Cluster:
    """What live runs hold is taken from the nodes' free slots."""
    running = tuple(running)
    used = {(id, slot) for run in running for id, slots in run.slots.items() for slot in slots}
    left = [replace(one, free=tuple(slot for slot in one.free if (one.id, slot) not in used)) for one in nodes]
    return Cluster(now=NOW, nodes=tuple(left), queued=tuple(waiting), live=running, **changes)


def placed(decisions: Decisions) -> dict[str, list[str]]:
    """The nodes of each run that starts."""
    return {place.run_id: list(place.slots) for place in decisions.places}


def stopped(decisions: Decisions) -> dict[str, str | None]:
    """By run, in whose favour."""
    return {stop.run_id: stop.in_favour_of for stop in decisions.stops}
