"""Following a run over HTTP by status polling."""

from __future__ import annotations

import time

from rich.console import Console

from deploy.display import Display
from service.client import ApiClient
from service.errors import ApiUnavailable
from service.lifecycle import TERMINAL
from service.runs import Run

POLL_SECONDS = 0.5
AWAY_SECONDS = 60.0
"""How long the API may be away before the follower gives up."""


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
