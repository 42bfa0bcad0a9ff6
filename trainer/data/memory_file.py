"""Files without a name."""

from __future__ import annotations

import os
import tempfile


def unnamed_file(name: str) -> int:
    """Descriptor of an empty file, in memory where the system can: not in /dev/shm, which containers limit to 64 MB."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
