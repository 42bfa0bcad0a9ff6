"""Attempts that fail, fall silent or are given back: what becomes of the run, on a real Redis."""

from __future__ import annotations

from typing import Literal

import pytest

from service.errors import AttemptLost, WorkerNameTaken, WorkerReplaced
from service.lifecycle import Status, Termination
from service.runs import Run
from service.store import Store
from tests.service.documents import checkpointed, progress, report, spec, started
from tests.service.reports import Node, end_leases, place, send, silence, start

pytestmark = pytest.mark.anyio


async def gang(store: Store, num_nodes: int = 3) -> tuple[Run, list[Node]]:
    """Held by w0 (the lead), w1, ..."""
    run = await store.submit(spec(nodes=num_nodes), "alice")
    nodes = [Node(store, f"w{i}") for i in range(num_nodes)]
    assert await start(store, run, *nodes) == 1
    return run, nodes


async def owners(store: Store) -> dict[str, list[tuple[str, int]]]:
    """Which attempts own slots, by worker."""
    found = {worker.id: [(held.run_id, held.attempt) for held in worker.holds] for worker in await store.workers()}
    return {worker: held for worker, held in found.items() if held}


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


# Silence


async def test_silence_puts_the_run_back_and_says_from_where_it_goes_on(store: Store) -> None:
    """The reason names the worker, the lease, and the last checkpoint; the node is avoided."""
    run = await store.submit(spec(), "alice")
    node = Node(store)
    await start(store, run, node)
    await send(store, run, 1, started(), checkpointed(2, 240))
    assert await silence(store) == [run.id]
    run = await store.get(run.id)
    assert (run.status, run.reason) == (Status.QUEUED, "worker w1 was not heard of for 60 s; attempt 2 resumes from step 240")
    [queued] = (await store.snapshot()).queued
    assert (queued.avoid, queued.storage) == ({"w1"}, "nfs")
    assert (await store.attempts(run.id))[0].members[0].state == "gone"


async def test_slots_of_a_silent_worker_stay_owned_until_it_speaks(store: Store) -> None:
    """Nobody knows whether its processes are gone; the run goes on elsewhere meanwhile."""
    run = await store.submit(spec(), "alice")
    first, second = Node(store, "w1"), Node(store, "w2")
    await start(store, run, first)
    await silence(store, "w1")
    assert await start(store, run, second) == 2
    assert await owners(store) == {"w1": [(run.id, 1)], "w2": [(run.id, 2)]}
    assert await first.told(run) == "abort"
    first.held.clear()
    await first.poll()
    assert await owners(store) == {"w2": [(run.id, 2)]}


async def test_one_silent_member_ends_the_gangs_attempt(store: Store) -> None:
    """Also where it is not the lead."""
    run, nodes = await gang(store)
    assert await silence(store, "w1") == [run.id]
    assert [await node.told(run) for node in nodes] == ["abort"] * 3


async def test_a_poll_renews_the_lease(store: Store) -> None:
    """At the last moment, too."""
    run = await store.submit(spec(), "alice")
    node = Node(store)
    await start(store, run, node)
    await end_leases(store)
    await node.poll()
    assert await store.expire() == ([], [])
    await end_leases(store)
    assert await store.expire() == ([run.id], ["w1"])


async def test_nobody_is_silent_while_the_control_plane_is_away(store: Store) -> None:
    """After a time without a look at the leases, every lease and every gang gets a full period; the next look counts."""
    run, other = await store.submit(spec(), "alice"), await store.submit(spec(), "alice")
    node, slow = Node(store), Node(store, "slow")
    await start(store, run, node)
    await slow.poll()
    await place(store, other, slow)
    await end_leases(store)
    await store.redis.set("millionway:watched", 1)
    store.gang_start_seconds = 0.5
    await store.redis.zadd("millionway:unheld", {f"{other.id}/1": 1})
    assert await store.expire() == ([], [])
    assert await store.expire() == ([], [])
    assert [worker.alive for worker in await store.workers()] == [True, True]
    assert sorted(await silence(store)) == sorted([run.id, other.id])


