"""Where the rows and their momentum lie, in which precision, and how a chunk of them is read and updated.

fp32 rows are read and updated in place. Rows or momentum in 16 bits are read as fp32, updated in fp32 and rounded stochastically: a
step is much smaller than the distance between two neighbouring numbers, and rounding to the nearest would lose it every time.
Rows in host memory travel chunk by chunk (host_store.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.classifier.rounding import Noise, round_stochastically


@dataclass(frozen=True)
class SGD:
    """torch.optim.SGD's arithmetic. `step` numbers the updates of a run: the noise of the rounding is a function of it."""

    learning_rate: float
    momentum: float
    weight_decay: float
    step: int


class Chunk:
    """Rows first .. first + C of the shard, as fp32 on the device that computes. Valid until the next chunk is asked for."""

    def __init__(self, store: RowStore, at: slice, rows_CD: Tensor, momentum_CD: Tensor | None) -> None:
        self.at, self.rows_CD = at, rows_CD
        self._store, self._momentum_CD = store, momentum_CD

    def update(self, gradient_CD: Tensor, sgd: SGD) -> None:
        """One step of SGD. `gradient_CD` (fp32) is used up."""
        assert self._momentum_CD is not None
        rows_CD, momentum_CD = self.rows_CD, self._momentum_CD
        if momentum_CD.dtype != torch.float32:
            momentum_CD = momentum_CD.float()
        if not sgd.momentum:  # which the fused operator takes for "no momentum buffer"
            momentum_CD.copy_(gradient_CD).add_(rows_CD, alpha=sgd.weight_decay)
            rows_CD.add_(momentum_CD, alpha=-sgd.learning_rate)
            self._store.put(self.at, rows_CD, momentum_CD, sgd.step)
            return
        torch._fused_sgd_(
            [rows_CD],
            [gradient_CD],
            [momentum_CD],
            lr=sgd.learning_rate,
            momentum=sgd.momentum,
            weight_decay=sgd.weight_decay,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )
        self._store.put(self.at, rows_CD, momentum_CD, sgd.step)


class RowStore:
    """`rows_nD` of the classes start .. start + n, and `momentum_nD`, both on the device that computes."""

    def __init__(self, start: int, rows_nD: Tensor, momentum_nD: Tensor) -> None:
        self.start, self.rows_nD, self.momentum_nD = start, rows_nD, momentum_nD

    def __len__(self) -> int:
        return len(self.rows_nD)

    def read(self, chunk_size: int, momentum: bool = False) -> Iterator[Chunk]:
        """The chunks in ascending order; with `momentum`, for an update."""
        for first in range(0, len(self), chunk_size):
            at = slice(first, min(first + chunk_size, len(self)))
            yield Chunk(self, at, self.rows_nD[at].float(), self.momentum_nD[at] if momentum else None)

    def put(self, at: slice, rows_CD: Tensor, momentum_CD: Tensor, step: int) -> None:
        """Take back what an update has changed; of fp32 there is nothing to do, the chunk is a view."""
        for kept_nD, new_CD in zip((self.rows_nD, self.momentum_nD), self.rounded(at, rows_CD, momentum_CD, step), strict=True):
            if kept_nD.dtype != torch.float32:
                kept_nD[at] = new_CD

    def rounded(self, at: slice, rows_CD: Tensor, momentum_CD: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """fp32 rows and momentum in the precision in which they are kept."""
        noise = Noise(self.start + at.start, step)

        def in_precision(of: Tensor, new_CD: Tensor, which: int) -> Tensor:
            return new_CD if of.dtype == torch.float32 else round_stochastically(new_CD, of.dtype, noise.of(new_CD, which))

        return in_precision(self.rows_nD, rows_CD, 0), in_precision(self.momentum_nD, momentum_CD, 1)
