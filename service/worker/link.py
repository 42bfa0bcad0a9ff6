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
        self._patience = Patience()
        self.cancelled = False
        """Whether the API wants the job stopped."""

    def turn(self) -> None:
        """Heartbeat when due, and a bounded piece of what is new. At most once per SHIP_SECONDS or heartbeat; call it often."""
        if time.monotonic() >= min(self._next_turn, self._next_heartbeat):
            self._patience.call(self._beat_and_ship)
            self._next_turn = time.monotonic() + SHIP_SECONDS

    def deliver(self, report: ExitReport) -> bool:
        """Ship everything that is left, then the report. False while the API is away: call again."""

        def everything() -> bool:
            while self._beat_and_ship():
                pass
            try:
                self._client.exit(self._run_id, self._attempt, report)
            except ApiProblem as problem:
                if problem.status >= 500:
                    raise
                log.error("report_refused", why=str(problem))  # it would be refused again
            return True

        return bool(self._patience.call(everything))

    def _beat_and_ship(self) -> bool:
        if time.monotonic() >= self._next_heartbeat:
            interval = self._lease_seconds / HEARTBEATS_PER_LEASE
            self._next_heartbeat = time.monotonic() + min(SHIP_SECONDS, interval)  # the next try, if this one fails
            reply = self._client.heartbeat(self._run_id, self._attempt)
            self._lease_seconds = reply.lease_seconds
            self._next_heartbeat = time.monotonic() + interval
            self.cancelled = self.cancelled or reply.command == "stop"
        return self._shipper.ship()
