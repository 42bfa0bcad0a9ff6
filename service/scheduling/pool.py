"""Free slots, indexed so that a search costs the same on ten nodes and on ten thousand."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from service.scheduling.model import Node, Queued, Shape

OPEN = ""
"""The zone of nodes that are kept for nobody; the other zones are named after the run for which their nodes are kept."""

KINDS_OF_NODE = {"cpu": (False, True), "cuda": (True,), "auto": (True, False)}
"""Whether a node has GPUs, by what a run asks for, the preferred kind first."""

_Buckets = defaultdict[int, dict[str, None]]
"""Nodes by number of slots, each a set in insertion order, so that equal inputs give equal decisions."""


def kind_of(queued: Queued) -> object:
    """Runs of one kind fit into the same places."""
    return queued.shapes, queued.device, queued.storage, queued.avoid


@dataclass(frozen=True, slots=True)
class Fit:
    """Where a run would go."""

    shape: Shape
    nodes: tuple[str, ...]
    """Ascending: neighbours by name are neighbours by rank."""


class _Bin:
    """The nodes of one zone, kind and file system that can take something."""

    __slots__ = ("partial", "whole")

    def __init__(self) -> None:
        self.partial: _Buckets = defaultdict(dict)
        """Shared nodes in use, by number of free slots."""
        self.whole: _Buckets = defaultdict(dict)
        """Nodes with all slots free, by number of slots."""

    def copy(self) -> _Bin:
        other = _Bin()
        other.partial.update((size, ids.copy()) for size, ids in self.partial.items())
        other.whole.update((size, ids.copy()) for size, ids in self.whole.items())
        return other


class Pool:
    """The nodes that take work, and what is free on them. A node that drains is not in it."""

    def __init__(self, nodes: Iterable[Node], is_empty: bool = False) -> None:
        """`is_empty`: as if nothing were on the nodes."""
        takes_work = (node for node in nodes if not node.drain)
        self.nodes = {node.id: node for node in sorted(takes_work, key=lambda node: node.id)}
        self.free = {node.id: tuple(range(node.num_slots)) if is_empty else node.free for node in self.nodes.values()}
        self.zone: dict[str, str] = {}
        """Of the nodes that are kept for a run."""
        self._bins: dict[tuple[str, bool, str | None], _Bin] = {}
        self._pairs: dict[tuple[str, bool, str], tuple[_Bin, _Bin]] = {}
        self._sizes = Counter((node.is_cuda, node.storage) for node in self.nodes.values())
        """Nodes of each kind on each file system."""
        for node in self.nodes.values():
            self._add(node)

    @cached_property
    def empty(self) -> Pool:
        """The same nodes with nothing on them: what a run cannot get here, it never gets."""
        return Pool(self.nodes.values(), is_empty=True)

    def copy(self) -> Pool:
        other = object.__new__(Pool)
        other.nodes, other._sizes = self.nodes.copy(), self._sizes.copy()
        other.free, other.zone = self.free.copy(), self.zone.copy()
        other._pairs = {}
        other._bins = {key: bin.copy() for key, bin in self._bins.items()}
        return other

    def avoided(self, queued: Queued) -> frozenset[str]:
        """The nodes that the run does not get: those that failed it, unless no others could ever do."""
        if queued.avoid and self.empty.find(queued, avoid=queued.avoid) is None:
            return frozenset()
        return queued.avoid

    def find(self, queued: Queued, zones: Sequence[str] = (OPEN,), avoid: frozenset[str] = frozenset()) -> Fit | None:
        """The first of the run's shapes that fits into the free slots of these zones, the first zone preferred. None where none does."""
        for shape in queued.shapes:
            nodes = self._one(shape[1], queued, zones, avoid) if shape[0] == 1 else self._gang(shape, queued, zones, avoid)
            if nodes:
                return Fit(shape, tuple(sorted(nodes)))
        return None

    def slots(self, fit: Fit) -> dict[str, tuple[int, ...]]:
        """What an attempt there owns: whole nodes, but for a run on one shared node."""
        if fit.shape[0] == 1 and self.nodes[fit.nodes[0]].is_shared:
            return {fit.nodes[0]: self.free[fit.nodes[0]][: fit.shape[1]]}
        return {id: tuple(range(self.nodes[id].num_slots)) for id in fit.nodes}

    def take(self, slots: Mapping[str, tuple[int, ...]]) -> None:
        for id, taken in slots.items():
            node = self._remove(id)
            self.free[id] = tuple(slot for slot in self.free[id] if slot not in taken)
            self._add(node)

    def release(self, id: str, slots: Iterable[int]) -> None:
        node = self._remove(id)
        self.free[id] = tuple(sorted({*self.free[id], *slots}))
        self._add(node)

    def join(self, node: Node) -> None:
        """One more node."""
        self.nodes[node.id], self.free[node.id] = node, node.free
        self._sizes[node.is_cuda, node.storage] += 1
        self._add(node)

    def keep(self, ids: Iterable[str], zone: str) -> None:
        """From now on these nodes belong to `zone`."""
        for id in sorted(ids):
            node = self._remove(id)
            self.zone[id] = zone
            self._add(node)

    def is_whole(self, id: str) -> bool:
        """Whether nothing is on the node."""
        return len(self.free[id]) == self.nodes[id].num_slots

    def _one(self, ranks: int, queued: Queued, zones: Sequence[str], avoid: frozenset[str]) -> list[str]:
        """The fullest node that still fits, so that whole nodes stay whole."""
        for is_cuda in KINDS_OF_NODE[queued.device]:
            bins = [bin for zone in zones if (bin := self._bins.get((zone, is_cuda, queued.storage)))]
            for buckets in ([bin.partial for bin in bins], [bin.whole for bin in bins]):
                for size in sorted({size for of_zone in buckets for size, ids in of_zone.items() if size >= ranks and ids}):
                    ids = (id for of_zone in buckets for id in of_zone.get(size, ()) if id not in avoid)
                    if (first := next(ids, None)) is not None:
                        return [first]
        return []

    def _gang(self, shape: Shape, queued: Queued, zones: Sequence[str], avoid: frozenset[str]) -> list[str]:
        """Whole nodes of one kind on one file system: that with the fewest nodes to spare, and there the smallest nodes that do."""
        num_nodes, ranks = shape
        for is_cuda in KINDS_OF_NODE[queued.device]:
            found: list[tuple[int, str, list[dict[str, None]]]] = []
            for (kind, storage), size in self._sizes.items():
                if kind != is_cuda or size < num_nodes or queued.storage not in (None, storage):
                    continue
                buckets = sorted(
                    (
                        (slots, order, ids)
                        for order, zone in enumerate(zones)
                        if (bin := self._bins.get((zone, is_cuda, storage)))
                        for slots, ids in bin.whole.items()
                        if slots >= ranks and ids
                    ),
                    key=lambda bucket: bucket[:2],
                )
                count = sum(len(ids) - sum(id in ids for id in avoid) for _, _, ids in buckets)
                if count >= num_nodes:
                    found.append((count, storage, [ids for _, _, ids in buckets]))
            if found:
                _, _, best = min(found, key=lambda group: group[:2])
                fit = [id for ids in best for id in ids if id not in avoid]
                return sorted(fit, key=lambda id: id in queued.avoid)[:num_nodes] if queued.avoid else fit[:num_nodes]
        return []

    def _add(self, node: Node) -> None:
        for ids in self._sets(node):
            ids[node.id] = None

    def _remove(self, id: str) -> Node:
        node = self.nodes[id]
        for ids in self._sets(node):
            del ids[id]
        return node

    def _sets(self, node: Node) -> tuple[dict[str, None], ...]:
        """Where the index has the node: under its file system, and under None for runs that may go anywhere."""
        num_free = len(self.free[node.id])
        if num_free < node.num_slots and (num_free == 0 or not node.is_shared):
            return ()
        key = (self.zone.get(node.id, OPEN), node.is_cuda, node.storage)
        anywhere, here = self._pairs.get(key) or self._pair(*key)
        if num_free == node.num_slots:
            return anywhere.whole[num_free], here.whole[num_free]
        return anywhere.partial[num_free], here.partial[num_free]

    def _pair(self, zone: str, is_cuda: bool, storage: str) -> tuple[_Bin, _Bin]:
        anywhere, here = (self._bins.setdefault((zone, is_cuda, where), _Bin()) for where in (None, storage))
        self._pairs[zone, is_cuda, storage] = anywhere, here
        return anywhere, here
