"""Why a queued run waits, in tokens and sentences, and what would let it start.

Nothing is guessed: each "if" was tried on the changed input (board.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, replace

from service.scheduling.board import Board
from service.scheduling.decide import decide
from service.scheduling.model import Cluster, Decisions, Explanation, Place, Policy, Queued, Reason, Shape
from service.scheduling.pool import KINDS_OF_NODE, OPEN, Fit, Pool
from service.scheduling.reserve import known


@dataclass(frozen=True, slots=True)
class PlanAnswer:
    """What would become of a run that were submitted now."""

    feasible: bool
    """Whether the nodes that take work could ever run it."""
    starts_now: bool
    place: Place | None
    """Where, if now."""
    position: int
    explanation: Explanation


def explain(queued: Queued, cluster: Cluster, decisions: Decisions, policy: Policy) -> Explanation:
    """Of one run. For several of one snapshot build one Board and ask `explain_on`."""
    return explain_on(queued, Board(cluster, decisions, policy))


def plan(queued: Queued, cluster: Cluster, policy: Policy) -> PlanAnswer:
    """As if the run, which is not in the queue, were submitted now."""
    with_it = replace(cluster, queued=(*cluster.queued, queued))
    decisions = decide(with_it, policy)
    board = Board(with_it, decisions, policy)
    place = board.places.get(queued.run_id)
    feasible = board.pool.empty.find(queued) is not None
    return PlanAnswer(feasible, place is not None, place, board.positions[queued.run_id], explain_on(queued, board))


def explain_on(queued: Queued, board: Board) -> Explanation:
    position = board.positions[queued.run_id]
    if place := board.places.get(queued.run_id):
        reason = Reason("about_to_start", f"starts on {_names(place.slots, 'node')}")
        return Explanation((reason,), (), board.cluster.now, position)
    if reasons := tuple(_never(queued, board)):
        return Explanation(reasons, tuple(_would_be_possible(queued, board)), None, position)
    ending = board.when_ended(queued)
    kept = board.reservations.get(queued.run_id)
    starts_at = kept.starts_at if kept else known(ending[0]) if ending else None
    starts_if = []
    if shape := board.other_shape(queued, board.pool):
        starts_if.append(f"with {_ranks(shape)} it would start now")
    if cleared := board.at_priority(queued):
        starts_if.append(f"at priority {cleared[0]} it would preempt {_names(cleared[1], 'run')}")
    if ending:
        expected = "not known when" if math.isinf(ending[0]) else f"expected {_in(ending[0] - board.cluster.now)}"
        starts_if.append(f"when {_names(ending[1], 'run')} {'ends' if len(ending[1]) == 1 else 'end'}: {expected}")
    if more := board.more_nodes(queued):
        starts_if.append(f"with {_count(more[0], 'more free node')} of {_count(more[1], 'slot')} it would start now")
    next_pass = Reason("about_to_start", "the next pass of the scheduler places it")
    return Explanation(tuple(_not_yet(queued, board, position)) or (next_pass,), tuple(starts_if), starts_at, position)


def _never(queued: Queued, board: Board) -> Iterator[Reason]:
    """Why the cluster could not hold the run with nothing else on it. Nothing, if it could."""
    nodes = board.cluster.nodes
    if board.pool.empty.find(queued):
        return
    if not nodes:
        yield Reason("no_worker", "no worker is connected: start one on each node that is to train")
        return
    if queued.device == "cuda" and not any(node.is_cuda for node in nodes):
        yield Reason(
            "no_gpu", f"needs GPUs, and none of {_count(len(nodes), 'node')} has one: start a worker there, or ask for device auto"
        )
        return
    empty = board.undrained.empty
    if empty.find(queued):
        draining = [node.id for node in nodes if node.drain]
        yield Reason(
            "draining", f"could only run with {_names(draining, 'node')}, which {_is(draining)} being drained: end the drain or add nodes"
        )
        return
    if queued.storage and empty.find(replace(queued, storage=None)):
        here = sum(node.storage == queued.storage for node in nodes)
        message = (
            f"its checkpoints are on file system {queued.storage!r}, where {_count(here, 'node')} {'is' if here == 1 else 'are'} connected"
        )
        yield Reason("storage_elsewhere", f"{message}: start workers there, too few for {_ranks(min(queued.shapes))}")
        return
    ranks = min(ranks for _, ranks in queued.shapes)
    usable = [node for node in nodes if node.is_cuda in KINDS_OF_NODE[queued.device]]
    if (largest := max(node.num_slots for node in usable)) < ranks:
        yield Reason(
            "node_too_small", f"needs {ranks} ranks on one node; the largest has {_count(largest, 'slot')}: ask for fewer on each node"
        )
        return
    num_nodes, ranks = min(queued.shapes)
    groups = Counter((node.is_cuda, node.storage) for node in usable if node.num_slots >= ranks)
    most, total = max(groups.values(), default=0), groups.total()
    alike = "" if most == total else f" ({total} in all, but the nodes of one run share one file system and kind)"
    yield Reason(
        "too_few_nodes", f"needs {num_nodes} nodes of {_count(ranks, 'slot')}; {most} such {_is(range(most))} connected{alike}: add nodes"
    )


def _would_be_possible(queued: Queued, board: Board) -> Iterator[str]:
    if shape := board.other_shape(queued, board.pool.empty):
        yield f"with {_ranks(shape)} the cluster could hold it"
    if more := board.more_nodes(queued):
        yield f"with {_count(more[0], 'more free node')} of {_count(more[1], 'slot')} it would start now"


def _not_yet(queued: Queued, board: Board, position: int) -> Iterator[Reason]:
    """What keeps a run that the cluster can hold, the decisive first."""
    now = board.cluster.now
    if victims := board.victims_of(queued):
        yield Reason("preempting", f"{_names(victims, 'run')} {_is(victims)} writing checkpoints to make room for it")
    if board.pool.avoided(queued) and (fit := board.pool.find(queued)):
        yield Reason("avoided_nodes", f"{_names(fit.nodes, 'node')} would do, but failed it lately: others are waited for")
    others = [kept for kept in board.decisions.reservations if kept.run_id != queued.run_id]
    if others and (fit := _anywhere(queued, board.pool)):
        holders = sorted({board.pool.zone[id] for id in fit.nodes if id in board.pool.zone} - {queued.run_id})
        if holders:
            starts_at = board.reservations[holders[0]].starts_at
            until = "when it starts is not known" if starts_at is None else f"it starts {_in(starts_at - now)}"
            limit = "it has no time limit" if queued.max_seconds is None else f"its time limit is {_duration(queued.max_seconds)}"
            yield Reason("reserved_for_other", f"free nodes are kept for {_names(holders, 'run')}: {until}, and {limit}")
    fit = board.fit(queued, board.undrained)
    if fit and (draining := [id for id in fit.nodes if id not in board.pool.nodes]):
        yield Reason("draining", f"{_names(draining, 'node')} would do, but takes nothing new: it is being drained")
    if not _anywhere(queued, board.pool):
        yield Reason("busy", _busy(queued, board))
    if position > 1:
        yield Reason("behind_others", "others are tried before it: they have a higher priority, an owner who uses less, or came first")


def _busy(queued: Queued, board: Board) -> str:
    num_nodes, ranks = min(queued.shapes)
    pool = board.pool
    avoided = pool.avoided(queued)
    usable: Counter[tuple[bool, str]] = Counter()
    free: Counter[tuple[bool, str]] = Counter()
    for node in pool.nodes.values():
        is_usable = node.is_cuda in KINDS_OF_NODE[queued.device] and queued.storage in (None, node.storage) and node.id not in avoided
        if is_usable and node.num_slots >= ranks:
            usable[node.is_cuda, node.storage] += 1
            free[node.is_cuda, node.storage] += pool.is_whole(node.id)
    kept = board.reservations.get(queued.run_id)
    for_it = f"; {_names(sorted(kept.nodes), 'node')} {_is(kept.nodes)} kept for it" if kept else ""
    if num_nodes == 1:
        return f"needs {_count(ranks, 'free slot')} on one node, and none of {_count(usable.total(), 'node')} has so many{for_it}"
    most = max(free.values(), default=0)
    alike = " on any one file system" if len(usable) > 1 else ""
    return f"needs {num_nodes} nodes with all slots free: {most} of {usable.total()} {_is(range(most))}{alike}{for_it}"


def _anywhere(queued: Queued, pool: Pool) -> Fit | None:
    """Were no node kept for another run."""
    return pool.find(queued, (OPEN, *sorted(set(pool.zone.values()))), pool.avoided(queued))


def _is(things: Sized) -> str:
    return "is" if len(things) == 1 else "are"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _names(names: Iterable[str], noun: str) -> str:
    """At most three of them."""
    names = list(names)
    if len(names) == 1:
        return f"{noun} {names[0]}"
    if len(names) > 3:
        return f"{noun}s {', '.join(names[:3])} and {len(names) - 3} more"
    return f"{noun}s {', '.join(names[:-1])} and {names[-1]}"


def _ranks(shape: Shape) -> str:
    return f"{_count(shape[1], 'rank')} on {'one node' if shape[0] == 1 else f'each of {shape[0]} nodes'}"


def _in(seconds: float) -> str:
    return "at any moment" if seconds < 1 else f"in {_duration(seconds)}"


def _duration(seconds: float) -> str:
    for unit, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"
