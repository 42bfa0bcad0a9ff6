"""One pass over all images: what each is, in about a hundred bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cv2
import numpy as np

from trainer.data.decode import Unreadable, decode
from trainer.data.headers import FORMATS, read_header
from trainer.data.index import Index
from trainer.data.reader import Reader
from trainer.data.row_pool import CRASHED, over_rows

THUMBNAIL = 32
"""Side in pixels of what a perceptual hash is computed from, and of what near duplicates are confirmed with."""
_PLAIN = 2.0
"""Standard deviation of a grey thumbnail, in grey levels, under which the image is of one colour, and its perceptual hash is noise."""


def record_dtype(channels: int) -> np.dtype[Any]:
    """Of one image: 85 bytes with 3 channels. `width` is 0 where it is unreadable."""
    return np.dtype(
        [
            ("width", np.uint32),  # as decoded: turned upright
            ("height", np.uint32),
            ("num_bytes", np.uint64),
            ("format", np.uint8),  # number in headers.FORMATS
            ("channels", np.uint8),  # of the file
            ("depth", np.uint8),
            ("orientation", np.uint8),
            ("plain", np.bool_),
            ("content", np.uint64, 2),  # BLAKE2b of the bytes
            ("pixels", np.uint64, 2),  # BLAKE2b of size and pixels
            ("perceptual", np.uint64),
            ("mean", np.float32, channels),  # of the pixels, on the scale 0 to 1
            ("mean_square", np.float32, channels),
        ]
    )


@dataclass
class Scan:
    """Of some rows of an index."""

    row_n: np.ndarray
    """[n] int64, ascending."""
    record_n: np.ndarray
    """[n] of record_dtype."""
    failed: list[tuple[int, str, str]] = field(default_factory=list)
    """Images that cannot be used, ascending: row, cause, and what is wrong."""
    channels: int = 3

    @property
    def readable_n(self) -> np.ndarray:
        """[n] bool."""
        return self.record_n["width"] > 0

    def mean_std(self) -> tuple[np.ndarray, np.ndarray]:
        """[channels] each, on the scale 0 to 1, of all pixels of all images; every image weighs the same, as it does in training,
        whatever its size. NaN without any image."""
        record_n = self.record_n[self.readable_n]
        if not len(record_n):
            return np.full(self.channels, np.nan), np.full(self.channels, np.nan)
        mean = record_n["mean"].mean(axis=0, dtype=np.float64)
        square = record_n["mean_square"].mean(axis=0, dtype=np.float64)
        return mean, np.sqrt(np.maximum(square - mean**2, 0))


def scan_images(
    index: Index,
    row_n: np.ndarray | None = None,
    *,
    channels: int = 3,
    num_workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Scan:
    """Read and decode the images at `row_n` (ascending; default: all that are not gone) once. An unreadable one is counted.

    `progress` is told how many of how many are done.
    """
    if row_n is None:
        row_n = np.arange(len(index)) if index.gone_n is None else np.flatnonzero(~index.gone_n)
    scan = Scan(row_n, np.zeros(len(row_n), record_dtype(channels)), channels=channels)
    work = partial(_scan_rows, channels=channels)
    for part, result in over_rows(work, index, row_n, num_workers=num_workers, progress=progress):
        if result == CRASHED:
            scan.failed.append((int(row_n[part.start]), CRASHED, "it ended the process that decoded it, or took too long"))
            continue
        scan.record_n[part], failed = result
        scan.failed += failed
    scan.failed.sort()
    return scan


def _scan_rows(reader: Reader, row_n: np.ndarray, channels: int) -> tuple[np.ndarray, list[tuple[int, str, str]]]:
    """Records, and (row, cause, what is wrong) of those that cannot be used."""
    record_n = np.zeros(len(row_n), record_dtype(channels))
    failed = []
    for at, row in enumerate(row_n.tolist()):
        try:
            _scan_one(reader.read(row), channels, record_n[at])
        except Unreadable as error:
            failed.append((row, error.cause, str(error)))
        except (cv2.error, MemoryError, ValueError) as error:
            record_n[at] = 0
            failed.append((row, "undecodable", " ".join(str(error).split()) or type(error).__name__))
    return record_n, failed


def _scan_one(data: bytes, channels: int, record: Any) -> None:
    pixels_HWC = decode(data, channels)
    header = read_header(data)
    mean_C, mean_square_C = _moments(pixels_HWC)
    small = thumbnail(gray(pixels_HWC))
    digest = hashlib.blake2b(repr(pixels_HWC.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels_HWC))
    record["height"], record["width"] = pixels_HWC.shape[:2]
    record["num_bytes"] = len(data)
    record["format"] = FORMATS.index(header.format)
    record["channels"], record["depth"], record["orientation"] = header.channels % 256, header.depth % 256, header.orientation % 256
    record["plain"] = small.std() < _PLAIN
    record["content"] = np.frombuffer(hashlib.blake2b(data, digest_size=16).digest(), np.uint64)
    record["pixels"] = np.frombuffer(digest.digest(), np.uint64)
    record["perceptual"] = perceptual_hash(small)
    record["mean"], record["mean_square"] = mean_C, mean_square_C


def _moments(pixels_HWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and mean square per channel, on the scale 0 to 1."""
    mean, std = (moment[:, 0] / 255 for moment in cv2.meanStdDev(pixels_HWC))
    return mean, std**2 + mean**2


def gray(pixels_HWC: np.ndarray) -> np.ndarray:
    """[H, W] uint8: luminance of three channels, the mean of another number."""
    if pixels_HWC.shape[2] == 3:
        return cv2.cvtColor(pixels_HWC, cv2.COLOR_RGB2GRAY)
    return pixels_HWC.mean(axis=2).astype(np.uint8)


def thumbnail(pixels: np.ndarray, size: int = THUMBNAIL) -> np.ndarray:
    """[size, size(, C)] uint8, squeezed into a square: the same whatever the image's size."""
    while min(pixels.shape[:2]) >= 4 * size:  # halves are quick; area interpolation of a whole photograph takes as long as decoding it
        height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
        pixels = _shrink(pixels[: 2 * height, : 2 * width], width, height)
    return _shrink(pixels, size, size)


def _shrink(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    def resize(part: np.ndarray) -> np.ndarray:
        return cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)

    if pixels.ndim == 2 or pixels.shape[2] <= 4:  # more OpenCV does not take
        return resize(pixels)
    return np.dstack([resize(pixels[..., at : at + 4]) for at in range(0, pixels.shape[2], 4)])


def perceptual_hash(gray_HW: np.ndarray) -> int:
    """64 bits of a [32, 32] uint8 thumbnail (Zauner, 2010: pHash): which of the 8 x 8 lowest DCT coefficients are above their median.

    Another size, another compression, another brightness change few bits; half of the 64 are set, so that distances are even.
    """
    low = cv2.dct(gray_HW.astype(np.float32))[:8, :8].ravel()
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")
