"""Three ways to spread N classes over ranks, behind one interface: ours, a parameter under ZeRO-3, and copies (data-parallel).

`head.step(x_bD, instance_b)` gives this rank's loss and its gradient for x_bD (both averages over the global batch once they are averaged
over the ranks), and takes one step of SGD on the rows; `head.rows()` gives all N of them, on every rank.
"""

from __future__ import annotations

import functools
import os
import warnings
from dataclasses import dataclass
from typing import Any, Protocol

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn

from service.spec import RunSpec
from trainer.classifier.backend import Backend
from trainer.classifier.build import random_rows
from trainer.classifier.chunked import ChunkedBackend
from trainer.classifier.oracle import DenseClassifier
from trainer.classifier.products import CpuBf16
from trainer.classifier.sharded import ShardedClassifier
from trainer.classifier.targets import SoftTargets
from trainer.classifier.zero3 import Zero3Classifier
from trainer.engine import build_engine, set_learning_rates

RATE, MOMENTUM, DECAY, SEED = 0.5, 0.9, 1e-4, 0
FIRST = 1000


@functools.cache
def _first_rows(count: int, size: int) -> Tensor:
    return random_rows(0, count, size, SEED)


@dataclass(frozen=True)
class Problem:
    """`classes` (N) rows of `size` (D), a global batch of `batch` (B) samples."""

    classes: int
    size: int
    batch: int
    targets: SoftTargets
    products: str = "fp32"

    def rows(self, start: int = 0, stop: int | None = None) -> Tensor:
        return random_rows(start, self.classes if stop is None else stop, self.size, SEED)

    def samples(self, step: int) -> tuple[Tensor, Tensor]:
        """Features [B, D] and instances [B] of a step. Each feature lies near the row that one of the first classes began with; the
        instance is that class for half of them, so that losses are small and large."""
        generator = torch.Generator().manual_seed(1000 + step)
        near_B = torch.randint(min(self.classes, FIRST), (self.batch,), generator=generator)
        instance_B = torch.randint(self.classes, (self.batch,), generator=generator)
        instance_B[::2] = near_B[::2]
        noise_BD = torch.randn(self.batch, self.size, generator=generator) * self.size**-0.5
        return _first_rows(min(self.classes, FIRST), self.size)[near_B] + noise_BD, instance_B

    def part(self, step: int) -> tuple[Tensor, Tensor]:
        """This rank's samples."""
        b = self.batch // dist.get_world_size()
        x_BD, instance_B = self.samples(step)
        mine = slice(dist.get_rank() * b, (dist.get_rank() + 1) * b)
        return x_BD[mine].clone().requires_grad_(), instance_B[mine]

    def backend(self) -> Backend | None:
        return ChunkedBackend(CpuBf16(), 4096, 256) if self.products == "bf16" else None


class Head(Protocol):
    def __init__(self, problem: Problem) -> None: ...

    def step(self, x_bD: Tensor, instance_b: Tensor) -> tuple[Tensor, Tensor]: ...

    def rows(self) -> Tensor: ...


class Ours:
    """Rows stay with their owners, features travel."""

    def __init__(self, problem: Problem) -> None:
        capacity = problem.batch // dist.get_world_size()
        self.classifier = ShardedClassifier(
            problem.classes,
            problem.size,
            problem.targets,
            capacity=capacity,
            momentum=MOMENTUM,
            weight_decay=DECAY,
            backend=problem.backend(),
        )
        self.classifier.rows_nD.copy_(problem.rows(self.classifier.shard.start, self.classifier.shard.stop))

    def step(self, x_bD: Tensor, instance_b: Tensor) -> tuple[Tensor, Tensor]:
        loss = self.classifier(x_bD, instance_b)
        loss.backward()
        self.classifier.step(RATE)
        assert x_bD.grad is not None
        return loss.detach(), x_bD.grad

    def rows(self) -> Tensor:
        shard = self.classifier.shard
        parts = [torch.empty(len(shard.of(rank)), self.classifier.rows_nD.shape[1]) for rank in range(shard.world_size)]
        for rank, part in enumerate(parts):
            dist.broadcast(part.copy_(self.classifier.rows_nD) if rank == shard.rank else part, src=rank)
        return torch.cat(parts)


