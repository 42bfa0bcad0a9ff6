"""The passes in plain PyTorch, in every precision of the products, against the plain classifier in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.classifier.backend import Scan, SecondPass
from trainer.classifier.chunked import ChunkedBackend
from trainer.classifier.oracle import DenseClassifier
from trainer.classifier.products import CpuBf16, Fp32, HalfInEmulated, OneDnnFp32
from trainer.classifier.sharded import ShardedClassifier
from trainer.classifier.store import SGD, RowStore
from trainer.classifier.targets import SoftTargets, TargetPairs, score_pairs
from trainer.classifier.topk import NONE

B, D, N = 37, 24, 517
PRODUCTS = {
    "fp32": Fp32(),
    "oneDNN fp32": OneDnnFp32(),
    "bf16": CpuBf16(),
    "bf16 with fp32 results": HalfInEmulated(torch.bfloat16),
    "fp16 with fp32 results": HalfInEmulated(torch.float16),
}
UNIT = {"fp32": 2.0**-22, "oneDNN fp32": 2.0**-22, "bf16": 2.0**-8, "bf16 with fp32 results": 2.0**-8, "fp16 with fp32 results": 2.0**-11}
"""Of the least precise number in the products. A score is off by about one, an exponential relatively by one divided by tau."""
TAUS = (0.03, 0.07, 0.15, 0.5, 1.0)


def made(seed: int = 0, samples: int = B) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [N, D], features near the rows of their classes as those of a classifier that has learnt, and instances, one twice."""
    g = torch.Generator().manual_seed(seed)
    rows_ND = torch.randn(N, D, generator=g)
    instance_B = torch.randint(N, (samples,), generator=g)
    instance_B[1] = instance_B[0]
    return rows_ND, 0.5 * rows_ND[instance_B] + torch.randn(samples, D, generator=g), instance_B


def relative(mine: Tensor, exact: Tensor) -> float:
    """The greatest error, as a share of the greatest number."""
    return ((mine.double() - exact).abs().max() / exact.abs().max()).item()


def errors(backend: ChunkedBackend, targets: SoftTargets) -> dict[str, float]:
    """Of the last of two steps, relative to what the step changes."""
    rows_ND, _, _ = made()
    oracle = DenseClassifier(rows_ND.double(), targets)
    optimizer = torch.optim.SGD(oracle.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-2)
    classifier = ShardedClassifier(N, D, targets, capacity=B, weight_decay=1e-2, backend=backend)
    classifier.rows_nD.copy_(rows_ND)
    found = {}
    for step in range(2):
        _, x_BD, instance_B = made(step)
        mine, exact = x_BD.clone().requires_grad_(), x_BD.double().requires_grad_()
        loss, expected = classifier(mine, instance_B), oracle(exact, instance_B)
        loss.backward()
        optimizer.zero_grad()
        expected.backward()
        classifier.step(0.5)
        optimizer.step()
        assert mine.grad is not None
        assert exact.grad is not None
        found = {"loss": abs(loss.item() / expected.item() - 1), "dx": relative(mine.grad, exact.grad)}
    momentum_ND = optimizer.state[oracle.rows_ND]["momentum_buffer"]
    found["momentum"] = relative(classifier.momentum_nD, momentum_ND)
    # Beside what fp32 keeps of rows between 2 and 4, twice.
    error_ND = ((classifier.rows_nD - oracle.rows_ND).abs() - 2.0**-21).clamp_min(0)
    found["rows"] = (error_ND.max() / momentum_ND.abs().max()).item()
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("products", PRODUCTS)
def test_a_step_is_that_of_the_plain_classifier_in_float64(products: str, tau: float, smoothing: float) -> None:
    """Loss, gradients, momentum and rows after two steps, off by a few roundings of a score divided by tau."""
    found = errors(ChunkedBackend(PRODUCTS[products], 64, 16), SoftTargets(tau, smoothing, 7))
    bound = UNIT[products] * (1 + 0.25 / tau)
    assert max(found.values()) < bound, found


@pytest.mark.parametrize("products", PRODUCTS)
def test_chunks_and_tiles_of_any_size_give_the_same_step(products: str) -> None:
    """Also of one sample, of more than there are, and of a size that is no multiple of the groups of the hardest."""
    targets = SoftTargets(0.1, 0.2, 7)
    for chunk_size, tile_size in ((3, 10), (33, 1), (100, 36), (516, 37), (10_000, 1000)):
        found = errors(ChunkedBackend(PRODUCTS[products], chunk_size, tile_size), targets)
        assert max(found.values()) < UNIT[products] * (1 + 0.25 / 0.1), (chunk_size, tile_size, found)


