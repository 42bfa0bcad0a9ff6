"""Attempts that end on one node, or whose reports come too late, on a real Redis."""

from __future__ import annotations

import pytest

from service.errors import AttemptLost
from service.lifecycle import Status, Termination
from service.store import Store
from tests.service.documents import report, spec, started
from tests.service.gangs import gang, owners
from tests.service.reports import Node, send, silence, start

pytestmark = pytest.mark.anyio


# One node's end is everybody's


@pytest.mark.parametrize("failing", [0, 2])
@pytest.mark.parametrize("outcome", ["crashed", "lost", "faulty"])
async def test_a_failure_on_any_node_ends_the_attempt_on_all(store: Store, failing: int, outcome: str) -> None:
    """The others are told to kill their processes, and keep their slots until they say that they have."""
    run, nodes = await gang(store)
    run = await nodes[failing].exit(run, 1, outcome, f"what failed {failing}")
    assert run.status == (Status.FAILED if outcome == "faulty" else Status.QUEUED)
    assert run.reason.startswith(f"what failed {failing}")
    others = [node for node in nodes if node is not nodes[failing]]
    assert await owners(store) == {node.name: [(run.id, 1)] for node in others}
    for node in others:
        assert await node.told(run) == "abort"
        node.held.clear()
        await node.poll()
    assert await owners(store) == {}


async def test_a_clean_end_is_the_leads_to_decide(store: Store) -> None:
    """The others' ends free their slots and no more; the run succeeds when its lead says so."""
    run, nodes = await gang(store)
    assert (await nodes[1].exit(run, 1, "finished")).status == Status.STARTING
    assert await owners(store) == {"w0": [(run.id, 1)], "w2": [(run.id, 1)]}
    assert (await nodes[0].exit(run, 1, "finished", "trained")).status == Status.SUCCEEDED
    assert (await nodes[2].exit(run, 1, "finished")).termination_reason == Termination.FINISHED
    [attempt] = await store.attempts(run.id)
    assert (attempt.outcome, attempt.reason, [member.state for member in attempt.members]) == ("finished", "trained", ["finished"] * 3)


async def test_each_nodes_last_word_is_kept(store: Store) -> None:
    """Also that of nodes that speak after the end, with exit code and log; a repeated report changes nothing."""
    run, nodes = await gang(store)
    await nodes[2].exit(run, 1, "lost", "rank 5 was ended by signal 9", exit_code=-9, log_tail="Killed")
    before = await store.get(run.id)
    for _ in range(2):
        await nodes[0].exit(run, 1, "crashed", "rank 0 lost its peers", exit_code=1, log_tail="connection reset")
    await nodes[2].exit(run, 1, "finished", "another story")
    assert await store.get(run.id) == before
    [attempt] = await store.attempts(run.id)
    said = [(member.state, member.exit_code, member.reason, member.log_tail) for member in attempt.members]
    assert said == [
        ("crashed", 1, "rank 0 lost its peers", "connection reset"),
        ("held", None, "", ""),
        ("lost", -9, "rank 5 was ended by signal 9", "Killed"),
    ]


async def test_a_later_word_that_names_the_true_cause_counts(store: Store) -> None:
    """A node saw its peers go; the peer says why: no further attempt would do better."""
    run, nodes = await gang(store)
    await nodes[1].exit(run, 1, "crashed", "rank 2 lost its peers")
    run = await nodes[0].exit(run, 1, "faulty", "images cannot be read: correct data.path")
    assert (run.status, run.reason, run.termination_reason) == (
        Status.FAILED,
        "images cannot be read: correct data.path",
        Termination.FAULTY,
    )


async def test_a_late_cause_of_an_older_attempt_does_not_end_the_new_one(store: Store) -> None:
    """It is kept with its attempt."""
    run = await store.submit(spec(), "alice")
    first, second = Node(store, "w1"), Node(store, "w2")
    await start(store, run, first)
    await silence(store, "w1")
    assert await start(store, run, second) == 2
    assert (await first.exit(run, 1, "faulty", "no such folder")).status == Status.STARTING
    assert [attempt.members[0].state for attempt in await store.attempts(run.id)] == ["faulty", "held"]


async def test_the_other_nodes_of_a_stuck_job_collect_their_stacks(store: Store) -> None:
    """Only where the report says so."""
    for stalled in (True, False):
        run, nodes = await gang(store, 2)
        await nodes[1].exit(run, 1, "lost", "no rank moved for 100 s", stalled=stalled)
        [told] = (await nodes[0].poll()).instructions
        assert (told.command, told.collect_stacks) == ("abort", stalled)
        nodes[0].held.clear()
        await nodes[0].poll()


# Fencing


async def test_a_report_from_a_lost_attempt_changes_nothing(store: Store) -> None:
    """Events are refused; an exit is kept with its attempt and leaves the run and the new attempt's slots alone."""
    run = await store.submit(spec(), "alice")
    first, second = Node(store, "w1"), Node(store, "w2")
    await start(store, run, first)
    await silence(store, "w1")
    assert await start(store, run, second) == 2
    before, held = await store.get(run.id), await owners(store)
    with pytest.raises(AttemptLost, match=r"attempt 1 of run .* is over"):
        await send(store, run, 1, started())
    with pytest.raises(AttemptLost):
        await store.exit(run.id, 1, report("finished", worker="w2"))  # never was its member
    with pytest.raises(AttemptLost):
        await store.exit(run.id, 3, report("finished", worker="w2"))
    assert await first.told(run) == "abort"
    assert await store.get(run.id) == before
    assert await owners(store) == held
    await first.exit(run, 1, "finished")
    assert await store.get(run.id) == before
    assert await owners(store) == {"w2": [(run.id, 2)]}


async def test_events_after_the_end_are_refused(store: Store) -> None:
    """The newest attempt is over, too, once it has ended."""
    run = await store.submit(spec(), "alice")
    node = Node(store)
    await start(store, run, node)
    await node.exit(run, 1, "finished")
    with pytest.raises(AttemptLost, match="the run is succeeded"):
        await send(store, run, 1, started())


async def test_an_attempt_that_nobody_knows_is_aborted(store: Store) -> None:
    """E.g. after Redis went back to a time before it."""
    run = await store.submit(spec(), "alice")
    node = Node(store)
    await start(store, run, node)
    await store.redis.flushdb()
    assert await node.told(run) == "abort"
