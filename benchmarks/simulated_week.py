"""The week of scheduler_simulation.py: the cluster, what arrives and fails, and the two plain policies."""

from __future__ import annotations

import argparse
import heapq
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from service.scheduling.model import Cluster, Decisions, Live, Node, Place, Queued, Shape
from service.scheduling.pool import Pool

HOUR, DAY = 3600.0, 86_400.0
SLOTS = 8
SHAPES: dict[Shape, float] = {
    (1, 1): 35, (1, 2): 15, (1, 4): 10, (1, 8): 15, (2, 8): 8, (4, 8): 7, (8, 8): 5, (16, 8): 3, (32, 8): 1.5, (64, 8): 0.5
}  # fmt: skip
PRIORITIES = {-2: 5, 0: 75, 2: 15, 5: 5}
UNKNOWN_LENGTH = 0.3
"""Of the runs: no time limit, no estimate."""
MEAN_DAYS_BETWEEN_FAILURES = 50.0
"""Of one node; it is away for REPAIR_SECONDS."""
REPAIR_SECONDS = HOUR
CHECKPOINT_SECONDS = 0.5 * HOUR
"""Between checkpoints: what a failure costs at most."""
STOP_SECONDS = 60.0
"""From being asked to stop to slots free."""
STARVING_SECONDS = 2 * DAY
MAX_PREEMPTIONS = 100


@dataclass
class Run:
    queued: Queued
    arrives_at: float
    work: float
    """Rank-seconds left."""
    first_started_at: float | None = None
    longest_wait: float = 0.0
    """Seconds in the queue without a break."""
    attempt: int = 0
    started_at: float = 0.0
    live: Live | None = None
    ranks: int = 0
    num_preempted: int = 0
    ended_at: float | None = None


