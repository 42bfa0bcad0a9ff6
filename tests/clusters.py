"""Small clusters for tests of the scheduler."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from service.scheduling.model import Cluster, Decisions, Live, Node, Queued
from service.scheduling.pool import Pool

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


SHAPES = st.sampled_from([(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 4), (3, 2), (4, 4)])
OWNERS = st.sampled_from(["ann", "bob", "eve"])
TIMES = st.one_of(st.none(), st.floats(1.0, 10_000.0))


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """Up to six nodes, with live runs that are where the scheduler could have put them."""
    kinds = st.tuples(st.sampled_from([1, 2, 4]), st.booleans(), st.sampled_from(["s", "t"]), st.booleans())
    nodes = [
        Node(f"n{number}", size, tuple(range(size)), is_cuda, storage, is_shared)
        for number, (size, is_cuda, storage, is_shared) in enumerate(draw(st.lists(kinds, max_size=6)))
    ]
    waiting = [draw(queued_runs(number)) for number in range(draw(st.integers(0, 8)))]
    pool, running = Pool(nodes), []
    for number in range(draw(st.integers(0, 6))):
        run = draw(queued_runs(100 + number))
        if fit := pool.find(run):
            slots = pool.slots(fit)
            pool.take(slots)
            is_stopping = draw(st.booleans())
            stopped_for = draw(st.sampled_from([None, "r0", "r1", "gone"])) if is_stopping else None
            ends = draw(TIMES)
            running.append(
                Live(
                    run.run_id,
                    run.owner,
                    run.priority,
                    slots,
                    started_at=NOW - draw(st.floats(0, 1000)),
                    ends_at=None if ends is None else NOW + ends,
                    deadline=draw(st.sampled_from([None, NOW - 1, NOW + 1])),
                    is_stopping=is_stopping,
                    stopped_for=stopped_for,
                    can_be_preempted=draw(st.booleans()),
                )
            )
    drains = st.sampled_from(["", "", "", "finish", "checkpoint"])
    after = tuple(replace(node, free=pool.free[node.id], drain=draw(drains)) for node in nodes)
    return Cluster(NOW, after, tuple(waiting), tuple(running), draw(st.dictionaries(OWNERS, st.floats(0, 1e5))))


@st.composite
def queued_runs(draw: st.DrawFn, number: int) -> Queued:
    return Queued(
        run_id=f"r{number}",
        owner=draw(OWNERS),
        priority=draw(st.integers(-2, 2)),
        sequence=number,
        queued_at=NOW - draw(st.floats(0, 20_000)),
        shapes=tuple(draw(st.lists(SHAPES, min_size=1, max_size=3, unique=True))),
        device=draw(st.sampled_from(["auto", "cpu", "cuda"])),
        max_seconds=draw(TIMES),
        storage=draw(st.sampled_from([None, None, "s"])),
        avoid=frozenset(draw(st.lists(st.sampled_from(["n0", "n1", "n2"]), max_size=2))),
    )
