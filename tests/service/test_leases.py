"""Workers that fall silent, are started anew or leave: what becomes of their attempts, on a real Redis."""

from __future__ import annotations

from typing import Literal

import pytest

from service.errors import WorkerNameTaken, WorkerReplaced
from service.lifecycle import Status
from service.store import Store
from tests.service.documents import checkpointed, report, spec, started
from tests.service.gangs import gang, owners
from tests.service.reports import Node, end_leases, place, send, silence, start

pytestmark = pytest.mark.anyio


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
