"""A folder of images: found once, named by relative path, read one at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from trainer.errors import BadData

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class ImageFolder:
    """Images of one folder. An image's index in `paths` is its instance, hence its class."""

    root: Path
    paths: list[str]
    """Sorted, relative to `root`, with forward slashes."""

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, index: int) -> str:
        """The path to open."""
        return f"{self.root}/{self.paths[index]}"

    def select(self, indices: Sequence[int]) -> ImageFolder:
        """The images at these indices, in this order."""
        return ImageFolder(self.root, [self.paths[i] for i in indices])


def evenly_spaced(length: int, limit: int | None) -> range | list[int]:
    """Indices of at most `limit` of `length` items, evenly spaced."""
    return range(length) if limit is None or limit >= length else [i * length // limit for i in range(limit)]


def index_images(root: Path, limit: int | None = None) -> ImageFolder:
    """Find the images below `root`; hidden files and folders are skipped, a folder reached twice through links counts once.

    Raises BadData where a folder is missing or unreadable, or fewer than 2 images are found.
    """
    paths, num_files = _walk(root)
    if len(paths) < 2:
        found = f"{num_files} files, {len(paths) or 'none'} with an image extension" if num_files else "no files"
        raise BadData(f"{str(root)!r} holds {found}: name a folder with at least 2 images ({', '.join(EXTENSIONS)})")
    paths.sort()
    folder = ImageFolder(root, paths)
    return folder if limit is None or limit >= len(paths) else folder.select(evenly_spaced(len(paths), limit))


def _walk(root: Path) -> tuple[list[str], int]:
    """Relative paths of the images below `root`, unsorted, and the number of files of any kind."""
    paths: list[str] = []
    num_files = 0
    visited: set[tuple[int, int]] = set()
    pending = [""]
    while pending:
        prefix = pending.pop()
        try:
            status = (root / prefix).stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(root / prefix) as entries:
                folders = []
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        folders.append(f"{prefix}{entry.name}/")
                    elif entry.is_file():
                        num_files += 1
                        if entry.name.lower().endswith(EXTENSIONS):
                            paths.append(prefix + entry.name)
        except OSError as error:
            raise BadData(f"cannot list {str(root / prefix)!r} ({error.strerror}): {_remedy(error)}") from None
        pending += sorted(folders, reverse=True)  # which of two links to a folder comes first must not depend on the disk
    return paths, num_files


def _remedy(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "give the absolute path of a folder that exists on the worker's machine"
    if isinstance(error, NotADirectoryError):
        return "give the folder that holds the images, not a file"
    return "make it readable for the user that the worker runs as"


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Pixels [H, W, 3], uint8, red green blue. EXIF orientation is applied, 16 bits become 8, grey becomes three equal
    channels, alpha is dropped. Raises BadData that names the file where it cannot be read or decoded."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - Path.open costs as much as reading a small file
            data = np.frombuffer(file.read(), np.uint8)
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except (OSError, cv2.error) as error:
        raise BadData(f"cannot read image {os.fspath(path)!r}: {' '.join(str(error).split())}") from None
    if bgr is None:
        problem = "cannot be decoded" if data.size else "is empty"
        raise BadData(f"image {os.fspath(path)!r} {problem}: replace or remove it")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB, dst=bgr)
