"""The command line, `millionway`. A command line of this module parses, calls and prints; the work is elsewhere."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from deploy import doctor as checks
from deploy.display import one_line, panel
from deploy.follow import follow, log_pieces, newest_runs
from deploy.stack import Stack
from deploy.state import DEFAULT, StateDir
from deploy.train import train as train_alone
from service.client import ApiClient
from service.errors import InvalidSpec, MillionwayError
from service.lifecycle import Status
from service.spec import RunSpec, read_spec
from service.worker.machine import default_slots

console = Console()


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

Api = Annotated[str | None, typer.Option("--api", envvar="MILLIONWAY_API", help="URL of the API; default: the stack in .millionway.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id; see `millionway runs`.")]
SpecFile = Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="The run's specification, YAML or JSON.")]
State = Annotated[Path, typer.Option("--state-dir", help="Where the stack keeps everything.")]


@app.command()
def up(
    port: Annotated[int | None, typer.Option(help="Port of the API; default 8765, or a free one.")] = None,
    state_dir: State = DEFAULT,
    slots: Annotated[int | None, typer.Option(min=1, max=1024, help="Ranks that may run; default: one per GPU, else per core.")] = None,
) -> None:
    """Start Redis, the API and a worker here, and stay until Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        with Stack(StateDir(state_dir), port=port, slots=slots or default_slots(), say=_say) as stack:
            _say(f"millionway is up at {stack.url} (docs: {stack.url}/docs), {stack.slots} slots, state in {state_dir}; Ctrl-C stops it")
            try:
                while True:
                    stack.supervise()
                    time.sleep(0.5)
            except KeyboardInterrupt:
                _say("stopping: a running job writes a checkpoint and its run goes back to the queue; Ctrl-C again stops at once")
    except KeyboardInterrupt:  # while starting
        _say("stopped")


@app.command()
def submit(
    spec_file: SpecFile,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the run to its end; Ctrl-C stops watching, not the run.")] = False,
    api: Api = None,
) -> None:
    """Send a run to the queue. With --watch the exit code says whether it succeeded."""
    spec = load_spec(spec_file)
    with _client(api) as client:
        run = client.submit(spec)
        if not watch:
            _say(f"{run.id} {run.status}: follow it with `millionway show {run.id}` or `millionway logs -f {run.id}`")
            return
        try:
            run = follow(client, run, console)
        except KeyboardInterrupt:
            _say(f"not watching any more; run {run.id} goes on: `millionway show {run.id}`, `millionway cancel {run.id}`")
            raise typer.Exit(130) from None
    raise typer.Exit(0 if run.status == Status.SUCCEEDED else 1)


