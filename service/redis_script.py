"""The Lua of the store as one script, with the table of service/lifecycle.py in front of it."""

from __future__ import annotations

import json
from importlib.resources import files

from service.lifecycle import LIVE, TERMINAL, Event, targets

PARTS = ("store.lua", "store_events.lua", "store_reads.lua")
"""In order: what changes a run, what its job reports, what is read of it."""


def script_text() -> str:
    """Sent once to each Redis, then called by its hash."""
    tables = {
        "TARGETS": {str(event): targets(event) for event in Event},
        "LIVE": {str(status): True for status in sorted(LIVE)},
        "TERMINAL": {str(status): True for status in sorted(TERMINAL)},
    }
    head = [f"local {name} = cjson.decode('{json.dumps(table)}')" for name, table in tables.items()]
    return "\n".join([*head, *(files("service").joinpath(part).read_text() for part in PARTS)])
