"""The store on a real Redis: placing, offering, and what the scheduler sees of the queue."""

from __future__ import annotations

import asyncio

import pytest

from service.lifecycle import Status
from service.protocol import RunPatch
from service.scheduling.decide import decide
from service.store import Store
from tests.service.documents import spec
from tests.service.reports import Node, end_leases, place, silence, start

pytestmark = pytest.mark.anyio


# Placing and offering


async def test_only_one_of_many_concurrent_placements_of_a_run_succeeds(store: Store) -> None:
    """Twenty schedulers place one run on twenty workers at once."""
    run = await store.submit(spec(), "alice")
    nodes = [Node(store, f"w{i}") for i in range(20)]
    await asyncio.gather(*(node.poll() for node in nodes))
    assert sum(await asyncio.gather(*(place(store, run, node) for node in nodes))) == 1
    offers = [offer for node in nodes for offer in (await node.poll()).offers]
    assert [(offer.run_id, offer.attempt) for offer in offers] == [(run.id, 1)]


async def test_only_one_of_many_concurrent_runs_gets_a_slot(store: Store) -> None:
    """And those that do not stay queued, untouched."""
    runs = [await store.submit(spec(), "alice") for _ in range(10)]
    node = Node(store)
    await node.poll()
    placed = await asyncio.gather(*(place(store, run, node, slots=(0, 1) if i % 2 else (1,)) for i, run in enumerate(runs)))
    assert sum(placed) == 1
    assert [(await store.get(run.id)).attempt for run in runs] == [int(was_placed) for was_placed in placed]


@pytest.mark.parametrize("why", ["busy", "silent", "too late", "unknown", "drained", "leaving", "too small"])
async def test_a_gang_is_placed_whole_or_not_at_all(store: Store, why: str) -> None:
    """One node of two that cannot take its part, and no slot of the other is owned."""
    run = await store.submit(spec(nodes=2), "alice")
    first, second = Node(store, "w1"), Node(store, "w2", slots=1 if why == "too small" else 2)
    await first.poll()
    if why != "unknown":
        await second.poll(leaving=why == "leaving")
    if why == "busy":
        await place(store, await store.submit(spec(ranks_per_node=1), "bob"), second, slots=(1,))
    elif why == "silent":
        await silence(store, "w2")
    elif why == "too late":  # its lease is over, and nobody has looked yet
        await end_leases(store, "w2")
    elif why == "drained":
        await store.drain("w2", "finish")
    assert not await place(store, run, first, second)
    assert (await store.get(run.id)).status == Status.QUEUED
    assert (await first.poll()).offers == []
    assert not any(held.run_id == run.id for worker in await store.workers() for held in worker.holds)


async def test_the_nodes_of_a_gang_learn_where_to_meet(store: Store) -> None:
    """The lead is offered its part at once; the others when it has said at which port; each with its rank and its slots."""
    submitted = spec(nodes=2)
    run = await store.submit(submitted, "alice")
    lead, other = Node(store, "w1"), Node(store, "w2")
    await lead.poll()
    await other.poll()
    assert await place(store, run, lead, other)
    assert (await other.poll()).offers == []
    offer = (await lead.poll()).offers[0]
    assert offer.spec == submitted
    assert (offer.run_id, offer.attempt, offer.node_rank, offer.num_nodes, offer.ranks_per_node) == (run.id, 1, 0, 2, 2)
    assert (offer.slots, offer.master_address, offer.master_port) == ([0, 1], "address-w1", None)
    await lead.poll()
    offer = (await other.poll()).offers[0]
    assert (offer.node_rank, offer.master_address, offer.master_port) == (1, "address-w1", 29500)
    await other.poll()
    assert [member.state for member in (await store.attempts(run.id))[0].members] == ["held", "held"]
    found = await store.get(run.id)
    assert (found.workers, found.ranks, found.reason) == (["w1", "w2"], 4, "attempt 1 is placed on 2 workers: w1, w2")


async def test_an_offer_is_made_again_until_it_is_taken(store: Store) -> None:
    """An answer that was lost on its way costs nothing."""
    run = await store.submit(spec(), "alice")
    node = Node(store)
    await node.poll()
    await place(store, run, node)
    for _ in range(3):
        assert (await node.poll(take=False)).offers[0].attempt == 1
    await node.poll()
    reply = await node.poll()
    assert (reply.offers, [told.command for told in reply.instructions]) == ([], ["continue"])