async def test_a_gang_that_not_all_take_in_time_is_placed_anew(store: Store) -> None:
    """The reason names who did not take it, and the next attempt avoids it."""
    run = await store.submit(spec(nodes=2), "alice")
    lead, other = Node(store, "w1"), Node(store, "w2")
    for node in (lead, other):
        await node.poll()
    await place(store, run, lead, other)
    await lead.poll()
    await lead.poll()
    await store.expire()
    await store.redis.zadd("millionway:unheld", {f"{run.id}/1": 1})
    assert (await store.expire())[0] == [run.id]
    run = await store.get(run.id)
    assert run.reason == "w2 did not take it within 60 s; attempt 2 starts from the beginning"
    assert await lead.told(run) == "abort"
    lead.held.clear()
    await lead.poll()
    await other.poll()
    [queued] = (await store.snapshot()).queued
    assert queued.avoid == {"w2"}


async def test_a_gang_of_which_a_node_is_done_already_is_not_waited_for(store: Store) -> None:
    """A node that has ended has taken its part."""
    run = await store.submit(spec(nodes=3), "alice")
    nodes = [Node(store, f"w{i}") for i in range(3)]
    for node in nodes:
        await node.poll()
    await place(store, run, *nodes)
    await nodes[0].poll()
    await nodes[0].poll()
    for node in nodes[1:]:  # each ends before it has said that it took its part
        await node.poll()
        await node.exit(run, 1, "stopped")
    await store.expire()
    await store.redis.zadd("millionway:unheld", {f"{run.id}/1": 1}, xx=True)
    assert await store.expire() == ([], [])


async def test_a_worker_is_forgotten_after_a_day_but_not_while_it_holds_a_run(store: Store) -> None:
    """The control plane may have been away for the day: who has a lease may still have processes."""
    run = await store.submit(spec(), "alice")
    node, idle = Node(store), Node(store, "idle")
    await start(store, run, node)
    await idle.poll()
    await silence(store, "idle")
    await store.redis.zadd("millionway:workers", {"w1": 0, "idle": 0})
    await store.expire()
    assert [worker.id for worker in await store.workers()] == ["w1"]
    assert await node.told(run) == "continue"


# Workers that are started anew, or leave


async def test_a_worker_that_is_started_anew_has_lost_what_it_held(store: Store) -> None:
    """Its predecessor's processes are gone when it polls: the run goes back, at no node's fault, and the slots are free."""
    run = await store.submit(spec(), "alice")
    node = Node(store)
    await start(store, run, node)
    node.restart()
    await node.poll()
    run = await store.get(run.id)
    assert (run.status, run.reason) == (Status.QUEUED, "worker w1 was started anew; attempt 2 starts from the beginning")
    assert (await store.snapshot()).queued[0].avoid == set()
    assert await start(store, run, node) == 2


@pytest.mark.parametrize(("request_", "after"), [("kill", Status.CANCELLED), ("cancel", Status.CANCELLED), ("pause", Status.PAUSED)])
async def test_what_is_to_stop_is_not_offered_any_more(store: Store, request_: Literal["kill", "cancel", "pause"], after: Status) -> None:
    """It has not begun before all have taken it, so it ends at once, also on those that have."""
    run = await store.submit(spec(nodes=2), "alice")
    lead, other = Node(store, "w1"), Node(store, "w2")
    for node in (lead, other):
        await node.poll()
    assert await place(store, run, lead, other)
    for _ in range(2):
        await lead.poll()
    assert (await store.request(run.id, request_)).status != after
    assert (await other.poll()).offers == []
    assert (await store.get(run.id)).status == after
    assert await lead.told(run) == "abort"
    assert await owners(store) == {"w1": [(run.id, 1)]}


