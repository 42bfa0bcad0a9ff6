"""An attempt's line to the API: events and logs while it runs, and at the end the exit report."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from service.client import ApiClient
from service.errors import ApiProblem, ApiUnavailable, AttemptLost
from service.protocol import ExitReport
from service.worker.shipping import Shipper, may_pass

log = structlog.get_logger()
T = TypeVar("T")

SHIP_SECONDS = 1.0
PASSES_PER_TURN = 8
"""Of shipping, so that the job is looked after between them."""
STUCK_SECONDS = 60.0
"""After the job's end, how long the rest of its logs is tried while the API answers and does not take them."""
URGENT_SECONDS = 5.0
"""The same where other nodes wait for the report."""
MAX_REASON = 4000


class Patience:
    """Turns a call that the API, or the file system, cannot serve now into None, and says when that begins and when it is over."""

    def __init__(self) -> None:
        self._away = False

    def call(self, what: Callable[[], T]) -> T | None:
        """None where it cannot be served now."""
        try:
            answer = what()
        except (ApiUnavailable, ApiProblem, OSError) as error:
            if not self._away:
                log.warning("api_away", why=str(error), remedy="nothing is lost: it is tried again until it answers")
            self._away = True
            return None
        if self._away:
            log.info("api_back")
        self._away = False
        return answer


class Link:
    """While the API is away, what could not be sent waits on disk."""

    def __init__(self, client: ApiClient, run_id: str, attempt: int, shipper: Shipper) -> None:
        self._client, self._run_id, self._attempt, self._shipper = client, run_id, attempt, shipper
        self._next_turn = 0.0
        self._stuck_since: float | None = None
        self._patience = Patience()

    def turn(self) -> bool:
        """A bounded piece of what is new, at most once per SHIP_SECONDS; call it often. False once the attempt is over for the API."""
        if time.monotonic() >= self._next_turn:
            self._patience.call(self._some_passes)
            self._next_turn = time.monotonic() + SHIP_SECONDS
        return self._shipper.is_welcome

    def deliver(self, report: ExitReport, *, urgent: bool) -> bool:
        """Ship everything that is left, then the report. False while the API is away: call again.

        What the API does not take for STUCK_SECONDS, though it answers, is left out, and the report says so.
        """
        return bool(self._patience.call(lambda: self._everything(report, URGENT_SECONDS if urgent else STUCK_SECONDS)))

    def _everything(self, report: ExitReport, stuck_seconds: float) -> bool:
        try:
            while self._shipper.ship():
                self._stuck_since = None
        except (ApiUnavailable, ApiProblem, OSError) as error:
            if not self._is_stuck(stuck_seconds):
                raise
            log.error("logs_left_out", why=str(error))
            note = f"; what it reported last is not all stored here, it is with the worker: {str(error)[:500]}"
            report = report.model_copy(update={"reason": report.reason[: MAX_REASON - len(note)] + note})
        try:
            self._client.exit(self._run_id, self._attempt, report)
        except AttemptLost as lost:
            log.warning("report_too_late", why=str(lost))
        except ApiProblem as problem:
            if may_pass(problem):
                raise
            log.error("report_refused", why=str(problem))  # it would be refused again
        return True

    def _is_stuck(self, stuck_seconds: float) -> bool:
        """Whether it is the logs that are stuck, for so long, and not the API that is away."""
        try:
            self._client.ready()
        except (ApiUnavailable, ApiProblem):
            self._stuck_since = None
            raise
        self._stuck_since = self._stuck_since or time.monotonic()
        return time.monotonic() - self._stuck_since >= stuck_seconds

    def _some_passes(self) -> None:
        for _ in range(PASSES_PER_TURN):
            if not self._shipper.ship():
                break
