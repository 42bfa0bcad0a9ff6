"""The runs directory: which file system it is, and what the worker writes for a run's ranks: the fence, the pins."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from service.layout import RunDir, write_whole

STORAGE_FILE = ".millionway-storage"
LOCK_SECONDS = 5.0


def storage_id(runs_dir: Path) -> str:
    """A random id that all workers on this file system find in it; whoever is first writes it. Raises OSError."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    path = runs_dir / STORAGE_FILE
    if not path.exists():
        mine = runs_dir / f"{STORAGE_FILE}.{secrets.token_hex(6)}"
        write_whole(mine, secrets.token_hex(8))
        try:
            with contextlib.suppress(FileExistsError):
                os.link(mine, path)  # of two at once, one wins, and both read a whole file
        finally:
            mine.unlink()
    found = path.read_text().strip()
    if not re.fullmatch(r"[0-9a-f]{16}", found):
        raise OSError(f"{path} holds {found[:50]!r}, which is no id: remove it while no worker runs")
    return found


def check_storage(runs_dir: Path, expected: str) -> None:
    """Raises OSError where the runs directory is not the file system that it was when the worker started."""
    try:
        found = (runs_dir / STORAGE_FILE).read_text().strip()
    except FileNotFoundError:
        found = ""
    if found != expected:
        raise OSError(f"{runs_dir} is not the file system that it was when the worker started ({STORAGE_FILE} differs): is it mounted?")


def raise_fence(run_dir: RunDir, attempt: int) -> int:
    """Put `attempt` into the fence unless a higher number is there. Returns the number that then stands there. Raises OSError."""
    run_dir.path.mkdir(parents=True, exist_ok=True)
    with run_dir.path.joinpath(".fence.lock").open("ab") as lock:
        _lock(lock.fileno(), run_dir.path)
        newest = run_dir.newest_attempt()
        if newest < attempt:
            write_whole(run_dir.fence, str(attempt))
        return max(newest, attempt)


def _lock(descriptor: int, directory: Path) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the fence in {directory} stays locked by another worker") from None
            time.sleep(0.05)


def write_pins(run_dir: RunDir, steps: Sequence[int]) -> None:
    write_whole(run_dir.pins, json.dumps(sorted(steps)))