def normalised(rows_ND: Tensor, x_BD: Tensor) -> tuple[RowStore, Tensor]:
    return RowStore(0, rows_ND.clone(), torch.zeros_like(rows_ND)), F.normalize(x_BD, dim=1)


def second_pass(store: RowStore, x_BD: Tensor, own_B: Tensor, scan: Scan) -> SecondPass:
    """Of one-hot targets."""
    sample_T = (own_B >= 0).nonzero()[:, 0]
    score_T = score_pairs(store.rows_nD, x_BD, own_B[sample_T], sample_T)
    pairs = TargetPairs(sample_T, own_B[sample_T], torch.ones(len(sample_T)), score_T)
    return SecondPass(x_BD, scan.partition_B, (own_B >= 0) / max(1, len(sample_T)), pairs)


@pytest.mark.parametrize("closeness", [0.0, 0.7])
@pytest.mark.parametrize("products", ["fp32", "fp16 with fp32 results"])
def test_the_bulk_of_many_classes_is_not_lost_to_the_narrow_range_of_fp16(products: str, closeness: float) -> None:
    """tau = 0.03, 60,000 classes, an own class with a cosine near 0 or 0.7: partition, pull and all other rows' gradients remain."""
    many, d, tau = 60_000, 64, 0.03
    g = torch.Generator().manual_seed(0)
    rows_ND = torch.randn(many, d, generator=g)
    own_B = torch.randint(many, (8,), generator=g)
    x_BD = closeness * F.normalize(rows_ND[own_B], dim=1) + (1 - closeness**2) ** 0.5 * F.normalize(torch.randn(8, d, generator=g), dim=1)
    store, x_BD = normalised(rows_ND, x_BD)
    backend = ChunkedBackend(PRODUCTS[products], 4096, 8)
    scan = backend.scan(store, x_BD, own_B, 0, tau)
    w_ND = F.normalize(rows_ND.double(), dim=1)
    exp_NB = (w_ND @ x_BD.double().T / tau).exp()
    tolerance = UNIT[products] * (1 + 1 / tau)
    assert ((scan.partition_B / exp_NB.sum(0)) - 1).abs().max() < tolerance
    others_NB = exp_NB.clone()
    others_NB[own_B, torch.arange(8)] = 0
    own_BD = w_ND[own_B] * exp_NB[own_B, torch.arange(8)][:, None]
    # Without the own class: beside it, the rest could be lost unseen.
    pull_BD = others_NB.T @ w_ND
    exact_own = own_BD.abs().max(1).values * UNIT["fp32"] * (1 + 1 / tau)  # what fp32 keeps of a sum with the own class
    error_B = (scan.pull_BD.double() - own_BD - pull_BD).abs().max(1).values
    assert (error_B < tolerance * pull_BD.abs().max(1).values + exact_own).all()
    gradients = [
        gradient_CD.clone() for _, gradient_CD in backend.row_gradients(store, second_pass(store, x_BD, own_B, scan), tau, update=False)
    ]
    probability_NB = others_NB / exp_NB.sum(0)
    raw_ND = probability_NB @ x_BD.double() / (tau * 8)
    exact_ND = (raw_ND - (raw_ND * w_ND).sum(1, keepdim=True) * w_ND) / rows_ND.double().norm(dim=1, keepdim=True)
    error_N = (torch.cat(gradients).double() - exact_ND).norm(dim=1)
    # Each row by itself, down to probabilities of 2^-27: without a shift, fp16 would make them 0.
    checked_N = probability_NB.amax(1) > 2.0**-27
    checked_N[own_B] = False
    assert checked_N.sum() > 0.6 * many
    assert (error_N <= tolerance * raw_ND.norm(dim=1) / rows_ND.double().norm(dim=1))[checked_N].all()


