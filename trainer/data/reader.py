"""The bytes of one image after another, from wherever its index says that they are. One per process."""

from __future__ import annotations

import errno
import time

import numpy as np

from trainer.data.decode import Unreadable, decode
from trainer.data.files import Files, is_url
from trainer.data.index import Index
from trainer.data.parquets import ParquetReader

PATIENCE_SECONDS = 30.0
"""How long a server that is away is waited for, at most."""

PAUSES = (0.1, 0.4)
"""Seconds before each further try of a read that failed: a file server's error may be gone by then. Servers at URLs are asked again by
`Files`."""
_RETRIED = frozenset({"read error", "truncated"})
"""The latter here is of a tar alone, whose bytes were fewer than it says."""
_MOST_IN_VAIN = 3
"""After so many images in a row that further tries did not help, none are made until one can be read: it is not the moment."""


class Reader:
    """Not for several threads at once where the index is of parquet files."""

    def __init__(self, index: Index, cache_bytes: int = 0, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """`patience_seconds`: half of what a read may take, where that is less: one that waits for longer counts as one that hangs."""
        self.index = index
        self.files = Files(index.root, cache_bytes, min(patience_seconds, PATIENCE_SECONDS))
        self._in_vain = 0
        self._parquet = ParquetReader(self.files, index.containers) if index.kind == "parquet" else None

    def another(self) -> Reader:
        """For another thread."""
        return Reader(self.index, self.files.cache_bytes, self.files.patience_seconds)

    @property
    def takes_threads(self) -> bool:
        """Whether several threads may read at once."""
        return self._parquet is None

    def read(self, row: int) -> bytes:
        """An image's bytes. A read that fails is tried twice more. Raises Unreadable."""
        for pause in PAUSES:
            try:
                data = self._read(row)
            except Unreadable as error:
                if error.cause not in _RETRIED or self._in_vain >= _MOST_IN_VAIN or is_url(self.index.root):
                    raise
            else:
                self._in_vain = 0
                return data
            time.sleep(pause)
        try:
            return self._read(row)
        except Unreadable as error:
            self._in_vain += error.cause in _RETRIED
            raise

    def _read(self, row: int) -> bytes:
        index = self.index
        try:
            if index.container_n is None or index.offset_n is None or index.length_n is None:
                return self.files.read(index.name(row))
            container, offset = int(index.container_n[row]), int(index.offset_n[row])
            if self._parquet is not None:
                return self._of_parquet(container, offset)
            length = int(index.length_n[row])
            data = self.files.read(index.containers[container], offset, length)
        except FileNotFoundError:
            raise Unreadable("missing", "there is no such file any more") from None
        except PermissionError:
            raise Unreadable("forbidden", "it may not be read") from None
        except OSError as error:
            code = errno.errorcode.get(error.errno or 0, "")
            raise Unreadable("read error", f"{error.strerror or error} {code}".strip()) from None
        except Exception as error:  # BadData, and whatever a library raises on a damaged or unreachable file
            raise Unreadable("read error", f"{type(error).__name__}: {error}") from None
        if len(data) < length:
            raise Unreadable("truncated", f"the tar file ends {length - len(data):,} bytes before the image does")
        return data

    def _of_parquet(self, container: int, row: int) -> bytes:
        assert self._parquet is not None
        try:
            return self._parquet.read(container, row)
        except Exception:
            self._parquet.close(container)  # what is open may stay broken, though the file is there again
            raise


def read_pixels(reader: Reader, row: int, channels: int = 3) -> np.ndarray:
    """[H, W, channels] uint8. Raises Unreadable, which names the image."""
    try:
        return decode(reader.read(row), channels)
    except Unreadable as error:
        raise Unreadable(error.cause, f"image {reader.index.full_name(row)!r}: {error}") from None
