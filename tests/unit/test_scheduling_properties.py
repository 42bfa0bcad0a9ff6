"""What holds of the decisions for every cluster, with brute force as the oracle of what fits."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from service.scheduling.decide import decide
from service.scheduling.model import Cluster, Decisions, Live, Node, Policy, Queued
from tests.clusters import clusters


def could_go(run: Queued, nodes: list[Node], free: dict[str, int]) -> list[frozenset[str]]:
    """Brute force: every set of nodes on which one of the run's shapes fits, were the avoided nodes as good as others."""
    found = []
    for num_nodes, ranks in run.shapes:
        for chosen in combinations(nodes, num_nodes):
            is_alike = len({(node.is_cuda, node.storage) for node in chosen}) == 1
            is_fit = all(
                free[node.id] >= ranks if num_nodes == 1 and node.is_shared else free[node.id] == node.num_slots >= ranks for node in chosen
            )
            is_allowed = all((node.is_cuda or run.device != "cuda") and run.storage in (None, node.storage) for node in chosen)
            if is_alike and is_fit and is_allowed:
                found.append(frozenset(node.id for node in chosen))
    return found


def allowed(run: Queued, nodes: list[Node], free: dict[str, int]) -> list[frozenset[str]]:
    """Without the avoided nodes, unless the run could then never be anywhere."""
    ever = could_go(run, nodes, {node.id: node.num_slots for node in nodes})
    strict = any(not chosen & run.avoid for chosen in ever)
    return [chosen for chosen in could_go(run, nodes, free) if not strict or not chosen & run.avoid]


def takes_work(cluster: Cluster) -> list[Node]:
    return [node for node in cluster.nodes if not node.drain]


def left(cluster: Cluster, decisions: Decisions) -> dict[str, int]:
    free = {node.id: len(node.free) for node in cluster.nodes}
    for place in decisions.places:
        for id, slots in place.slots.items():
            free[id] -= len(slots)
    return free


@given(clusters())
def test_no_slot_is_given_twice_nor_one_that_is_not_free(cluster: Cluster) -> None:
    """Of nodes that take work."""
    free = {(node.id, slot) for node in takes_work(cluster) for slot in node.free}
    given_away = Counter((id, slot) for place in decide(cluster).places for id, slots in place.slots.items() for slot in slots)
    assert set(given_away) <= free
    assert all(times == 1 for times in given_away.values())


@given(clusters())
def test_every_gang_is_whole_and_where_it_may_be(cluster: Cluster) -> None:
    """One of the run's shapes, as brute force finds it; once for each run."""
    runs, nodes = {run.run_id: run for run in cluster.queued}, {node.id: node for node in cluster.nodes}
    decisions = decide(cluster)
    assert len({place.run_id for place in decisions.places}) == len(decisions.places)
    for place in decisions.places:
        run = runs[place.run_id]
        assert place.shape in run.shapes
        assert len(place.slots) == place.shape[0]
        assert frozenset(place.slots) in allowed(run, takes_work(cluster), {id: len(node.free) for id, node in nodes.items()})
        for id, slots in place.slots.items():
            is_part = place.shape[0] == 1 and nodes[id].is_shared
            assert len(slots) == (place.shape[1] if is_part else nodes[id].num_slots)


@given(clusters())
def test_where_nothing_is_kept_no_run_waits_that_would_fit(cluster: Cluster) -> None:
    """Work conserving: brute force finds no place for any run that was not placed."""
    decisions = decide(cluster, Policy(max_reservations=0, preemption=False))
    kept = {id for reservation in decisions.reservations for id in reservation.nodes}
    nodes = [node for node in takes_work(cluster) if node.id not in kept]
    started = {place.run_id for place in decisions.places}
    for run in cluster.queued:
        if run.run_id not in started and run.run_id not in {reservation.run_id for reservation in decisions.reservations}:
            # What only others could hold is judged on the whole cluster.
            fits = allowed(run, takes_work(cluster), left(cluster, decisions))
            assert not [chosen for chosen in fits if chosen <= {node.id for node in nodes}], run


