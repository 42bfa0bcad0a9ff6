"""Rows and momentum in host memory, for more classes than a GPU holds: chunks travel to the device and, updated, back.

The next chunk is on its way while the present one is computed, and the one before it goes back. Of the device's memory that takes three
chunks of rows and momentum.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from trainer.classifier.store import Chunk, RowStore


class HostRowStore(RowStore):
    """As RowStore, `rows_nD` and `momentum_nD` on the CPU, chunks on `device`. With a GPU the memory is page-locked, without which copies
    would wait for each other."""

    def __init__(self, start: int, rows_nD: Tensor, momentum_nD: Tensor, device: torch.device) -> None:
        self.device, self._there, self._back = device, None, None
        if device.type == "cuda":
            rows_nD, momentum_nD = rows_nD.pin_memory(), momentum_nD.pin_memory()
            self._there, self._back = torch.cuda.Stream(device), torch.cuda.Stream(device)
        super().__init__(start, rows_nD, momentum_nD)

    def read(self, chunk_size: int, momentum: bool = False) -> Iterator[Chunk]:
        if self._there is not None:
            self._there.wait_stream(self._back)  # what the last pass wrote back
        firsts = list(range(0, len(self), chunk_size))
        coming = self._fetch(firsts[0], chunk_size, momentum) if firsts else None
        for number in range(len(firsts)):
            assert coming is not None
            at, rows_CD, momentum_CD = coming
            if self._there is not None:
                torch.cuda.current_stream(self.device).wait_stream(self._there)
            coming = self._fetch(firsts[number + 1], chunk_size, momentum) if number + 1 < len(firsts) else None
            yield Chunk(self, at, rows_CD.float(), momentum_CD)
        if self._back is not None and momentum:
            self._back.synchronize()  # the host's own reads (targets, checkpoints) see the update

    def put(self, at: slice, rows_CD: Tensor, momentum_CD: Tensor, step: int) -> None:
        rows_CD, momentum_CD = self.rounded(at, rows_CD, momentum_CD, step)
        if self._back is not None:
            self._back.wait_stream(torch.cuda.current_stream(self.device))
        with _on(self._back):
            for kept_nD, new_CD in ((self.rows_nD, rows_CD), (self.momentum_nD, momentum_CD)):
                kept_nD[at].copy_(new_CD, non_blocking=True)
                if self._back is not None:
                    new_CD.record_stream(self._back)

    def _fetch(self, first: int, chunk_size: int, momentum: bool) -> tuple[slice, Tensor, Tensor | None]:
        at = slice(first, min(first + chunk_size, len(self)))
        with _on(self._there):
            parts = [part[at].to(self.device, non_blocking=True, copy=True) for part in (self.rows_nD, self.momentum_nD)[: 1 + momentum]]
        if self._there is not None:
            for part in parts:
                part.record_stream(torch.cuda.current_stream(self.device))
        return at, parts[0], parts[1] if momentum else None


def _on(stream: torch.cuda.Stream | None) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext()
