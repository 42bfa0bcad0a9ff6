"""The store on a real Redis: submitting, reading, editing."""

from __future__ import annotations

import asyncio

import pytest

from service.errors import (
    CheckpointNotFound,
    EditConflict,
    IdempotencyConflict,
    QueueFull,
    RunNotFound,
    WorkerNotFound,
)
from service.lifecycle import Status
from service.protocol import RunPatch
from service.runs import Parent, WorkerState
from service.store import Store
from tests.service.documents import checkpointed, report, spec, started
from tests.service.reports import Node, place, send, silence, start

pytestmark = pytest.mark.anyio


# Submitting


async def test_the_same_key_and_body_give_the_same_run(store: Store) -> None:
    """Also when all are sent at once."""
    runs = await asyncio.gather(*(store.submit(spec(), "alice", "key-1") for _ in range(10)))
    assert len({run.id for run in runs}) == 1
    assert len((await store.list_runs()).runs) == 1


async def test_the_same_key_with_another_body_is_refused(store: Store) -> None:
    """No run is made."""
    await store.submit(spec(), "alice", "key-1")
    with pytest.raises(IdempotencyConflict, match="use a new key"):
        await store.submit(spec(seed=7), "alice", "key-1")
    assert len((await store.list_runs()).runs) == 1


async def test_each_owner_has_keys_of_its_own(store: Store) -> None:
    """Bob's key-1 is not Alice's, whatever the body."""
    hers, his = await store.submit(spec(), "alice", "key-1"), await store.submit(spec(seed=7), "bob", "key-1")
    assert (hers.owner, his.owner) == ("alice", "bob")
    assert (await store.submit(spec(), "alice", "key-1")).id == hers.id


async def test_an_owner_with_too_many_queued_runs_is_refused_and_others_are_not(store: Store) -> None:
    """A repeated submission is no new run, and a run that has left the queue makes room."""
    store.max_queued = 2
    first, _ = await store.submit(spec(), "alice", "key-1"), await store.submit(spec(), "alice")
    with pytest.raises(QueueFull, match="alice has 2 queued runs, and the limit is 2"):
        await store.submit(spec(), "alice")
    assert (await store.submit(spec(), "alice", "key-1")).id == first.id
    await store.submit(spec(), "bob")
    await store.request(first.id, "cancel")
    await store.submit(spec(), "alice")


async def test_a_fork_pins_the_checkpoint_that_it_starts_from(store: Store) -> None:
    """Its worker is told of the parent; a checkpoint that is not there is refused, and no run is made."""
    parent = await store.submit(spec(), "alice")
    node = Node(store)
    await start(store, parent, node)
    await send(store, parent, 1, started(), checkpointed(2, 10), checkpointed(3, 20))
    child = await store.submit(spec(seed=1), "alice", "key-1", Parent(run_id=parent.id, step=10))
    assert child.parent == Parent(run_id=parent.id, step=10)
    assert [(kept.step, kept.pinned) for kept in await store.checkpoints(parent.id)] == [(10, True), (20, False)]
    assert (await node.poll()).instructions[0].pins == [10]
    with pytest.raises(IdempotencyConflict):
        await store.submit(spec(seed=1), "alice", "key-1", Parent(run_id=parent.id, step=20))
    with pytest.raises(CheckpointNotFound, match="no checkpoint of step 30"):
        await store.submit(spec(), "alice", "key-2", Parent(run_id=parent.id, step=30))
    assert len((await store.list_runs()).runs) == 2
    other = Node(store, "w2")
    await other.poll()
    await place(store, child, other)
    assert (await other.poll()).offers[0].parent == child.parent


# Reading and editing


async def test_pages_visit_each_run_once_while_new_ones_arrive(store: Store) -> None:
    """Newest first; what is submitted meanwhile belongs to an earlier page."""
    runs = [(await store.submit(spec(), "alice")).id for _ in range(7)]
    seen, cursor = [], None
    while True:
        page = await store.list_runs(cursor=cursor, limit=2)
        seen += [run.id for run in page.runs]
        if not page.has_more:
            break
        cursor = int(page.next_cursor or "")
        await store.submit(spec(), "alice")
    assert seen == runs[::-1]


async def test_runs_are_found_by_status_owner_and_labels(store: Store) -> None:
    """Alone and together, over pages."""
    runs = []
    for i in range(12):
        labels = {"project": "seeds" if i % 3 else "leaves"}
        runs.append(await store.submit(spec(labels=labels), "alice" if i % 2 else "bob"))
    await store.request(runs[1].id, "pause")

    async def found(**wanted: object) -> list[int]:
        seen, cursor = [], None
        while True:
            page = await store.list_runs(cursor=cursor, limit=2, **wanted)  # type: ignore[arg-type]
            seen += [next(i for i, run in enumerate(runs) if run.id == one.id) for one in page.runs]
            if not page.has_more:
                return seen
            cursor = int(page.next_cursor or "")

    assert await found(status=Status.PAUSED) == [1]
    assert await found(owner="alice") == [11, 9, 7, 5, 3, 1]
    assert await found(labels={"project": "leaves"}) == [9, 6, 3, 0]
    assert await found(labels={"project": "leaves"}, owner="bob", status=Status.QUEUED) == [6, 0]
    assert await found(labels={"project": "none"}) == []


