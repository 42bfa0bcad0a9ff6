"""Bytes and pixels of the rows of an index, in a loader process or a rank."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import get_worker_info

from service.spec import RunSpec
from trainer.data.decode import Unreadable, decode
from trainer.data.index import Index
from trainer.data.reader import Reader
from trainer.data.reading import ReadAhead

DECODE_SECONDS = 25
"""A decoder that takes longer is taken to hang, and its loader process is ended; before the worker takes the job to stand still."""


class Decoder:
    """Pixels of the rows of an index. Pickles; opens the files where it is used."""

    def __init__(self, index: Index, spec: RunSpec, decoded_bytes: int = 0) -> None:
        """`decoded_bytes`: how much memory decoded images may take; what they take is given back once not all fit."""
        self.index, self.spec = index, spec
        self.room = decoded_bytes
        self.decoded: dict[int, np.ndarray] | None = {} if decoded_bytes else None
        self.read_seconds = 0.0
        self.notes: Path | None = None
        """Where a loader process notes what it decodes, by its number: one int64, the row + 1."""
        self.crashers: frozenset[int] = frozenset()
        """Rows that have ended a process that decoded them."""
        self._note: np.ndarray | None = None
        self._ahead: ReadAhead | None = None

    def encoded(self, rows: Sequence[int] | np.ndarray) -> Iterator[bytes | np.ndarray | Unreadable]:
        """The bytes of each row in order, or its pixels [H, W, C] where they were kept."""
        if self._ahead is None:
            data = self.spec.data
            reader = Reader(self.index, round(data.cache_gib * 2**30), data.read_timeout_seconds / 2)
            self._ahead = ReadAhead(reader, data.read_timeout_seconds)
        wanted = [int(row) for row in rows]
        decoded = self.decoded if self.decoded is not None else {}
        kept = [decoded.get(row) for row in wanted]  # now: others may be kept while this goes on
        arriving = self._ahead.read([row for row, image in zip(wanted, kept, strict=True) if image is None])
        for image in kept:
            if image is not None:
                yield image
                continue
            begun = time.perf_counter()
            found = next(arriving)
            self.read_seconds += time.perf_counter() - begun
            yield found

    def pixels(self, row: int, found: bytes | np.ndarray | Unreadable, reduce: int = 1) -> np.ndarray:
        """[H, W, C]. Raises Unreadable."""
        if isinstance(found, Unreadable):
            raise found
        if isinstance(found, np.ndarray):
            return found
        if self.notes is not None:
            if row in self.crashers:
                raise Unreadable("crashes the decoder", f"processes that decoded it have died, or took longer than {DECODE_SECONDS} s")
            self._take_note(row)
            signal.alarm(DECODE_SECONDS)  # the system ends the process then, whatever holds its interpreter
        try:
            image = decode(found, self.spec.data.channels, reduce)
        except MemoryError:
            raise Unreadable("too large", "there is no memory for its pixels") from None
        finally:
            if self.notes is not None:
                signal.alarm(0)
        # One that may be wanted at a part of its size is not kept: whether it still is would change its views.
        if self.decoded is not None and min(image.shape[:2]) < 2 * self.spec.data.image_size and reduce == 1:
            self.room -= image.nbytes
            if self.room < 0:
                self.decoded = None  # what fits only in part gains little and holds the memory
            else:
                self.decoded[row] = image
        return image

    def _take_note(self, row: int) -> None:
        worker = get_worker_info()
        if self._note is None:
            assert worker is not None
            self._note = np.memmap(self.notes, np.int64, "r+")[worker.id : worker.id + 1]
        self._note[0] = row + 1
