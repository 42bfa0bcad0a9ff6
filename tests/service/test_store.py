"""The store on a real Redis: who gets a run, who keeps it, and how it ends."""

from __future__ import annotations

import asyncio

import pytest
import redis

from service.errors import AttemptLost, IdempotencyConflict, RunNotFound, TransitionRefused
from service.event_effects import read_event
from service.lifecycle import Status
from service.store import Store
from tests.service.documents import GPU_WORKER, WORKER, checkpointed, failed, report, spec, started
from tests.service.leases import end_leases

pytestmark = pytest.mark.anyio


async def silence(store: Store) -> None:
    """Let every lease end now, and its run be taken back."""
    await end_leases(store)
    await store.expire_leases()


async def send(store: Store, run_id: str, attempt: int, *events: dict[str, object]) -> None:
    await store.apply_events(run_id, attempt, [read_event(event) for event in events])


async def test_only_one_of_many_concurrent_claims_gets_a_run(store: Store) -> None:
    """Twenty workers ask at once for one run."""
    run = await store.submit(spec())
    claims = await asyncio.gather(*(store.claim(f"w{i}", WORKER) for i in range(20)))
    assert [claim.run_id for claim in claims if claim] == [run.id]


async def test_runs_are_claimed_in_the_order_of_submission(store: Store) -> None:
    """Each of three workers gets the oldest run that is left."""
    runs = [await store.submit(spec()) for _ in range(3)]
    claims = [await store.claim(f"w{i}", WORKER) for i in range(3)]
    assert [claim.run_id for claim in claims if claim] == [run.id for run in runs]


async def test_a_claim_passes_over_runs_that_do_not_fit_the_worker(store: Store) -> None:
    """A worker with two CPU slots gets neither the run of eight ranks nor that for a GPU, which a GPU worker gets."""
    large, gpu, small = [await store.submit(spec(**r)) for r in ({"ranks_per_node": 8}, {"device": "cuda"}, {"device": "auto"})]
    claim = await store.claim("w1", WORKER)
    assert claim is not None
    assert claim.run_id == small.id
    assert await store.claim("w2", WORKER) is None
    claims = [await store.claim(f"gpu{i}", GPU_WORKER) for i in range(2)]
    assert [claim.run_id for claim in claims if claim] == [large.id, gpu.id]


async def test_a_claim_hands_out_the_specification_as_submitted(store: Store) -> None:
    """The same object at both ends."""
    submitted = spec(device="cpu")
    run = await store.submit(submitted)
    claim = await store.claim("w1", WORKER)
    assert claim is not None
    assert claim.spec == run.spec == submitted
    assert (claim.attempt, claim.lease_seconds) == (1, 60)


async def test_a_run_that_is_queued_again_keeps_its_place(store: Store) -> None:
    """It was submitted first, so it is claimed first, also after a crash."""
    first, _ = await store.submit(spec()), await store.submit(spec())
    await store.claim("w1", WORKER)
    await store.exit(first.id, 1, report("crashed"))
    again = await store.claim("w2", WORKER)
    assert again is not None
    assert (again.run_id, again.attempt) == (first.id, 2)


async def test_a_report_from_a_lost_attempt_is_refused(store: Store) -> None:
    """Heartbeat, events and exit of attempt 1 change nothing once attempt 2 holds the run."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    await silence(store)
    await store.claim("w2", WORKER)
    before = await store.get(run.id)
    with pytest.raises(AttemptLost, match=r"attempt 1 of run .* is over"):
        await store.heartbeat(run.id, 1)
    with pytest.raises(AttemptLost):
        await send(store, run.id, 1, started())
    with pytest.raises(AttemptLost):
        await store.exit(run.id, 1, report("finished"))
    assert await store.get(run.id) == before


async def test_reports_after_the_end_are_refused(store: Store) -> None:
    """The newest attempt is over, too, once it has ended."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    await store.exit(run.id, 1, report("finished"))
    with pytest.raises(AttemptLost, match="the run is succeeded"):
        await store.exit(run.id, 1, report("crashed"))


async def test_an_expired_lease_puts_the_run_back_and_says_from_where_it_goes_on(store: Store) -> None:
    """The reason names the worker, the lease, and the last checkpoint."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    await send(store, run.id, 1, started(), checkpointed(2, 240))
    await silence(store)
    run = await store.get(run.id)
    assert run.status == Status.QUEUED
    assert run.reason.startswith("worker w1 was not heard of for 60 s; attempt 2 resumes from step 240; ")


async def test_a_heartbeat_keeps_the_lease(store: Store) -> None:
    """Renewed, also at the last moment, the lease is not among the expired ones; silent, it is."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    await end_leases(store)
    await store.heartbeat(run.id, 1)
    assert await store.expire_leases() == []
    await end_leases(store)
    assert await store.expire_leases() == [run.id]


