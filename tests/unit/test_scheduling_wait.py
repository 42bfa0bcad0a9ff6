"""Reservations and preemption: how a run that does not fit gets its nodes all the same."""

from __future__ import annotations

from service.scheduling.decide import decide
from service.scheduling.model import Policy
from tests.clusters import NOW, cluster, live, node, placed, queued, stopped

LONG = 400.0
"""Seconds of waiting after which a run gets a reservation."""


def test_a_run_that_waited_gets_the_nodes_that_are_free_first() -> None:
    """Of four nodes, the free one and the one whose run ends first; it starts when the later of them is free."""
    running = [live("x", ["a"], ends_at=NOW + 500), live("y", ["b"], ends_at=NOW + 200), live("z", ["c"])]
    [reservation] = decide(cluster([node(name) for name in "abcd"], [queued("r1", (2, 8), waited=LONG)], running)).reservations
    assert (reservation.run_id, reservation.nodes, reservation.starts_at) == ("r1", {"b", "d"}, NOW + 200)


def test_what_stops_is_expected_to_end_at_any_moment() -> None:
    """So is what has outrun its estimate, and slots on which an attempt that is over may still have processes."""
    nodes, run = [node("a"), node("b")], queued("r1", (1, 8), waited=LONG)
    for in_the_way in (live("x", ["a"], is_stopping=True), live("x", ["a"], ends_at=NOW - 5)):
        [reservation] = decide(cluster(nodes, [run], [in_the_way, live("y", ["b"])])).reservations
        assert (reservation.nodes, reservation.starts_at) == ({"a"}, NOW)
    [reservation] = decide(cluster([node("a", free=(0, 1)), node("b")], [run], [live("y", ["b"])])).reservations
    assert (reservation.nodes, reservation.starts_at) == ({"a"}, NOW)


def test_a_run_that_has_just_come_gets_no_reservation() -> None:
    """The free node goes to the next."""
    waiting = [queued("r1", (2, 8)), queued("r2", (1, 8))]
    decisions = decide(cluster([node("a"), node("b")], waiting, [live("x", ["a"])]))
    assert (placed(decisions), decisions.reservations) == ({"r2": ["b"]}, ())


def test_others_use_reserved_nodes_only_if_they_end_in_time() -> None:
    """The gang's nodes are free in 200 s: a run of 200 s goes in before it, neither a longer one nor one of unknown length."""
    running = [live("x", ["a"], ends_at=NOW + 200)]
    waiting = [
        queued("r1", (2, 8), waited=LONG),
        queued("r2", (1, 4)),
        queued("r3", (1, 4), max_seconds=201.0),
        queued("r4", (1, 4), max_seconds=200.0),
    ]
    assert placed(decide(cluster([node("a"), node("b")], waiting, running))) == {"r4": ["b"]}


def test_nothing_is_put_on_nodes_that_are_reserved_for_an_unknown_time() -> None:
    """However short it is."""
    waiting = [queued("r1", (2, 8), waited=LONG), queued("r2", (1, 1), max_seconds=1.0)]
    decisions = decide(cluster([node("a"), node("b")], waiting, [live("x", ["a"])]))
    assert placed(decisions) == {}
    assert [(kept.run_id, kept.starts_at) for kept in decisions.reservations] == [("r1", None)]


def test_only_so_many_runs_have_reservations() -> None:
    """As the operator set it; those after them wait without one."""
    nodes = [node(name) for name in "abcdef"]
    running = [live(f"x{name}", [name]) for name in "abcde"]
    waiting = [queued(f"r{number}", (2, 8), waited=LONG) for number in (1, 2, 3)]
    decisions = decide(cluster(nodes, waiting, running), Policy(max_reservations=2))
    assert [kept.run_id for kept in decisions.reservations] == ["r1", "r2"]


