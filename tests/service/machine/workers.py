"""What workers do, in any order, and what becomes of their messages.

They are honest: they start what they are offered, kill what they are told to, and say so. What truly runs is known here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from service import errors
from service.event_effects import read_event
from service.lifecycle import LIVE, Status
from service.protocol import ExitReport, Poll, PollReply
from service.store import Store
from tests.service.documents import checkpointed, progress, report, started
from tests.service.machine.model import Model
from tests.service.machine.records import Owner, Refused, Run, Slots
from tests.service.reports import Node

WORKERS = {"a": 2, "b": 2, "c": 2, "shared": 4}
"""Slots by name."""
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


class WorkerRules(RuleBasedStateMachine):
    runner: asyncio.Runner
    store: Store
    redis: redis.Redis
    model: Model
    nodes: dict[str, HonestWorker]
    polls: list[tuple[str, Poll]]
    reports: list[tuple[Owner, ExitReport]]
    """Messages that may arrive at any time, or again."""

    def call(self, awaitable: Awaitable[Any]) -> Any:
        async def within() -> Any:
            return await awaitable

        return self.runner.run(within())

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
