"""What can happen to the store, in any order: workers (workers.py), people, the scheduler, time.

Each is done to the store and to its model (model.py), and both must answer alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import cache

import redis
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from service.lifecycle import LIVE, Status
from service.protocol import RunPatch
from service.scheduling.board import Board
from service.scheduling.decide import decide
from service.scheduling.explain import explain_on
from service.scheduling.model import Place, Policy, Stop
from service.spec import RunSpec
from service.store import Store
from tests.conftest import emptied
from tests.service.documents import spec
from tests.service.machine.model import Model
from tests.service.machine.records import Refused, Run
from tests.service.machine.workers import INDEX, NAME, WORKERS, HonestWorker, WorkerRules, refusal
from tests.service.reports import end_leases

OWNERS = ["alice", "bob"]
MAX_QUEUED = 5
AGO = 100_000
"""Every attempt is made so much older, in seconds, that what is charged for it tells how often that was done."""


@cache
def specification(nodes: int, priority: int, infrastructure: int, crashes: int) -> RunSpec:
    return spec(nodes=nodes, priority=priority, retries={"infrastructure": infrastructure, "crashes": crashes, "preemptions": 1})


class CountingStore(Store):
    """So that the same steps lead to the same decisions: the scheduler's last word between equals is their id."""

    num_ids = 0

    def new_run_id(self) -> str:
        self.num_ids += 1
        return f"run{self.num_ids:04d}"


