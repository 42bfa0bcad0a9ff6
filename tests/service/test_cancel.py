"""Cancelling a run in every status, on a real Redis."""

from __future__ import annotations

import pytest

from service.errors import TransitionRefused
from service.lifecycle import Status
from service.store import Store
from tests.service.documents import WORKER, report, spec, started
from tests.service.reports import send, silence

pytestmark = pytest.mark.anyio


async def test_cancelling_a_queued_run_ends_it(store: Store) -> None:
    """It leaves the queue."""
    run = await store.cancel((await store.submit(spec())).id)
    assert run.status == Status.CANCELLED
    assert run.finished_at is not None
    assert await store.claim("w1", WORKER) is None


@pytest.mark.parametrize("running", [False, True])
async def test_cancelling_a_held_run_tells_its_worker_to_stop(store: Store, running: bool) -> None:
    """The order rides on the heartbeat; the run ends cancelled when the worker has stopped it."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    if running:
        await send(store, run.id, 1, started())
    assert (await store.heartbeat(run.id, 1)).command == "continue"
    assert (await store.cancel(run.id)).status == Status.CANCELLING
    assert (await store.heartbeat(run.id, 1)).command == "stop"
    assert (await store.exit(run.id, 1, report("stopped"))).status == Status.CANCELLED


@pytest.mark.parametrize("end", ["stopped", "crashed", "released", "faulty", "silent"])
async def test_however_a_cancelled_run_ends_it_is_not_tried_again(store: Store, end: str) -> None:
    """Also when its worker dies on the way."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    await store.cancel(run.id)
    await (silence(store) if end == "silent" else store.exit(run.id, 1, report(end)))
    run = await store.get(run.id)
    assert run.status == Status.CANCELLED
    assert "attempt 2" not in run.reason


async def test_cancelling_twice_is_the_same_as_once(store: Store) -> None:
    """While the worker stops and after."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    assert await store.cancel(run.id) == await store.cancel(run.id)
    await store.exit(run.id, 1, report("stopped"))
    assert (await store.cancel(run.id)).status == Status.CANCELLED


@pytest.mark.parametrize(("outcome", "status"), [("finished", Status.SUCCEEDED), ("faulty", Status.FAILED)])
async def test_a_run_that_has_ended_cannot_be_cancelled(store: Store, outcome: str, status: Status) -> None:
    """The refusal names the status."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    await store.exit(run.id, 1, report(outcome))
    with pytest.raises(TransitionRefused, match=f"is {status}: cancel is not possible"):
        await store.cancel(run.id)


async def test_a_run_that_nobody_cancelled_cannot_be_reported_stopped(store: Store) -> None:
    """The table has no way for it, and the run stays as it is."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    with pytest.raises(TransitionRefused):
        await store.exit(run.id, 1, report("stopped"))
    assert (await store.heartbeat(run.id, 1)).command == "continue"
