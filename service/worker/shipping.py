"""An attempt's event spool and logs on their way to the API. The files are the queue: what was not acknowledged is read again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pydantic_core
import structlog

from service.errors import ApiProblem, AttemptLost, LogGap
from service.layout import AttemptDir
from service.protocol import EventAck, EventBatch, LogAck

log = structlog.get_logger()

MAX_EVENTS = 500
MAX_MISSING = 10_000
"""A number further ahead than this is no event's number."""
PIECE_BYTES = 256 * 1024
PASSING = (401, 403, 408, 429)
"""Refusals that say nothing of what was sent: a key that is being replaced, a request that took too long, too many of them."""


class Reports(Protocol):
    """The part of ApiClient that shipping needs."""

    def events(self, run_id: str, attempt: int, batch: EventBatch) -> EventAck: ...
    def put_log(self, run_id: str, attempt: int, name: str, offset: int, piece: bytes) -> LogAck: ...


class Shipper:
    """Sends what is new. Raises what the client raises: after ApiUnavailable the same call goes on where it was."""

    def __init__(
        self, client: Reports, run_id: str, attempt: int, directory: AttemptDir, *, logs: Sequence[Path], ships_events: bool = True
    ) -> None:
        """`logs`: of this node's processes. The lead ships the events."""
        self._client, self._run_id, self._attempt, self._directory = client, run_id, attempt, directory
        self._logs, self._ships_events = logs, ships_events
        self.is_welcome = True
        """False once the API has said that the attempt is over: it takes no events of it, only logs."""
        self._spool_offset = self._last_seq = 0
        self._rewound = False
        self._log_offsets: dict[str, int] = {}

    def ship(self) -> bool:
        """Send one piece of the spool, then one of each log. Whether there was any."""
        events = self._ships_events and self.is_welcome and self._ship_events()
        return any([events, *(self._ship_log(path) for path in self._logs if path.exists())])

    def _ship_events(self) -> bool:
        lines = complete_lines(self._directory.events, self._spool_offset)[:MAX_EVENTS]
        if not lines:
            self._rewound = False
            return False
        events = _without_gaps(lines, self._last_seq)
        try:
            for start in range(0, len(events), MAX_EVENTS):
                self._send_events(events[start : start + MAX_EVENTS])
        except AttemptLost:
            self.is_welcome = False
            return False
        except ApiProblem as problem:
            if not _is_gap(problem):
                raise
            if not self._rewound:  # the API lost what it had acknowledged: it skips what it still has
                log.warning("spool_sent_again", why=str(problem))
                self._rewound, self._spool_offset, self._last_seq = True, 0, 0
                return True
            log.error("events_lost", why=str(problem))
        self._spool_offset += sum(map(len, lines))
        self._last_seq = max([self._last_seq, *(event["seq"] for event in events)])
        return True

    def _send_events(self, events: list[dict[str, Any]]) -> None:
        """An event that the API refuses goes as a warning, since without its number all later ones would be refused too."""
        try:
            self._client.events(self._run_id, self._attempt, EventBatch(events=events))
        except ApiProblem as problem:
            if may_pass(problem) or _is_gap(problem):
                raise
            if len(events) > 1:
                for event in events:
                    self._send_events([event])
                return
            seq = events[0]["seq"]
            log.error("event_refused", event_seq=seq, why=str(problem))
            instead = _warning(seq, f"event {seq} ({str(events[0].get('kind'))[:100]}) is refused: {problem}")
            self._client.events(self._run_id, self._attempt, EventBatch(events=[instead]))

    def _ship_log(self, path: Path) -> bool:
        offset = self._log_offsets.get(path.name, 0)
        with path.open("rb") as file:
            file.seek(offset)
            piece = file.read(PIECE_BYTES)
        if not piece:
            return False
        try:
            self._log_offsets[path.name] = self._client.put_log(self._run_id, self._attempt, path.name, offset, piece).size
        except AttemptLost:  # nobody knows the run any more
            self.is_welcome, self._log_offsets[path.name] = False, path.stat().st_size
        except LogGap as gap:  # the API has less than it had acknowledged
            self._log_offsets[path.name] = gap.size
        except ApiProblem as problem:
            if may_pass(problem):
                raise
            self._log_offsets[path.name] = offset + len(piece)
            log.error("log_refused", name=path.name, offset=offset, why=str(problem))
        return True


def may_pass(problem: ApiProblem) -> bool:
    """Whether the same request may be taken later."""
    return problem.status >= 500 or problem.status in PASSING


def complete_lines(path: Path, offset: int, limit: int = PIECE_BYTES) -> list[bytes]:
    """The whole lines from byte `offset`, some `limit` bytes of them; a line that is still being written is left for later."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(offset)
        lines = file.readlines(limit)
    return lines if not lines or lines[-1].endswith(b"\n") else lines[:-1]


def _without_gaps(lines: list[bytes], last_seq: int) -> list[dict[str, Any]]:
    """The events on the lines that follow event `last_seq`. A warning stands for each number that no readable line has."""
    events: list[dict[str, Any]] = []
    for line in lines:
        event = _parse(line, last_seq)
        if event is None:
            log.error("spool_line_unreadable", line=line[:200].decode(errors="replace"))
            continue
        events += [_warning(seq, f"event {seq} cannot be read from the job's spool") for seq in range(last_seq + 1, event["seq"])]
        events.append(event)
        last_seq = max(last_seq, event["seq"])
    return events


def _parse(line: bytes, last_seq: int) -> dict[str, Any] | None:
    try:
        event = pydantic_core.from_json(line)
    except ValueError:
        return None
    seq = event.get("seq") if isinstance(event, dict) else None
    return event if type(seq) is int and 1 <= seq <= last_seq + MAX_MISSING else None


def _warning(seq: int, message: str) -> dict[str, Any]:
    return {"seq": seq, "time": time.time(), "kind": "warned", "message": message[:1000]}


def _is_gap(problem: ApiProblem) -> bool:
    return problem.document.get("code") == "event_gap"
