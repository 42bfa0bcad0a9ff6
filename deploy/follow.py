"""Following a run and its logs over HTTP, and reading lists page by page."""

from __future__ import annotations

import time
from collections.abc import Iterator

from rich.console import Console

from deploy.display import Display
from service.client import ApiClient
from service.errors import ApiUnavailable
from service.lifecycle import TERMINAL, Status
from service.runs import Run, RunEvent

POLL_SECONDS = 0.5
"""At least between two looks at a run."""
REFRESH_SECONDS = 5.0
"""At most, also when nothing happens to it: why a run waits changes with the others."""
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
                run = client.run(run.id, wait_for_version=run.version + 1, wait_seconds=REFRESH_SECONDS)
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

    Raises ApiUnavailable when the API is away for longer than the client's retries.
    """
    number = attempt or max(1, client.run(run_id).attempt)
    if not follow_it:
        piece, offset = client.log(run_id, attempt=number, name=name)
        while piece:
            yield piece
            piece, offset = client.log(run_id, attempt=number, name=name, offset=offset)
        return
    while True:
        yield from client.follow_log(run_id, number, name=name)
        run = client.run(run_id)
        while attempt is None and run.attempt == number and run.status not in TERMINAL:  # it is queued, or paused
            run = client.run(run_id, wait_for_version=run.version + 1)
        if attempt is not None or number >= run.attempt:
            return
        number += 1


def all_events(client: ApiClient, run_id: str) -> Iterator[RunEvent]:
    """What is kept of a run's events so far, oldest first."""
    page = client.event_page(run_id)
    while page.events:
        yield from page.events
        page = client.event_page(run_id, after=page.next_cursor)


def newest_runs(
    client: ApiClient, limit: int, *, status: Status | None = None, owner: str | None = None, labels: list[str] | None = None
) -> tuple[list[Run], bool]:
    """The newest runs, at most `limit`, and whether there are more. `labels`: NAME=VALUE, all of which must hold."""
    found: list[Run] = []
    cursor = None
    while True:
        page = client.runs(status=status, owner=owner, labels=labels, cursor=cursor, limit=min(limit - len(found), MAX_PAGE))
        found += page.runs
        if not page.has_more or len(found) >= limit:
            return found, page.has_more
        cursor = page.next_cursor
