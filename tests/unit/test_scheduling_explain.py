"""Why a run waits and what would let it start: the tokens that hold, sentences with numbers, and no "if" that is not so."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given

from service.scheduling.board import Board, without
from service.scheduling.decide import decide
from service.scheduling.explain import explain, explain_on, plan
from service.scheduling.model import Cluster, Explanation, Policy, Queued
from tests.clusters import NOW, cluster, clusters, cpu_node, live, node, queued

POLICY = Policy()


def explained(case: Cluster, run_id: str = "r1", policy: Policy = POLICY) -> Explanation:
    run = next(run for run in case.queued if run.run_id == run_id)
    return explain(run, case, decide(case, policy), policy)


def tokens(explanation: Explanation) -> list[str]:
    return [reason.token for reason in explanation.reasons]


@pytest.mark.parametrize(
    ("nodes", "run", "token", "words"),
    [
        ([], queued("r1"), "no_worker", "no worker is connected"),
        ([cpu_node("a")], queued("r1", device="cuda"), "no_gpu", "none of 1 node has one"),
        ([node("a")], queued("r1", (1, 16)), "node_too_small", "needs 16 ranks on one node; the largest has 8 slots"),
        ([node("a"), node("b", 4)], queued("r1", (2, 8)), "too_few_nodes", "needs 2 nodes of 8 slots; 1 such is connected"),
        ([node("a"), node("b", storage="x")], queued("r1", (2, 8)), "too_few_nodes", "2 in all, but the nodes of one run share one file"),
        ([node("a")], queued("r1", storage="x"), "storage_elsewhere", "on file system 'x', where 0 nodes are connected"),
        ([node("a"), node("b", drain="finish")], queued("r1", (2, 8)), "draining", "with node b, which is being drained"),
    ],
)
def test_what_the_cluster_can_never_hold_is_told_so(nodes: list, run: Queued, token: str, words: str) -> None:
    """With the number that is wanted, the number that is there, and nothing about other runs."""
    found = explained(cluster(nodes, [run]))
    assert tokens(found) == [token]
    assert words in found.reasons[0].message
    assert found.starts_at is None
    assert not plan(run, cluster(nodes), POLICY).feasible


def test_a_busy_cluster_is_told_with_numbers_and_the_end_of_the_run_in_the_way() -> None:
    """One of the two nodes is free; the other one's run ends in three hours."""
    case = cluster([node("a"), node("b")], [queued("r1", (2, 8))], [live("x", ["a"], ends_at=NOW + 3 * 3600)])
    found = explained(case)
    assert tokens(found) == ["busy"]
    assert found.reasons[0].message == "needs 2 nodes with all slots free: 1 of 2 is"
    assert found.starts_if == (
        "with 8 ranks on one node it would start now",
        "at priority 1 it would preempt run x",
        "when run x ends: expected in 3 h",
        "with 1 more free node of 8 slots it would start now",
    )
    assert (found.starts_at, found.position) == (NOW + 3 * 3600, 1)


def test_the_end_of_a_run_of_unknown_length_is_not_known() -> None:
    """It is named all the same."""
    found = explained(cluster([node("a")], [queued("r1", (1, 8))], [live("x", ["a"])]))
    assert "when run x ends: not known when" in found.starts_if
    assert found.starts_at is None


def test_runs_ahead_are_counted_and_what_they_would_take_is_not_promised() -> None:
    """The end of x lets r1 start, so r2 is not told that it would."""
    case = cluster([node("a")], [queued("r1", (1, 8)), queued("r2", (1, 8))], [live("x", ["a"], ends_at=NOW + 60)])
    found = explained(case, "r2")
    assert (tokens(found), found.position, found.starts_at) == (["busy", "behind_others"], 2, None)
    assert (found.reasons[1].token, found.position) == ("behind_others", 2)
    assert found.starts_if == ("at priority 1 it would preempt run x",)


def test_nodes_that_are_kept_for_others_are_told_with_their_run() -> None:
    """And when that starts."""
    waiting = [queued("r1", (2, 8), waited=400), queued("r2", (1, 8))]
    case = cluster([node("a"), node("b")], waiting, [live("x", ["a"], ends_at=NOW + 600)])
    found = explained(case, "r2")
    assert tokens(found) == ["reserved_for_other", "behind_others"]
    assert found.reasons[0].message == "free nodes are kept for run r1: it starts in 10 min, and it has no time limit"
    assert explained(case, "r1").starts_at == NOW + 600
    assert "nodes a and b are kept for it" in explained(case, "r1").reasons[0].message


def test_a_run_that_others_make_room_for_is_told_so() -> None:
    """In the pass that stops them and in those after it."""
    waiting = [queued("r1", (1, 8), priority=1)]
    assert tokens(explained(cluster([node("a")], waiting, [live("x", ["a"])])))[0] == "preempting"
    stopping = live("x", ["a"], is_stopping=True, stopped_for="r1")
    found = explained(cluster([node("a")], waiting, [stopping]))
    assert found.reasons[0].message == "run x is writing checkpoints to make room for it"


def test_avoided_and_draining_nodes_that_would_do_are_named() -> None:
    """Every reason that holds, not the first only."""
    nodes = [node("a"), node("b"), node("c", drain="finish")]
    found = explained(cluster(nodes, [queued("r1", (1, 8), avoid=frozenset({"a"}))], [live("x", ["b"])]))
    assert tokens(found) == ["avoided_nodes", "draining", "busy"]
    assert "node a would do, but failed it lately" in found.reasons[0].message
    assert "node c would do" in found.reasons[1].message


def test_a_run_that_starts_is_told_where() -> None:
    """It waits for nothing."""
    found = explained(cluster([node("a")], [queued("r1", (1, 8))]))
    assert [(reason.token, reason.message) for reason in found.reasons] == [("about_to_start", "starts on node a")]