@pytest.mark.parametrize("products", PRODUCTS)
def test_a_shard_without_classes_contributes_nothing(products: str) -> None:
    """Where there are fewer classes than ranks."""
    backend = ChunkedBackend(PRODUCTS[products], 64, 16)
    store = RowStore(5, torch.zeros(0, D), torch.zeros(0, D))
    _, x_BD, own_B = made()
    scan = backend.scan(store, F.normalize(x_BD, dim=1), own_B, 7, 0.1)
    assert not scan.partition_B.any()
    assert not scan.pull_BD.any()
    assert (scan.key_BK == NONE).all()
    none = torch.zeros(0, dtype=torch.long)
    batch = SecondPass(
        F.normalize(x_BD, dim=1), torch.ones(B).double(), torch.ones(B), TargetPairs(none, none, torch.zeros(0), torch.zeros(0))
    )
    backend.update(store, batch, 0.1, SGD(0.5, 0.9, 0.0, 0))


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("present", [0, 1, 20])
def test_padding_counts_nowhere(products: str, present: int) -> None:
    """A batch filled up with padding gives loss, gradients and rows of the samples alone, also where a tile holds nothing else, or all."""
    rows_ND, x_BD, own_B = made()
    backend, tau = ChunkedBackend(PRODUCTS[products], 64, 8), 0.07
    results = []
    for size in (max(1, present), B):
        x, own = F.normalize(x_BD[:size], dim=1), own_B[:size].clone()
        x[present:], own[present:] = 0, -1
        store = RowStore(0, rows_ND.clone(), torch.zeros(N, D))
        scan = backend.scan(store, x, own, 7, tau)
        assert (scan.key_BK[present:] == NONE).all()
        backend.update(store, second_pass(store, x, own, scan), tau, SGD(0.5, 0.9, 0.0, 0))
        results.append((scan.partition_B[:present], scan.pull_BD[:present], store.rows_nD, scan.key_BK[:present]))
    (*alone, alone_keys), (*padded, padded_keys) = results
    assert torch.equal(alone_keys, padded_keys)
    for one, other in zip(alone, padded, strict=True):
        assert not one.numel() or relative(other, one) < UNIT[products] * (1 + 0.25 / tau)
    assert bool(present) == (not torch.equal(alone[-1], rows_ND))


@pytest.mark.parametrize("products", PRODUCTS)
def test_a_feature_or_a_row_of_zeros_gives_finite_numbers(products: str) -> None:
    """A row that was never set, the own class of a sample too, and a feature of a dead network."""
    rows_ND, x_BD, instance_B = made()
    x_BD[3] = 0
    rows_ND[7] = rows_ND[instance_B[5]] = 0
    classifier = ShardedClassifier(N, D, SoftTargets(0.05, 0.2, 7), capacity=B, backend=ChunkedBackend(PRODUCTS[products], 64, 16))
    classifier.rows_nD.copy_(rows_ND)
    x_BD.requires_grad_()
    loss = classifier(x_BD, instance_B)
    loss.backward()
    classifier.step(0.5)
    assert loss.isfinite()
    assert x_BD.grad is not None
    for value in (x_BD.grad, classifier.rows_nD, classifier.momentum_nD):
        assert value.isfinite().all()


@pytest.mark.parametrize("products", PRODUCTS)
def test_several_calls_before_a_step_are_one_call_with_all_their_samples(products: str) -> None:
    """Gradient accumulation over batches of equal size: loss and rows, within the products' rounding."""
    rows_ND, x_BD, instance_B = made(samples=36)
    rows, losses = [], []
    for parts in (1, 3):
        classifier = ShardedClassifier(N, D, SoftTargets(0.1, 0.2, 7), capacity=36, backend=ChunkedBackend(PRODUCTS[products], 64, 16))
        classifier.rows_nD.copy_(rows_ND)
        with torch.no_grad():
            losses.append(sum(classifier(*part).item() for part in zip(x_BD.chunk(parts), instance_B.chunk(parts), strict=True)) / parts)
        classifier.step(0.5)
        rows.append(classifier.rows_nD)
    assert losses[0] == pytest.approx(losses[1], abs=UNIT[products])
    moved = (rows[0] - rows_ND).abs().max().item()
    assert (rows[0] - rows[1]).abs().max().item() < UNIT[products] * 4 * moved + 2.0**-22


@pytest.mark.parametrize("products", PRODUCTS)
def test_a_pass_over_no_sample_finds_nothing_and_leaves_the_rows_alone(products: str) -> None:
    """A rank of the whole-matrix classifier can be without samples."""
    store = RowStore(0, made()[0], torch.zeros(N, D))
    backend = ChunkedBackend(PRODUCTS[products], 64, 16)
    nothing = torch.empty(0, dtype=torch.int64)
    scan = backend.scan(store, torch.empty(0, D), nothing, 3, 0.15)
    assert scan.key_BK.shape == (0, 3)
    pairs = TargetPairs(nothing, nothing, torch.empty(0), torch.empty(0))
    batch = SecondPass(torch.empty(0, D), scan.partition_B, torch.empty(0), pairs)
    assert not any(gradient_CD.any() for _, gradient_CD in backend.row_gradients(store, batch, 0.15, update=False))
