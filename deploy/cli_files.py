"""Commands for what a run wrote: its checkpoints and its export."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from deploy.terminal import PATIENT_RETRIES, Api, KeyFile, RunId, connect, say, when, wide
from service.client import ApiClient
from service.errors import MillionwayError
from service.protocol import StoredFile

app = typer.Typer()

Step = Annotated[int, typer.Argument(metavar="STEP", min=0, help="Of the checkpoint; see `millionway checkpoints RUN`.")]


@app.command()
def checkpoints(run_id: RunId, api: Api = None, key_file: KeyFile = None) -> None:
    """List the checkpoints that are on disk, oldest first."""
    with connect(api, key_file) as client:
        found = client.checkpoints(run_id)
    table = Table("step", "epoch", "loss", "kNN %", "MiB", "pinned", "attempt", "created", "path", box=None)
    for one in found:
        numbers = (
            "-" if one.loss is None else f"{one.loss:.3f}",
            "-" if one.knn is None else f"{one.knn:.1f}",
            f"{one.num_bytes / 2**20:.1f}",
        )
        cells = (str(one.step), f"{one.epoch:.1f}", *numbers, "yes" if one.pinned else "", str(one.attempt), when(one.created_at), one.path)
        table.add_row(*map(Text, cells))
    wide().print(table)


@app.command()
def pin(run_id: RunId, step: Step, api: Api = None, key_file: KeyFile = None) -> None:
    """Keep a checkpoint, whatever comes after it."""
    with connect(api, key_file) as client:
        say(f"step {client.pin(run_id, step).step} of {run_id} is kept until `millionway unpin {run_id} {step}`")


@app.command()
def unpin(run_id: RunId, step: Step, api: Api = None, key_file: KeyFile = None) -> None:
    """Let a checkpoint go once it is neither among the newest nor the best."""
    with connect(api, key_file) as client:
        say(f"step {client.pin(run_id, step, pinned=False).step} of {run_id} is kept as any other")


@app.command()
def download(
    run_id: RunId,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where to put the files; made if it is not there.")],
    export: Annotated[bool, typer.Option("--export", help="The exported backbone, which timm loads. The default.")] = False,
    step: Annotated[int | None, typer.Option(min=0, help="A checkpoint instead.")] = None,
    api: Api = None,
    key_file: KeyFile = None,
) -> None:
    """Fetch a run's export, or a checkpoint: each file whole and verified, or not at all. Files that are there already are not fetched
    again."""
    if export and step is not None:
        raise MillionwayError(f"--export and --step {step}: give one of them")
    with connect(api, key_file, retries=PATIENT_RETRIES) as client:
        files = client.files(run_id, step=step)
        try:
            output.mkdir(parents=True, exist_ok=True)
            for file in files:
                _fetch(client, run_id, step, file, output)
        except OSError as error:
            raise MillionwayError(f"{output} does not take the files ({error}): make room, or give another folder with -o") from None
    say(f"{len(files)} files, {sum(file.num_bytes for file in files) / 2**20:.1f} MiB, in {output}")


def _fetch(client: ApiClient, run_id: str, step: int | None, file: StoredFile, folder: Path) -> None:
    target = folder / file.name
    if target.parent != folder:
        raise MillionwayError(f"the API names a file {file.name!r}, which is a path: nothing is fetched under it")
    if file.sha256 and target.is_file():
        with target.open("rb") as there:
            if hashlib.file_digest(there, "sha256").hexdigest() == file.sha256:
                say(f"{file.name}: there already, SHA-256 verified")
                return
    client.download(run_id, file.name, target, step=step)
    say(f"{file.name}: {file.num_bytes:,} bytes" + (", SHA-256 verified" if file.sha256 else ""))
