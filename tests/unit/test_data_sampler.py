"""Which images a step sees."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.sampler import Sampler, permute, rank_share, steps_per_epoch, substitutes

counts = st.integers(2, 300)
seeds = st.integers(0, 2**31 - 1)
file_sizes = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) >= 2)


def epoch_of(sampler: Sampler, epoch: int) -> np.ndarray:
    num_steps = steps_per_epoch(sampler.num_images, sampler.global_batch_size)
    return np.concatenate([sampler.batch(epoch * num_steps + step)[0] for step in range(num_steps)])


@given(length=st.integers(1, 3000), seed=seeds)
def test_a_permutation_has_each_number_once_at_whichever_positions_it_is_asked(length: int, seed: int) -> None:
    """All positions at once, or one alone."""
    whole = permute(np.arange(length), length, seed)
    assert sorted(whole) == list(range(length))
    assert permute(np.array([length // 2]), length, seed)[0] == whole[length // 2]


def test_permutations_are_as_random_as_numpys() -> None:
    """All 24 orders of 4 come up as often as they should, and where an image of 100,000 goes says nothing of where it was (chi squared)."""
    orders = Counter(tuple(permute(np.arange(4), 4, key).tolist()) for key in range(2400))
    assert len(orders) == 24
    assert sum((count - 100) ** 2 / 100 for count in orders.values()) < 50  # 23 degrees of freedom: 1 in 1,000
    table = np.histogram2d(np.arange(100_000), permute(np.arange(100_000), 100_000, 7), bins=16)[0]
    expected = 100_000 / 256
    assert ((table - expected) ** 2 / expected).sum() < 300  # 225 degrees of freedom


def test_a_batch_of_a_hundred_million_images_needs_no_list_of_them() -> None:
    """Distinct, over the whole range, and from the step alone."""
    batch, _ = Sampler(10**8, 4096, 0).batch(12_345)
    assert len(np.unique(batch)) == 4096
    assert batch.min() < 10**6
    assert batch.max() > 99 * 10**6


@given(num_images=counts, batch_size=counts, seed=seeds, epoch=st.integers(0, 10_000))
def test_every_instance_is_seen_once_per_epoch(num_images: int, batch_size: int, seed: int, epoch: int) -> None:
    """Whatever the sizes, an epoch's batches together are a permutation of the images."""
    assert sorted(epoch_of(Sampler(num_images, batch_size, seed), epoch)) == list(range(num_images))


@given(file_sizes, st.integers(1, 5), st.integers(2, 50), st.integers(0, 100))
def test_every_instance_is_seen_once_per_epoch_also_file_by_file(sizes: list[int], block: int, batch_size: int, epoch: int) -> None:
    """And the images of a block of files come together: while one block lasts, no image of another is seen."""
    sampler = Sampler(sum(sizes), batch_size, 5, "shards", container_sizes=tuple(sizes), block=block)
    seen = epoch_of(sampler, epoch)
    assert sorted(seen) == list(range(sum(sizes)))
    file_of = np.repeat(np.arange(len(sizes)), sizes)[seen]
    order = permute(np.arange(len(sizes)), len(sizes), 5, epoch, 2)
    blocks = np.argsort(order)[file_of] // block
    assert np.all(np.diff(blocks) >= 0)


def test_a_window_slides_over_all_images_and_shows_each_as_often_as_it_passes() -> None:
    """64 images, windows of 16 moved by 8: in each window no image twice, the next has half of it, in all each twice."""
    sampler = Sampler(64, 8, 1, "window", window=16, stride=8)
    batches = [sampler.batch(step) for step in range(16)]
    instances, passes = (np.concatenate(part) for part in zip(*batches, strict=True))
    windows = [set(instances[passes == number].tolist()) for number in range(8)]
    assert all(len(window) == 16 for window in windows)
    assert all(len(a & b) == 8 for a, b in pairwise(windows))
    assert Counter(instances.tolist()) == dict.fromkeys(range(64), 2)


@given(num_images=counts, batch_size=counts)
def test_batches_of_an_epoch_differ_by_at_most_one_image_and_none_is_over_the_batch_size(num_images: int, batch_size: int) -> None:
    """No small last batch, whose gradient would weigh each of its images more."""
    sampler = Sampler(num_images, batch_size, 0)
    lengths = {len(sampler.batch(step)[0]) for step in range(steps_per_epoch(num_images, batch_size))}
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) <= batch_size


@given(num_images=counts, world_size=st.integers(1, 16))
def test_ranks_share_a_batch_without_overlap_in_parts_that_differ_by_at_most_one(num_images: int, world_size: int) -> None:
    """The parts put together in rank order are the batch."""
    batch, _ = Sampler(num_images, num_images, 0).batch(0)
    shares = [rank_share(batch, rank, world_size) for rank in range(world_size)]
    assert np.array_equal(np.concatenate(shares), batch)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    """The same again after others were asked for; another for another seed or epoch."""
    first = epoch_of(Sampler(1000, 100, 3), 7)
    for seed, epoch in ((3, 8), (4, 7), (7, 3)):
        assert np.mean(epoch_of(Sampler(1000, 100, seed), epoch) == first) < 0.02
    assert np.array_equal(epoch_of(Sampler(1000, 100, 3), 7), first)


@pytest.mark.parametrize("order", ["shuffle", "shards"])
@given(counts=st.lists(st.integers(1, 40), min_size=3, max_size=8), B=st.integers(4, 64), data=st.data())
def test_every_instance_is_seen_once_per_epoch_also_when_the_ranks_change_in_it(
    order: str, counts: list[int], B: int, data: st.DataObject
) -> None:
    """1, 2, 3 or 8 ranks from any step on: which images a step sees is a function of the step alone."""
    N, seen = sum(counts), []
    for step in range(steps_per_epoch(N, B)):
        world_size = data.draw(st.sampled_from([1, 2, 3, 8]))
        sampler = Sampler(N, B, 3, order, container_sizes=tuple(counts), block=2)  # anew: as after a restart
        batch, _ = sampler.batch(steps_per_epoch(N, B) + step)
        seen += [int(i) for rank in range(world_size) for i in rank_share(batch, rank, world_size)]
    assert sorted(seen) == list(range(N))


def test_substitutes_are_random_images_that_follow_from_the_instance_and_its_pass() -> None:
    """The same whoever asks, another for another pass, and all images serve about equally often."""
    instances, passes = np.arange(2000), np.full(2000, 3)
    whole = substitutes(instances, passes, 50, 9, 4)
    assert np.array_equal(substitutes(instances[7:9], passes[7:9], 50, 9, 4), whole[7:9])
    assert np.mean(substitutes(instances, passes + 1, 50, 9, 4) == whole) < 0.05
    assert np.bincount(whole.ravel(), minlength=50).min() > 100
