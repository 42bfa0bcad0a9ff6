"""What an operator sets of a worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from service.launch import Launch
from service.worker.machine import Device

JobCommand = Callable[[Launch], list[str]]
"""The job's command line; service.launch.job_command is the one in use."""


@dataclass(frozen=True)
class Settings:
    name: str
    runs_dir: Path
    """Absolute. All workers that share runs see it."""
    slots: int
    """Ranks that may run at once; with GPUs, one for each."""
    device: Device = "auto"
    shared: bool = False
    """Whether several attempts may run at once."""
    grace_seconds: float = 30.0
    """Between the request for a checkpoint and SIGTERM."""
    address: str = "127.0.0.1"
    """Where other workers reach this one."""
    ports: range | None = None
    """Where ranks may meet on this machine. Default: any free port."""
    data_roots: tuple[Path, ...] = ()
    """A run's images must lie in one of these. Default: anywhere."""
    stall_seconds: float = 60.0
    """A job in training that has not moved for so long, and for 20 usual steps, is stuck. Before the first step and in other phases, 15
    times as long."""

    @property
    def mark(self) -> str:
        """On the processes of its jobs. A worker of the same name may belong to another stack on this machine."""
        return f"{self.name} {self.runs_dir}"