class Zero3:
    """The trainer's `parallelism: zero3`. The encoder in front of it is one vector of D ones, which stays as it is."""

    def __init__(self, problem: Problem) -> None:
        warnings.filterwarnings("ignore", category=FutureWarning)  # DeepSpeed 0.19 calls collectives by the names before torch 2.13
        os.environ |= {"LOCAL_RANK": str(dist.get_rank()), "RANK": str(dist.get_rank()), "WORLD_SIZE": str(dist.get_world_size())}
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # bytes in shared memory would pass the counter by
        if not deepspeed.comm.is_initialized():
            deepspeed.init_distributed(dist_backend="counted", verbose=False)
        capacity = problem.batch // dist.get_world_size()
        classifier = Zero3Classifier(problem.classes, problem.size, problem.targets, capacity=capacity, backend=problem.backend())
        classifier.rows_ND.data.copy_(problem.rows())
        self.engine = build_engine(_spec(problem), _Ones(problem.size), classifier)
        self.classifier = self.engine.module.classifier

    def step(self, x_bD: Tensor, instance_b: Tensor) -> tuple[Tensor, Tensor]:
        set_learning_rates(self.engine, 0.0, RATE)
        loss = self.classifier(self.engine(x_bD), instance_b)
        self.engine.backward(loss)
        self.engine.step()
        assert x_bD.grad is not None
        return loss.detach(), x_bD.grad

    def rows(self) -> Tensor:
        return safe_get_full_fp32_param(self.classifier.rows_ND)


class _Ones(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.ones_D = nn.Parameter(torch.ones(size))

    def forward(self, x_bD: Tensor) -> Tensor:
        return x_bD * self.ones_D


def _spec(problem: Problem) -> RunSpec:
    targets = problem.targets
    document: dict[str, Any] = {
        "preset": "demo",
        "data": {"path": "/nowhere", "image_size": 16},
        "classifier": {
            "embedding_size": problem.size,
            "temperature": targets.temperature,
            "smoothing": targets.smoothing,
            "hardest_k": targets.hardest_k,
            "parallelism": "zero3",
        },
        "optimizer": {"global_batch_size": problem.batch, "momentum": MOMENTUM, "classifier_weight_decay": DECAY},
        "zero_stage": 3,
        "precision": "fp32",
        "resources": {"device": "cpu", "ranks_per_node": dist.get_world_size()},
    }
    return RunSpec.model_validate(document)


class DataParallel:
    """A dense head on every rank under torch's DistributedDataParallel, which sums the rows' gradients."""

    def __init__(self, problem: Problem) -> None:
        self.head = DenseClassifier(problem.rows(), problem.targets)
        self.model = nn.parallel.DistributedDataParallel(self.head)
        self.optimizer = torch.optim.SGD(self.head.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)

    def step(self, x_bD: Tensor, instance_b: Tensor) -> tuple[Tensor, Tensor]:
        self.optimizer.zero_grad()
        loss = self.model(x_bD, instance_b)
        loss.backward()
        self.optimizer.step()
        assert x_bD.grad is not None
        return loss.detach(), x_bD.grad

    def rows(self) -> Tensor:
        return self.head.rows_ND.detach().clone()


HEADS: dict[str, type[Head]] = {"ours": Ours, "zero3": Zero3, "data-parallel": DataParallel}


def bytes_of_ours(ranks: int, batch: int, size: int, num_hardest: int) -> float:
    """What a rank sends in a step of ShardedClassifier (the table atop sharded.py), by the convention of counted_group.SENT."""
    features, instances = 4 * size, 8
    partition, keys, least = 2 * 8, 8 * num_hardest, 8 if num_hardest else 0
    gradient_and_target = 4 * (size + 1)
    return (ranks - 1) / ranks * batch * (features + instances + partition + keys + least + gradient_and_target)
