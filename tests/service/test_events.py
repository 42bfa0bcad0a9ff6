"""What the job reports arrives in the record once, however it is sent."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import EventGap
from service.event_effects import read_event
from service.lifecycle import Status
from service.runs import Run
from service.store import Store
from tests.service.documents import WORKER, checkpointed, evaluated, progress, report, spec, started

pytestmark = pytest.mark.anyio


@pytest.fixture
async def run(store: Store) -> Run:
    """Held by w1, attempt 1."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    return run


async def send(store: Store, run: Run, *events: dict[str, Any], attempt: int = 1) -> int:
    return (await store.apply_events(run.id, attempt, [read_event(event) for event in events])).last_seq


async def test_events_fill_the_record(store: Store, run: Run) -> None:
    """Each kind in its field."""
    assert await send(store, run, started(), evaluated(2, 0, 74.7, 96.4), progress(3, 10), evaluated(4, 1, 98.9)) == 4
    found = await store.get(run.id)
    assert found.status == Status.RUNNING
    assert (found.num_images, found.knn_random, found.knn_pixels, found.knn) == (100, 74.7, 96.4, 98.9)
    assert found.progress is not None
    assert (found.progress.step, found.progress.loss) == (10, 4.5)
    await send(
        store, run, {"kind": "phase", "seq": 5, "time": 6, "phase": "exporting"}, {"kind": "exported", "seq": 6, "time": 6, "path": "/x"}
    )
    found = await store.get(run.id)
    assert (found.phase, found.export) == ("exporting", "/x")
    assert (await store.exit(run.id, 1, report("finished"))).phase is None


async def test_an_event_that_arrives_twice_counts_once(store: Store, run: Run) -> None:
    """A batch sent again, a batch that overlaps, and one in another order give the same metrics as one clean pass."""
    await send(store, run, started(), progress(2, 10))
    before = await store.get(run.id)
    assert await send(store, run, started(), progress(2, 10)) == 2
    assert await store.get(run.id) == before
    assert await send(store, run, progress(4, 30), progress(2, 10), progress(3, 20), progress(3, 20)) == 4
    assert [m.metric.step for m in (await store.metrics(run.id)).metrics] == [10, 20, 30]


async def test_events_after_a_gap_are_refused_as_a_whole(store: Store, run: Run) -> None:
    """The refusal says what is due, and sending from there works."""
    await send(store, run, started())
    with pytest.raises(EventGap, match=r"event 4 .* follows 1 here: send from 2") as refusal:
        await send(store, run, progress(2, 10), progress(4, 30))
    assert refusal.value.last_seq == 1
    assert (await store.metrics(run.id)).metrics == []
    assert await send(store, run, progress(2, 10), progress(3, 20), progress(4, 30)) == 4


async def test_each_attempt_counts_its_events_anew(store: Store, run: Run) -> None:
    """Metrics of both attempts follow each other, each with its attempt."""
    await send(store, run, started(), progress(2, 10))
    await store.exit(run.id, 1, report("released"))
    await store.claim("w2", WORKER)
    await send(store, run, started(start_step=10), progress(2, 20), attempt=2)
    assert [(m.attempt, m.metric.step) for m in (await store.metrics(run.id)).metrics] == [(1, 10), (2, 20)]


async def test_metrics_are_read_in_pages_and_followed(store: Store, run: Run) -> None:
    """The cursor of the last page goes on once there is more."""
    await send(store, run, started(), *(progress(seq, seq * 10) for seq in range(2, 7)))
    seen, after = [], None
    while True:
        page = await store.metrics(run.id, after=after, limit=2)
        seen += [m.metric.step for m in page.metrics]
        after = page.next_cursor
        if not page.has_more:
            break
    assert seen == [20, 30, 40, 50, 60]
    assert (await store.metrics(run.id, after=after)).metrics == []
    await send(store, run, progress(7, 70))
    assert [m.metric.step for m in (await store.metrics(run.id, after=after)).metrics] == [70]


async def test_checkpoints_that_made_room_are_no_longer_listed(store: Store, run: Run) -> None:
    """The record names the newest, the list what is on disk."""
    first, second, third = (checkpointed(0, step)["path"] for step in (10, 20, 30))
    await send(store, run, started(), checkpointed(2, 10), checkpointed(3, 20), checkpointed(4, 30, removed=(first,)))
    assert [checkpoint.path for checkpoint in await store.checkpoints(run.id)] == [second, third]
    assert (await store.get(run.id)).checkpoint == third


async def test_the_last_twenty_warnings_are_kept(store: Store, run: Run) -> None:
    """Over several batches."""
    warnings = [{"kind": "warned", "seq": seq, "time": 1, "message": f"warning {seq}"} for seq in range(1, 31)]
    await send(store, run, *warnings[:15])
    await send(store, run, *warnings[15:])
    assert (await store.get(run.id)).warnings == [f"warning {seq}" for seq in range(11, 31)]


async def test_an_event_that_is_not_understood_becomes_a_warning(store: Store, run: Run) -> None:
    """It holds nothing back, and is not lost silently."""
    await send(store, run, started(), {"kind": "collapsed", "seq": 2, "time": 1}, progress(3, 10) | {"loss": "x"}, progress(4, 20))
    found = await store.get(run.id)
    assert found.progress is not None
    assert found.progress.step == 20
    assert "'collapsed'" in found.warnings[0]
    assert "loss" in found.warnings[1]


async def test_a_report_of_nan_becomes_a_warning(store: Store, run: Run) -> None:
    """JSON has no such number, and the record is read by programs that know that."""
    await send(store, run, started(), progress(2, 10) | {"loss": float("nan")})
    found = await store.get(run.id)
    assert found.progress is None
    assert "finite" in found.warnings[0]


async def test_a_run_that_is_being_cancelled_stays_so_when_it_starts(store: Store, run: Run) -> None:
    """The late report is recorded but moves nothing."""
    await store.cancel(run.id)
    await send(store, run, started())
    found = await store.get(run.id)
    assert (found.status, found.num_images) == (Status.CANCELLING, 100)
