"""This process among the job's: its rank, its device, its randomness, and how it learns that it should stop."""

from __future__ import annotations

import ctypes
import os
import random
import signal
from dataclasses import dataclass
from datetime import timedelta

import deepspeed
import numpy as np
import torch
import torch.distributed as dist

from service.spec import RunSpec
from trainer.errors import BadSpec

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""A collective that takes longer means that a rank is gone or stuck."""


@dataclass
class Process:
    rank: int
    world_size: int
    device: torch.device
    stop_requested: bool = False

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def num_loaders(self, spec: RunSpec) -> int:
        """Loader processes of this rank: what the specification says, or what suits the device."""
        if spec.data.num_workers is not None:
            return spec.data.num_workers
        if self.device.type != "cuda":  # the cores compute
            return 0
        return max(1, min(16, self.num_cores - 1))

    @property
    def num_cores(self) -> int:
        """This rank's share of the machine's."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    def describe(self, spec: RunSpec) -> str:
        """One sentence: device, precision, threads."""
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)}, {spec.precision}"
        return f"cpu, {spec.precision}, {torch.get_num_threads()} threads per rank"


def check_world_size(spec: RunSpec, world_size: int) -> None:
    """Raises BadSpec where an attempt on `world_size` ranks, maybe other than resources has, cannot be what was specified."""
    batch, parts = spec.optimizer.images_at_a_time, spec.optimizer.gradient_accumulation_steps
    name = "optimizer.global_batch_size" + (" / gradient_accumulation_steps" if parts > 1 else "")
    if batch % world_size:
        raise BadSpec(
            f"{name} is {batch}, not divisible by the {world_size} ranks of this attempt: give it a number of ranks that divides the batch"
        )
    if batch < 4 * world_size:
        raise BadSpec(
            f"{name} is {batch} on the {world_size} ranks of this attempt: BatchNorm needs at least 4 images on each: "
            f"give it at most {batch // 4} ranks"
        )


def start_process(spec: RunSpec) -> Process:
    """Join the other ranks (environment of PyTorch's launcher), take a device and seed everything. Raises BadSpec."""
    check_world_size(spec, int(os.environ["WORLD_SIZE"]))
    use_cuda = os.environ.get("DS_ACCELERATOR") != "cpu" and torch.cuda.is_available()
    if not use_cuda and (spec.resources.device == "cuda" or spec.precision == "fp16"):
        asked = "resources.device is cuda" if spec.resources.device == "cuda" else "precision is fp16"
        raise BadSpec(f"{asked}, and PyTorch {torch.__version__} finds no usable GPU here: `millionway doctor` says what it finds")
    if not use_cuda:
        # DeepSpeed would compile an operator for inference here: 25 s and a C++ compiler, for nothing that training uses.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(device)
    deepspeed.init_distributed(dist_backend="nccl" if use_cuda else "gloo", timeout=COLLECTIVE_TIMEOUT, verbose=False)
    seed_everything(spec.seed + dist.get_rank())
    # The same weights from the same seed, also after a resume. On CUDA some operators have no deterministic form: they warn.
    torch.use_deterministic_algorithms(True, warn_only=use_cuda)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs 4 % of a step
    torch.set_flush_denormal(True)
    process = Process(dist.get_rank(), dist.get_world_size(), device)

    def request_stop(*_: object) -> None:
        process.stop_requested = True

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, request_stop)
    return process


def release_free_memory() -> None:
    """Give the pages of freed blocks back to the system, where the C library can (glibc).

    It keeps blocks of up to 32 MiB, which activations often are, and a small block in a freed one makes the next large one
    grow the heap: a process of 0.6 GB was seen at 3.9 GB after five epochs (LOG.md).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def seed_everything(seed: int) -> None:
    """For backbones with dropout, another mask on each rank. Weights, rows, data order and augmentation have generators of
    their own, seeded alike on all ranks."""
    random.seed(seed)
    np.random.seed(seed)  # the legacy generator is what third-party code may use
    torch.manual_seed(seed)
