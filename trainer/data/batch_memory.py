"""Memory that loader processes write batches into and this process reads: pixels are written once, and copied nowhere.

A tensor sent from process to process costs a copy into fresh shared memory, whose pages the kernel has to clear, and an exchange of file
descriptors: a tenth of the time that a crop takes (LOG.md). Here one piece of memory is mapped by all processes for as long as they
live, and a batch is a number.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np

from trainer.data.memory_file import unnamed_file


class BatchMemory:
    """`num_slots` times `slot_bytes` bytes. It is pickled when a process is started, and only then."""

    def __init__(self, num_slots: int, slot_bytes: int) -> None:
        """Raises OSError."""
        self.num_slots, self.slot_bytes = num_slots, slot_bytes
        self._fd = unnamed_file("millionway-batches")
        os.ftruncate(self._fd, self._size)
        self._map()

    @property
    def _size(self) -> int:
        return max(1, self.num_slots * self.slot_bytes)

    def _map(self) -> None:
        self._bytes = np.frombuffer(mmap.mmap(self._fd, self._size), np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return {"num_slots": self.num_slots, "slot_bytes": self.slot_bytes, "fd": DupFd(self._fd)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.num_slots, self.slot_bytes, self._fd = state["num_slots"], state["slot_bytes"], state["fd"].detach()
        self._map()
        self.close()

    def arrays(self, slot: int, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """The slot as uint8 arrays of these shapes, one after another."""
        ends = np.cumsum([0, *(math.prod(shape) for shape in shapes)])
        assert ends[-1] <= self.slot_bytes, f"{ends[-1]} bytes for a slot of {self.slot_bytes}"
        of_slot = self._bytes[slot * self.slot_bytes : (slot + 1) * self.slot_bytes]
        return [of_slot[begin:end].reshape(shape) for begin, end, shape in zip(ends, ends[1:], shapes, strict=False)]

    def close(self) -> None:
        """No further process can be given it. The memory goes with the last array over it."""
        os.close(self._fd)