async def test_several_runs_share_a_node(store: Store) -> None:
    """Each on slots of its own, of which the worker frees those of one that is over."""
    node = Node(store, slots=4, shared=True)
    first, second = [await store.submit(spec(), "alice") for _ in range(2)]
    await start(store, first, node, slots=(0, 1))
    assert not await place(store, second, node, slots=(1, 2))
    await start(store, second, node, slots=(2, 3))
    assert sorted((told.run_id, told.command) for told in (await node.poll()).instructions) == sorted(
        [(first.id, "continue"), (second.id, "continue")]
    )
    await node.exit(first, 1, "finished")
    [worker] = await store.workers()
    assert [(held.run_id, held.slots) for held in worker.holds] == [(second.id, [2, 3])]


async def test_a_run_is_not_placed_while_a_worker_that_is_heard_still_has_its_last_attempt(store: Store) -> None:
    """Two attempts would write to one directory; once the node says that the processes are gone, the run starts elsewhere."""
    run = await store.submit(spec(nodes=2), "alice")
    nodes = [Node(store, name) for name in ("w1", "w2", "w3", "w4")]
    for node in nodes:
        await node.poll()
    await start(store, run, *nodes[:2])
    await nodes[0].exit(run, 1, "lost", "rank 0 was killed")
    assert not await place(store, run, *nodes[2:])
    assert [queued.run_id for queued in (await store.snapshot()).queued] == []
    assert [told.command for told in (await nodes[1].poll()).instructions] == ["abort"]
    nodes[1].held.clear()
    await nodes[1].poll()
    assert [queued.run_id for queued in (await store.snapshot()).queued] == [run.id]
    assert await place(store, run, *nodes[2:])


# The order of the queue


async def test_the_snapshot_has_each_owners_runs_in_order(store: Store) -> None:
    """Priority first, then submission, also after an edit, a pause and a lost attempt."""
    node = Node(store)
    runs = [await store.submit(spec(priority=priority), "alice") for priority in (0, 5, 0, -3, 5)]
    await store.edit(runs[3].id, RunPatch(priority=100))
    await store.request(runs[0].id, "pause")
    await store.request(runs[0].id, "resume")
    await start(store, runs[1], node)
    await silence(store)
    key = f"millionway:queue:{'alice'}"
    assert await store.redis.zrange(key, 0, -1) == [runs[i].id for i in (3, 1, 4, 0, 2)]


async def test_a_flood_of_one_owner_hides_nobody_elses_runs(store: Store) -> None:
    """Each owner's best are in the snapshot."""
    for _ in range(60):
        await store.submit(spec(), "flood")
    late = await store.submit(spec(), "late")
    snapshot = await store._call("snapshot", limit=40)
    queued = [row[snapshot["columns"].index("id")] for row in snapshot["queued"]]
    assert late.id in queued
    assert len(queued) == len(set(queued))


async def test_what_the_scheduler_sees_is_what_there_is(store: Store) -> None:
    """Nodes with their free slots, runs with what they need; only one of two schedulers gets an answer."""
    gpu = Node(store, "gpu", slots=8, device="cuda NVIDIA V100", shared=True, storage="nfs-2")
    await gpu.poll()
    running = await store.submit(spec(ranks_per_node=3, resources={"max_hours": 2}), "alice")
    waiting = await store.submit(spec(nodes=2, priority=7, resources={"device": "cuda"}), "bob")
    await start(store, running, gpu, slots=(0, 1, 5))
    cluster = await store.snapshot("one")
    assert cluster is not None
    [node] = cluster.nodes
    assert (node.id, node.num_slots, node.free, node.is_cuda, node.is_shared) == ("gpu", 8, (2, 3, 4, 6, 7), True, True)
    [live], [queued] = cluster.live, cluster.queued
    assert (live.run_id, live.owner, dict(live.slots), live.is_stopping) == (running.id, "alice", {"gpu": (0, 1, 5)}, False)
    assert live.ends_at == live.deadline == pytest.approx(cluster.now + 7200, abs=30)
    assert (queued.run_id, queued.owner, queued.priority, queued.shapes, queued.device) == (waiting.id, "bob", 7, ((2, 2),), "cuda")
    assert await store.snapshot("another") is None


async def test_the_scheduler_and_the_store_understand_each_other(store: Store) -> None:
    """What is decided from a snapshot is taken: two gangs and a small run on five nodes."""
    nodes = [Node(store, f"w{i}") for i in range(5)]
    for node in nodes:
        await node.poll()
    runs = [await store.submit(spec(nodes=count), owner) for count, owner in ((2, "alice"), (2, "bob"), (1, "bob"))]
    cluster = await store.snapshot()
    assert cluster is not None
    places = decide(cluster).places
    assert {placed.run_id for placed in places} == {run.id for run in runs}
    for placed in places:
        assert await store.place(placed)
