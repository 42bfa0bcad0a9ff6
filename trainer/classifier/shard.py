"""Which rank owns which classes, and the collectives that the classifier needs, on any backend."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """Classes start .. stop of N belong to this rank: contiguous parts whose sizes differ by at most one."""

    num_classes: int
    rank: int
    world_size: int

    @property
    def start(self) -> int:
        return self.rank * self.num_classes // self.world_size

    @property
    def stop(self) -> int:
        return (self.rank + 1) * self.num_classes // self.world_size

    def __len__(self) -> int:
        return self.stop - self.start

    def of(self, rank: int) -> Shard:
        return Shard(self.num_classes, rank, self.world_size)


def this_shard(num_classes: int) -> Shard:
    """The shard of the calling rank; all classes without torch.distributed."""
    if not dist.is_initialized():
        return Shard(num_classes, 0, 1)
    return Shard(num_classes, dist.get_rank(), dist.get_world_size())


def all_gather(x: Tensor, world_size: int) -> Tensor:
    """[P * b, ...] from [b, ...] on each rank, in rank order."""
    if world_size == 1:
        return x
    out = x.new_empty(world_size * len(x), *x.shape[1:])
    dist.all_gather(list(out.chunk(world_size)), x.contiguous())
    return out


def all_reduce(x: Tensor, world_size: int) -> Tensor:
    """The sum over ranks, in place."""
    if world_size > 1:
        dist.all_reduce(x)
    return x


def reduce_scatter(x: Tensor, world_size: int) -> Tensor:
    """[b, ...]: this rank's part of the sum over ranks of [P * b, ...]."""
    if world_size == 1:
        return x
    parts = exchange(x, world_size)
    return parts.view(world_size, -1, *x.shape[1:]).sum(0)


def exchange(x: Tensor, world_size: int) -> Tensor:
    """[P * b, ...] -> [P * b, ...]: part p goes to rank p; what came from rank p stands in part p (all-to-all)."""
    if world_size == 1:
        return x
    out = torch.empty_like(x)
    dist.all_to_all_single(out, x.contiguous())
    return out