async def test_an_attempt_is_not_handed_on_to_a_workers_successor(store: Store) -> None:
    """Also where the predecessor had not said that it took it: its report may still be on its way, and ends its own attempt only."""
    run = await store.submit(spec(), "alice")
    node = Node(store)
    await node.poll()
    await place(store, run, node)
    await node.poll()
    node.restart()
    assert (await node.poll()).offers == []
    assert await start(store, run, node) == 2
    await store.exit(run.id, 1, report("faulty", "of the predecessor"))
    assert await node.told(run) == "continue"


async def test_a_former_process_of_a_worker_is_told_so(store: Store) -> None:
    """Also when it was replaced twice since; its reports that come late do no harm."""
    node = Node(store)
    await node.poll()
    late = node.message()
    for _ in range(3):
        node.restart()
        await node.poll()
    with pytest.raises(WorkerReplaced, match="a newer process on host host-w1"):
        await store.poll("w1", late)
    assert (await node.poll()).instructions == []


async def test_a_name_is_another_machines_only_once_its_lease_is_over(store: Store) -> None:
    """Two machines of one name would take each other's runs."""
    node = Node(store)
    await node.poll()
    other = Node(store, "w1", host="another")
    with pytest.raises(WorkerNameTaken, match="in use on host host-w1"):
        await other.poll()
    await silence(store)
    await other.poll()
    with pytest.raises(WorkerReplaced):
        await node.poll()


async def test_a_poll_that_arrives_after_a_later_one_is_not_taken_for_news(store: Store) -> None:
    """It was said before the worker took the run: the run is not lost."""
    run = await store.submit(spec(), "alice")
    node = Node(store)
    await node.poll()
    late = node.message()
    await start(store, run, node)
    reply = await store.poll("w1", late)
    assert (reply.offers, reply.instructions) == ([], [])
    assert await node.told(run) == "continue"


async def test_a_worker_that_no_longer_has_a_process_of_an_attempt_has_lost_it(store: Store) -> None:
    """Its slots are free at once, and the next attempt avoids it."""
    run = await store.submit(spec(), "alice")
    node = Node(store)
    await start(store, run, node)
    node.held.clear()
    await node.poll()
    run = await store.get(run.id)
    assert run.reason == "worker w1 has no process of it any more; attempt 2 starts from the beginning"
    assert await owners(store) == {}
    assert (await store.snapshot()).queued[0].avoid == {"w1"}


async def test_a_worker_that_leaves_gives_back_what_it_has_not_taken(store: Store) -> None:
    """At once, and it counts as nobody's failure."""
    run = await store.submit(spec(retries={"infrastructure": 0}), "alice")
    node = Node(store)
    await node.poll()
    await place(store, run, node)
    assert (await node.poll(leaving=True)).offers == []
    run = await store.get(run.id)
    assert (run.status, run.reason) == (Status.QUEUED, "worker w1 stops and does not take it; attempt 2 starts from the beginning")
    assert await owners(store) == {}
    assert (await store.snapshot()).nodes == ()


# Budgets


@pytest.mark.parametrize(("fault", "budget"), [("crashed", "crashes"), ("lost", "infrastructure"), ("silent", "infrastructure")])
async def test_a_run_that_keeps_failing_ends_failed(store: Store, fault: str, budget: str) -> None:
    """When its budget is used up there is no further attempt, and the reason counts them."""
    run = await store.submit(spec(retries={budget: 1}), "alice")
    node = Node(store)
    for attempt in (1, 2):
        assert await start(store, run, node) == attempt
        if fault == "silent":
            await silence(store)
            node.held.clear()
            await node.poll()
        else:
            await node.exit(run, attempt, fault, "rank 1 ended")
    run = await store.get(run.id)
    assert (run.status, run.termination_reason) == (Status.FAILED, f"{budget}_exhausted")
    assert run.reason.endswith(f"; 2 attempts failed so since the last checkpoint, and retries.{budget} allows 1 more")
    assert not await place(store, run, node)


