"""Which nodes a run gets, and in which order runs are tried."""

from __future__ import annotations

import pytest

from service.scheduling.decide import decide
from service.scheduling.model import Policy
from tests.clusters import NOW, cluster, cpu_node, live, node, placed, queued, stopped


def test_a_gang_gets_all_of_its_nodes_or_none() -> None:
    """Three free nodes are nothing to a run that needs four, and the next run may have them."""
    nodes = [node(name) for name in ("a", "b", "c")]
    assert placed(decide(cluster(nodes, [queued("r1", (4, 8)), queued("r2", (3, 8))]))) == {"r2": ["a", "b", "c"]}


def test_a_run_of_several_nodes_owns_them_whole() -> None:
    """Two ranks on each of two 8-slot nodes leave nothing there for others: the gang's speed is that of its slowest node."""
    [place] = decide(cluster([node("a"), node("b")], [queued("r1", (2, 2)), queued("r2", (1, 1))])).places
    assert (place.run_id, place.shape, dict(place.slots)) == ("r1", (2, 2), {"a": tuple(range(8)), "b": tuple(range(8))})


def test_a_node_that_is_not_shared_is_owned_whole() -> None:
    """One rank on a CPU node of four slots owns the four, and the next run goes elsewhere."""
    decisions = decide(cluster([cpu_node("a"), cpu_node("b")], [queued("r1", (1, 1)), queued("r2", (1, 2)), queued("r3", (1, 1))]))
    assert [(place.run_id, dict(place.slots)) for place in decisions.places] == [("r1", {"a": (0, 1, 2, 3)}), ("r2", {"b": (0, 1, 2, 3)})]


def test_a_node_that_is_not_shared_takes_nothing_while_anything_is_on_it() -> None:
    """Processes of an attempt that is over may still be on two of its slots."""
    assert placed(decide(cluster([cpu_node("a", free=(0, 1))], [queued("r1", (1, 1))]))) == {}


def test_a_small_run_goes_to_the_fullest_node_that_fits() -> None:
    """So that whole nodes stay free: of 8, 1, 2 and 5 free slots, two ranks take the 2."""
    running = [live("x", {"b": range(7)}), live("y", {"c": range(6)}), live("z", {"d": range(3)})]
    decisions = decide(
        cluster([node(name) for name in "abcd"], [queued("r1", (1, 2)), queued("r2", (1, 3)), queued("r3", (1, 8))], running)
    )
    assert [dict(place.slots) for place in decisions.places] == [{"c": (6, 7)}, {"d": (3, 4, 5)}, {"a": tuple(range(8))}]


def test_a_gang_takes_the_smallest_nodes_that_do() -> None:
    """Two ranks on each of two nodes leave the 8-slot nodes to those who need them."""
    nodes = [node("a", 8), node("b", 2), node("c", 4), node("d", 8)]
    assert placed(decide(cluster(nodes, [queued("r1", (2, 2))]))) == {"r1": ["b", "c"]}


def test_the_nodes_of_a_gang_share_one_file_system_and_one_kind() -> None:
    """Two of each make no gang of three, whatever the run asks for."""
    nodes = [node("a"), node("b"), node("c", storage="other"), cpu_node("d", 8), cpu_node("e", 8, storage="other")]
    assert placed(decide(cluster(nodes, [queued("r1", (3, 4)), queued("r2", (2, 4))]))) == {"r2": ["a", "b"]}


def test_a_run_goes_where_its_checkpoints_are() -> None:
    """A free node on another file system does not help it."""
    nodes = [node("a", storage="here"), node("b", storage="there")]
    assert placed(decide(cluster(nodes, [queued("r1", (1, 1), storage="there")]))) == {"r1": ["b"]}
    assert placed(decide(cluster(nodes[:1], [queued("r1", (1, 1), storage="there")]))) == {}
    assert placed(decide(cluster([node("a"), node("b")], [queued("r1", (2, 8), storage="there")]))) == {}


@pytest.mark.parametrize(("device", "expected"), [("auto", "gpu"), ("cuda", "gpu"), ("cpu", "cpu")])
def test_the_device_decides_which_kind_of_node_is_preferred(device: str, expected: str) -> None:
    """auto takes a GPU while there is one; cpu leaves GPUs to others."""
    assert placed(decide(cluster([cpu_node("cpu"), node("gpu")], [queued("r1", (1, 1), device=device)]))) == {"r1": [expected]}


@pytest.mark.parametrize(("device", "starts"), [("auto", True), ("cuda", False), ("cpu", True)])
def test_only_cuda_insists_on_its_kind_of_node(device: str, starts: bool) -> None:
    """What is left of the other kind does for cpu and auto."""
    left = node("gpu") if device == "cpu" else cpu_node("cpu")
    assert bool(placed(decide(cluster([left], [queued("r1", (1, 1), device=device)])))) == starts


