"""Bytes of files, local or at a URL that fsspec opens (s3://, gs://, http://, ...), with a bounded local cache of what came from afar."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeVar

from service.layout import write_whole
from service.roots import climbs
from trainer.data.remote import Patience, open_file_system

T = TypeVar("T")

CACHE_DIR = "MILLIONWAY_CACHE_DIR"
"""Environment variable: the folder of the cache; default: millionway-cache-UID in the system's folder for temporary files."""
_NUM_BUCKETS = 64


def is_url(path: str) -> bool:
    return "://" in path


class Files:
    """Files below a root. Pickles; opens its connection in each process anew."""

    def __init__(self, root: str, cache_bytes: int = 0, patience_seconds: float = 0.0) -> None:
        """`root`: an absolute path or a URL; `cache_bytes` bounds the cache, which all processes of this machine share; a server that is
        away is asked again for `patience_seconds`."""
        self.root, self.cache_bytes, self.patience_seconds = root, cache_bytes, patience_seconds
        self._patience = Patience(patience_seconds)

    def __reduce__(self) -> tuple[Any, ...]:
        return Files, (self.root, self.cache_bytes, self.patience_seconds)

    @cached_property
    def remote(self) -> Any:
        """fsspec's file system. Raises BadData where the protocol needs a package that is not installed."""
        return open_file_system(self.root)

    def patiently(self, request: Callable[[], T]) -> T:
        """The answer of the files' server, which may be away for a while. Raises OSError."""
        return self._patience.ask(request) if is_url(self.root) else request()

    def path(self, name: str) -> str:
        """Of a file below the root; the root itself for an empty name. Raises PermissionError for a name that leads out of it: an index may
        come from anywhere."""
        if not name:
            return self.root
        if name.startswith("/") or is_url(name) or climbs(name, in_url=is_url(self.root)):
            raise PermissionError(errno.EPERM, "it leads out of the folder", name)
        return f"{self.root.rstrip('/')}/{name}"

    def read(self, name: str, begin: int = 0, length: int | None = None) -> bytes:
        """A file's bytes, or `length` of them from `begin` on. Raises OSError."""
        path = self.path(name)
        if is_url(path):
            return self._read_remote(path, begin, length)
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - Path.open costs as much as reading a small file
            if begin:
                file.seek(begin)
            return _read_all(file, length)

    def open(self, name: str) -> IO[bytes]:
        """For reading from beginning to end. Raises OSError."""
        path = self.path(name)
        return self.remote.open(path, "rb") if is_url(path) else open(path, "rb")  # type: ignore[no-any-return]  # noqa: PTH123

    def _read_remote(self, path: str, begin: int, length: int | None) -> bytes:
        end = None if length is None else begin + length
        if not self.cache_bytes:
            return self._fetch(path, begin, end)
        key = hashlib.sha256(f"{path}\0{begin}\0{length}".encode()).hexdigest()
        bucket = cache_folder() / f"{int(key[:8], 16) % _NUM_BUCKETS:02d}"
        try:
            data = (bucket / key).read_bytes()
            os.utime(bucket / key)
            return data
        except OSError:
            data = self._fetch(path, begin, end)
        with contextlib.suppress(OSError):  # a disk that is full: the next time it is fetched again
            bucket.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(bucket / key, data)
            _trim(bucket, self.cache_bytes // _NUM_BUCKETS)
        return data

    def _fetch(self, path: str, begin: int, end: int | None) -> bytes:
        data: bytes = self.patiently(lambda: self.remote.cat_file(path, start=begin or None, end=end))
        if end is not None and len(data) > end - begin:
            raise OSError(errno.EOPNOTSUPP, "the server sends the whole file where it is asked for a part of it (HTTP Range)")
        return data


def cache_folder() -> Path:
    return Path(os.environ.get(CACHE_DIR) or Path(tempfile.gettempdir()) / f"millionway-cache-{os.getuid()}")


def _read_all(file: io.FileIO, length: int | None) -> bytes:
    """`read` may give less than it was asked for, at a signal or on some network file systems, though there is more."""
    if length is None:
        return file.readall()
    parts, left = [], length
    while left and (part := file.read(left)):
        parts.append(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _trim(bucket: Path, most_bytes: int) -> None:
    """Remove what was used the longest ago until the bucket fits. Another process may do the same at the same time."""
    found = []
    for file in bucket.iterdir():
        if file.name.startswith("."):  # another process is writing it
            continue
        try:
            status = file.stat()
        except FileNotFoundError:
            continue
        found.append((status.st_mtime_ns, status.st_size, file))
    excess = sum(size for _, size, _ in found) - most_bytes
    for _, size, file in sorted(found):
        if excess <= 0:
            break
        file.unlink(missing_ok=True)
        excess -= size
