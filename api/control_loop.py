"""The task that makes time pass: leases expire, queued runs are placed, those that must give way are stopped."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import structlog

from service.changes import Changes, wait_for
from service.errors import MillionwayError, StoreUnavailable
from service.scheduling.board import Board
from service.scheduling.decide import decide
from service.scheduling.explain import explain_on
from service.scheduling.model import Cluster, Decisions, Explanation, Policy, Queued
from service.store import Store

log = structlog.get_logger()

PASS_SECONDS = 1.0
"""Between two passes when nothing happens."""
PAUSE_SECONDS = 0.05
"""Between two passes when much happens, and at least:"""
PAUSES_PER_PASS = 5
"""A pass may take a sixth of the process's time, so that a long queue keeps no request waiting."""
FRESH_SECONDS = 2.0


@dataclass
class Scheduler:
    """Of several API processes one places runs (a lease in Redis); each keeps what it saw last, to explain why runs wait."""

    store: Store
    changes: Changes
    policy: Policy = field(default_factory=Policy)
    holder: str = field(default_factory=lambda: secrets.token_hex(8))
    seen_at: float = 0.0
    """When the snapshot was taken, on the monotonic clock."""
    waiting: dict[str, Queued] = field(default_factory=dict)
    """The queued runs that it saw."""
    pass_seconds: float = 0.0
    """Duration of the last pass."""
    _board: Board | None = None
    _explained: dict[object, Explanation] = field(default_factory=dict)
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._always(self.expire, self._until_due))
            with self.changes.watch("queue") as changed:
                await self._always(self.place, lambda: self._until_news(changed))

    async def expire(self) -> None:
        """Attempts end whose workers are silent, or did not take them."""
        lost, silent = await self.store.expire()
        for run_id in lost:
            log.warning("attempt_lost", run_id=run_id)
        for worker in silent:
            log.warning("worker_silent", worker=worker)

    async def place(self) -> None:
        """One pass of the scheduler, if this process is the one that schedules."""
        begun = time.monotonic()
        cluster = await self.store.snapshot(self.holder)
        if cluster is None:
            return
        decisions = await asyncio.to_thread(decide, cluster, self.policy)
        self._note(cluster, decisions)
        for stop in decisions.stops:
            await self._try(self.store.stop(stop), "stopped", stop.run_id, stop.reason)
        for place in decisions.places:
            await self._try(self.store.place(place), "placed", place.run_id, ", ".join(place.slots))
        self.pass_seconds = time.monotonic() - begun

    async def board(self) -> Board:
        """What the scheduler saw and decided, no older than FRESH_SECONDS, for explanations."""
        async with self._looking:
            if self._board is None or time.monotonic() - self.seen_at > FRESH_SECONDS:
                cluster = await self.store.snapshot()
                assert cluster is not None  # noqa: S101 - only a holder can be turned away
                self._note(cluster, await asyncio.to_thread(decide, cluster, self.policy))
            assert self._board is not None  # noqa: S101 - noted
            return self._board

    def explained(self, queued: Queued, board: Board) -> Explanation:
        """Computed once for all runs of a kind: they wait for the same."""
        its_own = queued.run_id if queued.run_id in board.reservations or queued.run_id in board.places else None
        position = board.positions[queued.run_id]
        kind = (its_own, position == 1, queued.owner, queued.priority, queued.shapes, queued.device, queued.storage, queued.avoid)
        if kind not in self._explained:
            self._explained[kind] = explain_on(queued, board)
        return replace(self._explained[kind], position=position)

    def _note(self, cluster: Cluster, decisions: Decisions) -> None:
        self._board, self.seen_at = Board(cluster, decisions, self.policy), time.monotonic()
        self._explained.clear()
        self.waiting = {queued.run_id: queued for queued in cluster.queued}

    async def _always(self, action: Callable[[], Awaitable[None]], pause: Callable[[], Awaitable[object]]) -> None:
        failing = False
        while True:
            try:
                await action()
                failing = False
            except StoreUnavailable as error:
                if not failing:
                    log.warning("control_loop_waits", what=action.__name__, why=str(error))
                failing = True
            except Exception:
                log.exception("control_loop_failed", what=action.__name__)  # a fault of ours must not end the loop
            await pause()

    async def _until_due(self) -> None:
        await asyncio.sleep(min(PASS_SECONDS, self.store.lease_seconds / 6))

    async def _until_news(self, changed: asyncio.Event) -> None:
        await asyncio.sleep(min(max(PAUSE_SECONDS, PAUSES_PER_PASS * self.pass_seconds), PASS_SECONDS))
        await wait_for(changed, PASS_SECONDS)

    async def _try(self, carried_out: Awaitable[bool], what: str, run_id: str, detail: str) -> None:
        """One decision; that it has become impossible since the snapshot is no fault."""
        try:
            if await carried_out:
                log.info(what, run_id=run_id, detail=detail)
        except StoreUnavailable:
            raise
        except MillionwayError as error:
            log.warning("decision_refused", run_id=run_id, why=str(error))
