"""Which images a step sees: pure functions of (images, batch size, order, seed, step). Nothing is saved, nothing is restored, and no
process holds a list of a hundred million.

    shuffle   every epoch is a permutation of all images, computed at the positions that are asked for
    shards    the same, but images of one block of tar or parquet files at a time: a process reads few files at once
    window    a window of W images slides over a fixed permutation by S (PIC, Cao et al., NeurIPS 2020): an image comes back soon
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

_ROUNDS = 8


def permute(position: np.ndarray, length: int, *key: int) -> np.ndarray:
    """Where a random permutation of 0 .. length - 1, one for each key, has these positions: int64, like `position`.

    A Feistel network on the smallest power of two that is not under `length`; what falls outside goes through it again (Black and
    Rogaway, "Ciphers with arbitrary finite domains", 2002). `length` under 2**62.
    """
    bits = max(2, (length - 1).bit_length())
    low_bits, high_bits = bits // 2, bits - bits // 2
    round_keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)
    value = np.asarray(position).astype(np.uint64)
    is_outside = np.ones(value.shape, bool)
    while is_outside.any():
        value[is_outside] = _feistel(value[is_outside], low_bits, high_bits, round_keys)
        is_outside = value >= length
    return value.astype(np.int64)


def _feistel(value: np.ndarray, low_bits: int, high_bits: int, round_keys: np.ndarray) -> np.ndarray:
    low_mask, high_mask = np.uint64(2**low_bits - 1), np.uint64(2**high_bits - 1)
    low, high = value & low_mask, value >> np.uint64(low_bits)
    for i, key in enumerate(round_keys):
        if i % 2:
            low ^= _mix(high ^ key) & low_mask
        else:
            high ^= _mix(low ^ key) & high_mask
    return high << np.uint64(low_bits) | low


def _mix(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser."""
    with np.errstate(over="ignore"):
        value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return value ^ value >> np.uint64(31)


def steps_per_epoch(num_images: int, global_batch_size: int) -> int:
    """ceil(N / B)."""
    return -(-num_images // global_batch_size)


@dataclass(frozen=True)
class Sampler:
    """The images of each step."""

    num_images: int
    global_batch_size: int
    seed: int
    order: str = "shuffle"
    window: int = 131_072
    stride: int = 16_384
    container_sizes: tuple[int, ...] | None = None
    """Images in each tar or parquet file, with order shards: instances are numbered through the files."""
    block: int = 16
    """Files whose images are shuffled together, with order shards: an image is moved by at most that many files."""

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Instances of a step over all ranks, and for each in which pass over the images it is: [<= B] int64 both.

        An epoch is cut into steps_per_epoch parts whose sizes differ by at most one: no last batch is small. With order window the
        pass is the window's number, in which no image comes twice.
        """
        epoch, step_in_epoch = divmod(step, steps_per_epoch(self.num_images, self.global_batch_size))
        parts = steps_per_epoch(self.num_images, self.global_batch_size)
        position = np.arange(step_in_epoch * self.num_images // parts, (step_in_epoch + 1) * self.num_images // parts)
        if self.order == "window":
            return self._in_window(position + epoch * self.num_images)
        order = self._in_shards if self.order == "shards" else self._shuffled
        return order(position, epoch), np.full(len(position), epoch)

    def _shuffled(self, position: np.ndarray, epoch: int) -> np.ndarray:
        return permute(position, self.num_images, self.seed, epoch)

    def _in_window(self, sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        window = min(self.window, self.num_images)
        number, within = np.divmod(sample, window)
        instance = np.empty(len(sample), np.int64)
        for one in np.unique(number):
            is_in = number == one
            place = (int(one) * self.stride + permute(within[is_in], window, self.seed, int(one), 1)) % self.num_images
            instance[is_in] = permute(place, self.num_images, self.seed)
        return instance, number

    @cached_property
    def _first_instance(self) -> np.ndarray:
        assert self.container_sizes is not None, "order shards needs the sizes of the files"
        return np.concatenate([[0], np.cumsum(self.container_sizes)]).astype(np.int64)

    def _in_shards(self, position: np.ndarray, epoch: int) -> np.ndarray:
        first = self._first_instance
        num_files = len(first) - 1
        file_order = permute(np.arange(num_files), num_files, self.seed, epoch, 2)
        sizes = np.diff(first)[file_order]
        end_of_file = np.cumsum(sizes)
        last_of_block = np.minimum(np.arange(self.block, num_files + self.block, self.block), num_files) - 1
        end_of_block = end_of_file[last_of_block]
        block = np.searchsorted(end_of_block, position, side="right")
        instance = np.empty(len(position), np.int64)
        for one in np.unique(block):
            is_in = block == one
            begin = int(end_of_block[one - 1]) if one else 0
            length = int(end_of_block[one]) - begin
            place = begin + permute(position[is_in] - begin, length, self.seed, epoch, 3, int(one))
            file = np.searchsorted(end_of_file, place, side="right")
            instance[is_in] = first[file_order[file]] + place - (end_of_file[file] - sizes[file])
        return instance


def rank_share(batch: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """A rank's contiguous part of a batch; sizes differ by at most one over the ranks."""
    return batch[rank * len(batch) // world_size : (rank + 1) * len(batch) // world_size]


def substitutes(instances: np.ndarray, passes: np.ndarray, num_images: int, seed: int, number: int) -> np.ndarray:
    """Instances to try in the place of each that cannot be read, [n, number] int64: the same in whichever process and attempt."""
    key = np.random.SeedSequence([seed, num_images]).generate_state(2, np.uint64)
    mixed = _mix(_mix(instances.astype(np.uint64) ^ key[0]) ^ passes.astype(np.uint64) ^ key[1])
    with np.errstate(over="ignore"):
        tries = mixed[:, None] + np.arange(number, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (_mix(tries) % np.uint64(num_images)).astype(np.int64)