def test_a_reservation_counts_what_starts_in_the_same_pass() -> None:
    """The run that has just been placed frees its node when its time limit is over."""
    waiting = [queued("r1", (1, 8), max_seconds=50.0), queued("r2", (2, 8), waited=LONG, sequence=5)]
    decisions = decide(cluster([node("a"), node("b")], waiting))
    assert (placed(decisions), decisions.reservations[0].starts_at) == ({"r1": ["a"]}, NOW + 50)


def test_a_run_of_higher_priority_has_others_give_way() -> None:
    """The fewest that suffice, of the lowest priority; their nodes are kept meanwhile."""
    running = [live("x", ["a"], priority=1), live("y", ["b"], priority=0), live("z", ["c"], priority=2)]
    waiting = [queued("r1", (2, 8), priority=3), queued("r2", (1, 1), max_seconds=1.0)]
    decisions = decide(cluster([node(name) for name in "abcd"], waiting, running))
    assert stopped(decisions) == {"y": "r1"}
    assert placed(decisions) == {}
    assert [(kept.run_id, kept.nodes, kept.starts_at) for kept in decisions.reservations] == [("r1", {"b", "d"}, None)]


def test_equal_priority_stops_nobody() -> None:
    """Strictly higher, and by the run's own priority: age does not count."""
    waiting = [queued("r1", (1, 8), priority=0, waited=1e6)]
    assert stopped(decide(cluster([node("a")], waiting, [live("x", ["a"], priority=0)]))) == {}


def test_preemption_can_be_switched_off() -> None:
    """By the operator."""
    case = cluster([node("a")], [queued("r1", (1, 8), priority=9)], [live("x", ["a"])])
    assert (stopped(decide(case)), stopped(decide(case, Policy(preemption=False)))) == ({"x": "r1"}, {})


def test_a_run_whose_budget_is_used_up_keeps_its_slots() -> None:
    """Another one of higher priority gives way in its place."""
    running = [live("x", ["a"], can_be_preempted=False), live("y", ["b"], priority=4)]
    assert stopped(decide(cluster([node("a"), node("b")], [queued("r1", (1, 8), priority=9)], running))) == {"y": "r1"}


def test_nobody_gives_way_where_it_would_not_suffice() -> None:
    """One of the two nodes is held by a run of the same priority."""
    running = [live("x", ["a"], priority=0), live("y", ["b"], priority=5)]
    assert stopped(decide(cluster([node("a"), node("b")], [queued("r1", (2, 8), priority=5)], running))) == {}


def test_one_large_victim_is_taken_rather_than_two_small() -> None:
    """Fewest among those of the same priority."""
    running = [live("x", ["a"]), live("y", ["b"]), live("z", ["c", "d"])]
    assert stopped(decide(cluster([node(name) for name in "abcd"], [queued("r1", (2, 8), priority=1)], running))) == {"z": "r1"}


def test_victims_that_give_most_nodes_each_are_taken_first() -> None:
    """Three nodes: the run with two of them and one of those with one, not the pair that shares a node."""
    running = [live("x", ["a"]), live("y", {"b": range(4)}), live("w", {"b": range(4, 8)}), live("z", ["c", "d"])]
    assert stopped(decide(cluster([node(name) for name in "abcd"], [queued("r1", (3, 8), priority=1)], running))) == {"z": "r1", "x": "r1"}


def test_two_of_low_priority_give_way_rather_than_one_above_them() -> None:
    """Priority goes before number, on one node too."""
    running = [live("x", {"a": (0, 1)}), live("y", {"a": (2, 3)}), live("z", {"a": range(4, 8)}, priority=1)]
    assert stopped(decide(cluster([node("a")], [queued("r1", (1, 4), priority=5)], running))) == {"x": "r1", "y": "r1"}


def test_what_started_last_gives_way_first() -> None:
    """It loses least."""
    running = [live("x", ["a"], started_at=NOW - 50), live("y", ["b"], started_at=NOW - 5)]
    assert stopped(decide(cluster([node("a"), node("b")], [queued("r1", (1, 8), priority=1)], running))) == {"y": "r1"}


