"""What a native library says on standard error, for where it says it nowhere else: libjpeg fills damage with grey and complains there."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from trainer.data.memory_file import unnamed_file

T = TypeVar("T")

_STDERR = 2
_lock = threading.Lock()
_kept: int | None = None
"""For as long as the process lives."""


def heard(call: Callable[[], T]) -> tuple[T, str]:
    """What `call` returns, and what this process wrote to standard error meanwhile; that goes on to where it was meant for.

    Costs five system calls. What is written while the process crashes in `call` is lost.
    """
    global _kept
    with _lock:
        if _kept is None:
            _kept = unnamed_file("millionway-complaints")
        try:
            meant = os.dup(_STDERR)
        except OSError:  # it is closed: nothing can be heard, nor is it missed
            return call(), ""
        words = b""
        try:
            os.dup2(_kept, _STDERR)
            try:
                result = call()
            finally:
                os.dup2(meant, _STDERR)
                if length := os.lseek(_kept, 0, os.SEEK_CUR):  # one position for both descriptors
                    words = os.pread(_kept, length, 0)
                    os.lseek(_kept, 0, os.SEEK_SET)
                    with contextlib.suppress(OSError):  # a full disk under the log is no fault of the image
                        os.write(meant, words)
        finally:
            os.close(meant)
        return result, words.decode(errors="replace")
