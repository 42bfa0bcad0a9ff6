"""The command line, `millionway`. The commands parse, call and print; the work is elsewhere.

Here are those that start something on this machine; cli_runs.py changes runs, cli_reads.py shows them, cli_files.py fetches what they
wrote, cli_workers.py is about workers, cli_data.py about the images before a run.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from deploy import cli_data, cli_files, cli_keys, cli_reads, cli_runs, cli_workers
from deploy import doctor as checks
from deploy.stack import Stack
from deploy.state import DEFAULT, StateDir
from deploy.terminal import Api, KeyFile, SpecFile, State, console, load_spec, say, wide
from deploy.train import train as train_alone
from service.errors import MillionwayError
from service.lifecycle import Status
from service.worker.machine import default_slots


class Group(TyperGroup):
    """Prints our errors in their own few lines, without a traceback, and exits with 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MillionwayError as error:
            print(f"millionway: {error}", file=sys.stderr)  # noqa: T201
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Million-way pretraining as a service."
)


@app.command()
def up(
    port: Annotated[int | None, typer.Option(help="Port of the API; default 8765, or a free one.")] = None,
    state_dir: State = DEFAULT,
    slots: Annotated[int | None, typer.Option(min=1, max=1024, help="Ranks that may run; default: one per GPU, else per core.")] = None,
) -> None:
    """Start Redis, the API and a worker here, and stay until Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        with Stack(StateDir(state_dir), port=port, slots=slots or default_slots(), say=say) as stack:
            say(f"millionway is up at {stack.url} (docs: {stack.url}/docs), {stack.slots} slots, state in {state_dir}; Ctrl-C stops it")
            try:
                while True:
                    stack.supervise()
                    time.sleep(0.5)
            except KeyboardInterrupt:
                say("stopping: a running job writes a checkpoint and its run goes back to the queue; Ctrl-C again stops at once")
    except KeyboardInterrupt:  # while starting
        say("stopped")


@app.command()
def train(
    spec_file: SpecFile,
    output: Annotated[Path | None, typer.Option("--output", help="Directory of the run; default: .millionway/train/NAME-TIME.")] = None,
) -> None:
    """Run the job here, without any service. Given an earlier --output, it goes on from its last checkpoint."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    spec = load_spec(spec_file)
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    run = train_alone(spec, output or DEFAULT / "train" / f"{spec.name.replace(' ', '-')}-{stamp}", console)
    for name, value in (("checkpoint", run.checkpoint), ("export", run.export)):
        if value:
            say(f"{name:<11}{value}")
    raise typer.Exit(0 if run.status == Status.SUCCEEDED else 1)


@app.command()
def verify(export_dir: Annotated[Path, typer.Argument(metavar="EXPORT_DIR")]) -> None:
    """Prove that an exported backbone loads into timm and computes what it computed here."""
    raise typer.Exit(subprocess.run([sys.executable, "-m", "trainer.export", str(export_dir)], check=False).returncode)


@app.command()
def doctor(api: Api = None, key_file: KeyFile = None, state_dir: State = DEFAULT) -> None:
    """Check this machine, and say how to mend what is missing. Exit code 1 if training cannot work."""
    found = checks.examine(StateDir(state_dir), api, key_file)
    wide().print(checks.table(found))
    raise typer.Exit(1 if any(check.fatal for check in found) else 0)


for commands in (cli_runs, cli_reads, cli_files, cli_workers, cli_data):
    app.add_typer(commands.app)
app.add_typer(cli_keys.app, name="keys")


if __name__ == "__main__":
    app(prog_name="millionway")
