"""The sharded classifier against the plain unsharded one, on real gloo processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.distributed.launch import on_ranks
from trainer.classifier import similarity
from trainer.classifier.build import random_rows
from trainer.classifier.chunked import ChunkedBackend
from trainer.classifier.oracle import DenseClassifier, nearest_classes
from trainer.classifier.products import Fp32
from trainer.classifier.shard import Shard
from trainer.classifier.sharded import ShardedClassifier
from trainer.classifier.similarity import keeps_hardest, refresh_hardest
from trainer.classifier.targets import SoftTargets
from trainer.classifier.zero3 import Zero3Classifier

pytestmark = pytest.mark.distributed

D, STEPS, RATE, MOMENTUM, DECAY = 16, 3, 0.5, 0.9, 1e-2
CASES = {
    "smoothed": (101, [12, 12, 11], SoftTargets(0.15, 0.2, 7), False),
    "unsmoothed": (64, [8, 8, 8], SoftTargets(0.15, 0.0, 7), False),
    "by class similarity": (53, [10, 9, 10], SoftTargets(0.1, 0.3, 5), True),
    "more ranks than some shards have classes": (7, [3, 3, 3], SoftTargets(0.2, 0.2, 3), False),
}


def batches(num_classes: int, sizes: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Global batches of features and instances; the first two samples of each are of one image."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for size in sizes:
        instance_B = torch.randint(num_classes, (size,), generator=generator)
        instance_B[1] = instance_B[0]
        made.append((torch.randn(size, D, generator=generator), instance_B))
    return made


def by_oracle(case: str) -> dict[str, Any]:
    """Losses, feature gradients and rows of the plain classifier under torch.optim.SGD."""
    num_classes, sizes, targets, similar = CASES[case]
    classifier = DenseClassifier(random_rows(0, num_classes, D, seed=0), targets)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    hardest_NK = nearest_classes(classifier.rows_ND.detach(), targets.hardest_k) if similar else None
    losses, gradients = [], []
    for x_BD, instance_B in batches(num_classes, sizes):
        x_BD.requires_grad_()
        loss = classifier(x_BD, instance_B, hardest_NK[instance_B] if similar else None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        gradients.append(x_BD.grad)
    return {
        "losses": losses,
        "gradients": gradients,
        "rows": classifier.rows_ND.detach(),
        "momentum": optimizer.state[classifier.rows_ND]["momentum_buffer"],
    }


def all_sharded() -> dict[str, dict[str, Any]]:
    return {case: sharded(case) for case in CASES}


def sharded(case: str) -> dict[str, Any]:
    """The same on this rank, as DeepSpeed would average it: the mean over ranks of losses and of gradients."""
    num_classes, sizes, targets, similar = CASES[case]
    rank, P = dist.get_rank(), dist.get_world_size()
    classifier = ShardedClassifier(
        num_classes, D, targets, capacity=-(-max(sizes) // P), momentum=MOMENTUM, weight_decay=DECAY, backend=ChunkedBackend(Fp32(), 5, 7)
    )
    shard = classifier.shard
    classifier.rows_nD.copy_(random_rows(shard.start, shard.stop, D, seed=0))
    if similar:
        refresh_hardest(classifier)
    losses, gradients = [], []
    for x_BD, instance_B in batches(num_classes, sizes):
        part = slice(rank * len(x_BD) // P, (rank + 1) * len(x_BD) // P)
        x_bD = x_BD[part].clone().requires_grad_()
        loss = classifier(x_bD, instance_B[part])
        loss.backward()
        classifier.step(RATE)
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(mean.item() / P)
        gradients.append(x_bD.grad / P)
    return {"losses": losses, "gradients": gradients, "rows": classifier.rows_nD, "momentum": classifier.momentum_nD}


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_sharding_changes_neither_the_loss_nor_any_gradient_nor_the_updated_rows(world_size: int, tmp_path: Path) -> None:
    """Three steps on 1, 2 and 4 ranks equal the unsharded oracle under torch.optim.SGD, also for uneven N and batches."""
    results = on_ranks(world_size, tmp_path, all_sharded)
    for case in CASES:
        expected, ranks = by_oracle(case), [result[case] for result in results]
        for result in ranks:
            assert result["losses"] == pytest.approx(expected["losses"], abs=2e-6), case
        for step in range(STEPS):
            gradient = torch.cat([result["gradients"][step] for result in ranks])
            torch.testing.assert_close(gradient, expected["gradients"][step], atol=1e-6, rtol=1e-5)
        for name in ("rows", "momentum"):
            torch.testing.assert_close(
                torch.cat([result[name] for result in ranks]), expected[name], atol=2e-6, rtol=1e-5, msg=f"{case}: {name}"
            )


def similar_classes(num_classes: int, k: int) -> torch.Tensor:
    similarity.BLOCK = 10  # several blocks in each shard, the last one smaller
    classifier = ShardedClassifier(num_classes, D, SoftTargets(0.1, 0.2, k), capacity=1)
    classifier.rows_nD.copy_(random_rows(classifier.shard.start, classifier.shard.stop, D, seed=3))
    refresh_hardest(classifier)
    assert classifier.hardest_nK is not None
    return classifier.hardest_nK


def test_the_nearest_classes_are_the_same_over_any_number_of_ranks(tmp_path: Path) -> None:
    """The blocked search over shards finds what one dense product finds."""
    expected = nearest_classes(random_rows(0, 103, D, seed=3), 9)
    for world_size in (1, 3):
        found = torch.cat(on_ranks(world_size, tmp_path, similar_classes, 103, 9))
        assert (found == expected).all()


def test_a_table_of_another_k_or_that_is_not_wanted_is_dropped() -> None:
    """A fork may take over rows with a table made for other targets."""
    classifier = ShardedClassifier(9, D, SoftTargets(0.1, 0.2, 3), capacity=1)
    assert not keeps_hardest(classifier, wanted=True)
    for k, wanted, kept in ((3, True, True), (4, True, False), (3, False, False)):
        classifier.hardest_nK = torch.zeros(9, k, dtype=torch.int32)
        assert keeps_hardest(classifier, wanted) == kept
        assert (classifier.hardest_nK is not None) == kept


def written_rows() -> torch.Tensor:
    classifier = ShardedClassifier(11, D, SoftTargets(0.1, 0.0, 1), capacity=4)
    rank = dist.get_rank()
    instance = torch.tensor([[0, 10, 5, 3], [7, 2, -1, 9]])[rank]
    classifier.write_rows(instance, instance[:, None].expand(-1, D).float())
    return classifier.rows_nD[:, 0]


def test_a_row_written_by_any_rank_arrives_at_its_owner(tmp_path: Path) -> None:
    """Every rank may hold the feature of any image; padding (-1) writes nothing."""
    assert torch.cat(on_ranks(2, tmp_path, written_rows)).tolist() == [0, 0, 2, 3, 0, 5, 0, 7, 0, 9, 10]


def test_the_zero3_classifier_gives_the_oracles_loss_and_gradients() -> None:
    """The whole-matrix implementation, without an engine, equals autograd through the dense scores."""
    targets = SoftTargets(0.15, 0.2, 7)
    rows = random_rows(0, 101, D, seed=0)
    oracle, classifier = DenseClassifier(rows, targets), Zero3Classifier(101, D, targets, backend=ChunkedBackend(Fp32(), 13, 5))
    classifier.rows_ND.data.copy_(rows)
    ((x_BD, instance_B),) = batches(101, [12])
    mine, theirs = x_BD.clone().requires_grad_(), x_BD.clone().requires_grad_()
    (2 * classifier(mine, instance_B)).backward()
    (2 * oracle(theirs, instance_B)).backward()
    torch.testing.assert_close(mine.grad, theirs.grad)
    torch.testing.assert_close(classifier.rows_ND.grad, oracle.rows_ND.grad)


def test_rows_are_the_same_for_any_number_of_ranks() -> None:
    """Random rows are a function of class and seed, drawn by their owner alone."""
    whole = random_rows(0, 70_000, 4, seed=5)
    for P in (3, 64):
        parts = [random_rows(s.start, s.stop, 4, seed=5) for s in (Shard(70_000, rank, P) for rank in range(P))]
        assert torch.equal(torch.cat(parts), whole)
