"""The files of a checkpoint or an export, where this process sees the workers' runs directory. Functions block: call them from a thread."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path

from service.errors import FilesNotHere
from service.protocol import StoredFile


def list_files(runs_dir: Path | None, below: Path) -> list[StoredFile]:
    """The regular files of the folder `below` the runs directory, by name; links are none.

    `below` is made of names of ours and of a stored run's id, never of what a client wrote. Raises FilesNotHere.
    """
    if runs_dir is None:
        raise FilesNotHere("this API does not see the workers' files: set MILLIONWAY_RUNS_DIR to where it does, or copy them from a worker")
    directory = runs_dir / below
    try:
        if directory.resolve(strict=True) != runs_dir.resolve(strict=True) / below:
            raise FilesNotHere(f"{below} leads out of the runs directory by a symbolic link: no file is served from there")
        with os.scandir(directory) as entries:
            sizes = {entry.name: entry.stat(follow_symlinks=False).st_size for entry in entries if entry.is_file(follow_symlinks=False)}
    except OSError as error:
        where = f"{below} cannot be read in the runs directory that this API sees ({error.strerror})"
        raise FilesNotHere(f"{where}: it is gone from there, or MILLIONWAY_RUNS_DIR is not the workers' --runs-dir") from None
    sums = _sums(directory, sizes)
    return [StoredFile(name=name, num_bytes=num_bytes, sha256=sums.get(name)) for name, num_bytes in sorted(sizes.items())]


def find_file(runs_dir: Path | None, below: Path, name: str) -> tuple[Path, StoredFile, os.stat_result]:
    """One that list_files names. Raises FilesNotHere."""
    files = {file.name: file for file in list_files(runs_dir, below)}
    if name not in files or runs_dir is None:
        raise FilesNotHere(f"{below} has no file {name!r}: there are {', '.join(files)}")
    path = runs_dir / below / name
    if not os.access(path, os.R_OK):
        raise FilesNotHere(
            f"{below / name} is there, and this API's user may not read it: give it leave, or run the API as the workers' user"
        )
    return path, files[name], path.stat(follow_symlinks=False)


def _sums(directory: Path, names: Collection[str]) -> dict[str, str]:
    """SHA-256 by name: of a checkpoint in its manifest.json, of an export in its SHA256SUMS."""
    if "manifest.json" in names:
        files = json.loads((directory / "manifest.json").read_bytes())["files"]
        return {name: about["sha256"] for name, about in files.items()}
    if "SHA256SUMS" in names:
        lines = (directory / "SHA256SUMS").read_text().splitlines()
        return {name: sha256 for sha256, _, name in (line.partition("  ") for line in lines)}
    return {}
