"""What does not depend on chance or on the number of ranks: bits, the hardest classes, accumulated and uneven batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from tests.distributed.launch import on_ranks
from trainer.classifier.build import random_rows
from trainer.classifier.chunked import ChunkedBackend
from trainer.classifier.oracle import DenseClassifier
from trainer.classifier.products import CpuBf16, Fp32
from trainer.classifier.shard import this_shard
from trainer.classifier.sharded import ShardedClassifier
from trainer.classifier.targets import SoftTargets

pytestmark = pytest.mark.distributed

D, RATE, MOMENTUM, DECAY = 16, 0.5, 0.9, 1e-2
PRODUCTS = {"fp32": Fp32, "bf16": CpuBf16}


def classifier_of(rows_ND: Tensor, targets: SoftTargets, capacity: int, products: str = "fp32", **kept: Any) -> ShardedClassifier:
    """Its shard of `rows_ND`, with chunks and tiles that leave a remainder."""
    backend = ChunkedBackend(PRODUCTS[products](), 83, 10)
    made = ShardedClassifier(len(rows_ND), D, targets, capacity=capacity, momentum=MOMENTUM, weight_decay=DECAY, backend=backend, **kept)
    made.rows_nD.copy_(rows_ND[made.shard.start : made.shard.stop])
    return made


def samples(num_classes: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, D, generator=generator), torch.randint(num_classes, (size,), generator=generator)


def part_of(size: int, capacity: int | None = None) -> slice:
    """This rank's samples of so many: an equal part or, with `capacity`, as many as come after the lower ranks are full."""
    shard = this_shard(size)
    return slice(shard.start, shard.stop) if capacity is None else slice(shard.rank * capacity, (shard.rank + 1) * capacity)


# One rank's work: each returns something that can be joined over the ranks.


def trained(products: str, rows_dtype: torch.dtype) -> Tensor:
    """This rank's rows and momentum after 100 steps on 500 classes, smoothed."""
    made = classifier_of(random_rows(0, 500, D, 0), SoftTargets(0.1, 0.2, 7), 8, products, rows_dtype=rows_dtype, momentum_dtype=rows_dtype)
    for step in range(100):
        x_BD, instance_B = samples(500, 16, step)
        part = part_of(16)
        made(x_BD[part], instance_B[part])
        made.step(RATE, step)
    return torch.cat([made.rows_nD, made.momentum_nD], 1)


def tied_rows() -> Tensor:
    """203 rows: the second half repeats the first exactly, but for 30 that are off by about the spacing of fp32 numbers."""
    rows_ND = random_rows(0, 203, D, 4)
    rows_ND[101:202] = rows_ND[:101]
    rows_ND[120:150] *= 1 + 2.0**-22 * torch.randn(30, D, generator=torch.Generator().manual_seed(5)).sign()
    return rows_ND


