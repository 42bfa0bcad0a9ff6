"""What this machine offers, found without a training library."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from service.launch import free_port

Device = Literal["auto", "cpu", "cuda"]

GPU_SECONDS = 30.0
"""How long the driver may take to let go of a dead process's memory."""
PORT_TRIES = 100


def gpu_names() -> list[str]:
    """Names of the NVIDIA GPUs, as nvidia-smi gives them; "GPU" for each device file where it is missing."""
    listed = _nvidia_smi("--query-gpu=name")
    return ["GPU" for _ in Path("/dev").glob("nvidia[0-9]*")] if listed is None else listed


def visible_gpus() -> dict[int, str]:
    """Index and name of each GPU that this process may use: all, or those whose indices CUDA_VISIBLE_DEVICES lists, as Slurm does."""
    names = dict(enumerate(gpu_names()))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return names
    return {int(index): names[int(index)] for index in visible.split(",") if index.strip().isdigit() and int(index) in names}


def gpu_processes(gpus: Sequence[int]) -> set[int]:
    """Processes that hold memory of these GPUs; none where nvidia-smi cannot tell."""
    listed = _nvidia_smi("--query-compute-apps=pid", f"--id={','.join(map(str, gpus))}")
    return {int(pid) for pid in listed or [] if pid.isdigit()}


def wait_for_gpus(gpus: Sequence[int], others: set[int]) -> set[int]:
    """Until the GPUs' memory is held by no process but `others`, at most GPU_SECONDS. Returns those that are left."""
    deadline = time.monotonic() + GPU_SECONDS
    while (left := gpu_processes(gpus) - others) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def _nvidia_smi(*arguments: str) -> list[str] | None:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return None
    try:
        done = subprocess.run([smi, *arguments, "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError):  # a driver that does not answer
        return None
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_slots(device: Device = "auto") -> int:
    """One rank per GPU where there are GPUs, else one per core."""
    return (len(visible_gpus()) if device != "cpu" else 0) or num_cores()


def describe_device(names: Sequence[str]) -> str:
    """What the worker with these GPUs tells the API: "cpu, 2 cores" or "cuda, 4 x NVIDIA H100"."""
    if names:
        return "cuda, " + ", ".join(f"{list(names).count(name)} x {name}" for name in dict.fromkeys(names))
    return f"cpu, {num_cores()} cores"


def route_address(host: str) -> str:
    """This machine's address on the way to `host`; nothing is sent. Raises OSError where the host is not known."""
    family, _, _, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)
        address: str = probe.getsockname()[0]
        return address


def interface_of(address: str) -> str | None:
    """The network interface with this IPv4 address; None where it is not found."""
    if sys.platform != "linux":
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()))  # SIOCGIFADDR, linux/sockios.h
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def pick_port(ports: range | None, taken: Collection[int]) -> int | None:
    """A port of `ports` that is free on all of this machine's addresses, not in `taken`; None where there is none."""
    if ports is None:
        found = (free_port("0.0.0.0") for _ in range(PORT_TRIES))  # noqa: S104 - ranks on other machines connect to it
        return next((port for port in found if port not in taken), None)
    return next((port for port in random.sample(ports, len(ports)) if port not in taken and _is_free(port)), None)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104 - as above
        except OSError:
            return False
    return True
