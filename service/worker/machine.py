"""What this machine offers, found without a training library."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Literal

Device = Literal["auto", "cpu", "cuda"]


def gpu_names() -> list[str]:
    """Names of the NVIDIA GPUs, as nvidia-smi gives them; "GPU" for each device file where it is missing."""
    if smi := shutil.which("nvidia-smi"):
        try:
            listed = subprocess.run(
                [smi, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=True
            ).stdout
            return [line.strip() for line in listed.splitlines() if line.strip()]
        except (subprocess.SubprocessError, OSError):
            pass  # a driver that does not answer: the device files tell
    return ["GPU" for _ in Path("/dev").glob("nvidia[0-9]*")]


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_slots(device: Device = "auto") -> int:
    """One rank per GPU where there are GPUs, else one per core."""
    return (len(gpu_names()) if device != "cpu" else 0) or num_cores()


def describe_device(device: Device, names: list[str]) -> str:
    """What the worker with these GPUs tells the API: "cpu, 2 cores" or "cuda, 4 x NVIDIA H100"."""
    if names:
        return "cuda, " + ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    return "cuda" if device == "cuda" else f"cpu, {num_cores()} cores"
