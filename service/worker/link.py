"""An attempt's line to the API: heartbeats, events and logs, and at the end the exit report."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from service.client import ApiClient
from service.errors import ApiProblem, ApiUnavailable
from service.protocol import Claim, ExitReport
from service.worker.shipping import Shipper

log = structlog.get_logger()
T = TypeVar("T")

SHIP_SECONDS = 1.0
HEARTBEATS_PER_LEASE = 4
PASSES_PER_TURN = 8
"""Of shipping, so that the job is looked after between them."""
STUCK_SECONDS = 60.0
"""After the job's end, how long the rest of its logs is tried while only heartbeats succeed."""
MAX_REASON = 4000


class Patience:
    """Turns a call that the API cannot serve now into None, and says when that begins and when it is over."""

    def __init__(self) -> None:
        self._away = False

    def call(self, what: Callable[[], T]) -> T | None:
        """AttemptLost passes through."""
        try:
            answer = what()
        except (ApiUnavailable, ApiProblem) as error:
            if not self._away:
                log.warning("api_away", why=str(error), remedy="nothing is lost: it is tried again until it answers")
            self._away = True
            return None
        if self._away:
            log.info("api_back")
        self._away = False
        return answer


class Link:
    """AttemptLost passes through every method; while the API is away, what could not be sent waits on disk."""

    def __init__(self, client: ApiClient, claim: Claim, shipper: Shipper) -> None:
        self._client, self._run_id, self._attempt, self._shipper = client, claim.run_id, claim.attempt, shipper
        self._lease_seconds = claim.lease_seconds
        self._next_heartbeat = self._next_turn = 0.0
        self._stuck_since: float | None = None
        self._patience = Patience()
        self.cancelled = False
        """Whether the API wants the job stopped."""

    def turn(self) -> None:
        """Heartbeat when due, and a bounded piece of what is new. At most once per SHIP_SECONDS or heartbeat; call it often."""
        if time.monotonic() >= min(self._next_turn, self._next_heartbeat):
            self._patience.call(self._some_passes)
            self._next_turn = time.monotonic() + SHIP_SECONDS

    def deliver(self, report: ExitReport) -> bool:
        """Ship everything that is left, then the report. False while the API is away: call again.

        What the API cannot take for STUCK_SECONDS, though it takes heartbeats, is left out, and the report says so.
        """

        def everything() -> bool:
            told = report
            try:
                while self._beat_and_ship():
                    pass
            except (ApiUnavailable, ApiProblem) as error:
                if self._stuck_since is None or time.monotonic() - self._stuck_since < STUCK_SECONDS:
                    raise
                log.error("logs_left_out", why=str(error))
                note = f"; what it reported last is not all stored here, it is with the worker: {str(error)[:500]}"
                told = report.model_copy(update={"reason": report.reason[: MAX_REASON - len(note)] + note})
            try:
                self._client.exit(self._run_id, self._attempt, told)
            except ApiProblem as problem:
                if problem.status >= 500:
                    raise
                log.error("report_refused", why=str(problem))  # it would be refused again
            return True

        return bool(self._patience.call(everything))

    def _some_passes(self) -> None:
        for _ in range(PASSES_PER_TURN):
            if not self._beat_and_ship():
                break

    def _beat_and_ship(self) -> bool:
        """One pass over the spool and the logs, with a heartbeat between two of them when one is due. Whether anything was sent."""
        sent = False
        self._beat()
        shipping = self._shipper.ship()
        while True:
            try:
                piece = next(shipping, None)
            except (ApiUnavailable, ApiProblem):
                self._stuck_since = self._stuck_since or time.monotonic()
                raise
            if piece is None:
                self._stuck_since = None
                return sent
            sent = sent or piece
            self._beat()

    def _beat(self) -> None:
        if time.monotonic() < self._next_heartbeat:
            return
        interval = self._lease_seconds / HEARTBEATS_PER_LEASE
        self._next_heartbeat = time.monotonic() + min(SHIP_SECONDS, interval)  # the next try, if this one fails
        try:
            reply = self._client.heartbeat(self._run_id, self._attempt)
        except (ApiUnavailable, ApiProblem):
            self._stuck_since = None  # it is the API that is away, not the logs that are stuck
            raise
        self._lease_seconds = reply.lease_seconds
        self._next_heartbeat = time.monotonic() + interval
        self.cancelled = self.cancelled or reply.command == "stop"
