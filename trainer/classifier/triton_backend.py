"""Both passes as fused Triton kernels, for GPUs from sm_80: the scores never leave the processor's registers.

First pass, over chunks of classes that stay in the GPU's cache: their unit rows are made once, as operands; a kernel like flash
attention then reads them for every tile of samples and yields partition and pull of each split of the chunk, which are summed in a
fixed order, and the highest score of each small group of classes (hard_groups.py opens the few that matter). The own class is left out
of the products and added exactly. Second pass: one launch, each block of rows read, its gradient gathered in registers, and updated.
Of a sample's targets, the one with the highest score is left out of the products, and the exact difference of its probabilities stands
in its place; to the others, whose probabilities are smaller, the product's rounding applies, and their targets are taken off exactly.

Beyond rows and momentum: B x groups maxima (16 MB), a chunk's operands (16 MB at D = 128 in 16 bits), splits x B x D partial pulls, and
with hardest classes the scores of the groups opened at a time (16 MB, hard_groups.py).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from trainer.classifier.backend import Scan, SecondPass
from trainer.classifier.hard_groups import HardestGroups
from trainer.classifier.host_store import HostRowStore
from trainer.classifier.store import SGD, Chunk, RowStore
from trainer.classifier.targets import EPS, score_pairs
from trainer.classifier.topk import move_keys
from trainer.classifier.triton_plan import Operands
from trainer.classifier.triton_rows import RowPass
from trainer.classifier.triton_scan import ChunkScan

LOG2_E = math.log2(math.e)
CHUNK, MAXIMA, LEAST = 1 << 16, 1 << 22, 1 << 13
"""Classes of a chunk, and maxima that exist at a time, at most; but so many classes even of very large batches. As rows of a chunk are
no more, their offsets fit 32 bits."""


class TritonBackend:
    """`chunk_size`: classes of a chunk, rounded to whole blocks; None leaves it to us. `emulated`: for Triton's interpreter on a CPU."""

    def __init__(self, precision: str, chunk_size: int | None = None, *, emulated: bool = False) -> None:
        self.name = f"triton, {precision}"
        self._operands, self._chunk_size = Operands(precision, emulated), chunk_size

    def scan(self, store: RowStore, x_BD: Tensor, own_B: Tensor, k: int, temperature: float) -> Scan:
        B, D = x_BD.shape
        is_here_B = (own_B >= store.start) & (own_B < store.start + len(store))
        local_B = torch.where(is_here_B, own_B - store.start, torch.where(own_B < 0, -1, -2))
        with _on(x_BD.device):
            chunks = ChunkScan(self._operands, x_BD, local_B, LOG2_E / temperature, k > 0)
            hardest = HardestGroups(local_B, k, chunks.exact, 1.0, self._operands.slack(D)) if k else None
            most = max(LEAST, chunks.group * MAXIMA // max(1, B)) if k else CHUNK
            for first, rows_CD in _raw_chunks(store, self._size(chunks.group, most)):
                maximum_GB = chunks.add(first, rows_CD)
                if hardest is not None:
                    hardest.offer_groups(maximum_GB, chunks.group, first, chunks.open)
        _add_own(store, x_BD, local_B, temperature, chunks.partition_B, chunks.pull_BD)
        key_BK = own_B.new_empty(B, 0) if hardest is None else move_keys(hardest.keys(), store.start)
        return Scan(chunks.partition_B, chunks.pull_BD, key_BK)

    def row_gradients(self, store: RowStore, batch: SecondPass, temperature: float, *, update: bool) -> Iterator[tuple[Chunk, Tensor]]:
        rows = self._row_pass(store, batch, temperature)
        size = self._size(rows.config.classes, CHUNK)
        gradient_CD = torch.empty(min(size, len(store)), batch.x_BD.shape[1], device=batch.x_BD.device)
        for chunk in store.read(size, momentum=update):
            here_CD = gradient_CD[: len(chunk.rows_CD)]
            with _on(batch.x_BD.device):
                rows.launch(chunk.at.start, store.start, chunk.rows_CD, None, here_CD, None)
            yield chunk, here_CD

    def update(self, store: RowStore, batch: SecondPass, temperature: float, sgd: SGD) -> None:
        if isinstance(store, HostRowStore):  # the bus is the limit: one chunk's gradient more in the device's memory costs little
            for chunk, gradient_CD in self.row_gradients(store, batch, temperature, update=True):
                chunk.update(gradient_CD, sgd)
            return
        rows = self._row_pass(store, batch, temperature)
        with _on(batch.x_BD.device):
            rows.launch(0, store.start, store.rows_nD, store.momentum_nD, None, sgd)

    def _row_pass(self, store: RowStore, batch: SecondPass, temperature: float) -> RowPass:
        return RowPass(self._operands, batch, LOG2_E / temperature, temperature, len(store))

    def _size(self, block: int, most: int) -> int:
        """Classes of a chunk: whole blocks."""
        return max(1, min(self._chunk_size or CHUNK, CHUNK, most) // block) * block


def _raw_chunks(store: RowStore, size: int) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows [C, D] on the device that computes), in whatever precision: the kernels convert."""
    if isinstance(store, HostRowStore):
        for chunk in store.read(size):
            yield chunk.at.start, chunk.rows_CD
    else:
        for first in range(0, len(store), size):
            yield first, store.rows_nD[first : first + size]


def _add_own(store: RowStore, x_BD: Tensor, local_B: Tensor, temperature: float, partition_B: Tensor, pull_BD: Tensor) -> None:
    """The own classes, which can be nearly all of a partition sum, exactly."""
    sample_T = (local_B >= 0).nonzero()[:, 0]
    class_T = local_B[sample_T]
    exp_T = (score_pairs(store.rows_nD, x_BD, class_T, sample_T).double() / temperature).exp_()
    partition_B[sample_T] += exp_T
    row_TD = store.rows_nD[class_T.to(store.rows_nD.device)].to(x_BD.device).float()
    pull_BD[sample_T] += row_TD / row_TD.norm(dim=1, keepdim=True).clamp_min_(EPS) * exp_T.float()[:, None]


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
