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


class InFlight:
    """A collective under way. With one rank there is none, and its result is there at once."""

    def __init__(self, result: Tensor, work: dist.Work | None) -> None:
        self._result, self._work = result, work

    def wait(self) -> Tensor:
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._result


def start_all_gather(x: Tensor, world_size: int) -> InFlight:
    """[P * b, ...] from [b, ...] on each rank, in rank order."""
    if world_size == 1:
        return InFlight(x, None)
    out = x.new_empty(world_size * len(x), *x.shape[1:])
    return InFlight(out, dist.all_gather(list(out.chunk(world_size)), x.contiguous(), async_op=True))


def start_all_reduce(x: Tensor, world_size: int) -> InFlight:
    """The sum over ranks, in place."""
    return InFlight(x, dist.all_reduce(x, async_op=True) if world_size > 1 else None)


def start_exchange(x: Tensor, world_size: int) -> InFlight:
    """[P * b, ...] -> [P * b, ...]: part p goes to rank p; what came from rank p stands in part p (all-to-all)."""
    if world_size == 1 or not x.numel():
        return InFlight(x, None)
    out = torch.empty_like(x)
    return InFlight(out, dist.all_to_all_single(out, x.contiguous(), async_op=True))


def all_gather(x: Tensor, world_size: int) -> Tensor:
    return start_all_gather(x, world_size).wait()


def all_reduce(x: Tensor, world_size: int) -> Tensor:
    return start_all_reduce(x, world_size).wait()


def reduce_scatter(x: Tensor, world_size: int) -> Tensor:
    """[b, ...]: this rank's part of the sum over ranks of [P * b, ...], summed in the order of the ranks."""
    if world_size == 1:
        return x
    return start_exchange(x, world_size).wait().view(world_size, -1, *x.shape[1:]).sum(0)
