"""python -m service.worker --api URL --runs-dir DIR [--key-file FILE] [--name W] [--slots N] ...; see --help"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import structlog

from service.client import ApiClient
from service.errors import MillionwayError
from service.launch import job_command
from service.logs import configure_logs
from service.worker.loop import Worker
from service.worker.machine import default_slots, route_address, visible_gpus
from service.worker.settings import JobCommand, Settings

log = structlog.get_logger()

MAX_SLOTS = 1024
"""Of service.protocol.Poll."""
TIMEOUT_SECONDS = 5.0
KEY_SECONDS = 120.0
"""How long the key's file may take to appear: the control plane writes it when it starts for the first time."""


def main(arguments: Sequence[str] | None = None, *, command: JobCommand = job_command) -> None:
    """Run a worker until SIGTERM or SIGINT."""
    parser = _parser()
    given = parser.parse_args(arguments)
    configure_logs()
    try:
        with ApiClient(given.api, key=_key(given.key_file), timeout_seconds=TIMEOUT_SECONDS, retries=0) as client:
            worker = Worker(client, _settings(parser, given), command)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: worker.stop())
            worker.run()
    except MillionwayError as error:
        sys.exit(f"worker: {error}")
    except OSError as error:
        sys.exit(f"worker: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m service.worker", description="Executes runs on this machine.")
    parser.add_argument("--api", required=True, help="URL of the API")
    parser.add_argument("--runs-dir", required=True, type=Path, help="where the runs keep their checkpoints and logs")
    parser.add_argument("--key-file", type=Path, help="file with an API key of the role worker (default: the environment's MILLIONWAY_KEY)")
    parser.add_argument("--name", default=platform.node(), help="unique among the workers (default: the host's name)")
    parser.add_argument("--slots", type=int, help="ranks that may run at once (default: one per GPU, else one per core)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    sharing = parser.add_mutually_exclusive_group()
    sharing.add_argument("--shared", action="store_true", default=None, help="several runs at once (default: with GPUs)")
    sharing.add_argument("--exclusive", dest="shared", action="store_false", help="one run at a time, with all cores (default: without)")
    parser.add_argument("--address", help="where other workers reach this one (default: the address on the way to the API)")
    parser.add_argument("--ports", type=_ports, metavar="FIRST-LAST", help="where ranks may meet on this machine (default: any free port)")
    parser.add_argument("--data-root", type=Path, action="append", default=[], help="folder in which a run's images must lie; repeatable")
    parser.add_argument("--grace-seconds", type=float, default=Settings.grace_seconds, help="for a checkpoint, before SIGTERM and SIGKILL")
    parser.add_argument("--stall-seconds", type=float, default=Settings.stall_seconds, help="least time without a step that is a stall")
    return parser


def _settings(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Settings:
    num_gpus = len(visible_gpus()) if given.device != "cpu" else 0
    slots = given.slots if given.slots is not None else default_slots(given.device)
    if not 1 <= slots <= MAX_SLOTS:
        parser.error(f"--slots is {slots}: give 1 to {MAX_SLOTS}")
    if given.device == "cuda" and not num_gpus:
        parser.error("--device is cuda and no GPU is found: check nvidia-smi and CUDA_VISIBLE_DEVICES, or give --device cpu")
    if num_gpus and slots > num_gpus:
        parser.error(f"--slots is {slots} with {num_gpus} GPUs: give at most {num_gpus}, or --device cpu")
    for root in given.data_root:
        if not root.is_absolute():
            parser.error(f"--data-root is {str(root)!r}: give an absolute path")
    return Settings(
        name=given.name,
        runs_dir=given.runs_dir.resolve(),
        slots=slots,
        device=given.device,
        shared=bool(num_gpus) if given.shared is None else given.shared,
        grace_seconds=given.grace_seconds,
        address=given.address or route_address(httpx.URL(given.api).host),
        ports=given.ports,
        data_roots=tuple(given.data_root),
        stall_seconds=given.stall_seconds,
    )


def _ports(text: str) -> range:
    first, _, last = text.partition("-")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r}: give FIRST-LAST within 1 to 65535, e.g. 29500-29599")
    return range(int(first), int(last) + 1)


def _key(file: Path | None) -> str | None:
    """The API key. Waits for a file that is not there yet."""
    if file is None:
        return os.environ.get("MILLIONWAY_KEY")
    deadline = time.monotonic() + KEY_SECONDS
    if not file.exists():
        log.info("waiting_for_key", file=str(file), seconds=KEY_SECONDS)
    while time.monotonic() < deadline:
        if file.exists() and (key := file.read_text().strip()):
            return key
        time.sleep(0.2)
    raise MillionwayError(f"no key in {file} after {KEY_SECONDS:.0f} s: make one with `millionway keys create` and name its file")


if __name__ == "__main__":
    main()