async def test_an_edit_changes_priority_and_labels_and_nothing_else(store: Store) -> None:
    """Labels are laid over those that there are, null removes one; the number of edits guards against a lost update."""
    run = await store.submit(spec(labels={"a": "1", "b": "2"}), "alice")
    edited = await store.edit(run.id, RunPatch(labels={"b": None, "c": "3"}), expected_edits=0)
    assert (edited.labels, edited.priority, edited.edits, edited.version) == ({"a": "1", "c": "3"}, 0, 1, run.version + 1)
    with pytest.raises(EditConflict, match="read it again"):
        await store.edit(run.id, RunPatch(priority=3), expected_edits=0)
    edited = await store.edit(run.id, RunPatch(priority=3))
    assert (edited.labels, edited.priority, edited.edits, edited.status) == ({"a": "1", "c": "3"}, 3, 2, Status.QUEUED)


async def test_a_pin_is_kept_until_it_is_taken_back(store: Store) -> None:
    """The worker hears of it; a step without a checkpoint is refused."""
    run = await store.submit(spec(), "alice")
    node = Node(store)
    await start(store, run, node)
    await send(store, run, 1, started(), checkpointed(2, 10))
    assert (await store.pin(run.id, 10, pinned=True)).pinned
    assert (await node.poll()).instructions[0].pins == [10]
    with pytest.raises(CheckpointNotFound):
        await store.pin(run.id, 11, pinned=True)
    assert not (await store.pin(run.id, 10, pinned=False)).pinned
    assert (await node.poll()).instructions[0].pins == []


async def test_the_history_tells_every_change_with_its_reason(store: Store) -> None:
    """In order, with the attempt that each belongs to; the same transitions are among the events."""
    run = await store.submit(spec(), "alice")
    node = Node(store)
    await start(store, run, node)
    await send(store, run, 1, started())
    await node.exit(run, 1, "released", "worker w1 stops")
    await store.request(run.id, "cancel")
    told = [(entry.event, entry.status, entry.attempt, entry.reason) for entry in await store.history(run.id)]
    assert told == [
        ("submit", "queued", 0, "submitted by alice"),
        ("place", "starting", 1, "attempt 1 is placed on worker w1 on host-w1"),
        ("started", "running", 1, "training from step 0 on 2 ranks: cpu, fp32, 1 thread per rank"),
        ("released", "queued", 1, "worker w1 stops; attempt 2 starts from the beginning"),
        ("cancel", "cancelled", 1, "cancelled on request"),
    ]
    events = (await store.events(run.id, kinds=["transition"])).events
    assert [(event.data["event"], event.data["status"], event.attempt, event.data["reason"]) for event in events] == told


async def test_workers_show_what_they_hold_and_in_which_state_they_are(store: Store) -> None:
    """Ready, draining while something runs there, then drained; silent after its lease."""
    run = await store.submit(spec(), "alice")
    node, idle = Node(store, "w1"), Node(store, "idle")
    await start(store, run, node)
    await idle.poll()

    async def states() -> dict[str, tuple[str, list[str]]]:
        return {worker.id: (worker.state, [held.run_id for held in worker.holds]) for worker in await store.workers()}

    assert await states() == {"w1": ("ready", [run.id]), "idle": ("ready", [])}
    assert (await store.drain("w1", "finish")).state == WorkerState.DRAINING
    await node.poll()
    assert await states() == {"w1": ("draining", [run.id]), "idle": ("ready", [])}
    await node.exit(run, 1, "finished")
    assert (await states())["w1"] == ("drained", [])
    node.restart()
    await node.poll()
    assert (await states())["w1"] == ("drained", [])  # a drain outlives the process
    assert (await store.drain("w1", "")).state == WorkerState.READY
    await silence(store, "idle")
    assert await states() == {"w1": ("ready", []), "idle": ("silent", [])}
    with pytest.raises(WorkerNotFound):
        await store.drain("nobody", "finish")


async def test_what_there_is_is_counted(store: Store) -> None:
    """Runs by status, attempts by how they ended, and since when the oldest queued run waits."""
    node = Node(store)
    runs = [await store.submit(spec(), "alice") for _ in range(3)]
    await start(store, runs[0], node)
    await node.exit(runs[0], 1, "finished")
    counts = await store.counts()
    assert (counts["counts"]["queued"], counts["counts"]["succeeded"], counts["outcomes"]) == (2, 1, {"finished": "1"})
    assert counts["oldest_queued_at"] == pytest.approx(runs[1].created_at, abs=0.01)


async def test_a_run_that_does_not_exist_is_named(store: Store) -> None:
    """By every method that takes an id."""
    for call in (store.get, store.history, store.attempts, store.events, store.series, store.checkpoints, store.newest_attempt):
        with pytest.raises(RunNotFound, match="no run 'nothing'"):
            await call("nothing")
    for wrong in (
        store.request("nothing", "cancel"),
        store.edit("nothing", RunPatch()),
        store.pin("nothing", 1, pinned=True),
        store.apply_events("nothing", 1, []),
        store.exit("nothing", 1, report("finished")),
        store.submit(spec(), "alice", parent=Parent(run_id="nothing", step=1)),
    ):
        with pytest.raises(RunNotFound, match="no run 'nothing'"):
            await wrong
