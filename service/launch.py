"""The command that runs a job: DeepSpeed under PyTorch's elastic launcher. Used by the worker and by `millionway train`."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from service.spec import RunSpec

TRAINER_MODULE = "trainer"


def free_port() -> int:
    """A TCP port on the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def job_command(spec: RunSpec, run_dir: Path, attempt: int, *, port: int | None = None) -> list[str]:
    """The launcher's command line. No restarts below the control plane, which owns them."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nnodes={spec.resources.nodes}",
        "--node-rank=0",
        f"--nproc-per-node={spec.resources.ranks_per_node}",
        "--max-restarts=0",
        "--master-addr=127.0.0.1",
        f"--master-port={port or free_port()}",
        "-m",
        TRAINER_MODULE,
        f"--run-dir={run_dir}",
        f"--attempt={attempt}",
    ]


def job_environment(spec: RunSpec, *, has_gpu: bool, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of the job's processes: the accelerator that DeepSpeed must take, and this machine's cores shared out."""
    environment = dict(os.environ if base is None else base)
    if spec.resources.device == "cpu" or (spec.resources.device == "auto" and not has_gpu):
        environment["DS_ACCELERATOR"] = "cpu"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment["OMP_NUM_THREADS"] = str(max(1, cores // spec.resources.ranks_per_node))
    environment["PYTHONUNBUFFERED"] = "1"
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with a fixed workspace
    return environment
