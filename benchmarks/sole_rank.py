"""One rank of many with nobody else there: a process group that answers for the others, and the rank's step, measured.

What is fake: everything that comes from other ranks. What the answers are, so that the rank has the work that it would have:

all-gather    the other ranks' parts, as told beforehand (features and instances); else everybody has the same as this rank (of the
              thresholds of the hardest classes: as many, of as many other samples)
all-reduce    P times the own (of the partition sums: all shards alike)
all-to-all    what was to go out comes in: of the keys of the hardest classes, what this shard has for other ranks' samples stands for
              what other shards have for this rank's
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch._C._distributed_c10d import _create_work_from_future
from torch.futures import Future
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.classifier_measure import PeakMemory
from benchmarks.counted_group import SENT, sent_bytes
from trainer.classifier.backend import Backend, Scan
from trainer.classifier.choose import Precision, choose_backend
from trainer.classifier.sharded import ShardedClassifier
from trainer.classifier.targets import SoftTargets

BLOCK = 65_536
BUSY = 0.8
"""A step in which this process had less of the CPUs' time was disturbed: threads that wait for each other make it ten times as long."""
RATE, TEMPERATURE, SMOOTHING = 0.48, 0.1, 0.2


class SoleRank(dist.ProcessGroup):
    """See the module's docstring. `coming` holds what the next all-gathers give, whole."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: Any) -> None:
        super().__init__(rank, size)
        self._rank, self._size = rank, size
        self.coming: list[Tensor] = []

    def getBackendName(self) -> str:  # noqa: N802 - torch asks for it by this name
        return "sole-rank"

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> dist.Work:
        (output_ps,), (part,) = outputs, inputs
        told_ps = self.coming.pop(0).chunk(self._size) if self.coming else [part] * self._size
        for rank, (output, told) in enumerate(zip(output_ps, told_ps, strict=True)):
            output.copy_(part if rank == self._rank else told)
        return self._done("all-gather", part, outputs)

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> dist.Work:
        tensors[0].mul_(self._size)
        return self._done("all-reduce", tensors[0], tensors)

    def all_to_all_single(
        self, output: Tensor, whole: Tensor, output_sizes: list[int], input_sizes: list[int], opts: Any = None
    ) -> dist.Work:
        output.copy_(whole)
        return self._done("all-to-all", whole, [output])

    alltoall_base = all_to_all_single

    def _done(self, collective: str, tensor: Tensor, result: Any) -> dist.Work:
        sent_bytes[collective] += SENT[collective](tensor.nbytes, self._size)
        future: Future[Any] = Future()
        future.set_result(result)
        return _create_work_from_future(future)


dist.Backend.register_backend("sole-rank", SoleRank, devices=["cpu", "cuda"])


@dataclass(frozen=True)
class Case:
    """Rank `rank` of `ranks` with its share of `classes` (N) and of a global batch (B); `hardest_k` 0 is without smoothing."""

    classes: int
    batch: int
    hardest_k: int
    products: Precision
    device: str
    rank: int = 1
    ranks: int = 64
    size: int = 128


class _TimedScan:
    """The backend, with the time that its scans take."""

    def __init__(self, backend: Backend, clock: Callable[[], float]) -> None:
        self._backend, self._clock, self.seconds = backend, clock, 0.0
        self.name, self.row_gradients, self.update = backend.name, backend.row_gradients, backend.update

    def scan(self, *arguments: Any) -> Scan:
        start = self._clock()
        found = self._backend.scan(*arguments)
        self.seconds = self._clock() - start
        return found


def measure(case: Case, steps: int, seconds: float) -> dict[str, Any]:
    """In a process of its own. So many undisturbed steps, no more once `seconds` are over, one at least. Medians; memory at its peak."""
    dist.init_process_group("sole-rank", store=FakeStore(), rank=case.rank, world_size=case.ranks)
    few = Case(8192 * case.ranks, case.batch, case.hardest_k, case.products, case.device, case.rank, case.ranks, case.size)
    _Rank(few).step(0)  # libraries, thread pools, a GPU's workspaces

    sole = _Rank(case)
    memory = PeakMemory(case.device)
    before, times, peak = sum(sent_bytes.values()), [], 0
    begun = time.perf_counter()
    undisturbed: list[dict[str, float]] = []
    while not times or (len(undisturbed) < steps and time.perf_counter() - begun < seconds):
        with memory.watching():
            times.append(sole.step(len(times)))
        peak = max(peak, memory.extra())
        undisturbed = [step for step in times if step["busy"] >= BUSY]
    sent = (sum(sent_bytes.values()) - before) / len(times)
    result = {name: median(step[name] for step in undisturbed or times) for name in times[0]}
    shard = sole.classifier.shard
    flop = 8 * case.batch * len(shard) * case.size
    result |= {"own_classes": len(shard), "steps": len(undisturbed or times), "extra_bytes": peak, "bytes_counted": sent, "flop": flop}
    result["seconds"] = result["forward_seconds"] + result["update_seconds"]
    return result | {"flop_per_second": flop / result["seconds"], "backend": sole.backend.name}


class _Rank:
    def __init__(self, case: Case) -> None:
        self.case, device = case, torch.device(case.device)
        self.backend = _TimedScan(choose_backend(device, case.products, case.batch, case.size), self._now)
        targets = SoftTargets(TEMPERATURE, SMOOTHING if case.hardest_k else 0.0, case.hardest_k)
        self.capacity = case.batch // case.ranks
        self.classifier = ShardedClassifier(
            case.classes, case.size, targets, capacity=self.capacity, weight_decay=1e-4, device=device, backend=self.backend
        )
        generator = torch.Generator(device).manual_seed(case.rank)
        for block_CD in self.classifier.rows_nD.split(BLOCK):
            block_CD.normal_(generator=generator)
            F.normalize(block_CD, dim=1, out=block_CD)
        self.classifier.momentum_nD.zero_()  # touched, so that it is resident

    def step(self, number: int) -> dict[str, float]:
        """Seconds of the parts of a step."""
        case, rows_nD, shard = self.case, self.classifier.rows_nD, self.classifier.shard
        generator = torch.Generator(rows_nD.device).manual_seed(number)
        instance_B = torch.randint(case.classes, (case.batch,), generator=generator, device=rows_nD.device)
        x_BD = torch.randn(case.batch, case.size, generator=generator, device=rows_nD.device) / case.size**0.5
        here_B = (instance_B >= shard.start) & (instance_B < shard.stop)
        x_BD[here_B] += rows_nD[instance_B[here_B] - shard.start]  # a cosine of about 0.7 to the own row
        x_BD = F.normalize(x_BD, dim=1)
        mine = slice(case.rank * self.capacity, (case.rank + 1) * self.capacity)
        group = dist.group.WORLD
        assert isinstance(group, SoleRank)
        group.coming = [x_BD, instance_B]
        x_bD = x_BD[mine].clone().requires_grad_()

        start, cpu = self._now(), time.process_time()
        loss = self.classifier(x_bD, instance_B[mine])
        loss.backward()
        middle = self._now()
        self.classifier.step(RATE, number)
        end = self._now()
        busy = (time.process_time() - cpu) / (end - start) / torch.get_num_threads() if case.device == "cpu" else 1.0
        assert not group.coming
        assert torch.isfinite(loss)
        return {
            "scan_seconds": self.backend.seconds,
            "forward_seconds": middle - start,
            "update_seconds": end - middle,
            "busy": busy,
            "loss_per_sample": loss.item() / case.ranks,
        }

    def _now(self) -> float:
        if self.case.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()
