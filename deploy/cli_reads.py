"""Commands that show runs: what is known of them, their events, curves and logs."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from deploy.display import attempt_lines, one_line, panel, wait_lines
from deploy.follow import all_events, log_pieces, newest_runs
from deploy.plot import plot
from deploy.terminal import PATIENT_RETRIES, RETRIES, Api, KeyFile, RunId, connect, console, say, when, wide
from service.errors import MillionwayError
from service.lifecycle import Status

app = typer.Typer()

DEFAULT_SERIES = "loss"
MAX_POINTS = 1000
"""The API's limit."""


@app.command()
def runs(
    status: Annotated[Status | None, typer.Option(help="Only runs in this status.")] = None,
    owner: Annotated[str | None, typer.Option(help="Only runs of this key's name; takes an admin's key.")] = None,
    labels: Annotated[
        list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="Only runs with this label; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    api: Api = None,
    key_file: KeyFile = None,
) -> None:
    """List the runs, newest first."""
    with connect(api, key_file) as client:
        found, has_more = newest_runs(client, limit, status=status, owner=owner, labels=labels)
    table = Table("run", "name", "owner", "status", "priority", "attempt", "step", "kNN %", "created", "reason", box=None)
    for run in found:
        place = f" #{run.wait.position}" if run.wait and run.wait.position is not None else ""
        step = f"{run.progress.step}/{run.progress.num_steps}" if run.progress else "-"
        knn = "-" if run.knn is None else f"{run.knn:.1f}"
        cells = (run.id, run.name, run.owner, run.status + place, str(run.priority), str(run.attempt), step, knn, when(run.created_at))
        table.add_row(*map(Text, (*cells, run.reason.split("\n")[0])))  # no markup: a reason may begin with "[/path]"
    wide().print(table)
    if has_more:
        say("older ones: --limit N")


@app.command()
def show(run_id: RunId, api: Api = None, key_file: KeyFile = None) -> None:
    """All that is known of a run: status and why, progress, attempts, checkpoints, history."""
    with connect(api, key_file) as client:
        run, checkpoints, history = client.run(run_id), client.checkpoints(run_id), client.history(run_id)
        attempts = client.attempts(run_id)
    out = wide()
    out.print(panel(run) if out.is_terminal else one_line(run), markup=False, highlight=False, soft_wrap=not out.is_terminal)
    facts = {
        "owner": run.owner,
        "priority": run.priority,
        "labels": " ".join(f"{name}={value}" for name, value in sorted(run.labels.items())) or "-",
        "created": when(run.created_at),
        "finished": when(run.finished_at),
        "ended by": run.termination_reason or "-",
        "forked from": f"{run.parent.run_id} at step {run.parent.step}" if run.parent else "-",
        "workers": ", ".join(run.workers) or "-",
        "images": run.num_images or "-",
        "checkpoint": run.checkpoint or "-",
        "export": run.export or "-",
    }
    lines = [f"{name:<12}{value}" for name, value in facts.items()]
    if run.wait and not out.is_terminal:  # the panel has it
        lines += [f"  {line}" for line in wait_lines(run.wait)]
    for attempt in attempts:
        lines += [f"  {line}" for line in attempt_lines(attempt)]
    for checkpoint in checkpoints:
        knn = "" if checkpoint.knn is None else f"  kNN {checkpoint.knn:.1f}%"
        lines.append(f"  step {checkpoint.step}  {checkpoint.num_bytes / 2**20:.1f} MiB{knn}  {checkpoint.path}")
    lines += [f"  {when(entry.time)}  {entry.event} -> {entry.status}: {entry.reason}" for entry in history]
    for line in lines:
        say(line)


@app.command()
def attempts(run_id: RunId, api: Api = None, key_file: KeyFile = None) -> None:
    """Each attempt of a run: where its ranks were, how it ended, and the last lines of the log that tells most."""
    with connect(api, key_file) as client:
        found = client.attempts(run_id)
    for attempt in found:
        for line in attempt_lines(attempt, with_log_tail=True):
            say(line)


@app.command()
def events(
    run_id: RunId,
    follow_it: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document a line.")] = False,
    api: Api = None,
    key_file: KeyFile = None,
) -> None:
    """What happened to a run and what its job reported, oldest first."""
    with connect(api, key_file, retries=PATIENT_RETRIES if follow_it else RETRIES) as client:
        for event in client.stream_events(run_id) if follow_it else all_events(client, run_id):
            what = " ".join(f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in event.data.items())
            say(event.model_dump_json() if as_json else f"{when(event.time)}  attempt {event.attempt}  {event.kind}  {what}")


@app.command()
def metrics(
    run_id: RunId,
    series: Annotated[str | None, typer.Option(help="loss, learning_rate, images_per_second, data_wait, knn.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values of all series, or of --series.")] = False,
    api: Api = None,
    key_file: KeyFile = None,
) -> None:
    """A run's curve, drawn here: the loss, or another series."""
    shown = [series] if series else None if csv else [DEFAULT_SERIES]
    width = max(20, min(console.width, 120) - 12)
    with connect(api, key_file) as client:
        found = client.metrics(run_id, points=MAX_POINTS if csv else width, series=shown).series
    if csv:
        say("series,first_step,last_step,minimum,maximum,mean,last")
        for name, points in found.items():
            for p in points:
                say(f"{name},{p.first_step},{p.last_step},{p.minimum!r},{p.maximum!r},{p.mean!r},{p.last!r}")
        return
    for name in shown or ():
        points = found.get(name)
        if not points:
            raise MillionwayError(f"run {run_id} has no {name} yet")
        say(f"{name}, steps {points[0].first_step} to {points[-1].last_step}, last {points[-1].last:.5g}")
        for line in plot([point.mean for point in points], blocks=console.encoding.startswith("utf")):
            say(line)


@app.command()
def logs(
    run_id: RunId,
    follow_it: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run ends.")] = False,
    rank: Annotated[int, typer.Option(min=0, help="The rank whose output to print; with --node, counted on that node.")] = 0,
    node: Annotated[int | None, typer.Option(min=0, help="Node rank; 0 leads.")] = None,
    launcher: Annotated[bool, typer.Option("--launcher", help="The output of a node's launcher instead of a rank's.")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="Default: the newest.")] = None,
    api: Api = None,
    key_file: KeyFile = None,
) -> None:
    """Print what a rank printed."""
    with connect(api, key_file, retries=PATIENT_RETRIES if follow_it else RETRIES) as client:
        if node and not launcher:
            found = [one for one in client.attempts(run_id) if attempt in (None, one.number)]
            if not found:
                raise MillionwayError(f"run {run_id} has no attempt{'' if attempt is None else f' {attempt}'} yet: it has no nodes")
            rank += node * found[-1].ranks_per_node
        name = f"launcher-{node or 0}.log" if launcher else f"rank-{rank}.log"
        printed = False
        for piece in log_pieces(client, run_id, name, attempt=attempt, follow_it=follow_it):
            printed = True
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        if not printed:
            there = ", ".join(f"{file.name} of attempt {file.attempt} ({file.size} bytes)" for file in client.log_index(run_id))
            raise MillionwayError(f"{name} of run {run_id} is empty so far; there is: {there or 'no log yet'}")
