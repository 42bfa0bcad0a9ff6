"""Processes on this machine whose process group counts what each rank sends.

What a collective makes a rank send is counted by convention, the least that a ring or direct messages need (`SENT`): backends may send
more. The kernel's own count of the loopback device (`loopback_bytes`), where every byte between the ranks passes, is the check: it has
the headers and acknowledgements on top, and whatever else uses the device meanwhile.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from tests.distributed.launch import on_ranks

SENT: dict[str, Callable[[float, int], float]] = {
    "all-gather": lambda part, P: (P - 1) * part,
    "all-reduce": lambda whole, P: 2 * (P - 1) / P * whole,
    "reduce-scatter": lambda whole, P: (P - 1) / P * whole,
    "all-to-all": lambda whole, P: (P - 1) / P * whole,
    "broadcast": lambda whole, P: (P - 1) / P * whole,  # P - 1 copies leave the source or those who pass it on: averaged over the ranks
}
"""Bytes that leave a rank in a collective over P ranks: `part` is what it gives, `whole` what all its peers' parts make together."""

sent_bytes: Counter[str] = Counter()
"""By collective, of this process since it began."""


class CountedGroup(dist.ProcessGroup):
    """Gloo, counting. Collectives that are not here fail: none goes uncounted."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self._gloo, self._size = dist.ProcessGroupGloo(store, rank, size, timeout), size

    def getBackendName(self) -> str:  # noqa: N802 - torch asks for it by this name
        return "counted"

    def barrier(self, opts: Any = None) -> dist.Work:
        return self._gloo.barrier(opts or dist.BarrierOptions())

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> dist.Work:
        self._count("all-reduce", tensors)
        return self._gloo.allreduce(tensors, opts or dist.AllreduceOptions())

    def broadcast(self, tensors: list[Tensor], opts: Any) -> dist.Work:
        self._count("broadcast", tensors)
        return self._gloo.broadcast(tensors, opts)

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> dist.Work:
        self._count("all-gather", inputs)
        return self._gloo.allgather(outputs, inputs, opts or dist.AllgatherOptions())

    def all_gather_single(self, output: Tensor, part: Tensor, opts: Any = None) -> dist.Work:
        self._count("all-gather", [part])
        return self._gloo._allgather_base(output, part, opts or dist.AllgatherOptions())

    _allgather_base = all_gather_single

    def reduce_scatter_single(self, output: Tensor, whole: Tensor, opts: Any = None) -> dist.Work:
        self._count("reduce-scatter", [whole])
        return self._gloo._reduce_scatter_base(output, whole, opts or dist.ReduceScatterOptions())

    _reduce_scatter_base = reduce_scatter_single

    def all_to_all_single(
        self, output: Tensor, whole: Tensor, output_sizes: list[int], input_sizes: list[int], opts: Any = None
    ) -> dist.Work:
        assert not [*output_sizes, *input_sizes], "equal parts only"
        self._count("all-to-all", [whole])
        return self._gloo.alltoall_base(output, whole, output_sizes, input_sizes, opts or dist.AllToAllOptions())

    alltoall_base = all_to_all_single

    def _count(self, collective: str, tensors: Iterable[Tensor]) -> None:
        sent_bytes[collective] += SENT[collective](sum(tensor.nbytes for tensor in tensors), self._size)


dist.Backend.register_backend("counted", CountedGroup, devices=["cpu"])


def loopback_bytes() -> int:
    """Bytes that the loopback device of this network namespace has sent since it came up."""
    (line,) = (line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def on_counted_ranks(world_size: int, function: Callable[..., Any], *arguments: Any, seconds: float = 600) -> list[Any]:
    """`function(*arguments)`, of a module that imports this one, on so many counted ranks (tests/distributed/launch.py)."""
    with tempfile.TemporaryDirectory() as directory:
        return on_ranks(world_size, Path(directory), function, *arguments, backend="counted", seconds=seconds)
