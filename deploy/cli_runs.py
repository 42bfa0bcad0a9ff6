"""Commands that submit and change runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from deploy.display import plan_lines
from deploy.follow import follow
from deploy.terminal import Api, KeyFile, RunId, SpecFile, connect, console, load_spec, say
from service.client import ApiClient
from service.errors import MillionwayError
from service.lifecycle import Status
from service.protocol import Fork, RunPatch
from service.runs import Run
from service.spec import merge

app = typer.Typer()

Watch = Annotated[bool, typer.Option("--watch", help="Follow the run to its end; Ctrl-C stops watching, not the run.")]


@app.command()
def submit(spec_file: SpecFile, watch: Watch = False, api: Api = None, key_file: KeyFile = None) -> None:
    """Send a run to the queue. With --watch the exit code says whether it succeeded."""
    spec = load_spec(spec_file)
    with connect(api, key_file) as client:
        _watch(client, client.submit(spec), watch)


@app.command()
def plan(spec_file: SpecFile, api: Api = None, key_file: KeyFile = None) -> None:
    """What would become of a run: where and when it would start, its memory, its duration. Nothing is submitted. Exit code 1 if it cannot
    run."""
    spec = load_spec(spec_file)
    with connect(api, key_file) as client:
        found = client.plan(spec)
    for line in plan_lines(found):
        say(line)
    raise typer.Exit(0 if found.feasible else 1)


@app.command()
def fork(
    run_id: RunId,
    changes: Annotated[
        Path | None, typer.Argument(metavar="[CHANGES.yaml]", help="Sections to lay over the parent's specification.")
    ] = None,
    step: Annotated[int | None, typer.Option(min=0, help="Of the checkpoint to start from; default: the newest.")] = None,
    values: Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="One change; may be repeated.")] = None,
    watch: Watch = False,
    api: Api = None,
    key_file: KeyFile = None,
) -> None:
    """A new run from a checkpoint, with a changed specification: --set schedule.epochs=400 trains on for longer."""
    spec = _read_changes(changes) if changes else {}
    for value in values or ():
        spec = merge(spec, _parse_change(value))
    with connect(api, key_file) as client:
        _watch(client, client.fork(run_id, Fork(step=step, spec=spec)), watch)


def _watch(client: ApiClient, run: Run, wanted: bool) -> None:
    if not wanted:
        say(f"{run.id} {run.status}: follow it with `millionway show {run.id}` or `millionway logs -f {run.id}`")
        return
    try:
        run = follow(client, run, console)
    except KeyboardInterrupt:
        say(f"not watching any more; run {run.id} goes on: `millionway show {run.id}`, `millionway cancel {run.id}`")
        raise typer.Exit(130) from None
    raise typer.Exit(0 if run.status == Status.SUCCEEDED else 1)


def _read_changes(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise MillionwayError(f"{path} cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise MillionwayError(f"{path} holds a {type(document).__name__}: give a mapping of sections, e.g. schedule: {{epochs: 400}}")
    return document


def _parse_change(text: str) -> dict[str, Any]:
    """schedule.epochs=400 as {"schedule": {"epochs": 400}}; the value is YAML."""
    place, equals, value = text.partition("=")
    if not equals or not all(place.split(".")):
        raise MillionwayError(f"--set {text!r}: write SECTION.KEY=VALUE, e.g. --set schedule.epochs=400")
    try:
        change = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise MillionwayError(f"--set {text!r}: the value is not YAML: {error}") from None
    for name in reversed(place.split(".")):
        change = {name: change}
    return change  # type: ignore[no-any-return]


@app.command()
def cancel(run_id: RunId, api: Api = None, key_file: KeyFile = None) -> None:
    """Stop a run for good; a running job writes a checkpoint first."""
    with connect(api, key_file) as client:
        _say_status(client.cancel(run_id))


@app.command()
def kill(run_id: RunId, api: Api = None, key_file: KeyFile = None) -> None:
    """Stop a run for good, at once, without a checkpoint."""
    with connect(api, key_file) as client:
        _say_status(client.kill(run_id))


@app.command()
def pause(run_id: RunId, api: Api = None, key_file: KeyFile = None) -> None:
    """Stop a run with a checkpoint, until `resume`."""
    with connect(api, key_file) as client:
        _say_status(client.pause(run_id))


@app.command()
def resume(run_id: RunId, api: Api = None, key_file: KeyFile = None) -> None:
    """Put a paused run back into the queue; it goes on from its last checkpoint."""
    with connect(api, key_file) as client:
        _say_status(client.resume(run_id))


@app.command()
def priority(
    run_id: RunId,
    value: Annotated[int, typer.Argument(metavar="N", min=-100, max=100, help="Higher runs first. Negative: `priority RUN -- -5`.")],
    api: Api = None,
    key_file: KeyFile = None,
) -> None:
    """Change a run's priority, also while it waits or runs."""
    with connect(api, key_file) as client:
        run = client.edit(run_id, RunPatch(priority=value))
    say(f"{run.id} {run.status}: priority {run.priority}")


@app.command()
def label(
    run_id: RunId,
    pairs: Annotated[list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="Labels to set.")] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", metavar="NAME", help="A label to remove; may be repeated.")] = None,
    api: Api = None,
    key_file: KeyFile = None,
) -> None:
    """Set or remove labels of a run."""
    labels: dict[str, str | None] = dict.fromkeys(remove or ())
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise MillionwayError(f"{pair!r} is no label: write NAME=VALUE, or --remove {pair}")
        labels[name] = value
    if not labels:
        raise MillionwayError("no label is given: write NAME=VALUE, or --remove NAME")
    with connect(api, key_file) as client:
        run = client.edit(run_id, _patch_of_labels(labels))
    say(f"{run.id} {run.status}: " + (" ".join(f"{name}={value}" for name, value in sorted(run.labels.items())) or "no labels"))


def _patch_of_labels(labels: dict[str, str | None]) -> RunPatch:
    try:
        return RunPatch(labels=labels)
    except ValidationError as error:
        raise MillionwayError("; ".join(f"label {mistake['input']!r}: {mistake['msg']}" for mistake in error.errors())) from None


def _say_status(run: Run) -> None:
    say(f"{run.id} {run.status}: {run.reason}")
