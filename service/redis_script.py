"""The Lua of the store as one script, with the table of service/lifecycle.py in front of it."""

from __future__ import annotations

import json
from importlib.resources import files

from service.lifecycle import LIVE, STOPPING, TERMINAL, Event, targets

NEWS = "millionway:news"
"""Pub/sub channel: run ids, "worker:ID" and "queue", of which something changed."""
PARTS = (
    "store.lua",  # keys, the one door to a status
    "store_runs.lua",  # what people and the scheduler do to a run
    "store_workers.lua",  # what workers say, and what their silence means
    "store_metrics.lua",  # curves
    "store_events.lua",  # what jobs report
    "store_keys.lua",  # API keys
    "store_reads.lua",
    "store_dispatch.lua",
)


def script_text() -> str:
    """Sent once to each Redis, then called by its hash."""
    tables = {
        "TARGETS": {str(event): targets(event) for event in Event},
        "LIVE": {str(status): True for status in sorted(LIVE)},
        "STOPPING": {str(status): True for status in sorted(STOPPING)},
        "TERMINAL": {str(status): True for status in sorted(TERMINAL)},
    }
    head = [f"local {name} = cjson.decode('{json.dumps(table)}')" for name, table in tables.items()]
    head.append(f"local NEWS = '{NEWS}'")
    return "\n".join([*head, *(files("service").joinpath(part).read_text() for part in PARTS)])
