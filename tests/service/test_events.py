"""What the job reports arrives in the record once, however it is sent."""

from __future__ import annotations

import pytest

from service.errors import EventGap
from service.lifecycle import Status
from service.runs import Run
from service.store import Store
from tests.service.documents import checkpointed, evaluated, progress, spec, started
from tests.service.reports import Node, send, start

pytestmark = pytest.mark.anyio


@pytest.fixture
def node(store: Store) -> Node:
    return Node(store)


@pytest.fixture
async def run(store: Store, node: Node) -> Run:
    """Held by w1, attempt 1."""
    run = await store.submit(spec(), "alice")
    await start(store, run, node)
    return await store.get(run.id)


async def steps(store: Store, run: Run) -> list[tuple[int, int]]:
    """Attempt and step of the progress that was told."""
    return [(event.attempt, event.data["step"]) for event in (await store.events(run.id, kinds=["progress"])).events]


async def test_events_fill_the_record(store: Store, run: Run, node: Node) -> None:
    """Each kind in its field."""
    assert await send(store, run, 1, started(), evaluated(2, 0, 74.7, 96.4), progress(3, 10), evaluated(4, 1, 98.9)) == 4
    found = await store.get(run.id)
    assert found.status == Status.RUNNING
    assert (found.num_images, found.knn_random, found.knn_pixels, found.knn) == (100, 74.7, 96.4, 98.9)
    assert found.progress is not None
    assert (found.progress.step, found.progress.loss) == (10, 4.5)
    phase, exported = {"kind": "phase", "phase": "exporting"}, {"kind": "exported", "path": "/x"}
    await send(store, run, 1, {"seq": 5, "time": 6, **phase}, {"seq": 6, "time": 6, **exported})
    found = await store.get(run.id)
    assert (found.phase, found.export) == ("exporting", "/x")
    [attempt] = await store.attempts(run.id)
    assert attempt.started_at is not None
    assert attempt.start_step == 0
    assert (await node.exit(run, 1, "finished")).phase is None


async def test_an_event_that_arrives_twice_counts_once(store: Store, run: Run) -> None:
    """A batch sent again, a batch that overlaps, and one in another order give the same as one clean pass."""
    await send(store, run, 1, started(), progress(2, 10))
    before = await store.get(run.id)
    assert await send(store, run, 1, started(), progress(2, 10)) == 2
    assert await store.get(run.id) == before
    assert await send(store, run, 1, progress(4, 30), progress(2, 10), progress(3, 20), progress(3, 20)) == 4
    assert await steps(store, run) == [(1, 10), (1, 20), (1, 30)]


async def test_events_after_a_gap_are_refused_as_a_whole(store: Store, run: Run) -> None:
    """The refusal says what is due, nothing of the batch is applied, and sending from there works."""
    await send(store, run, 1, started())
    before = await store.get(run.id)
    with pytest.raises(EventGap, match=r"event 4 .* follows 1 here: send from 2") as refusal:
        await send(store, run, 1, progress(2, 10), progress(4, 30))
    assert refusal.value.last_seq == 1
    assert await store.get(run.id) == before
    assert await send(store, run, 1, progress(2, 10), progress(3, 20), progress(4, 30)) == 4


async def test_each_attempt_counts_its_events_anew(store: Store, run: Run, node: Node) -> None:
    """What both told follows each other, each with its attempt."""
    await send(store, run, 1, started(), progress(2, 10))
    await node.exit(run, 1, "released")
    await start(store, run, node)
    await send(store, run, 2, started(start_step=10), progress(2, 20))
    assert await steps(store, run) == [(1, 10), (2, 20)]


async def test_checkpoints_that_made_room_are_no_longer_listed(store: Store, run: Run) -> None:
    """The record names the newest, the list what is on disk, with the loss of the report before it."""
    first, second, third = (checkpointed(0, step)["path"] for step in (10, 20, 30))
    await send(store, run, 1, started(), checkpointed(2, 10), progress(3, 20), checkpointed(4, 20))
    await send(store, run, 1, checkpointed(5, 30, removed=(first,)))
    assert [(kept.path, kept.loss, kept.attempt) for kept in await store.checkpoints(run.id)] == [(second, 4.5, 1), (third, 4.5, 1)]
    found = await store.get(run.id)
    assert (found.checkpoint, found.checkpoint_step) == (third, 30)


async def test_the_last_twenty_warnings_are_kept(store: Store, run: Run) -> None:
    """Over several batches."""
    warnings = [{"kind": "warned", "seq": seq, "time": 1, "message": f"warning {seq}"} for seq in range(1, 31)]
    await send(store, run, 1, *warnings[:15])
    await send(store, run, 1, *warnings[15:])
    assert (await store.get(run.id)).warnings == [f"warning {seq}" for seq in range(11, 31)]


async def test_a_slow_rank_is_named_with_its_worker(store: Store) -> None:
    """The job knows ranks, the store knows on which node each is."""
    run = await store.submit(spec(nodes=2), "alice")
    await start(store, run, Node(store, "w1"), Node(store, "w2"))
    slow = {"kind": "straggler", "seq": 2, "time": 1, "step": 30, "rank": 2, "seconds": 0.5, "median_seconds": 0.2}
    await send(store, run, 1, started(), slow)
    [warning] = (await store.get(run.id)).warnings
    assert warning == "rank 2 takes 2.5 times as long per step as the median rank, and all wait for it (worker w2)"


async def test_an_event_that_is_not_understood_becomes_a_warning(store: Store, run: Run) -> None:
    """It holds nothing back, and is not lost silently."""
    await send(store, run, 1, started(), {"kind": "collapsed", "seq": 2, "time": 1}, progress(3, 10) | {"loss": "x"}, progress(4, 20))
    found = await store.get(run.id)
    assert found.progress is not None
    assert found.progress.step == 20
    assert "'collapsed'" in found.warnings[0]
    assert "loss" in found.warnings[1]


async def test_a_report_of_nan_becomes_a_warning(store: Store, run: Run) -> None:
    """JSON has no such number, and the record is read by programs that know that."""
    await send(store, run, 1, started(), progress(2, 10) | {"loss": float("nan")})
    found = await store.get(run.id)
    assert found.progress is None
    assert "finite" in found.warnings[0]


async def test_a_run_that_is_being_stopped_stays_so_when_it_starts(store: Store, run: Run) -> None:
    """The late report is recorded but moves nothing."""
    await store.request(run.id, "cancel")
    await send(store, run, 1, started())
    found = await store.get(run.id)
    assert (found.status, found.num_images) == (Status.CANCELLING, 100)


async def test_throughput_is_remembered_for_runs_alike(store: Store, run: Run) -> None:
    """Of one rank, so that a plan for another number of ranks can be made."""
    key = await store.redis.hget(f"millionway:run:{run.id}", "throughput_key")
    assert await store.throughput(key) is None
    await send(store, run, 1, started(), progress(2, 10))
    assert await store.throughput(key) == pytest.approx(99.5 / 2)
