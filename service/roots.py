"""Paths that a person names lie below the folders that an operator allows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote


def inside(path: str, roots: Sequence[str], *, on_disk: bool) -> bool:
    """Whether the absolute `path` is one of `roots` or below one; anything is where there are no roots.

    `..` counts as text always; `on_disk`, where this process sees the file system, also as the system takes it, and so do symbolic links.
    What is a link to elsewhere by the time of its use, or a link further down, is the file system's permissions' to stop.
    """
    if not roots:
        return True
    if not _below(os.path.normpath(path), map(os.path.normpath, roots)):
        return False
    try:
        return not on_disk or _below(os.path.realpath(path), map(os.path.realpath, roots))
    except (OSError, ValueError):  # a zero byte, a name of thousands of bytes
        return False


def climbs(name: str, *, in_url: bool) -> bool:
    """Whether it has a `..`; in a URL also an encoded one, which clients resolve as well."""
    return ".." in (unquote(name) if in_url else name).split("/")


def _below(path: str, roots: map[str]) -> bool:
    return any(Path(path).is_relative_to(root) for root in roots)
