"""Commands about workers."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from deploy.terminal import Api, KeyFile, connect, say, when, wide
from service.runs import Worker

app = typer.Typer()

WorkerId = Annotated[str, typer.Argument(metavar="WORKER", help="A worker's name; see `millionway workers`.")]


@app.command()
def workers(api: Api = None, key_file: KeyFile = None) -> None:
    """List the workers, the last heard of first."""
    with connect(api, key_file) as client:
        found = client.workers()
    table = Table("worker", "host", "state", "free", "slots", "device", "runs", "last seen", box=None)
    for worker in found:
        taken = sum(len(held.slots) for held in worker.holds)
        held = ", ".join(f"{held.run_id} attempt {held.attempt}" for held in worker.holds) or "-"
        cells = (worker.id, worker.host, worker.state, str(worker.slots - taken), str(worker.slots), worker.device, held)
        table.add_row(*map(Text, (*cells, when(worker.last_seen))))
    wide().print(table)


@app.command()
def drain(
    worker: WorkerId,
    finish: Annotated[bool, typer.Option("--finish", help="What runs there runs to its end, instead of going elsewhere.")] = False,
    api: Api = None,
    key_file: KeyFile = None,
) -> None:
    """Take a worker out of service: nothing more is placed there, and what runs there writes a checkpoint and goes elsewhere."""
    with connect(api, key_file) as client:
        _say_state(client.drain(worker, "finish" if finish else "checkpoint"))


@app.command()
def undrain(worker: WorkerId, api: Api = None, key_file: KeyFile = None) -> None:
    """Put a worker back into service."""
    with connect(api, key_file) as client:
        _say_state(client.undrain(worker))


def _say_state(worker: Worker) -> None:
    say(f"{worker.id} {worker.state}, {len(worker.holds)} runs there")
