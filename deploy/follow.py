"""Following a run and its logs over HTTP by polling, and listing runs page by page."""

from __future__ import annotations

import time
from collections.abc import Iterator

from rich.console import Console

from deploy.display import Display
from service.client import ApiClient
from service.errors import ApiUnavailable
from service.lifecycle import TERMINAL, Status
from service.runs import Run

POLL_SECONDS = 0.5
AWAY_SECONDS = 60.0
"""How long the API may be away before the follower gives up."""
MAX_PAGE = 200
"""The API's limit."""


def follow(client: ApiClient, run: Run, console: Console) -> Run:
    """Show the run until it ends. Raises ApiUnavailable when the API is away for AWAY_SECONDS."""
    answered = time.monotonic()
    with Display(console) as display:
        display.show(run)
        while run.status not in TERMINAL:
            time.sleep(POLL_SECONDS)
            try:
                run = client.run(run.id)
                answered = time.monotonic()
            except ApiUnavailable:
                if time.monotonic() - answered > AWAY_SECONDS:
                    raise
                display.show(run, "the API does not answer; the run goes on without it; trying again")
            else:
                display.show(run)
    return run


def log_pieces(client: ApiClient, run_id: str, name: str, *, attempt: int | None, follow_it: bool) -> Iterator[bytes]:
    """A log piece by piece, of `attempt` or from the newest on. Followed, it goes on to the run's end, through later attempts.

    Raises ApiUnavailable when the API is away: at once, or, followed, after AWAY_SECONDS.
    """
    number, offset, answered = attempt, 0, time.monotonic()
    while True:
        try:
            run = client.run(run_id)  # before the read, so that the last turn reads to the end
            number = number or max(1, run.attempt)
            while True:
                piece, offset = client.log(run_id, attempt=number, name=name, offset=offset)
                if not piece:
                    break
                yield piece
            answered = time.monotonic()
        except ApiUnavailable:
            if not follow_it or time.monotonic() - answered > AWAY_SECONDS:
                raise
        else:
            if attempt is None and follow_it and number < run.attempt:
                number, offset = number + 1, 0
                continue
            if not follow_it or run.status in TERMINAL:
                return
        time.sleep(POLL_SECONDS)


def newest_runs(client: ApiClient, status: Status | None, limit: int) -> tuple[list[Run], bool]:
    """The newest runs, at most `limit`, and whether there are more."""
    page = client.runs(status=status, limit=min(limit, MAX_PAGE))
    found = page.runs
    while page.has_more and len(found) < limit:
        page = client.runs(status=status, cursor=page.next_cursor, limit=min(limit - len(found), MAX_PAGE))
        found += page.runs
    return found, page.has_more