def hardest(products: str, k: int) -> Tensor:
    """[T, 2]: (sample, class) of the targets that lie with this rank, for tied rows; each feature lies near one of them."""
    rows_ND = tied_rows()
    made = classifier_of(rows_ND, SoftTargets(0.1, 0.2, k), 24 // this_shard(1).world_size, products)
    x_BD, instance_B = near_rows(rows_ND)
    made(x_BD[part_of(24)], instance_B[part_of(24)])
    pairs = made._pending[-1].pairs
    return torch.stack([pairs.sample_T, pairs.class_T + made.shard.start], 1)


def near_rows(rows_ND: Tensor) -> tuple[Tensor, Tensor]:
    noise_BD, instance_B = samples(len(rows_ND), 24, 6)
    near_B = torch.arange(24) * 8
    return rows_ND[near_B] + 0.1 * noise_BD, instance_B


def accumulated(calls: int) -> Tensor:
    """This rank's rows after two steps, each of 16 samples in so many calls of the same size."""
    P = this_shard(1).world_size
    made = classifier_of(random_rows(0, 61, D, 0), SoftTargets(0.15, 0.2, 7), 16 // P)
    for step in range(2):
        for x_BD, instance_B in zip(*(part.chunk(calls) for part in samples(61, 16, 50 + step)), strict=True):
            made(x_BD[part_of(16 // calls)], instance_B[part_of(16 // calls)])
        made.step(RATE, step)
    return made.rows_nD


UNEVEN = {
    "fewer classes than ranks": (5, 3, [8, 8], 1),
    "one class more than ranks": (9, 4, [8, 8], 1),
    "a last batch that leaves ranks empty": (61, 7, [16, 16, 5], 2),
}
"""N, K, the steps' global batches, capacity."""


def uneven(case: str) -> dict[str, Any]:
    """Losses, this rank's gradients for its features, and its rows."""
    num_classes, k, sizes, capacity = UNEVEN[case]
    P = dist.get_world_size()
    made = classifier_of(random_rows(0, num_classes, D, 0), SoftTargets(0.15, 0.2, k), capacity)
    losses, gradients = [], []
    for step, size in enumerate(sizes):
        x_BD, instance_B = samples(num_classes, size, 80 + step)
        part = part_of(size, capacity)
        x_bD = x_BD[part].clone().requires_grad_()
        loss = made(x_bD, instance_B[part])
        loss.backward()
        made.step(RATE, step)
        losses.append(loss.item() / P)
        gradients.append(x_bD.grad / P)
    return {"losses": losses, "gradients": gradients, "rows": made.rows_nD}


TRAINED = {"fp32": ("fp32", torch.float32), "bf16 products": ("bf16", torch.float32), "bf16 rows": ("bf16", torch.bfloat16)}


def on_two() -> dict[str, Any]:
    return all_trained() | {"accumulated": accumulated(2), "at once": accumulated(1)} | on_any()


def all_trained() -> dict[str, Any]:
    return {case: trained(*arguments) for case, arguments in TRAINED.items()}


def on_any() -> dict[str, Any]:
    return {f"hardest, {products}, {k}": hardest(products, k) for products in PRODUCTS for k in (5, 30)}


def on_eight() -> dict[str, Any]:
    return {case: uneven(case) for case in UNEVEN} | on_any()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(2, tmp_path_factory.mktemp("two"), on_two)


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(8, tmp_path_factory.mktemp("eight"), on_eight)


def test_the_same_ranks_and_seed_give_the_same_bits(two: list[dict[str, Any]], tmp_path: Path) -> None:
    """Rows and momentum after 100 steps of two separate jobs, also with rows that are rounded stochastically."""
    repeated = on_ranks(2, tmp_path, all_trained)
    for case in TRAINED:
        once, again = (torch.cat([rank[case] for rank in ranks]) for ranks in (two, repeated))
        assert torch.equal(once, again), case
        moved = (once[:, :D].float() - random_rows(0, 500, D, 0)).abs().amax(1)
        assert (moved > 1e-3).all(), case
        assert once.isfinite().all(), case


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("k", [5, 30])
def test_any_number_of_ranks_finds_the_same_hardest_classes(
    two: list[dict[str, Any]], eight: list[dict[str, Any]], products: str, k: int, tmp_path: Path
) -> None:
    """1, 2, 4 and 8 ranks, rows with exact and near ties in other shards: the sets of one float64 product over all rows, where of equal
    fp32 scores the lower class counts."""
    rows_ND = tied_rows()
    x_BD, instance_B = near_rows(rows_ND)
    score_BN = (F.normalize(x_BD, dim=1).double() @ F.normalize(rows_ND.double(), dim=1).T).float()
    other_BN = score_BN.scatter(1, instance_B[:, None], -torch.inf)
    order_BN = other_BN.sort(dim=1, descending=True, stable=True)
    # What the test is about: at the K-th place ties are cut through.
    assert (order_BN.values[:, k - 1] == order_BN.values[:, k]).sum() >= 3
    expected = {(sample, int(at)) for sample in range(24) for at in order_BN.indices[sample, :k]}
    expected |= set(enumerate(instance_B.tolist()))
    name = f"hardest, {products}, {k}"
    found = {1: [hardest(products, k)], 2: [rank[name] for rank in two], 8: [rank[name] for rank in eight]}
    if (products, k) == ("fp32", 5):
        found[4] = on_ranks(4, tmp_path, hardest, products, k)
    for world_size, parts in found.items():
        assert sum(map(len, parts)) == len(expected), world_size
        assert {tuple(pair) for part in parts for pair in part.tolist()} == expected, world_size


def test_calls_before_a_step_count_as_one_over_ranks(two: list[dict[str, Any]]) -> None:
    """Two calls of eight samples and then a step, one call with all sixteen, and the oracle on them give the same rows."""
    oracle = DenseClassifier(random_rows(0, 61, D, 0).double(), SoftTargets(0.15, 0.2, 7))
    optimizer = torch.optim.SGD(oracle.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    for step in range(2):
        x_BD, instance_B = samples(61, 16, 50 + step)
        optimizer.zero_grad()
        oracle(x_BD.double(), instance_B).backward()
        optimizer.step()
    for name in ("accumulated", "at once"):
        rows_ND = torch.cat([rank[name] for rank in two])
        torch.testing.assert_close(rows_ND.double(), oracle.rows_ND.detach(), atol=2e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("case", UNEVEN)
def test_eight_ranks_without_classes_or_without_samples_change_nothing(eight: list[dict[str, Any]], case: str) -> None:
    """Losses, feature gradients and rows are the oracle's in float64 where ranks have no class at all, or none of a batch's samples."""
    num_classes, k, sizes, _ = UNEVEN[case]
    oracle = DenseClassifier(random_rows(0, num_classes, D, 0).double(), SoftTargets(0.15, 0.2, k))
    optimizer = torch.optim.SGD(oracle.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    ranks = [rank[case] for rank in eight]
    for step, size in enumerate(sizes):
        x_BD, instance_B = samples(num_classes, size, 80 + step)
        x_BD = x_BD.double().requires_grad_()
        optimizer.zero_grad()
        loss = oracle(x_BD, instance_B)
        loss.backward()
        optimizer.step()
        assert sum(rank["losses"][step] for rank in ranks) == pytest.approx(loss.item(), abs=2e-6)
        gradient_BD = torch.cat([rank["gradients"][step] for rank in ranks])
        torch.testing.assert_close(gradient_BD.double(), x_BD.grad, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(torch.cat([rank["rows"] for rank in ranks]).double(), oracle.rows_ND.detach(), atol=2e-6, rtol=1e-5)
