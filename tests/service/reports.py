"""What a test lets a worker do: poll, take and lose attempts, report, fall silent."""

from __future__ import annotations

import secrets
import time
from typing import Any

from service.event_effects import read_event
from service.protocol import Held, Offer, Poll, PollReply
from service.runs import Run
from service.scheduling.model import Place
from service.store import Store
from tests.service.documents import report


class Node:
    """A worker as the store knows it: what it says with its polls."""

    def __init__(self, store: Store, name: str = "w1", **fields: Any) -> None:
        self.store, self.name = store, name
        self.fields = {"host": f"host-{name}", "address": f"address-{name}", "slots": 2, "device": "cpu", "storage": "nfs"} | fields
        self.restart()

    def restart(self) -> None:
        """As a new process, which holds nothing."""
        self.incarnation, self.number = secrets.token_hex(8), 0
        self.held: dict[tuple[str, int], Held] = {}

    def message(self, **fields: Any) -> Poll:
        """The next poll."""
        self.number += 1
        said = {"incarnation": self.incarnation, "number": self.number, "held": list(self.held.values())}
        return Poll.model_validate({**self.fields, **said, **fields})

    async def poll(self, *, take: bool = True, **fields: Any) -> PollReply:
        """With `take` it starts what it is offered, and will say so with its next poll."""
        reply = await self.store.poll(self.name, self.message(**fields))
        for offer in reply.offers if take else ():
            self.take(offer)
        return reply

    def take(self, offer: Offer) -> None:
        port = 29500 if offer.node_rank == 0 else offer.master_port
        self.held[offer.run_id, offer.attempt] = Held(run_id=offer.run_id, attempt=offer.attempt, master_port=port)

    async def told(self, run: Run) -> str:
        """What it is to do with the run's attempt that it holds."""
        return next(told.command for told in (await self.poll()).instructions if told.run_id == run.id)

    async def exit(self, run: Run, attempt: int, outcome: str, reason: str = "the job ended", **fields: Any) -> Run:
        self.held.pop((run.id, attempt), None)
        return await self.store.exit(run.id, attempt, report(outcome, reason, self.name, **fields))


async def place(store: Store, run: Run, *nodes: Node, slots: tuple[int, ...] = (0, 1)) -> bool:
    """On these slots of each node."""
    return await store.place(Place(run.id, (len(nodes), len(slots)), {node.name: slots for node in nodes}))


async def start(store: Store, run: Run, *nodes: Node, slots: tuple[int, ...] = (0, 1)) -> int:
    """Placed, taken by every node, training. The attempt's number."""
    for node in nodes:
        await node.poll()
    assert await place(store, run, *nodes, slots=slots)
    for _ in range(3):  # the lead takes it; says at which port; the others say that they have taken it
        for node in nodes:
            await node.poll()
    return (await store.get(run.id)).attempt


async def send(store: Store, run: Run, attempt: int, *events: dict[str, object]) -> int:
    return (await store.apply_events(run.id, attempt, [read_event(event) for event in events])).last_seq


async def end_leases(store: Store, *workers: str) -> None:
    """As if these workers, or all, had been silent for too long while the control plane watched."""
    named = workers or [worker.id for worker in await store.workers() if worker.alive]
    await store.redis.set("millionway:watched", time.time())
    if named:
        await store.redis.zadd("millionway:leases", dict.fromkeys(named, 1), xx=True)


async def silence(store: Store, *workers: str) -> list[str]:
    """Let these leases, or all, end now, and their runs be taken back: those."""
    await end_leases(store, *workers)
    return (await store.expire())[0]
