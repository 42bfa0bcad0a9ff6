"""An attempt's event spool and logs on their way to the API. The files are the queue: what was not acknowledged is read again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Protocol

import structlog

from service.errors import ApiProblem, LogGap
from service.layout import AttemptDir
from service.protocol import LOG_NAME, EventAck, EventBatch, LogAck

log = structlog.get_logger()

MAX_EVENTS = 500
PIECE_BYTES = 256 * 1024
PIECES_PER_PASS = 8
"""Of events and of each log, so that a heartbeat is never far."""


class Reports(Protocol):
    """The part of ApiClient that shipping needs."""

    def events(self, run_id: str, attempt: int, batch: EventBatch) -> EventAck: ...
    def put_log(self, run_id: str, attempt: int, name: str, offset: int, piece: bytes) -> LogAck: ...


class Shipper:
    """Sends what is new. Raises what the client raises: after ApiUnavailable the same call goes on where it was."""

    def __init__(self, client: Reports, run_id: str, attempt: int, directory: AttemptDir) -> None:
        self._client, self._run_id, self._attempt, self._directory = client, run_id, attempt, directory
        self._spool_offset = 0
        self._log_offsets: dict[str, int] = {}

    def ship(self) -> bool:
        """One bounded pass over everything. Returns whether more is waiting."""
        return any([self._ship_events(), *(self._ship_log(path) for path in self._logs())])

    def _logs(self) -> list[Path]:
        return sorted(path for path in self._directory.path.glob("*.log") if re.match(LOG_NAME, path.name))

    def _ship_events(self) -> bool:
        for _ in range(PIECES_PER_PASS):
            lines = complete_lines(self._directory.events, self._spool_offset)
            if not lines:
                return False
            ends, events = [], []
            end = self._spool_offset
            for line in lines[:MAX_EVENTS]:
                end += len(line)
                if event := _parse(line):
                    ends.append(end)
                    events.append(event)
            if events:
                self._send_events(events, ends)
            self._spool_offset = end
        return True

    def _send_events(self, events: list[dict[str, Any]], ends: list[int]) -> None:
        try:
            self._client.events(self._run_id, self._attempt, EventBatch(events=events))
        except ApiProblem as problem:
            if problem.status >= 500:
                raise
            # One event that the API does not take must not hold back the others for ever.
            if len(events) > 1:
                for event, end in zip(events, ends, strict=True):
                    self._send_events([event], [end])
            else:
                log.error("event_refused", run_id=self._run_id, attempt=self._attempt, event_seq=events[0].get("seq"), why=str(problem))
        self._spool_offset = ends[-1]

    def _ship_log(self, path: Path) -> bool:
        for _ in range(PIECES_PER_PASS):
            offset = self._log_offsets.get(path.name, 0)
            with path.open("rb") as file:
                file.seek(offset)
                piece = file.read(PIECE_BYTES)
            if not piece:
                return False
            try:
                self._log_offsets[path.name] = self._client.put_log(self._run_id, self._attempt, path.name, offset, piece).size
            except LogGap as gap:  # the API has less than it had acknowledged
                self._log_offsets[path.name] = gap.size
            except ApiProblem as problem:
                if problem.status >= 500:
                    raise
                self._log_offsets[path.name] = offset + len(piece)
                log.error("log_refused", name=path.name, offset=offset, why=str(problem))
        return True


def complete_lines(path: Path, offset: int, limit: int = PIECE_BYTES) -> list[bytes]:
    """The whole lines from byte `offset`, some `limit` bytes of them; a line that is still being written is left for later."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(offset)
        lines = file.readlines(limit)
    return lines if not lines or lines[-1].endswith(b"\n") else lines[:-1]


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        log.error("spool_line_unreadable", line=line[:200].decode(errors="replace"))
        return None
    return event
