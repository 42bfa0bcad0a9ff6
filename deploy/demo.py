"""`make demo`: real images, the real stack, a run over HTTP, and what came of it. `python -m deploy.demo [--data FOLDER]`"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from deploy.demo_data import MAX_IMAGES, demo_spec, inspect, write_digits
from deploy.follow import follow
from deploy.state import DEFAULT, StackError, StateDir
from service import processes
from service.client import ApiClient
from service.errors import ApiProblem, MillionwayError
from service.layout import write_whole
from service.lifecycle import TERMINAL, Status
from service.runs import Role, Run
from service.spec import RunSpec
from service.worker.machine import default_slots

UP_SECONDS = 120.0
DOWN_SECONDS = 75.0
"""The stack itself allows its worker 45 s."""

console = Console()


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of images; default: handwritten digits that scikit-learn ships")
    parser.add_argument("--state-dir", type=Path, default=DEFAULT)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        return demo(given.data, StateDir(given.state_dir))
    except MillionwayError as error:
        print(f"demo: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; everything it started is stopped", file=sys.stderr)  # noqa: T201
        return 130


def demo(folder: Path | None, state: StateDir) -> int:
    """Returns the exit code: 0 when the run succeeded."""
    state.path.mkdir(parents=True, exist_ok=True)
    data = inspect(folder or write_digits(state.path / "demo-data"))
    spec = demo_spec(data, default_slots())
    if spec.data.limit:
        _say(f"{data.num_images:,} images in {data.images}: the demonstration takes {MAX_IMAGES:,} of them, evenly spaced")
    if data.labelled is None:
        _say(f"{data.images} has no folders of classes: no kNN accuracy, the loss alone shows the progress")

    began = time.monotonic()
    url = state.running_url()
    own_stack = None if url else _start_stack(state)
    try:
        url = url or _wait_for_stack(state, own_stack)
        with ApiClient(url, key=state.key(Role.ADMIN)) as client:
            run = _run(client, spec)
    finally:
        if own_stack is not None:
            _end_stack(own_stack)
    seconds = time.monotonic() - began
    record = {
        "knn_pixels": run.knn_pixels,
        "knn_random": run.knn_random,
        "knn_trained": run.knn,
        "seconds": round(seconds, 1),
        "run_id": run.id,
        "checkpoint": run.checkpoint,
        "export": run.export,
    }
    write_whole(state.path / "demo.json", json.dumps(record, indent=2) + "\n")
    _report(run, seconds, url, state, own_stack is not None)
    return 0 if run.status == Status.SUCCEEDED else 1


def _run(client: ApiClient, spec: RunSpec) -> Run:
    """Submit and follow. Whatever interrupts, the run does not stay in the queue."""
    for old in client.runs(limit=100).runs:  # of a demonstration that was killed: it would be in the way of this one
        if old.name == spec.name and old.status not in TERMINAL:
            with contextlib.suppress(ApiProblem):  # it ended meanwhile
                client.cancel(old.id)
                _say(f"cancelled the unfinished demonstration {old.id}")
    run = client.submit(spec)
    _say(f"POST {client.url}/runs -> {run.id}; polling GET {client.url}/runs/{run.id}")
    try:
        return follow(client, run, console)
    except KeyboardInterrupt:
        _say("stopping")
        try:
            client.cancel(run.id)
        except MillionwayError as error:
            _say(f"run {run.id} is not cancelled ({error}): the next `make demo` with this state does that")
        raise


def _end_stack(stack: subprocess.Popen[bytes]) -> None:
    try:
        processes.end(stack, DOWN_SECONDS)
    except KeyboardInterrupt:
        _say("stopping at once")
        processes.end(stack, 0.0)  # the kernel takes its children along
        raise


def _start_stack(state: StateDir) -> subprocess.Popen[bytes]:
    (state.path / "logs").mkdir(exist_ok=True)
    _say(f"starting Redis, the API and a worker; their output is in {state.path / 'logs'}")
    command = [sys.executable, "-m", "deploy.cli", "up", "--state-dir", str(state.path)]
    return processes.spawn(command, environment=os.environ, log=state.log("stack"))


def _wait_for_stack(state: StateDir, stack: subprocess.Popen[bytes] | None) -> str:
    deadline = time.monotonic() + UP_SECONDS
    while time.monotonic() < deadline and stack is not None and stack.poll() is None:
        if url := state.running_url():
            return url
        time.sleep(0.2)
    lines = state.log("stack").read_text(errors="replace").splitlines()[-20:]
    raise StackError("the stack did not start:\n" + "\n".join(lines))


def _report(run: Run, seconds: float, url: str, state: StateDir, stopped: bool) -> None:
    _say("")
    if run.status != Status.SUCCEEDED:
        _say(f"The run {run.status}: {run.reason}")
    if run.knn is not None:
        classes = "k nearest neighbours on labelled images that pretraining never saw the labels of"
        _say(f"kNN accuracy ({classes}):")
        for name, accuracy in (("raw pixels", run.knn_pixels), ("random encoder", run.knn_random), ("trained encoder", run.knn)):
            if accuracy is not None:
                _say(f"  {name:<16}{accuracy:5.1f} %")
    for name, value in (("checkpoint", run.checkpoint), ("export", run.export)):
        if value:
            _say(f"{name:<18}{value}")
    if run.export:
        _say(f"{'load it':<18}timm.create_model('local-dir:{run.export}', pretrained=True)")
    _say(f"{'took':<18}{seconds:.0f} s; all of this is in {state.path / 'demo.json'}")
    option = "" if state.path == DEFAULT else f" --state-dir {state.path}"
    if stopped:
        _say("Everything that was started is stopped. To look at the run, start the stack again with the same state:")
        _say(f"  millionway up{option}              (in .venv/bin; Ctrl-C stops it)")
    else:
        _say("The stack that was running before still runs. To look at the run:")
    key_file = state.keys / f"{Role.ADMIN}.key"
    access = "" if state.path == DEFAULT else f" --api {url} --key-file {key_file}"
    for command in ("show", "logs", "metrics"):
        _say(f"  millionway {command} {run.id}{access}")
    for path in ("", "/metrics", "/checkpoints"):
        _say(f'  curl -H "Authorization: Bearer $(cat {key_file})" {url}/runs/{run.id}{path}')


def _say(message: str) -> None:
    console.print(message, soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
