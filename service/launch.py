"""The command that runs a job: DeepSpeed under PyTorch's elastic launcher. Used by the worker and by `millionway train`."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service.spec import RunSpec

TRAINER_MODULE = "trainer"


@dataclass(frozen=True)
class Launch:
    """One node's part of an attempt."""

    run_dir: Path
    attempt: int
    num_nodes: int = 1
    node_rank: int = 0
    ranks_per_node: int = 1
    master_address: str = "127.0.0.1"
    """Of node 0."""
    master_port: int = 0
    """Free on node 0."""
    start_from: Path | None = None
    """Another run's checkpoint to start from, where this run has none of its own yet."""
    num_threads: int = 1
    """Of each rank on a CPU."""
    gpus: tuple[int, ...] = ()
    """Indices of the GPUs to use; none on a CPU."""


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port on `address` that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


MEET_SECONDS = 120
"""How long the nodes' launchers wait for each other at the start; PyTorch's own default is 900 s."""


def job_command(launch: Launch) -> list[str]:
    """The launcher's command line. Static ranks, and no restarts below the control plane, which owns them."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nnodes={launch.num_nodes}",
        f"--node-rank={launch.node_rank}",
        f"--nproc-per-node={launch.ranks_per_node}",
        "--max-restarts=0",
        f"--rdzv-id={launch.run_dir.name}:{launch.attempt}",
        f"--rdzv-conf=timeout={MEET_SECONDS}",
        f"--master-addr={launch.master_address}",
        f"--master-port={launch.master_port}",
        "-m",
        TRAINER_MODULE,
        f"--run-dir={launch.run_dir}",
        f"--attempt={launch.attempt}",
        *([f"--start-from={launch.start_from}"] if launch.start_from else []),
    ]


FOR_JOBS = frozenset({"MILLIONWAY_CACHE_DIR"})
"""Of our variables those that the job reads: no secrets."""


def job_environment(spec: RunSpec, launch: Launch, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of the job's processes: the accelerator that DeepSpeed must take, GPUs or cores, and no secret of ours."""
    given = os.environ if base is None else base
    environment = {name: value for name, value in given.items() if not name.startswith("MILLIONWAY_") or name in FOR_JOBS}
    if spec.resources.device == "cpu" or not launch.gpus:
        environment["DS_ACCELERATOR"] = "cpu"
    else:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, launch.gpus))
    environment["OMP_NUM_THREADS"] = str(launch.num_threads)
    environment["PYTHONUNBUFFERED"] = "1"
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with a fixed workspace
    return environment
