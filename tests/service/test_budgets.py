"""How often a run is tried again, and what its time is charged to, on a real Redis."""

from __future__ import annotations

import pytest

from service.lifecycle import Status, Termination
from service.store import Store
from tests.service.documents import checkpointed, progress, spec, started
from tests.service.gangs import gang
from tests.service.reports import Node, place, send, silence, start

pytestmark = pytest.mark.anyio


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