@app.command()
def runs(
    status: Annotated[Status | None, typer.Option(help="Only runs in this status.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    api: Api = None,
) -> None:
    """List the runs, newest first."""
    with _client(api) as client:
        found, has_more = newest_runs(client, status, limit)
    table = Table("run", "name", "status", "attempt", "step", "kNN %", "created", "reason", box=None)
    for run in found:
        step = f"{run.progress.step}/{run.progress.num_steps}" if run.progress else "-"
        knn = "-" if run.knn is None else f"{run.knn:.1f}"
        cells = (run.id, run.name, run.status, str(run.attempt), step, knn, _when(run.created_at), run.reason.split("\n")[0])
        table.add_row(*map(Text, cells))  # no markup: a reason may begin with "[/path]"
    _wide().print(table)
    if has_more:
        _say("older ones: --limit N")


@app.command()
def show(run_id: RunId, api: Api = None) -> None:
    """All that is known of a run: status and why, progress, checkpoints, history."""
    with _client(api) as client:
        run, checkpoints, history = client.run(run_id), client.checkpoints(run_id), client.history(run_id)
    wide = _wide()
    wide.print(panel(run) if wide.is_terminal else one_line(run), markup=False, highlight=False, soft_wrap=not wide.is_terminal)
    facts = {
        "created": _when(run.created_at),
        "finished": _when(run.finished_at),
        "worker": run.worker or "-",
        "images": run.num_images or "-",
        "checkpoint": run.checkpoint or "-",
        "export": run.export or "-",
    }
    for name, value in facts.items():
        wide.print(f"{name:<11}{value}", markup=False, highlight=False, soft_wrap=True)
    for checkpoint in checkpoints:
        knn = "" if checkpoint.knn is None else f"  kNN {checkpoint.knn:.1f}%"
        wide.print(
            f"  step {checkpoint.step}  {checkpoint.num_bytes / 2**20:.1f} MiB{knn}  {checkpoint.path}", markup=False, soft_wrap=True
        )
    for step in history:
        wide.print(f"  {_when(step.time)}  {step.event} -> {step.status}: {step.reason}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def logs(
    run_id: RunId,
    follow_it: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run ends.")] = False,
    rank: Annotated[int, typer.Option(min=0, help="The rank whose output to print.")] = 0,
    launcher: Annotated[bool, typer.Option("--launcher", help="The launcher's output instead of a rank's.")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="Default: the newest.")] = None,
    api: Api = None,
) -> None:
    """Print what a rank printed."""
    name = "launcher.log" if launcher else f"rank-{rank}.log"
    with _client(api) as client:
        printed = False
        for piece in log_pieces(client, run_id, name, attempt=attempt, follow_it=follow_it):
            printed = True
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        if not printed:
            there = ", ".join(f"{file.name} of attempt {file.attempt} ({file.size} bytes)" for file in client.log_index(run_id))
            raise MillionwayError(f"{name} of run {run_id} is empty so far; there is: {there or 'no log yet'}")


@app.command()
def cancel(run_id: RunId, api: Api = None) -> None:
    """Stop a run for good; a running job writes a checkpoint first."""
    with _client(api) as client:
        run = client.cancel(run_id)
    _say(f"{run.id} {run.status}: {run.reason}")


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
            _say(f"{name:<11}{value}")
    raise typer.Exit(0 if run.status == Status.SUCCEEDED else 1)


@app.command()
def verify(export_dir: Annotated[Path, typer.Argument(metavar="EXPORT_DIR")]) -> None:
    """Prove that an exported backbone loads into timm and computes what it computed here."""
    raise typer.Exit(subprocess.run([sys.executable, "-m", "trainer.export", str(export_dir)], check=False).returncode)


@app.command()
def doctor(api: Api = None, state_dir: State = DEFAULT) -> None:
    """Check this machine, and say how to mend what is missing. Exit code 1 if training cannot work."""
    found = checks.examine(StateDir(state_dir), api)
    _wide().print(checks.table(found))
    raise typer.Exit(1 if any(check.fatal for check in found) else 0)


def load_spec(path: Path) -> RunSpec:
    """The specification in a file, its relative paths made absolute against the current directory. Raises InvalidSpec."""
    try:
        spec = read_spec(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise MillionwayError(f"{path} cannot be read: {error}") from None
    except InvalidSpec as error:
        raise MillionwayError("\n".join([f"{path} is wrong:", *(f"  {mistake}" for mistake in error.errors)])) from None
    paths = {"labelled": spec.evaluation.labelled, "queries": spec.evaluation.queries}
    evaluation = {name: str(Path(value).resolve()) for name, value in paths.items() if value}
    return spec.model_copy(
        update={
            "data": spec.data.model_copy(update={"path": str(Path(spec.data.path).resolve())}),
            "evaluation": spec.evaluation.model_copy(update=evaluation),
        }
    )


def _client(api: str | None) -> ApiClient:
    url = api or StateDir(DEFAULT).running_url()
    if url is None:
        raise MillionwayError("no API known: start one here with `millionway up`, or name one with --api URL or MILLIONWAY_API")
    return ApiClient(url)


def _say(message: str) -> None:
    console.print(message, soft_wrap=True, markup=False, highlight=False)


def _wide() -> Console:
    """A console that does not wrap tables to 80 columns outside a terminal."""
    return console if console.is_terminal else Console(width=200)


def _when(seconds: float | None) -> str:
    return "-" if seconds is None else datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


if __name__ == "__main__":
    app(prog_name="millionway")