def draw_runs(args: argparse.Namespace) -> list[Run]:
    """Log-normal lengths, scaled to the load; three times as many arrive by day as by night; 50 owners, few of them large."""
    random_ = random.Random(args.seed)
    shapes = random_.choices(list(SHAPES), list(SHAPES.values()), k=args.runs)
    shapes = [shape if shape[0] <= args.nodes // 2 else (max(1, args.nodes // 2), SLOTS) for shape in shapes]
    lengths = [min(3 * DAY, max(120.0, random_.lognormvariate(math.log(3 * HOUR), 1.3))) for _ in shapes]
    offered = sum(length * shape[0] * shape[1] for length, shape in zip(lengths, shapes, strict=True))
    scale = args.load * args.nodes * SLOTS * args.days * DAY / offered
    arrivals = []
    while len(arrivals) < args.runs:
        at = random_.uniform(0.0, args.days * DAY)
        if random_.random() < (1.0 + 0.5 * math.sin(2 * math.pi * at / DAY)) / 1.5:
            arrivals.append(at)
    owners = random_.choices([f"owner{number}" for number in range(50)], [1 / (number + 1) for number in range(50)], k=args.runs)
    priorities = random_.choices(list(PRIORITIES), list(PRIORITIES.values()), k=args.runs)
    runs = []
    for number, at in enumerate(sorted(arrivals)):
        (num_nodes, ranks), length = shapes[number], lengths[number] * scale
        limit = None if random_.random() < UNKNOWN_LENGTH else min(length * random_.uniform(1.05, 2.0), DAY)
        elastic = num_nodes > 1 and random_.random() < 0.1
        wanted = ((num_nodes, ranks), (num_nodes // 2, ranks)) if elastic else ((num_nodes, ranks),)
        queued = Queued(f"run{number}", owners[number], priorities[number], number, at, wanted, "cuda", limit)
        runs.append(Run(queued, at, length * num_nodes * ranks))
    return runs


def fifo(cluster: Cluster) -> Decisions:
    return _in_order(cluster, overtake=False)


def first_fit(cluster: Cluster) -> Decisions:
    return _in_order(cluster, overtake=True)


def _in_order(cluster: Cluster, overtake: bool) -> Decisions:
    pool, places, hopeless = Pool(cluster.nodes), [], set()
    for queued in sorted(cluster.queued, key=lambda queued: queued.sequence):
        fit = None if queued.shapes in hopeless else pool.find(queued)
        if fit:
            slots = pool.slots(fit)
            pool.take(slots)
            places.append(Place(queued.run_id, fit.shape, slots))
        elif overtake:
            hopeless.add(queued.shapes)
        else:
            break
    return Decisions(tuple(places))


@dataclass
class Week:
    """The simulated cluster. Everything that happens is an event (time, number, what, of whom, attempt)."""

    args: argparse.Namespace
    policy: Callable[[Cluster], Decisions]
    runs: dict[str, Run]
    now: float = 0.0
    nodes: dict[str, Node] = field(default_factory=dict)
    away: set[str] = field(default_factory=set)
    waiting: dict[str, Queued] = field(default_factory=dict)
    running: dict[str, Run] = field(default_factory=dict)
    usage: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    events: list[tuple[float, int, str, str, int]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    pass_seconds: list[float] = field(default_factory=list)
    decided: int = 0
    used: float = 0.0
    """Slot-seconds that were owned before the last arrival."""

    def at(self, time: float, what: str, whom: str, attempt: int = 0) -> None:
        heapq.heappush(self.events, (time, len(self.events) + self.counts["events"], what, whom, attempt))
        self.counts["events"] += 1

    def play(self) -> None:
        """Until every run has ended."""
        random_ = random.Random(self.args.seed + 1)
        for number in range(self.args.nodes):
            id = f"node{number:05}"
            self.nodes[id] = Node(id, SLOTS, tuple(range(SLOTS)), True, "nfs", True)
            failure = random_.expovariate(1 / (MEAN_DAYS_BETWEEN_FAILURES * DAY))
            if failure < self.args.days * DAY:
                self.at(failure, "fail", id)
        for run in self.runs.values():
            self.at(run.arrives_at, "arrive", run.queued.run_id)
        left, halved = len(self.runs), 0.0
        while left:
            self.now += self.args.pass_seconds
            while self.events and self.events[0][0] <= self.now:
                at, _, what, whom, attempt = heapq.heappop(self.events)
                left -= self.happen(at, what, whom, attempt)
            if self.now - halved > HOUR:
                halved = self.now
                for owner in self.usage:
                    self.usage[owner] *= 0.5 ** (HOUR / DAY)
            if self.waiting or self.running:
                self.one_pass()
            assert self.now < 8 * self.args.days * DAY, f"{left} runs have not ended by day {self.now / DAY:.0f}"

    def happen(self, at: float, what: str, whom: str, attempt: int) -> bool:
        """Whether a run has ended for good."""
        if what == "fail":
            node = self.nodes.pop(whom)
            for run in [run for run in self.running.values() if run.live and whom in run.live.slots]:
                # What was done since the last checkpoint is lost.
                self.leave(run, at, lost=min(at - run.started_at, (at - run.started_at) % CHECKPOINT_SECONDS))
                self.queue(replace(run.queued, queued_at=at, avoid=frozenset({whom})))
                self.counts["runs failed by nodes"] += 1
            self.at(at + REPAIR_SECONDS, "repair", whom)
            self.counts["node failures"] += 1
            assert len(node.free) <= SLOTS
        elif what == "repair":
            self.nodes[whom] = Node(whom, SLOTS, tuple(range(SLOTS)), True, "nfs", True)
        elif what == "arrive":
            self.queue(self.runs[whom].queued)
        elif self.runs[whom].attempt == attempt and whom in self.running:
            run = self.runs[whom]
            self.leave(run, at, lost=0.0)
            if what == "end":
                run.ended_at = at
                return True
            self.queue(replace(run.queued, queued_at=at))
        return False

    def queue(self, queued: Queued) -> None:
        self.runs[queued.run_id].queued = self.waiting[queued.run_id] = queued

    def leave(self, run: Run, at: float, lost: float) -> None:
        """The run gives its slots back."""
        assert run.live
        run.work -= (at - run.started_at - lost) * run.ranks
        num_slots = sum(map(len, run.live.slots.values()))
        self.usage[run.queued.owner] += num_slots * (at - run.started_at)
        last = self.args.days * DAY
        self.used += num_slots * (min(at, last) - min(run.started_at, last))
        for id, slots in run.live.slots.items():
            if id in self.nodes:
                self.nodes[id] = replace(self.nodes[id], free=tuple(sorted((*self.nodes[id].free, *slots))))
        run.live = None
        del self.running[run.queued.run_id]

    def one_pass(self) -> None:
        live = tuple(run.live for run in self.running.values() if run.live)
        cluster = Cluster(self.now, tuple(self.nodes.values()), tuple(self.waiting.values()), live, self.usage)
        begun = time.process_time()
        decisions = self.policy(cluster)
        self.pass_seconds.append(time.process_time() - begun)
        self.decided += len(cluster.queued)
        for place in decisions.places:
            self.start(place)
        for stop in decisions.stops:
            run = self.running[stop.run_id]
            assert run.live
            run.live = replace(run.live, is_stopping=True, stopped_for=stop.in_favour_of)
            run.num_preempted += stop.cause == "preempted"
            self.counts[f"stopped: {stop.cause}"] += 1
            self.at(self.now + STOP_SECONDS, "stopped", stop.run_id, run.attempt)
        idle = self.waiting and not self.running and not decisions.places
        assert not idle, f"deadlock: nothing runs, and {len(self.waiting)} runs wait"

    def start(self, place: Place) -> None:
        queued = self.waiting.pop(place.run_id)
        run = self.runs[place.run_id]
        for id, slots in place.slots.items():
            left = tuple(slot for slot in self.nodes[id].free if slot not in slots)
            assert len(left) == len(self.nodes[id].free) - len(slots), f"a slot of {id} is given twice"
            self.nodes[id] = replace(self.nodes[id], free=left)
        run.longest_wait = max(run.longest_wait, self.now - queued.queued_at)
        run.first_started_at = self.now if run.first_started_at is None else run.first_started_at
        run.attempt, run.started_at, run.ranks = run.attempt + 1, self.now, place.shape[0] * place.shape[1]
        deadline = None if queued.max_seconds is None else self.now + queued.max_seconds
        run.live = Live(
            run_id=queued.run_id,
            owner=queued.owner,
            priority=queued.priority,
            slots=place.slots,
            started_at=self.now,
            ends_at=deadline,
            deadline=deadline,
            can_be_preempted=run.num_preempted < MAX_PREEMPTIONS,
        )
        self.running[queued.run_id] = run
        self.at(self.now + max(run.work, 1.0) / run.ranks, "end", queued.run_id, run.attempt)
        self.counts["attempts"] += 1
