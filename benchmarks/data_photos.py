"""Photographs for the data path's benchmark: 500 x 375 JPEGs of quality 90, with a natural image's spectrum and edges.

Noise whose amplitude falls as 1/f (Field, 1987, of natural scenes), things with sharp borders and a little sensor noise: 80 to 130 kB
each, as ImageNet's photographs have on average (110 kB). A decoder's time goes by bytes and pixels; plain noise would take far longer.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from service.layout import write_whole

WIDTH, HEIGHT, QUALITY = 500, 375, 90
SMALLEST, LARGEST = 80_000, 130_000
"""Bytes."""


def photo(number: int) -> np.ndarray:
    """[HEIGHT, WIDTH, 3] uint8; the same for the same number."""
    rng = np.random.default_rng(number)
    down, right = np.meshgrid(np.fft.fftfreq(HEIGHT), np.fft.rfftfreq(WIDTH), indexing="ij")
    amplitude = 1 / np.maximum(np.hypot(down, right), 1 / WIDTH)
    luma_and_colours = []
    for contrast in (36, 14, 14):
        spectrum = amplitude * np.exp(2j * np.pi * rng.random(amplitude.shape))
        plane = np.fft.irfft2(spectrum, (HEIGHT, WIDTH))
        luma_and_colours.append(plane / plane.std() * contrast)
    image = np.stack(luma_and_colours, 2).astype(np.float32)
    for _ in range(12):  # things in front of one another
        centre, axes = rng.integers(0, (WIDTH, HEIGHT)).tolist(), rng.integers(10, 120, 2).tolist()
        colour = rng.normal(0, (50, 16, 16))
        mask = cv2.ellipse(np.zeros((HEIGHT, WIDTH), np.uint8), centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1, cv2.LINE_AA)
        image[mask > 0] = 0.6 * image[mask > 0] + colour
    image[..., 0] += 120 + rng.normal(0, rng.uniform(4, 7), (HEIGHT, WIDTH))
    image[..., 1:] += 128
    return cv2.cvtColor(np.clip(image, 0, 255).astype(np.uint8), cv2.COLOR_YCrCb2RGB)


def jpeg(number: int) -> bytes:
    """Of SMALLEST to LARGEST bytes."""
    image = photo(number)
    for _ in range(20):
        data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
        if SMALLEST <= len(data) <= LARGEST:
            return data
        softer = cv2.GaussianBlur(image, (0, 0), 0.8)
        image = cv2.addWeighted(image, 0.85, softer, 0.15, 0) if len(data) > LARGEST else cv2.addWeighted(image, 1.3, softer, -0.3, 0)
    raise AssertionError(f"photograph {number} has {len(data):,} bytes")


def photos(number: int) -> Path:
    """A folder of this many, kept in the system's folder for temporary files."""
    folder = Path(tempfile.gettempdir()) / f"millionway-benchmark-photos-{number}"
    folder.mkdir(exist_ok=True)
    missing = [i for i in range(number) if not (folder / f"{i:05d}.jpg").exists()]
    if missing:
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            for i, data in zip(missing, pool.map(jpeg, missing, chunksize=16), strict=True):
                write_whole(folder / f"{i:05d}.jpg", data)
    return folder
