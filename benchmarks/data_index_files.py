"""A million image files for the index's benchmark, as hard links to a few, and a tar file of as many members."""

from __future__ import annotations

import os
import tarfile
import time
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np

SIZE = 32
"""Pixels of a side."""
MOST_LINKS = 60_000
"""Of one file: ext4 takes 65,000."""
SETTLE_SECONDS = 2.5
"""A folder that has just changed is listed anew by the next run: an index is not trusted before a folder's clock has moved on."""


class Tree:
    """Links in one folder or in `num_folders`; it grows, and is a source of images at each size."""

    def __init__(self, root: Path, num_folders: int) -> None:
        self.root, self._num_folders = root, num_folders
        self._size, self._originals = 0, root.with_name(f"{root.name}-originals")
        self._originals.mkdir()
        for i in range(num_folders):
            (root / f"class-{i:05d}").mkdir(parents=True)
        root.mkdir(exist_ok=True)

    def grow(self, size: int) -> None:
        begun = self._size
        for i in range(begun, size):
            suffix = ".png" if i // MOST_LINKS % 2 else ".jpg"
            if i % MOST_LINKS == 0:
                original = self._originals / f"{i}{suffix}"
                original.write_bytes(encoded(i, suffix))
            original = self._originals / f"{i // MOST_LINKS * MOST_LINKS}{suffix}"
            folder = f"class-{i % self._num_folders:05d}/" if self._num_folders else ""
            os.link(original, f"{self.root}/{folder}image-{i:09d}{suffix}")
        self._size = size
        time.sleep(SETTLE_SECONDS)


class Tar:
    """One tar file of `num_members` images."""

    def __init__(self, root: Path, num_members: int) -> None:
        self.root = root
        data = encoded(0, ".jpg")
        with tarfile.open(root, "w") as tar:
            for i in range(num_members):
                info = tarfile.TarInfo(f"image-{i:09d}.jpg")
                info.size = len(data)
                tar.addfile(info, BytesIO(data))
        time.sleep(SETTLE_SECONDS)


def encoded(seed: int, suffix: str) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()