def test_on_a_shared_node_only_as_many_give_way_as_needed() -> None:
    """Three slots are free of the five: the run with two slots suffices."""
    running = [live("x", {"a": (0,)}), live("y", {"a": (1, 2)}), live("z", {"a": (3, 4)}, priority=7)]
    assert stopped(decide(cluster([node("a")], [queued("r1", (1, 5), priority=7)], running))) == {"y": "r1"}


def test_while_victims_stop_no_others_are_chosen_and_their_nodes_are_kept() -> None:
    """One of the two victims is gone, its node free: nobody else gets it, though he were tried before."""
    running = [live("x", ["a"], is_stopping=True, stopped_for="r1"), live("y", ["c"])]
    waiting = [queued("r1", (2, 8), priority=3), queued("r2", (1, 1), priority=9), queued("r3", (1, 1))]
    decisions = decide(cluster([node(name) for name in "abc"], waiting, running))
    assert (placed(decisions), stopped(decisions)) == ({}, {"y": "r2"})
    assert {kept.run_id: kept.nodes for kept in decisions.reservations} == {"r1": {"a", "b"}, "r2": {"c"}}


def test_a_run_takes_what_was_cleared_for_it() -> None:
    """Once all victims are gone it starts like any other."""
    decisions = decide(cluster([node("a"), node("b")], [queued("r1", (2, 8), priority=3)]))
    assert placed(decisions) == {"r1": ["a", "b"]}


def test_a_run_that_finds_room_before_its_victim_is_gone_starts_once() -> None:
    """Two nodes have become free elsewhere."""
    running = [live("x", ["a"], is_stopping=True, stopped_for="r1")]
    decisions = decide(cluster([node(name) for name in "abc"], [queued("r1", (1, 8), priority=3)], running))
    assert [(place.run_id, list(place.slots)) for place in decisions.places] == [("r1", ["b"])]


def test_a_victim_on_a_node_that_takes_nothing_more_is_not_waited_for() -> None:
    """The node was drained meanwhile: the run looks elsewhere."""
    running = [live("x", ["a"], is_stopping=True, stopped_for="r1"), live("y", ["b"])]
    decisions = decide(cluster([node("a", drain="finish"), node("b")], [queued("r1", (1, 8), priority=3)], running))
    assert stopped(decisions) == {"y": "r1"}


def test_an_elastic_run_waits_for_the_shape_that_others_stop_for() -> None:
    """One node is free already; it does not start on that one while the other is being cleared for it."""
    running = [live("x", ["a"], is_stopping=True, stopped_for="r1")]
    run = queued("r1", (2, 8), (1, 8), priority=3)
    assert placed(decide(cluster([node("a"), node("b")], [run], running))) == {}
    assert placed(decide(cluster([node("a"), node("b")], [run]))) == {"r1": ["a", "b"]}


def test_a_run_waits_for_what_stops_anyway() -> None:
    """A cancelled run is about to free the node: nobody gives way for the other one."""
    running = [live("x", ["a"], is_stopping=True), live("y", ["b"])]
    decisions = decide(cluster([node("a"), node("b")], [queued("r1", (1, 8), priority=3)], running))
    assert stopped(decisions) == {}
    assert [(kept.run_id, kept.nodes) for kept in decisions.reservations] == [("r1", {"a"})]


def test_two_runs_of_higher_priority_do_not_stop_the_same_victim() -> None:
    """Each has its own."""
    running = [live("x", ["a", "b"]), live("y", ["c"])]
    waiting = [queued("r1", (1, 8), priority=3), queued("r2", (1, 8), priority=3)]
    decisions = decide(cluster([node(name) for name in "abc"], waiting, running))
    assert [stop.run_id for stop in decisions.stops] == ["y", "x"]
    assert stopped(decisions) == {"y": "r1", "x": "r2"}
    assert [stop.run_id for stop in decide(cluster([node("a"), node("b")], waiting, running[:1])).stops] == ["x"]
