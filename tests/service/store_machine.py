"""What can happen to the store, in any order: the rules of test_store_machine.py.

Each is done to the store and to its model (store_model.py), and both must answer alike. Besides the model there is what truly
runs: honest workers that start what they are offered and kill what they are told to, whatever becomes of their messages. Their
processes must never share a slot, nor run on one that the store takes for free.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection
from functools import cache
from typing import Any

import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from service import errors
from service.event_effects import read_event
from service.lifecycle import LIVE, Status
from service.protocol import ExitReport, Poll, PollReply, RunPatch
from service.scheduling.decide import decide
from service.scheduling.model import Place, Stop
from service.spec import RunSpec
from service.store import Store
from tests.conftest import emptied
from tests.service.documents import checkpointed, progress, report, spec, started
from tests.service.reports import Node, end_leases
from tests.service.store_model import Model, Owner, Refused, Run, Slots

WORKERS = {"a": 2, "b": 2, "c": 2, "shared": 4}
OWNERS = ["alice", "bob"]
MAX_QUEUED = 5
AGO = 100_000
"""Every attempt is made so much older, in seconds, that what is charged for it tells how often that was done."""
INDEX = st.integers(0, 99)
NAME = st.sampled_from(list(WORKERS))
FATE = st.sampled_from(["answered", "answered", "answered", "answer lost", "late"])
EVENT = {"started": lambda seq, step: started(seq, start_step=step), "progress": progress, "checkpointed": checkpointed}


def refusal(of: Callable[[], object]) -> Refused | None:
    try:
        of()
    except Refused as refused:
        return refused
    return None


@cache
def specification(nodes: int, priority: int, infrastructure: int, crashes: int) -> RunSpec:
    return spec(nodes=nodes, priority=priority, retries={"infrastructure": infrastructure, "crashes": crashes, "preemptions": 1})


class CountingStore(Store):
    """So that the same steps lead to the same decisions: the scheduler's last word between equals is their id."""

    num_ids = 0

    def new_run_id(self) -> str:
        self.num_ids += 1
        return f"run{self.num_ids:04d}"


class HonestWorker(Node):
    """What runs on it; `held` also has what has ended and is not reported yet."""

    def restart(self) -> None:
        super().restart()
        self.slots: dict[Owner, Slots] = {}
        self.ended: dict[Owner, ExitReport] = {}
        self.is_leaving = False

    def running(self) -> dict[Owner, Slots]:
        return {owner: self.slots[owner] for owner in self.held if owner not in self.ended}

    def drop(self, owner: Owner) -> None:
        self.held.pop(owner, None)
        self.ended.pop(owner, None)


