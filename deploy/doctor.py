"""`millionway doctor`: what is here, what is missing, and how to mend it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from deploy import redis_server
from deploy.state import StateDir
from deploy.terminal import connect
from service.errors import MillionwayError
from service.worker.machine import num_cores

CONTROL_PLANE = ("pydantic", "fastapi", "uvicorn", "redis", "httpx", "structlog", "typer", "rich")
TRAINER = ("torch", "torchvision", "deepspeed", "timm", "safetensors", "numpy", "opencv-python-headless")
TORCH_SECONDS = 120
MIN_DISK_GIB = 2.0
MIN_SHM_MIB = 256

# In a process of its own: the command line stays quick, and a broken installation cannot take it down.
_TORCH = """
import json, torch
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
capability = min((torch.cuda.get_device_capability(i) for i in range(len(gpus))), default=None)
print(json.dumps({"gpus": gpus, "capability": capability, "gloo": torch.distributed.is_gloo_available(),
                  "nccl": torch.distributed.is_nccl_available(), "threads": torch.get_num_threads()}))
"""


@dataclass(frozen=True)
class Check:
    name: str
    found: str
    remedy: str = ""
    """Empty when all is well."""
    fatal: bool = False
    """Training cannot work without it."""


def examine(state: StateDir, api: str | None, key_file: Path | None) -> list[Check]:
    """All checks, in the order in which a person would look."""
    return [
        Check("python", f"{platform.python_version()} at {sys.executable}"),
        *_packages(),
        *_torch(),
        _redis(),
        _api(state, api, key_file),
        _state(state),
        _disk(state.path),
        _shared_memory(Path("/dev/shm")),  # noqa: S108 - shared memory, not a temporary file of ours
        Check("cores", f"{num_cores()} usable, {os.cpu_count()} in the machine"),
    ]


def table(checks: list[Check]) -> Table:
    """The checks for a person."""
    result = Table("", "check", "found", "remedy", box=None)
    for check in checks:
        mark = "[red]fail[/]" if check.fatal else "[yellow]note[/]" if check.remedy else "[green]ok[/]"
        result.add_row(mark, Text(check.name), Text(check.found), Text(check.remedy))  # [trainer] is no markup
    return result


def _packages() -> Iterator[Check]:
    for names, label, extra in ((CONTROL_PLANE, "control plane", "."), (TRAINER, "trainer", ".[trainer]")):
        versions, missing = [], []
        for name in names:
            try:
                versions.append(f"{name} {importlib.metadata.version(name)}")
            except importlib.metadata.PackageNotFoundError:
                missing.append(name)
        if missing:
            yield Check(label, "missing: " + ", ".join(missing), f"pip install -c constraints.txt -e '{extra}'", fatal=True)
        else:
            yield Check(label, ", ".join(versions))


def _torch() -> Iterator[Check]:
    try:
        process = subprocess.run([sys.executable, "-c", _TORCH], capture_output=True, text=True, timeout=TORCH_SECONDS, check=True)
        facts = json.loads(process.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        yield Check("devices", f"torch does not import within {TORCH_SECONDS} s", "look at the disk and at the GPU driver", fatal=True)
        return
    except (subprocess.CalledProcessError, ValueError, IndexError) as error:
        why = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        yield Check("devices", f"torch does not import: {why[-1] if why else 'no output'}", "reinstall torch for this machine", fatal=True)
        return
    if facts["gpus"]:
        bf16 = facts["capability"] >= [8, 0]
        yield Check("devices", ", ".join(facts["gpus"]))
        yield Check("precision", "bf16 or fp32" if bf16 else "fp16 or fp32: these GPUs have no fast bf16")
    else:
        driver = shutil.which("nvidia-smi")
        remedy = "nvidia-smi is here, torch sees no GPU: install the torch build for this driver's CUDA" if driver else ""
        yield Check("devices", f"CPU, {facts['threads']} threads", remedy)
        yield Check("precision", "fp32 (bf16 runs, without gain on most CPUs)")
    backend, has = ("nccl", facts["nccl"]) if facts["gpus"] else ("gloo", facts["gloo"])
    if has:
        yield Check("collectives", backend)
    else:
        yield Check("collectives", f"{backend} is missing", "install a torch build that has it", fatal=True)


def _redis() -> Check:
    server = redis_server.find_server()
    return Check("redis server", str(server)) if server else Check("redis server", "none", redis_server.NO_SERVER)


def _api(state: StateDir, api: str | None, key_file: Path | None) -> Check:
    if api is None and state.running_url() is None:
        return Check("api", "none is running here", "start one: millionway up (or name one: --api URL)")
    try:
        with connect(api, key_file, state=state, retries=0) as client:
            client.ready()
            workers = [worker for worker in client.workers() if worker.alive]
    except MillionwayError as error:
        return Check("api", str(error), "start it, or correct --api, MILLIONWAY_API, --key-file, MILLIONWAY_KEY")
    if not workers:
        found = f"{client.url} answers; no worker"
        return Check("api", found, "start one: python -m service.worker --api URL --key-file FILE --runs-dir DIR")
    return Check("api", f"{client.url} and its Redis answer; {len(workers)} workers")


def _state(state: StateDir) -> Check:
    where = existing(state.path)
    if not os.access(where, os.W_OK):
        return Check("state directory", f"{where} cannot be written", "give another with --state-dir")
    return Check("state directory", f"{state.path.absolute()}" + ("" if state.path.exists() else " (not made yet)"))


def _disk(path: Path) -> Check:
    free = shutil.disk_usage(existing(path)).free / 2**30
    found = f"{free:.1f} GiB free at {existing(path)}"
    return Check("disk", found, "make room: checkpoints need it, and without it none is written" if free < MIN_DISK_GIB else "")


def _shared_memory(path: Path) -> Check:
    if not path.exists():
        return Check("shared memory", f"no {path} (data.num_workers 0 on one GPU or a CPU needs none)")
    size = shutil.disk_usage(path).total / 2**20
    remedy = "several GPUs talk through it: give it 1 GiB or more (docker run --shm-size=1g)" if size < MIN_SHM_MIB else ""
    return Check("shared memory", f"{path}: {size:,.0f} MiB", remedy)


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())