async def test_each_kind_of_failure_has_a_budget_of_its_own(store: Store) -> None:
    """Two lost workers leave the one crash that is allowed; what a stopping worker gives back costs nothing."""
    run = await store.submit(spec(retries={"infrastructure": 2, "crashes": 1}), "alice")
    node = Node(store)
    for attempt, outcome in enumerate(("lost", "released", "lost", "released", "crashed"), start=1):
        await start(store, run, node)
        assert (await node.exit(run, attempt, outcome)).status == Status.QUEUED
    await start(store, run, node)
    assert (await node.exit(run, 6, "crashed")).termination_reason == Termination.CRASHES_EXHAUSTED


async def test_a_checkpoint_beyond_all_earlier_ones_gives_the_budgets_back(store: Store) -> None:
    """Progress is made; one that only repeats an earlier step is none."""
    run = await store.submit(spec(retries={"infrastructure": 1, "crashes": 1}), "alice")
    node = Node(store)
    for attempt, step in enumerate((10, 20, 30, 30), start=1):
        await start(store, run, node)
        await send(store, run, attempt, started(), checkpointed(2, step))
        assert (await node.exit(run, attempt, "crashed")).status == (Status.QUEUED if attempt < 4 else Status.FAILED)


async def test_the_same_error_at_the_same_step_twice_ends_the_run(store: Store) -> None:
    """Another error, or the same at a later step, is tried again while the budget lasts."""
    run = await store.submit(spec(retries={"crashes": 100}), "alice")
    node = Node(store)
    errors = [("ValueError: a", 10), ("ValueError: a", 20), ("ValueError: b", 20), ("ValueError: a", 20), ("ValueError: a", 20)]
    for attempt, (signature, step) in enumerate(errors, start=1):
        await start(store, run, node)
        await send(store, run, attempt, started(), progress(2, step))
        run = await node.exit(run, attempt, "crashed", signature, signature=signature)
        assert run.status == (Status.QUEUED if attempt < 5 else Status.FAILED)
    assert run.termination_reason == Termination.REPEATED_ERROR
    assert run.reason == "ValueError: a; the same error came at the same step (20) before, so another attempt would meet it again"


async def test_an_error_at_the_start_is_compared_with_the_start(store: Store) -> None:
    """And not with the step that an earlier attempt had reached."""
    run = await store.submit(spec(retries={"crashes": 100}), "alice")
    node = Node(store)
    for attempt, step in enumerate((30, None, None), start=1):
        await start(store, run, node)
        await send(store, run, attempt, started(start_step=20), *([progress(2, step)] if step else []))
        run = await node.exit(run, attempt, "crashed", signature="OutOfMemoryError")
        assert run.status == (Status.QUEUED if attempt < 3 else Status.FAILED)


async def test_an_attempt_is_charged_to_its_owner_once(store: Store) -> None:
    """Slots times seconds, when it ends; whatever its nodes report after that."""
    run, nodes = await gang(store)
    key = f"millionway:attempt:{run.id}:1"
    await store.redis.hset(key, "placed_at", float(await store.redis.hget(key, "placed_at")) - 100)
    await nodes[1].exit(run, 1, "crashed")
    for node in nodes:
        await node.exit(run, 1, "crashed")
    cluster = await store.snapshot()
    assert cluster is not None
    assert cluster.usage == {"alice": pytest.approx(600, rel=0.05)}


async def test_a_time_limit_is_the_attempts(store: Store) -> None:
    """Each attempt has its own; when it is over the scheduler is told."""
    run = await store.submit(spec(resources={"max_hours": 1}), "alice")
    node = Node(store)
    for attempt in (1, 2):
        await start(store, run, node)
        cluster = await store.snapshot()
        assert cluster is not None
        assert cluster.live[0].deadline == pytest.approx(cluster.now + 3600, abs=30)
        await node.exit(run, attempt, "released")
    assert await store.redis.hget(f"millionway:run:{run.id}", "deadline") is None