@given(clusters())
def test_no_run_is_placed_and_stopped_and_none_is_stopped_twice(cluster: Cluster) -> None:
    """Nor one that stops already."""
    decisions = decide(cluster)
    stops = [stop.run_id for stop in decisions.stops]
    assert len(set(stops)) == len(stops)
    assert not set(stops) & {place.run_id for place in decisions.places}
    assert set(stops) <= {run.run_id for run in cluster.live if not run.is_stopping}


@given(clusters())
def test_preemption_takes_from_the_lower_for_the_higher_and_suffices(cluster: Cluster) -> None:
    """Once the victims and those that stop already are gone, the run fits on the nodes kept for it; without any one victim it would not."""
    decisions = decide(cluster)
    runs, lives = {run.run_id: run for run in cluster.queued}, {run.run_id: run for run in cluster.live}
    kept = {reservation.run_id: reservation.nodes for reservation in decisions.reservations}
    victims = defaultdict(list)
    for stop in decisions.stops:
        if stop.cause == "preempted":
            victims[stop.in_favour_of].append(lives[stop.run_id])
    for run_id, given_way in victims.items():
        assert all(victim.priority < runs[run_id].priority and victim.can_be_preempted for victim in given_way)
        nodes = [node for node in takes_work(cluster) if node.id in kept[run_id]]
        going = [run for run in cluster.live if run.is_stopping or run.run_id in {stop.run_id for stop in decisions.stops}]
        assert frozenset(kept[run_id]) in could_go(runs[run_id], nodes, _freed(cluster, decisions, going))
        for victim in given_way:
            others = [run for run in going if run.run_id != victim.run_id]
            assert frozenset(kept[run_id]) not in could_go(runs[run_id], nodes, _freed(cluster, decisions, others))


def _freed(cluster: Cluster, decisions: Decisions, gone: list[Live]) -> dict[str, int]:
    free = left(cluster, decisions)
    for run in gone:
        for id, slots in run.slots.items():
            free[id] += len(slots)
    return free


@given(clusters())
def test_no_node_is_kept_for_two_runs_nor_given_to_one_that_would_delay_it(cluster: Cluster) -> None:
    """What was placed on a reserved node ends in time, or was placed before the reservation was made."""
    decisions = decide(cluster)
    kept = Counter(id for reservation in decisions.reservations for id in reservation.nodes)
    assert all(times == 1 for times in kept.values())
    assert all(reservation.nodes for reservation in decisions.reservations)
    assert not {reservation.run_id for reservation in decisions.reservations} & {place.run_id for place in decisions.places}


@given(clusters(), st.randoms())
def test_decisions_depend_on_the_snapshot_not_on_its_order(cluster: Cluster, random: object) -> None:
    """Nodes, queue and live runs may come in any order."""
    shuffled = {}
    for name in ("nodes", "queued", "live"):
        rows = list(getattr(cluster, name))
        random.shuffle(rows)  # type: ignore[attr-defined]
        shuffled[name] = tuple(rows)
    first, second = decide(cluster), decide(replace(cluster, **shuffled))
    assert [(p.run_id, list(p.slots.items())) for p in first.places] == [(p.run_id, list(p.slots.items())) for p in second.places]
    assert set(first.stops) == set(second.stops)
    assert first.reservations == second.reservations


@settings(max_examples=50)
@given(clusters())
def test_the_queue_empties_when_runs_end(cluster: Cluster) -> None:
    """No deadlock: with every live run done at the end of each pass, all that the cluster could ever hold starts."""
    nodes = {node.id: replace(node, free=tuple(range(node.num_slots))) for node in cluster.nodes}
    waiting = {run.run_id: run for run in cluster.queued}
    for _ in range(len(waiting) + 1):
        decisions = decide(replace(cluster, nodes=tuple(nodes.values()), queued=tuple(waiting.values()), live=()))
        for place in decisions.places:
            del waiting[place.run_id]
    full = {node.id: node.num_slots for node in cluster.nodes}
    assert not [run for run in waiting.values() if allowed(run, takes_work(cluster), full)]
