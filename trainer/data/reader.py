"""The bytes of one image after another, from wherever its index says that they are. One per process."""

from __future__ import annotations

import errno

import numpy as np

from trainer.data.decode import Unreadable, decode
from trainer.data.files import Files
from trainer.data.index import Index
from trainer.data.parquets import ParquetReader
from trainer.errors import DataUnreachable

PATIENCE_SECONDS = 30.0
"""How long a server that is away is waited for, at most."""


class Reader:
    """Not for several threads at once where the index is of parquet files."""

    def __init__(self, index: Index, cache_bytes: int = 0, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """`patience_seconds`: half of what a read may take, where that is less: one that waits for longer counts as one that hangs."""
        self.index = index
        self.files = Files(index.root, cache_bytes, min(patience_seconds, PATIENCE_SECONDS))
        self._parquet = ParquetReader(self.files, index.containers) if index.kind == "parquet" else None

    def another(self) -> Reader:
        """For another thread."""
        return Reader(self.index, self.files.cache_bytes, self.files.patience_seconds)

    @property
    def takes_threads(self) -> bool:
        """Whether several threads may read at once."""
        return self._parquet is None

    def read(self, row: int) -> bytes:
        """Raises Unreadable, and DataUnreachable where a server stays away, which is no fault of the image."""
        index = self.index
        try:
            if index.container_n is None or index.offset_n is None or index.length_n is None:
                return self.files.read(index.name(row))
            container, offset = int(index.container_n[row]), int(index.offset_n[row])
            if self._parquet is not None:
                return self._parquet.read(container, offset)
            length = int(index.length_n[row])
            data = self.files.read(index.containers[container], offset, length)
        except FileNotFoundError:
            raise Unreadable("missing", "there is no such file any more") from None
        except PermissionError:
            raise Unreadable("forbidden", "it may not be read") from None
        except OSError as error:
            code = errno.errorcode.get(error.errno or 0, "")
            raise Unreadable("read error", f"{error.strerror or error} {code}".strip()) from None
        except DataUnreachable:
            raise
        except Exception as error:  # BadData, and whatever a library raises on a damaged or unreachable file
            raise Unreadable("read error", f"{type(error).__name__}: {error}") from None
        if len(data) < length:
            raise Unreadable("truncated", f"the tar file ends {length - len(data):,} bytes before the image does")
        return data


def read_pixels(reader: Reader, row: int, channels: int = 3) -> np.ndarray:
    """[H, W, channels] uint8. Raises Unreadable, which names the image."""
    try:
        return decode(reader.read(row), channels)
    except Unreadable as error:
        raise Unreadable(error.cause, f"image {reader.index.full_name(row)!r}: {error}") from None