def test_shapes_are_tried_in_order_of_preference() -> None:
    """An elastic run starts on what there is."""
    nodes = [node("a"), node("b"), node("c")]
    [place] = decide(cluster(nodes, [queued("r1", (4, 8), (2, 8), (1, 8))])).places
    assert (place.shape, list(place.slots)) == ((2, 8), ["a", "b"])


def test_a_node_that_failed_a_run_is_avoided_while_others_could_do() -> None:
    """It waits for the busy node rather than go back to the free one; with no other node in the cluster it goes back."""
    run = queued("r1", (1, 8), avoid=frozenset({"a"}))
    assert placed(decide(cluster([node("a"), node("b")], [run], [live("x", ["b"])]))) == {}
    assert placed(decide(cluster([node("a")], [run]))) == {"r1": ["a"]}


def test_a_gang_that_must_take_an_avoided_node_takes_as_few_as_it_can() -> None:
    """Of three nodes two are avoided and two needed."""
    run = queued("r1", (2, 8), avoid=frozenset({"a", "b"}))
    assert placed(decide(cluster([node(name) for name in "abc"], [run]))) == {"r1": ["a", "c"]}


def test_a_draining_node_takes_nothing() -> None:
    """Neither the one that finishes nor the one that is to be emptied."""
    nodes = [node("a", drain="finish"), node("b", drain="checkpoint")]
    assert placed(decide(cluster(nodes, [queued("r1", (1, 1))]))) == {}


def test_draining_with_checkpoints_stops_what_runs_there() -> None:
    """On all of its nodes, once; what drains to its end is left alone."""
    nodes = [node("a", drain="checkpoint"), node("b"), node("c", drain="finish"), node("d", drain="checkpoint")]
    running = [live("x", ["a", "b"]), live("y", ["c"]), live("z", ["d"], is_stopping=True)]
    [stop] = decide(cluster(nodes, running=running)).stops
    assert (stop.run_id, stop.cause, stop.in_favour_of) == ("x", "drained", None)


def test_a_run_past_its_time_limit_is_stopped() -> None:
    """At the deadline, not before."""
    running = [live("x", ["a"], deadline=NOW), live("y", ["b"], deadline=NOW + 1)]
    [stop] = decide(cluster([node("a"), node("b")], running=running)).stops
    assert (stop.run_id, stop.cause) == ("x", "time_limit")


def test_higher_priority_goes_first_then_the_earlier_submission() -> None:
    """With one slot for three runs."""
    waiting = [queued("r1"), queued("r2", priority=5), queued("r3", priority=5)]
    assert placed(decide(cluster([node("a", 1)], waiting))) == {"r2": ["a"]}


def test_a_run_gains_priority_with_age_in_whole_points() -> None:
    """A run that waited for five hours goes before one that is four points above it, not before one that is five above."""
    policy = Policy(reserve_after_seconds=1e9)
    waited = queued("r2", waited=5.5 * 3600)
    assert placed(decide(cluster([node("a", 1)], [waited, queued("r1", priority=4)]), policy)) == {"r2": ["a"]}
    assert placed(decide(cluster([node("a", 1)], [waited, queued("r1", priority=5)]), policy)) == {"r1": ["a"]}


def test_owners_take_turns_at_the_same_priority() -> None:
    """However many runs one of them submitted first."""
    waiting = [queued(f"r{number}", owner="ann") for number in range(1, 9)] + [queued(f"r{number}", owner="eve") for number in range(9, 12)]
    assert list(placed(decide(cluster([node("a", 4)], waiting)))) == ["r1", "r9", "r2", "r10"]


def test_who_used_less_goes_first() -> None:
    """Both the decayed past and what runs now count."""
    waiting = [queued("r1", owner="ann"), queued("r2", owner="eve")]
    assert list(placed(decide(cluster([node("a", 1)], waiting, usage={"ann": 10.0, "eve": 5.0})))) == ["r2"]
    running = [live("x", {"b": (0,)}, owner="eve")]
    assert list(placed(decide(cluster([node("a", 1), node("b")], waiting, running, usage={"ann": 10.0, "eve": 5.0})))) == ["r1", "r2"]


def test_nothing_is_stopped_for_a_run_that_fits() -> None:
    """Priority stops others only where nothing is free."""
    decisions = decide(cluster([node("a"), node("b")], [queued("r1", (1, 8), priority=9)], [live("x", ["a"])]))
    assert (placed(decisions), stopped(decisions)) == ({"r1": ["b"]}, {})