@pytest.mark.parametrize("fault", ["crashed", "silent"])
async def test_a_run_that_keeps_failing_ends_failed(store: Store, fault: str) -> None:
    """After max_attempts failures there is no further attempt, and the reason counts them."""
    run = await store.submit(spec(max_attempts=2))
    for attempt in (1, 2):
        await store.claim("w1", WORKER)
        if fault == "crashed":
            await store.exit(run.id, attempt, report("crashed", "rank 1 ended with signal 9"))
        else:
            await silence(store)
    run = await store.get(run.id)
    assert run.status == Status.FAILED
    assert run.reason.endswith("; 2 failed of the 2 attempts that resources.max_attempts allows")
    assert await store.claim("w1", WORKER) is None


async def test_attempts_that_a_stopping_worker_gives_back_are_not_counted(store: Store) -> None:
    """Five released attempts leave a run of max_attempts 1 its one failure."""
    run = await store.submit(spec(max_attempts=1))
    for attempt in range(1, 6):
        await store.claim("w1", WORKER)
        assert (await store.exit(run.id, attempt, report("released", "worker w1 stops"))).status == Status.QUEUED
    await store.claim("w1", WORKER)
    assert (await store.exit(run.id, 6, report("crashed"))).status == Status.FAILED


async def test_a_worker_that_asks_again_has_lost_its_run(store: Store) -> None:
    """A restarted worker gets its run back at once, as a new attempt, and the old one is fenced off."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    again = await store.claim("w1", WORKER)
    assert again is not None
    assert (again.run_id, again.attempt) == (run.id, 2)
    with pytest.raises(AttemptLost):
        await store.heartbeat(run.id, 1)


async def test_a_claim_whose_answer_was_lost_costs_no_failure(store: Store) -> None:
    """Neither heartbeat nor event ever came of that attempt; a worker that loses every answer is not believed for ever."""
    run = await store.submit(spec(max_attempts=1))
    for attempt in range(1, 5):
        again = await store.claim("w1", WORKER)
        assert again is not None
        assert (again.run_id, again.attempt) == (run.id, attempt)
    told = [(entry.event, entry.reason) for entry in await store.history(run.id)]
    assert told[2] == ("released", "worker w1 asks again: the answer to its claim was lost; attempt 2 starts from the beginning")
    assert await store.claim("w1", WORKER) is None
    assert (await store.get(run.id)).status == Status.FAILED


@pytest.mark.parametrize("sign", ["heartbeat", "event"])
async def test_an_attempt_that_gave_a_sign_of_life_counts(store: Store, sign: str) -> None:
    """Its worker had the run, and was restarted without finishing it; also while the run is still starting."""
    run = await store.submit(spec(max_attempts=1))
    await store.claim("w1", WORKER)
    if sign == "heartbeat":
        await store.heartbeat(run.id, 1)
    else:
        await send(store, run.id, 1, {"kind": "phase", "seq": 1, "time": 1.0, "phase": "indexing"})
    assert await store.claim("w1", WORKER) is None
    run = await store.get(run.id)
    assert run.status == Status.FAILED
    assert run.reason.startswith("worker w1 asks for work without having finished this run")


async def test_the_first_look_at_the_leases_ends_none(store: Store) -> None:
    """Nobody watched before it, so no worker could renew; from then on silence counts."""
    run = await store.submit(spec())
    store.lease_seconds = 0.01
    await store.claim("w1", WORKER)
    await asyncio.sleep(0.05)
    store.lease_seconds = 60
    assert await store.expire_leases() == []
    await end_leases(store)
    assert await store.expire_leases() == [run.id]


async def test_leases_that_nobody_watched_for_half_a_period_get_a_full_one(store: Store) -> None:
    """The control plane was away, or the machine slept: the clock is that of Redis, which goes on."""
    run = await store.submit(spec())
    store.lease_seconds = 0.2
    await store.claim("w1", WORKER)
    await store.expire_leases()
    await asyncio.sleep(0.3)
    assert await store.expire_leases() == []
    assert (await store.get(run.id)).status == Status.STARTING


async def test_a_silent_worker_is_forgotten_after_a_day_unless_it_holds_a_run(store: Store, redis_url: str) -> None:
    """And a run whose worker was forgotten all the same can still be reported and read."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    await store.claim("idle", WORKER)
    await store.expire_leases()
    with redis.Redis.from_url(redis_url) as client:
        client.zadd("millionway:workers", {"w1": 0, "idle": 0})
        await store.expire_leases()
        assert [worker.id for worker in await store.workers()] == ["w1"]
        client.delete("millionway:worker:w1")
        client.zrem("millionway:workers", "w1")
    await store.heartbeat(run.id, 1)
    assert await store.workers() == []
    assert (await store.exit(run.id, 1, report("finished"))).status == Status.SUCCEEDED