def test_another_shape_is_offered_where_it_has_room() -> None:
    """Two ranks on each of four nodes in the place of eight on one; never more ranks, never a number that would not divide the batch."""
    found = explained(cluster([node(name, 2) for name in "abcd"] + [node("e")], [queued("r1", (1, 8))], [live("x", ["e"])]))
    assert found.starts_if[0] == "with 2 ranks on each of 4 nodes it would start now"
    found = explained(cluster([node("a", 8), node("b", 5)], [queued("r1", (1, 6))], [live("x", ["a"])]))
    assert found.starts_if[0] == "with 3 ranks on one node it would start now"


def test_a_plan_answers_without_the_run_being_queued() -> None:
    """Where it would start, or at which position it would wait."""
    case = cluster([node("a"), node("b")], [queued("r1", (2, 8), waited=10)], [live("x", ["a"])])
    now = plan(queued("r2", (1, 8)), case, POLICY)
    assert (now.feasible, now.starts_now, list(now.place.slots), now.position) == (True, True, ["b"], 2)
    later = plan(queued("r2", (2, 4)), case, POLICY)
    assert (later.feasible, later.starts_now, later.place, tokens(later.explanation)) == (True, False, None, ["busy", "behind_others"])


@given(clusters())
def test_every_run_that_waits_has_a_reason(case: Cluster) -> None:
    """And each token stands once."""
    decisions = decide(case)
    board = Board(case, decisions, POLICY)
    for run in case.queued:
        found = tokens(explain_on(run, board))
        assert found
        assert len(set(found)) == len(found)
        assert (found == ["about_to_start"]) == (run.run_id in {place.run_id for place in decisions.places})


def changed(case: Cluster, run: Queued) -> Cluster:
    return replace(case, queued=tuple(run if other.run_id == run.run_id else other for other in case.queued))


def starts(case: Cluster, run: Queued) -> bool:
    return run.run_id in {place.run_id for place in decide(case, POLICY).places}


def calm(case: Cluster) -> Cluster:
    """After a pass that decided nothing more: what it placed runs, what it stopped stops."""
    decisions = decide(case, POLICY)
    places = {place.run_id: place for place in decisions.places}
    stops = {stop.run_id: stop for stop in decisions.stops}
    started = tuple(
        live(run.run_id, places[run.run_id].slots, owner=run.owner, priority=run.priority, started_at=NOW)
        for run in case.queued
        if run.run_id in places
    )
    stopping = tuple(
        replace(run, is_stopping=True, stopped_for=stops[run.run_id].in_favour_of) if run.run_id in stops else run for run in case.live
    )
    waiting = [run for run in case.queued if run.run_id not in places]
    return cluster(case.nodes, waiting, (*stopping, *started), usage=case.usage)


@given(clusters())
def test_what_would_let_a_run_start_lets_it_start(case: Cluster) -> None:
    """Each counterfactual, given to the scheduler as the changed input, has the effect that was promised."""
    case = calm(case)
    board = Board(case, decide(case, POLICY), POLICY)
    for run in case.queued:
        if run.run_id in board.places or not board.pool.empty.find(run):
            continue
        if shape := board.other_shape(run, board.pool):
            other = replace(run, shapes=(shape,))
            assert starts(changed(case, other), other), shape
        if cleared := board.at_priority(run):
            other = replace(run, priority=cleared[0])
            decisions = decide(changed(case, other), POLICY)
            assert tuple(stop.run_id for stop in decisions.stops if stop.in_favour_of == run.run_id) == cleared[1]
        if ending := board.when_ended(run):
            assert starts(without(case, ending[1]), run), ending
        if more := board.more_nodes(run):
            new = [replace(board._pattern(run), id=f" {number}", free=tuple(range(more[1])), drain="") for number in range(more[0])]
            assert starts(replace(case, nodes=(*new, *case.nodes)), run), more


def test_a_run_that_is_thought_away_is_charged_to_its_owner() -> None:
    """As it will be when it ends: 8 slots for 100 s, and its slots are free."""
    after = without(cluster([node("a")], running=[live("x", ["a"])], usage={"bob": 10.0}), ["x"])
    assert (after.usage, after.live, after.nodes[0].free) == ({"bob": 810.0}, (), tuple(range(8)))


def test_an_elastic_run_that_waits_for_its_victims_is_told_of_them() -> None:
    """Though it would fit on less at once, and though another node drains."""
    running = [live("x", ["a"], is_stopping=True, stopped_for="r1")]
    case = cluster([node("a"), node("b"), node("c", drain="finish")], [queued("r1", (2, 8), (1, 8), priority=3)], running)
    assert tokens(explained(case)) == ["preempting", "draining"]


def test_an_explanation_is_no_search_through_the_cluster() -> None:
    """On 1,000 busy nodes with 2,000 queued runs; the Board is built once for all. Calls of functions are counted, which no other process
    disturbs: 300,000 take some tens of milliseconds."""
    nodes = [node(f"n{number:04}") for number in range(1000)]
    running = [live(f"x{number}", [f"n{number:04}"], ends_at=NOW + number) for number in range(1000)]
    waiting = [queued(f"r{number}", [(1, 8), (4, 8), (1, 2)][number % 3], priority=-number % 3) for number in range(2000)]
    case = cluster(nodes, waiting, running)
    board = Board(case, decide(case, POLICY), POLICY)
    explain_on(waiting[0], board)
    calls: Counter[str] = Counter()
    for run in waiting[::100]:
        sys.setprofile(lambda frame, event, argument: calls.update([event]))
        reasons = explain_on(run, board).reasons
        sys.setprofile(None)
        assert reasons
    assert (calls["call"] + calls["c_call"]) / 20 < 300_000