class StoreMachine(RuleBasedStateMachine):
    url: str

    @initialize(
        runs=st.lists(st.tuples(st.sampled_from(OWNERS), st.sampled_from([1, 1, 2, 3])), min_size=2, max_size=6),
        situation=st.sampled_from(["nobody is there", "workers are there", "runs train", "runs train"]),
    )
    def begin(self, runs: list[tuple[str, int]], situation: str) -> None:
        self.runner, self.exits = asyncio.Runner(), contextlib.AsyncExitStack()
        connecting = CountingStore.connect(self.url, lease_seconds=600, max_queued=MAX_QUEUED)
        self.store: Store = self.call(self.exits.enter_async_context(connecting))
        self.redis = self.exits.enter_context(contextlib.closing(redis.Redis.from_url(emptied(self.url), decode_responses=True)))
        self.redis.set("millionway:watched", time.time())
        self.model = Model(WORKERS)
        self.nodes = {name: HonestWorker(self.store, name, slots=n, shared=name == "shared") for name, n in WORKERS.items()}
        self.keys: dict[tuple[str, str], tuple[RunSpec, str]] = {}
        self.polls: list[tuple[str, Poll]] = []
        self.reports: list[tuple[Owner, ExitReport]] = []
        """Messages that may arrive at any time, or again."""
        self.seen: dict[str, dict[str, str]] = {}
        for owner, nodes in runs:
            self.submit(owner, None, nodes, 0, 2, 2)
        if situation == "workers are there":
            self.everybody_polls()
        elif situation == "runs train":
            self.go_well(0)

    def call(self, awaitable: Awaitable[Any]) -> Any:
        async def within() -> Any:
            return await awaitable

        return self.runner.run(within())

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.call(self.exits.aclose())
            self.runner.close()

    def run_of(self, index: int, preferred: Collection[Status] = frozenset(Status)) -> Run:
        """Preferably in one of these statuses."""
        runs = list(self.model.runs.values())
        wanted = [run for run in runs if run.status in preferred] or runs
        return wanted[index % len(wanted)]

    def check(self, expected: Refused | None, awaitable: Awaitable[Any]) -> Any:
        """The store refuses exactly what the model refuses."""
        if expected is None:
            return self.call(awaitable)
        with pytest.raises(getattr(errors, str(expected))):
            self.call(awaitable)
        return None

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
        """What is decided from a snapshot, with nothing in between, is possible. Then all workers poll so often."""
        cluster = self.call(self.store.snapshot())
        assert {queued.run_id for queued in cluster.queued} == self.model.placeable()
        free = {name: tuple(slot for slot in range(n) if slot not in self.model.workers[name].owned) for name, n in WORKERS.items()}
        heard = {name for name, worker in self.model.workers.items() if worker.is_heard and not worker.is_leaving}
        assert {node.id: node.free for node in cluster.nodes} == {name: free[name] for name in heard}
        decisions = decide(cluster)
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

    # Workers

    @rule()
    def everybody_polls(self) -> None:
        for name in WORKERS:
            self.poll(name, "answered")

    @rule(name=NAME, fate=FATE)
    def poll(self, name: str, fate: str) -> None:
        node = self.nodes[name]
        message = node.message(leaving=node.is_leaving)
        if fate != "answered":
            self.polls.append((name, message))
        if fate == "late":
            return
        expected: dict[str, object] = {}
        refused = refusal(lambda: expected.update(answer=self.model.poll(name, message)))
        reply = self.check(refused, self.store.poll(name, message))
        assert refused is None, "a worker's newest process is welcome"
        offers, told = expected["answer"]
        assert {(offer.run_id, offer.attempt) for offer in reply.offers} == offers
        assert {(one.run_id, one.attempt): (one.command, one.collect_stacks) for one in reply.instructions} == told
        if fate == "answered":
            self.follow(node, reply)

    def follow(self, node: HonestWorker, reply: PollReply) -> None:
        for offer in reply.offers:
            owner = offer.run_id, offer.attempt
            assert owner not in node.held, "what is held is not offered again"
            attempt = self.model.runs[offer.run_id].attempts[offer.attempt - 1]
            assert offer.node_rank == list(attempt.parts).index(node.name)
            node.take(offer)
            node.slots[owner] = tuple(offer.slots)
        for told in reply.instructions:
            if told.command == "abort":
                node.drop((told.run_id, told.attempt))

    @precondition(lambda self: self.polls)
    @rule(index=INDEX)
    def late_poll(self, index: int) -> None:
        """A poll whose sender waits no longer is looked at, perhaps again."""
        name, message = self.polls[index % len(self.polls)]
        refused = refusal(lambda: self.model.poll(name, message))
        reply = self.check(refused, self.store.poll(name, message))
        if reply is None or reply.offers:
            self.polls.remove((name, message))

    @precondition(lambda self: any(node.running() for node in self.nodes.values()))
    @rule(
        index=INDEX,
        outcome=st.sampled_from(["finished", "finished", "faulty", "crashed", "crashed", "lost", "released", "stopped"]),
        signature=st.sampled_from([None, "E", "E", "E"]),
        stalled=st.booleans(),
        fate=FATE,
    )
    def exit(self, index: int, outcome: str, signature: str | None, stalled: bool, fate: str) -> None:
        """Processes have ended, and the worker says so until it is answered."""
        running = sorted((owner, name) for name, node in self.nodes.items() for owner in node.running())
        owner, name = running[index % len(running)]
        node = self.nodes[name]
        node.ended[owner] = report(outcome, f"{outcome} on {name}", name, signature=signature, stalled=stalled)
        self.say_so(node, owner, fate)

    @precondition(lambda self: any(node.ended for node in self.nodes.values()))
    @rule(index=INDEX, fate=FATE)
    def exit_again(self, index: int, fate: str) -> None:
        ended = sorted((owner, name) for name, node in self.nodes.items() for owner in node.ended)
        owner, name = ended[index % len(ended)]
        self.say_so(self.nodes[name], owner, fate)

    def say_so(self, node: HonestWorker, owner: Owner, fate: str) -> None:
        self.reports.append((owner, node.ended[owner]))
        if fate != "late":
            self.deliver(*self.reports[-1])
        if fate == "answered":
            node.drop(owner)

    @precondition(lambda self: self.reports)
    @rule(index=INDEX, changes=st.sampled_from([{}, {}, {"outcome": "crashed"}, *({"worker": name} for name in WORKERS)]))
    def late_exit(self, index: int, changes: dict[str, str]) -> None:
        """Also one that contradicts an earlier one, or from a worker that has nothing to do with it."""
        owner, sent = self.reports[index % len(self.reports)]
        parts = self.model.runs[owner[0]].attempts[owner[1] - 1].parts
        if parts[sent.worker].has_reported and changes.get("worker") not in parts:
            sent = sent.model_copy(update=changes)
        self.deliver(owner, sent)

    def deliver(self, owner: Owner, sent: ExitReport) -> None:
        run = self.model.runs[owner[0]]
        self.check(refusal(lambda: self.model.exit(run, owner[1], sent)), self.store.exit(*owner, sent))

    @precondition(lambda self: any(run.attempts for run in self.model.runs.values()))
    @rule(
        index=INDEX,
        late=st.sampled_from([0, 0, 0, 1]),
        gap=st.sampled_from([0, 0, 0, -1, 1]),
        kinds=st.lists(st.tuples(st.sampled_from(list(EVENT)), st.integers(0, 3)), min_size=1, max_size=3),
    )
    def events(self, index: int, late: int, gap: int, kinds: list[tuple[str, int]]) -> None:
        run = self.run_of(index, LIVE)
        number, first = max(1, len(run.attempts) - late), max(1, run.last_seq + 1 + gap)
        self.report(run, number, [(seq, kind, step) for seq, (kind, step) in enumerate(kinds, start=first)])

    def report(self, run: Run, number: int, sent: list[tuple[int, str, int]]) -> None:
        refused = refusal(lambda: self.model.events(run, number, sent))
        self.check(refused, self.store.apply_events(run.id, number, [read_event(EVENT[kind](seq, step)) for seq, kind, step in sent]))

    @rule(name=NAME, leaves=st.sampled_from([False, False, True]))
    def worker_ends(self, name: str, leaves: bool) -> None:
        """It is told to, or is started anew: whatever ran there is killed. Nobody hears of it before the new process polls."""
        if leaves:
            self.nodes[name].is_leaving = True
        else:
            self.nodes[name].restart()

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
