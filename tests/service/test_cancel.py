"""What people ask of a run, and what the scheduler asks: pause, resume, cancel, kill, give way; on a real Redis."""

from __future__ import annotations

import pytest

from service.errors import TransitionRefused
from service.lifecycle import Status, Termination
from service.runs import Run
from service.scheduling.model import Stop
from service.store import Store
from tests.service.documents import checkpointed, spec, started
from tests.service.reports import Node, place, send, silence, start

pytestmark = pytest.mark.anyio


@pytest.fixture
async def node(store: Store) -> Node:
    node = Node(store)
    await node.poll()
    return node


@pytest.fixture
async def run(store: Store, node: Node) -> Run:
    """Held by w1, attempt 1."""
    run = await store.submit(spec(), "alice")
    await start(store, run, node)
    return await store.get(run.id)


def giving_way(run: Run, cause: str = "preempted", in_favour_of: str | None = None) -> Stop:
    return Stop(run.id, cause, "gives way", in_favour_of)


@pytest.mark.parametrize("request_", ["cancel", "kill"])
async def test_cancelling_a_waiting_run_ends_it(store: Store, node: Node, request_: str) -> None:
    """It leaves the queue, or its pause."""
    for paused in (False, True):
        run = await store.submit(spec(), "alice")
        if paused:
            await store.request(run.id, "pause")
        run = await store.request(run.id, request_)  # type: ignore[arg-type]
        assert (run.status, run.termination_reason) == (Status.CANCELLED, Termination.CANCELLED)
        assert run.finished_at is not None
        assert not await place(store, run, node)


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize(
    ("request_", "command", "between", "after"),
    [
        ("cancel", "stop", Status.CANCELLING, Status.CANCELLED),
        ("kill", "kill", Status.CANCELLING, Status.CANCELLED),
        ("pause", "stop", Status.PAUSING, Status.PAUSED),
    ],
)
async def test_a_held_run_is_stopped_by_its_worker(
    store: Store, run: Run, node: Node, running: bool, request_: str, command: str, between: Status, after: Status
) -> None:
    """The command rides on the poll; the run is where it was asked to be when the worker has stopped it."""
    if running:
        await send(store, run, 1, started())
    assert await node.told(run) == "continue"
    assert (await store.request(run.id, request_)).status == between  # type: ignore[arg-type]
    assert await node.told(run) == command
    assert (await node.exit(run, 1, "stopped")).status == after


async def test_a_paused_run_goes_on_from_its_checkpoint(store: Store, run: Run, node: Node) -> None:
    """Resumed it is in its place in the queue again."""
    await send(store, run, 1, started(), checkpointed(2, 30))
    await store.request(run.id, "pause")
    run = await node.exit(run, 1, "stopped", "stopped at step 30")
    assert (run.status, run.reason) == (Status.PAUSED, "stopped at step 30")
    assert not await place(store, run, node)
    assert (await store.request(run.id, "resume")).status == Status.QUEUED
    assert await start(store, run, node) == 2


@pytest.mark.parametrize("request_", ["pause", "cancel", "kill"])
async def test_asking_twice_is_the_same_as_once(store: Store, run: Run, node: Node, request_: str) -> None:
    """While the worker stops and after; nothing is written the second time."""
    assert await store.request(run.id, request_) == await store.request(run.id, request_)  # type: ignore[arg-type]
    await node.exit(run, 1, "stopped")
    assert await store.request(run.id, request_) == await store.get(run.id)  # type: ignore[arg-type]


async def test_resuming_what_is_not_paused_changes_nothing(store: Store, run: Run) -> None:
    """It goes on, or will by itself."""
    assert await store.request(run.id, "resume") == run
    await store.stop(giving_way(run))
    assert (await store.request(run.id, "resume")).status == Status.PREEMPTING


async def test_a_stop_only_grows_more_severe(store: Store, run: Run, node: Node) -> None:
    """Giving way, then pausing, then cancelling, then killing; never back."""
    assert await store.stop(giving_way(run))
    assert (await store.request(run.id, "pause")).status == Status.PAUSING
    assert not await store.stop(giving_way(run))
    with pytest.raises(TransitionRefused, match="is pausing: resume is not possible"):
        await store.request(run.id, "resume")
    assert (await store.request(run.id, "cancel")).status == Status.CANCELLING
    assert await node.told(run) == "stop"
    before = await store.get(run.id)
    killed = await store.request(run.id, "kill")
    assert (killed.status, killed.reason, killed.version) == (Status.CANCELLING, "killed on request", before.version + 1)
    assert await node.told(run) == "kill"
    assert await store.request(run.id, "cancel") == killed
    for request in ("pause", "resume"):
        with pytest.raises(TransitionRefused, match=f"is cancelling: {request} is not possible"):
            await store.request(run.id, request)  # type: ignore[arg-type]


