"""What a native library says on standard error, for where it says it nowhere else: libjpeg fills damage with grey and complains there."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from typing import IO, TypeVar

T = TypeVar("T")

_STDERR = 2
_lock = threading.Lock()
_kept: IO[bytes] | None = None


def heard(call: Callable[[], T]) -> tuple[T, str]:
    """What `call` returns, and what this process wrote to standard error meanwhile; that goes on to where it was meant for.

    Costs five system calls. What is written while the process crashes in `call` is lost.
    """
    global _kept
    with _lock:
        if _kept is None:
            _kept = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - for as long as the process lives
        try:
            meant = os.dup(_STDERR)
        except OSError:  # it is closed: nothing can be heard, nor is it missed
            return call(), ""
        words = b""
        try:
            os.dup2(_kept.fileno(), _STDERR)
            try:
                result = call()
            finally:
                os.dup2(meant, _STDERR)
                if length := os.lseek(_kept.fileno(), 0, os.SEEK_CUR):  # one position for both descriptors
                    words = os.pread(_kept.fileno(), length, 0)
                    os.write(meant, words)
                    _kept.seek(0)
                    _kept.truncate()
        finally:
            os.close(meant)
        return result, words.decode(errors="replace")