class StoreMachine(WorkerRules):
    url: str

    @initialize(
        runs=st.lists(st.tuples(st.sampled_from(OWNERS), st.sampled_from([1, 1, 2, 3])), min_size=2, max_size=6),
        situation=st.sampled_from(["nobody is there", "workers are there", "runs train", "runs train"]),
    )
    def begin(self, runs: list[tuple[str, int]], situation: str) -> None:
        self.runner, self.exits = asyncio.Runner(), contextlib.AsyncExitStack()
        connecting = CountingStore.connect(self.url, lease_seconds=600, max_queued=MAX_QUEUED)
        self.store = self.call(self.exits.enter_async_context(connecting))
        self.redis = self.exits.enter_context(contextlib.closing(redis.Redis.from_url(emptied(self.url), decode_responses=True)))
        self.redis.set("millionway:watched", time.time())
        self.model = Model(WORKERS)
        self.nodes = {name: HonestWorker(self.store, name, slots=n, shared=name == "shared") for name, n in WORKERS.items()}
        self.keys: dict[tuple[str, str], tuple[RunSpec, str]] = {}
        self.polls, self.reports = [], []
        self.seen: dict[str, dict[str, str]] = {}
        for owner, nodes in runs:
            self.submit(owner, None, nodes, 0, 2, 2)
        if situation == "workers are there":
            self.everybody_polls()
        elif situation == "runs train":
            self.go_well(0)

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.call(self.exits.aclose())
            self.runner.close()

    # People

    @rule(
        owner=st.sampled_from(OWNERS),
        key=st.sampled_from([None, None, None, "k1", "k2"]),
        nodes=st.sampled_from([1, 1, 2, 3, 4]),
        priority=st.integers(-1, 2),
        infrastructure=st.integers(0, 2),
        crashes=st.integers(0, 2),
    )
    def submit(self, owner: str, key: str | None, nodes: int, priority: int, infrastructure: int, crashes: int) -> None:
        wanted = specification(nodes, priority, infrastructure, crashes)
        body, earlier = self.keys.get((owner, key or ""), (wanted, None))
        expected = None
        if body != wanted:
            expected = Refused("IdempotencyConflict")
        elif earlier is None and len(self.model.queue(owner)) >= MAX_QUEUED:
            expected = Refused("QueueFull")
        run = self.check(expected, self.store.submit(wanted, owner, key))
        if run is None:
            return
        if earlier is not None:
            assert run.id == earlier
            return
        retries = {"infrastructure": infrastructure, "crashes": crashes}
        self.model.runs[run.id] = Run(run.id, owner, priority, len(self.model.runs) + 1, retries)
        if key:
            self.keys[owner, key] = (wanted, run.id)

    @precondition(lambda self: self.model.runs)
    @rule(index=INDEX, live=st.booleans(), request=st.sampled_from(["pause", "pause", "resume", "resume", "resume", "cancel", "kill"]))
    def ask(self, index: int, live: bool, request: str) -> None:
        run = self.run_of(index, LIVE if live else Status)
        self.check(refusal(lambda: self.model.request(run, request)), self.store.request(run.id, request))

    @precondition(lambda self: self.model.runs)
    @rule(index=INDEX, priority=st.integers(-2, 3))
    def edit(self, index: int, priority: int) -> None:
        run = self.run_of(index)
        run.priority = priority
        self.call(self.store.edit(run.id, RunPatch(priority=priority)))

    @precondition(lambda self: any(worker.incarnation for worker in self.model.workers.values()))
    @rule(name=NAME, mode=st.sampled_from(["", "", "", "finish", "checkpoint"]))
    def drain(self, name: str, mode: str) -> None:
        known = self.model.workers[name].incarnation
        self.check(None if known else Refused("WorkerNotFound"), self.store.drain(name, mode))
        self.model.workers[name].drain = mode if known else ""

    # The scheduler

    @rule(rounds=st.integers(0, 3))
    def schedule(self, rounds: int) -> None:
        """What is decided from a snapshot, with nothing in between, is possible, and every run that waits has a reason. Then all workers
        poll so often."""
        cluster = self.call(self.store.snapshot())
        assert {queued.run_id for queued in cluster.queued} == self.model.placeable()
        free = {name: tuple(slot for slot in range(n) if slot not in self.model.workers[name].owned) for name, n in WORKERS.items()}
        heard = {name for name, worker in self.model.workers.items() if worker.is_heard and not worker.is_leaving}
        assert {node.id: node.free for node in cluster.nodes} == {name: free[name] for name in heard}
        decisions = decide(cluster)
        board = Board(cluster, decisions, Policy())
        assert all(explain_on(queued, board).reasons for queued in cluster.queued)
        for stop in decisions.stops:
            assert self.model.stop(self.model.runs[stop.run_id], stop.cause)
            assert self.call(self.store.stop(stop))
        for placed in decisions.places:
            run = self.model.runs[placed.run_id]
            assert self.model.place(run, placed.slots)
            assert self.call(self.store.place(placed))
            self.make_older(run)
        for _ in range(rounds):
            self.everybody_polls()

    @rule(step=st.integers(0, 2))
    def go_well(self, step: int) -> None:
        """All workers are there, what fits is placed, taken, and starts to train."""
        self.everybody_polls()
        self.schedule(3)
        for run in self.model.runs.values():
            if run.status == Status.STARTING and run.last_seq == 0:
                self.report(run, len(run.attempts), [(1, "started", step)])

    @precondition(lambda self: self.model.runs and any(worker.is_heard for worker in self.model.workers.values()))
    @rule(
        index=INDEX,
        waiting=st.booleans(),
        names=st.permutations(list(WORKERS)),
        nodes=st.sampled_from([1, 1, 2, 3]),
        first=st.sampled_from([0, 0, 0, 1, 2]),
    )
    def place(self, index: int, waiting: bool, names: list[str], nodes: int, first: int) -> None:
        """As decided from a snapshot that is old, or wrong; `waiting`: of a run whose last attempt still has processes, if there is one."""
        run = self.run_of(index, {Status.QUEUED})
        ending = sorted({id for worker in self.model.workers.values() for id, _ in worker.attempts()} - self.model.placeable())
        ending = [id for id in ending if self.model.runs[id].status == Status.QUEUED]
        if waiting and ending:
            run = self.model.runs[ending[index % len(ending)]]
        slots = dict.fromkeys(names[:nodes], (first, first + 1))
        expected = self.model.place(run, slots)
        assert self.call(self.store.place(Place(run.id, (nodes, 2), slots))) == expected
        if expected:
            self.make_older(run)

    def make_older(self, run: Run) -> None:
        self.redis.hincrbyfloat(f"millionway:attempt:{run.id}:{len(run.attempts)}", "placed_at", -AGO)

    @precondition(lambda self: self.model.runs)
    @rule(index=INDEX, cause=st.sampled_from(["preempted", "time_limit"]))
    def give_way(self, index: int, cause: str) -> None:
        run = self.run_of(index, LIVE)
        assert self.call(self.store.stop(Stop(run.id, cause, "gives way"))) == self.model.stop(run, cause)

    # Time

    @rule(names=st.sets(NAME, max_size=2), everybody=st.sampled_from([False, False, False, True]), look=st.booleans())
    def leases_end(self, names: set[str], everybody: bool, look: bool) -> None:
        """With `look` the control plane sees it before these workers are heard of again."""
        for name in sorted(WORKERS if everybody else names):
            self.model.workers[name].is_late = self.model.workers[name].has_lease
            self.call(end_leases(self.store, name))
        if look:
            silent = sorted(name for name, worker in self.model.workers.items() if worker.has_lease and worker.is_late)
            lost, workers = self.call(self.store.expire())
            assert (sorted(lost), workers) == (sorted(self.model.expire()), silent)

    @rule(names=st.sets(NAME))
    def control_plane_was_away(self, names: set[str]) -> None:
        """Everybody gets a full period, also who would be too late."""
        self.leases_end(names, everybody=False, look=False)
        self.redis.set("millionway:watched", time.time() - 301)
        assert self.call(self.store.expire()) == ([], [])
        for worker in self.model.workers.values():
            worker.is_late = False

    @precondition(lambda self: self.model.unheld() and not any(worker.is_late for worker in self.model.workers.values()))
    @rule(index=INDEX)
    def gang_is_late(self, index: int) -> None:
        run_id, number = sorted(self.model.unheld())[index % len(self.model.unheld())]
        self.redis.zadd("millionway:unheld", {f"{run_id}/{number}": 1}, xx=True)
        assert self.call(self.store.expire()) == ([run_id], [])
        self.model.gang_late(self.model.runs[run_id])
