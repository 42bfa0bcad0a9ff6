"""python -m service.worker --api URL --runs-dir DIR --slots N --name W [--device auto|cpu|cuda] [--grace-seconds S]"""

from __future__ import annotations

import argparse
import platform
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from service.client import ApiClient
from service.errors import MillionwayError
from service.launch import job_command
from service.logs import configure_logs
from service.worker.loop import Command, Settings, Worker
from service.worker.machine import default_slots

MAX_SLOTS = 1024
"""Of service.protocol.ClaimRequest."""


def main(arguments: Sequence[str] | None = None, *, command: Command = job_command) -> None:
    """Run a worker until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m service.worker", description="Claims runs and executes them on this machine.")
    parser.add_argument("--api", required=True, help="URL of the API")
    parser.add_argument("--runs-dir", required=True, type=Path, help="where the runs keep their checkpoints and logs")
    parser.add_argument("--slots", type=int, help="ranks that may run at once (default: one per GPU, else one per core)")
    parser.add_argument("--name", default=platform.node(), help="unique among the workers (default: the host's name)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--grace-seconds", type=float, default=Settings.grace_seconds, help="between SIGTERM and SIGKILL of a job")
    given = parser.parse_args(arguments)
    if given.slots is not None and not 1 <= given.slots <= MAX_SLOTS:
        parser.error(f"--slots is {given.slots}: give 1 to {MAX_SLOTS}")
    configure_logs()
    settings = Settings(
        name=given.name,
        runs_dir=given.runs_dir.resolve(),
        slots=given.slots or default_slots(given.device),
        device=given.device,
        grace_seconds=given.grace_seconds,
    )
    try:
        with ApiClient(given.api, timeout_seconds=5, retries=0) as client:
            worker = Worker(client, settings, command)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: worker.stop())
            worker.run()
    except MillionwayError as error:
        sys.exit(f"worker: {error}")


if __name__ == "__main__":
    main()