@pytest.mark.parametrize("end", ["stopped", "crashed", "lost", "released", "faulty", "silent"])
async def test_however_a_cancelled_run_ends_it_is_not_tried_again(store: Store, run: Run, node: Node, end: str) -> None:
    """Also when its worker dies on the way, and with its budget used up."""
    await store.request(run.id, "cancel")
    await (silence(store) if end == "silent" else node.exit(run, 1, end))
    run = await store.get(run.id)
    assert (run.status, run.termination_reason) == (Status.CANCELLED, Termination.CANCELLED)
    assert "attempt 2" not in run.reason


@pytest.mark.parametrize("end", ["stopped", "crashed", "lost", "released", "silent"])
async def test_however_a_pausing_run_is_stopped_it_is_paused(store: Store, run: Run, node: Node, end: str) -> None:
    """And says nothing of a next attempt that nobody asked for."""
    await store.request(run.id, "pause")
    await (silence(store) if end == "silent" else node.exit(run, 1, end))
    run = await store.get(run.id)
    assert run.status == Status.PAUSED
    assert "attempt 2" not in run.reason


async def test_a_run_that_had_finished_before_it_was_stopped_has_succeeded(store: Store, run: Run, node: Node) -> None:
    """Its work is done, whatever was asked meanwhile."""
    await store.request(run.id, "cancel")
    run = await node.exit(run, 1, "finished")
    assert (run.status, run.termination_reason) == (Status.SUCCEEDED, Termination.FINISHED)


@pytest.mark.parametrize(("outcome", "status"), [("finished", Status.SUCCEEDED), ("faulty", Status.FAILED)])
@pytest.mark.parametrize("request_", ["cancel", "kill", "pause", "resume"])
async def test_nothing_can_be_asked_of_a_run_that_has_ended(
    store: Store, run: Run, node: Node, outcome: str, status: Status, request_: str
) -> None:
    """The refusal names the status."""
    ended = await node.exit(run, 1, outcome)
    event = "cancel" if request_ == "kill" else request_
    with pytest.raises(TransitionRefused, match=f"is {status}: {event} is not possible"):
        await store.request(run.id, request_)  # type: ignore[arg-type]
    assert not await store.stop(giving_way(run))
    assert await store.get(run.id) == ended


async def test_a_run_that_nobody_stopped_is_given_back(store: Store, run: Run, node: Node) -> None:
    """A job that stops by itself, e.g. by a signal, has a checkpoint and goes on elsewhere."""
    run = await node.exit(run, 1, "stopped", "worker w1 stops")
    assert (run.status, run.reason) == (Status.QUEUED, "worker w1 stops; attempt 2 starts from the beginning")


async def test_a_run_that_gives_way_is_queued_with_its_checkpoint(store: Store, run: Run, node: Node) -> None:
    """In its old place, and the scheduler sees for whom it stops."""
    other = await store.submit(spec(priority=9), "bob")
    await send(store, run, 1, started(), checkpointed(2, 30))
    assert await store.stop(giving_way(run, in_favour_of=other.id))
    assert (await store.get(run.id)).reason == "gives way"
    cluster = await store.snapshot()
    assert cluster is not None
    assert [(live.run_id, live.is_stopping, live.stopped_for) for live in cluster.live] == [(run.id, True, other.id)]
    assert await node.told(run) == "stop"
    run = await node.exit(run, 1, "stopped", "stopped at step 30")
    assert (run.status, run.reason) == (Status.QUEUED, "stopped at step 30; attempt 2 resumes from step 30")
    assert not await store.stop(giving_way(run))


async def test_a_run_that_gave_way_often_keeps_its_slots(store: Store, node: Node) -> None:
    """Only preemption counts, not a time limit and not a drained node."""
    run = await store.submit(spec(retries={"preemptions": 1}), "alice")
    seen = []
    for attempt, cause in enumerate(("time_limit", "drained", "preempted"), start=1):
        await start(store, run, node)
        seen.append((await store.snapshot()).live[0].can_be_preempted)
        await store.stop(giving_way(run, cause))
        await node.exit(run, attempt, "stopped")
    await start(store, run, node)
    assert [*seen, (await store.snapshot()).live[0].can_be_preempted] == [True, True, True, False]
