"""Which images a step sees. Pure functions of (number of images, batch size, seed, step): nothing to save, nothing to restore."""

from __future__ import annotations

import functools

import numpy as np


@functools.lru_cache(maxsize=1)  # 8 bytes per image: at 100 M images one permutation is 800 MB
def epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """The epoch's order of the images, [N] int64, read-only."""
    order = np.random.default_rng((seed, epoch)).permutation(num_images)
    order.flags.writeable = False
    return order


def steps_per_epoch(num_images: int, global_batch_size: int) -> int:
    """ceil(N / B)."""
    return -(-num_images // global_batch_size)


def batch_instances(num_images: int, global_batch_size: int, seed: int, epoch: int, step_in_epoch: int) -> np.ndarray:
    """Instances of one global batch, [<= B] int64.

    An epoch's order is cut into steps_per_epoch parts whose sizes differ by at most one: every image is seen once, and no
    last batch is small.
    """
    num_parts = steps_per_epoch(num_images, global_batch_size)
    assert 0 <= step_in_epoch < num_parts, f"step {step_in_epoch} of an epoch of {num_parts}"
    return _part(epoch_order(num_images, seed, epoch), step_in_epoch, num_parts)


def rank_share(batch: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """A rank's contiguous part of a batch; sizes differ by at most one over the ranks."""
    return _part(batch, rank, world_size)


def _part(array: np.ndarray, index: int, num_parts: int) -> np.ndarray:
    return array[index * len(array) // num_parts : (index + 1) * len(array) // num_parts]
