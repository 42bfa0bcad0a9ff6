"""Small folders of images for tests."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from trainer.data.images import Images, index_images
from trainer.data.loader import Batch


def write_image(path: Path, pixels: np.ndarray) -> Path:
    """Write [H, W, 3] uint8 (red, green, blue) without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    return path


def noise(seed: int, height: int = 24, width: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def noise_folder(root: Path, num_images: int) -> Path:
    """`num_images` images of noise, 000.png and so on."""
    for i in range(num_images):
        write_image(root / f"{i:03d}.png", noise(i))
    return root


def plain_color(i: int) -> tuple[int, int, int]:
    """A colour of its own for each i under 4096."""
    return 16 * (i % 16), 16 * (i // 16 % 16), 16 * (i // 256)


def color_folder(root: Path, num_images: int) -> Path:
    """`num_images` images, each of its own plain colour."""
    for i in range(num_images):
        write_image(root / f"{i:04d}.png", np.full((16, 16, 3), plain_color(i), np.uint8))
    return root


def indexed(root: Path, limit: int | None = None) -> Images:
    """The images below `root`, by an index of their own in it, hidden."""
    return index_images(root, root / f".index-{secrets.token_hex(4)}", limit)


def kept(batch: Batch) -> Batch:
    """With views of its own: the loader's stand until the next but one batch."""
    return replace(batch, views=tuple(views.clone() for views in batch.views))
