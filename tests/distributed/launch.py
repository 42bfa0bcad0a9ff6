"""Run a function on real gloo processes and bring back what each rank returns."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(
    world_size: int, directory: Path, function: Callable[..., Any], *arguments: Any, backend: str = "gloo", seconds: float = 120
) -> list[Any]:
    """`function(*arguments)` on `world_size` processes of one thread that meet through a file; the results in rank order.

    `function` must be importable, and its module, or what that imports, registers a `backend` that is not PyTorch's. Raises
    AssertionError with a rank's traceback if one fails, or gives nothing within `seconds`.
    """
    directory = directory / f"{function.__name__}-{world_size}"
    directory.mkdir(parents=True)
    # Ranks are forks of a process that has imported what takes two seconds to import; it runs no threads, so a fork is safe.
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["torch", "deepspeed", "trainer.train"])
    ranks = [
        context.Process(target=_rank, args=(rank, world_size, str(directory), backend, seconds, function, arguments), daemon=True)
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=seconds)
    for process in ranks:
        process.kill()
    results = []
    for rank in range(world_size):
        path = directory / f"result-{rank}"
        nothing = (False, "it returned nothing")
        results.append(pickle.loads(path.read_bytes()) if path.exists() else nothing)  # noqa: S301 - our own children wrote it
    # All of them: a rank that loses its peers fails too, and only one of them says why.
    failures = "\n".join(f"rank {rank} of {world_size} failed:\n{value}" for rank, (ok, value) in enumerate(results) if not ok)
    assert not failures, failures
    return [value for _, value in results]


def _rank(
    rank: int, world_size: int, directory: str, backend: str, seconds: float, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    meet, timeout = f"file://{directory}/meet", timedelta(seconds=seconds / 2)
    dist.init_process_group(backend, init_method=meet, rank=rank, world_size=world_size, timeout=timeout)
    try:
        outcome = (True, function(*arguments))
    except BaseException:
        outcome = (False, traceback.format_exc())
    temporary = Path(directory) / f".result-{rank}"
    temporary.write_bytes(pickle.dumps(outcome))
    temporary.rename(Path(directory) / f"result-{rank}")
    dist.destroy_process_group()