async def test_the_worker_says_why_an_attempt_failed(store: Store) -> None:
    """It has read the spool: a survivor's last words, which follow from the cause, do not go over its verdict."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    await send(store, run.id, 1, started(), failed(2, "the loss is not finite between steps 10 and 20"))
    run = await store.exit(run.id, 1, report("crashed", "rank 1 was ended by signal 9"))
    assert run.reason.startswith("rank 1 was ended by signal 9; attempt 2 starts from the beginning")
    await store.claim("w1", WORKER)
    assert (await store.exit(run.id, 2, report("faulty", "exit code 64"))).reason == "exit code 64"


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


async def test_the_same_key_and_body_give_the_same_run(store: Store) -> None:
    """Also when both are sent at once."""
    runs = await asyncio.gather(*(store.submit(spec(), "key-1") for _ in range(10)))
    assert len({run.id for run in runs}) == 1
    assert len((await store.list_runs()).runs) == 1


async def test_the_same_key_with_another_body_is_refused(store: Store) -> None:
    """No run is made."""
    await store.submit(spec(), "key-1")
    with pytest.raises(IdempotencyConflict, match="use a new key"):
        await store.submit(spec(max_attempts=7), "key-1")
    assert len((await store.list_runs()).runs) == 1


async def test_pages_visit_each_run_once_while_new_ones_arrive(store: Store) -> None:
    """Newest first; what is submitted meanwhile belongs to an earlier page."""
    runs = [(await store.submit(spec())).id for _ in range(7)]
    seen, cursor = [], None
    while True:
        page = await store.list_runs(cursor=cursor, limit=2)
        seen += [run.id for run in page.runs]
        if not page.has_more:
            break
        cursor = int(page.next_cursor or "")
        await store.submit(spec())
    assert seen == runs[::-1]


async def test_runs_are_found_by_status(store: Store) -> None:
    """The index follows each change."""
    run, other = await store.submit(spec()), await store.submit(spec())
    await store.claim("w1", WORKER)
    assert [r.id for r in (await store.list_runs(status=Status.STARTING)).runs] == [run.id]
    assert [r.id for r in (await store.list_runs(status=Status.QUEUED)).runs] == [other.id]


async def test_the_history_tells_every_change_with_its_reason(store: Store) -> None:
    """In order, with the attempt that each belongs to."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    await send(store, run.id, 1, started())
    await store.exit(run.id, 1, report("released", "worker w1 stops"))
    await store.cancel(run.id)
    told = [(entry.event, entry.status, entry.attempt, entry.reason) for entry in await store.history(run.id)]
    assert told == [
        ("submit", "queued", 0, "submitted"),
        ("claim", "starting", 1, "worker w1 on node-1 starts attempt 1"),
        ("started", "running", 1, "training from step 0 on 2 ranks: cpu, fp32, 1 thread per rank"),
        ("released", "queued", 1, "worker w1 stops; attempt 2 starts from the beginning"),
        ("cancel", "cancelled", 1, "cancelled on request"),
    ]


async def test_workers_show_what_they_hold_and_whether_they_live(store: Store) -> None:
    """A worker that was not heard of for longer than its lease is listed as dead."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    await store.claim("idle", GPU_WORKER)
    assert {w.id: (w.run, w.alive) for w in await store.workers()} == {"w1": (run.id, True), "idle": (None, True)}
    store.lease_seconds = 0.05
    await asyncio.sleep(0.1)
    assert not any(worker.alive for worker in await store.workers())


async def test_a_queued_run_says_why_it_waits(store: Store) -> None:
    """Computed when it is read: first nobody is there, then everybody is busy."""
    first, second = await store.submit(spec()), await store.submit(spec())
    assert (await store.get(first.id)).reason == "no worker is connected: start one with `millionway up`"
    await store.claim("w1", WORKER)
    assert (await store.get(second.id)).reason == "waiting for a worker: 1 worker is busy"


async def test_a_run_that_does_not_exist_is_named(store: Store) -> None:
    """By every method that takes an id."""
    for call in (store.get, store.cancel, store.history, store.metrics, store.checkpoints, store.newest_attempt):
        with pytest.raises(RunNotFound, match="no run 'nothing'"):
            await call("nothing")
