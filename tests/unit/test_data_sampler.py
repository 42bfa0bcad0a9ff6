"""Which images a step sees."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.sampler import batch_instances, epoch_order, rank_share, steps_per_epoch

sizes = st.integers(2, 300)
seeds = st.integers(0, 2**31 - 1)


@given(num_images=sizes, batch_size=sizes, seed=seeds, epoch=st.integers(0, 10_000))
def test_every_instance_is_seen_once_per_epoch(num_images: int, batch_size: int, seed: int, epoch: int) -> None:
    """Whatever the sizes, an epoch's batches together are a permutation of the images."""
    num_steps = steps_per_epoch(num_images, batch_size)
    batches = [batch_instances(num_images, batch_size, seed, epoch, step) for step in range(num_steps)]
    assert sorted(np.concatenate(batches)) == list(range(num_images))


@given(num_images=sizes, batch_size=sizes)
def test_batches_of_an_epoch_differ_by_at_most_one_image_and_none_is_over_the_batch_size(num_images: int, batch_size: int) -> None:
    """No small last batch, whose gradient would weigh each of its images more."""
    lengths = {len(batch_instances(num_images, batch_size, 0, 0, step)) for step in range(steps_per_epoch(num_images, batch_size))}
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) <= batch_size


@given(num_images=sizes, world_size=st.integers(1, 16))
def test_ranks_share_a_batch_without_overlap_in_parts_that_differ_by_at_most_one(num_images: int, world_size: int) -> None:
    """The parts put together in rank order are the batch."""
    batch = batch_instances(num_images, num_images, 0, 0, 0)
    shares = [rank_share(batch, rank, world_size) for rank in range(world_size)]
    assert np.array_equal(np.concatenate(shares), batch)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    """The same again after others were asked for; another for another seed or epoch."""
    first = epoch_order(1000, 3, 7).copy()
    others = [epoch_order(1000, 3, 8).copy(), epoch_order(1000, 4, 7).copy(), epoch_order(1000, 7, 3).copy()]
    assert np.array_equal(epoch_order(1000, 3, 7), first)
    assert first.dtype == np.int64
    for other in others:
        assert np.mean(other == first) < 0.02


@given(st.integers(8, 300), st.integers(4, 64), st.lists(st.sampled_from([1, 2, 3, 4, 7]), min_size=1, max_size=6), st.data())
def test_every_instance_is_seen_once_per_epoch_also_when_the_ranks_change_in_it(
    N: int, B: int, sizes: list[int], data: st.DataObject
) -> None:
    """Any number of ranks at any step: which images a step sees is a function of the step alone."""
    seen: list[int] = []
    for step in range(steps_per_epoch(N, B)):
        world_size = data.draw(st.sampled_from(sizes))
        batch = batch_instances(N, B, 3, 1, step)
        seen += [int(i) for rank in range(world_size) for i in rank_share(batch, rank, world_size)]
    assert sorted(seen) == list(range(N))
