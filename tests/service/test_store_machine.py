"""The store against a small model of itself, over random sequences of what can happen."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from service.errors import AttemptLost, TransitionRefused
from service.event_effects import read_event
from service.lifecycle import LIVE, TRANSITIONS, Event, Status
from service.protocol import ClaimRequest
from service.store import Store
from tests.conftest import emptied
from tests.service.documents import report, spec, started
from tests.service.reports import end_leases

MAX_ATTEMPTS = 2
OUTCOMES = ["finished", "faulty", "crashed", "released", "stopped"]
INDEX = st.integers(0, 9)


class ModelRun:
    def __init__(self, run_id: str, ranks: int) -> None:
        self.id, self.ranks, self.worker = run_id, ranks, ""
        self.status, self.attempt, self.failures = Status.QUEUED, 0, 0
        self.heard, self.unheard = 0, 0

    def happens(self, event: Event) -> bool:
        """Whether the table allows it; the change, if so."""
        if event in (Event.CRASHED, Event.LEASE_EXPIRED) and self.status in LIVE:
            self.failures += 1
            if self.failures >= MAX_ATTEMPTS:
                event = Event.EXHAUSTED
        after = TRANSITIONS.get((self.status, event))
        self.status = after or self.status
        return after is not None


def store_machine(url: str) -> type[RuleBasedStateMachine]:
    class StoreMachine(RuleBasedStateMachine):
        @initialize()
        def connect(self) -> None:
            self.runner = asyncio.Runner()
            self.exits = contextlib.AsyncExitStack()
            self.store: Store = self.call(self.exits.enter_async_context(Store.connect(url, lease_seconds=600)))
            emptied(url)
            self.runs: list[ModelRun] = []

        def call(self, awaitable):
            async def within():
                return await awaitable

            return self.runner.run(within())

        def teardown(self) -> None:
            if hasattr(self, "runner"):
                self.call(self.exits.aclose())
                self.runner.close()

        @rule(ranks=st.sampled_from([1, 2, 8]))
        def submit(self, ranks: int) -> None:
            run = self.call(self.store.submit(spec(ranks_per_node=ranks, max_attempts=MAX_ATTEMPTS)))
            self.runs.append(ModelRun(run.id, ranks))

        @rule(worker=st.sampled_from(["a", "b", "c"]), slots=st.sampled_from([1, 8]))
        def claim(self, worker: str, slots: int) -> None:
            for run in self.runs:
                if run.worker == worker and run.status in LIVE:
                    lost = run.status == Status.STARTING and run.heard != run.attempt and run.unheard < 3
                    run.unheard += lost
                    run.happens(Event.RELEASED if lost else Event.LEASE_EXPIRED)
            expected = next((run for run in self.runs if run.status == Status.QUEUED and run.ranks <= slots), None)
            claim = self.call(self.store.claim(worker, ClaimRequest(host="h", slots=slots, device="cpu")))
            assert (claim and claim.run_id) == (expected and expected.id)
            if expected:
                expected.happens(Event.CLAIM)
                expected.worker, expected.attempt = worker, expected.attempt + 1
                assert claim.attempt == expected.attempt

        @precondition(lambda self: self.runs)
        @rule(index=INDEX, late=st.integers(0, 1), outcome=st.sampled_from(OUTCOMES))
        def exit(self, index: int, late: int, outcome: str) -> None:
            run = self.runs[index % len(self.runs)]
            attempt = max(1, run.attempt - late)
            held = attempt == run.attempt and run.status in LIVE
            self.check(self.store.exit(run.id, attempt, report(outcome)), held, run, Event(outcome))

        @precondition(lambda self: self.runs)
        @rule(index=INDEX, late=st.integers(0, 1))
        def start(self, index: int, late: int) -> None:
            run = self.runs[index % len(self.runs)]
            attempt = max(1, run.attempt - late)
            held = attempt == run.attempt and run.status in LIVE
            event = Event.STARTED if run.status == Status.STARTING else None
            self.check(self.store.apply_events(run.id, attempt, [read_event(started())]), held, run, event)

        @precondition(lambda self: self.runs)
        @rule(index=INDEX)
        def heartbeat(self, index: int) -> None:
            run = self.runs[index % len(self.runs)]
            held = run.attempt > 0 and run.status in LIVE
            self.check(self.store.heartbeat(run.id, run.attempt), held, run, None)
            run.heard = run.attempt if held else run.heard

        @precondition(lambda self: self.runs)
        @rule(index=INDEX)
        def cancel(self, index: int) -> None:
            run = self.runs[index % len(self.runs)]
            again = run.status in (Status.CANCELLING, Status.CANCELLED)
            self.check(self.store.cancel(run.id), True, run, None if again else Event.CANCEL)

        @rule()
        def silence(self) -> None:
            """Every lease ends."""
            self.call(end_leases(self.store))
            self.call(self.store.expire_leases())
            for run in self.runs:
                if run.status in LIVE:
                    run.happens(Event.LEASE_EXPIRED)

        def check(self, awaitable, held: bool, run: ModelRun, event: Event | None) -> None:
            """The store refuses exactly what the model refuses."""
            if not held:
                with pytest.raises(AttemptLost):
                    self.call(awaitable)
            elif event is None or run.happens(event):
                self.call(awaitable)
            else:
                with pytest.raises(TransitionRefused):
                    self.call(awaitable)

        @invariant()
        def the_store_is_where_the_model_is(self) -> None:
            if not hasattr(self, "runs"):
                return
            found = self.call(self.store.list_runs()).runs
            expected = [(run.id, run.status, run.attempt) for run in reversed(self.runs)]
            assert [(run.id, run.status, run.attempt) for run in found] == expected
            assert all(run.reason for run in found)

        @invariant()
        def each_index_and_each_worker_agrees(self) -> None:
            if not hasattr(self, "runs"):
                return
            for status in Status:
                found = [run.id for run in self.call(self.store.list_runs(status=status)).runs]
                assert found == [run.id for run in reversed(self.runs) if run.status == status]
            held = {worker.id: worker.run for worker in self.call(self.store.workers()) if worker.run}
            assert held == {run.worker: run.id for run in self.runs if run.status in LIVE}

    return StoreMachine


def test_the_store_does_what_the_table_says_whatever_happens(redis_url: str) -> None:
    """One claim per run, one run per worker, no stale report accepted, no end left, and every run has a reason."""
    run_state_machine_as_test(
        store_machine(redis_url),
        settings=settings(max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), database=None),
    )
