"""Rows and momentum in any precision and place, updated as torch.optim.SGD updates them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer.classifier.host_store import HostRowStore
from trainer.classifier.store import SGD, RowStore

D = 24
PRECISIONS = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
]


def unit_rows(count: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, D, generator=torch.Generator().manual_seed(seed)), dim=1)


def gradients(count: int, steps: int) -> list[Tensor]:
    return [unit_rows(count, seed=1 + step) * 0.1 for step in range(steps)]


def train(store: RowStore, gradient_SnD: list[Tensor], chunk_size: int, rate: float = 0.1, decay: float = 1e-3) -> RowStore:
    for step, gradient_nD in enumerate(gradient_SnD):
        for chunk in store.read(chunk_size, momentum=True):
            chunk.update(gradient_nD[chunk.at].clone(), SGD(rate, 0.9, decay, step))
    return store


def fresh(rows_nD: Tensor, precision: tuple[torch.dtype, torch.dtype] = PRECISIONS[0], start: int = 0, host: bool = False) -> RowStore:
    rows, momentum = rows_nD.to(precision[0], copy=True), torch.zeros(rows_nD.shape, dtype=precision[1])
    return HostRowStore(start, rows, momentum, torch.device("cpu")) if host else RowStore(start, rows, momentum)


@pytest.mark.parametrize("factor", [0.9, 0.0])
@pytest.mark.parametrize("chunk_size", [1, 7, 64, 1000])
def test_fp32_rows_are_updated_as_by_torch_optim_sgd(chunk_size: int, factor: float) -> None:
    """Rows and momentum to 1 unit in the last place of the greatest of them after five steps, from the first step on, in any chunks."""
    rows_nD = torch.nn.Parameter(unit_rows(101))
    optimizer = torch.optim.SGD([rows_nD], lr=0.1, momentum=factor, weight_decay=1e-3)
    store = fresh(rows_nD.detach())
    for step, gradient_nD in enumerate(gradients(101, 5)):
        rows_nD.grad = gradient_nD.clone()
        optimizer.step()
        for chunk in store.read(chunk_size, momentum=True):
            chunk.update(gradient_nD[chunk.at].clone(), SGD(0.1, factor, 1e-3, step))
        torch.testing.assert_close(store.rows_nD, rows_nD.detach(), atol=2.0**-24, rtol=2.0**-23)
        if not factor:
            continue  # torch keeps no buffer then
        torch.testing.assert_close(store.momentum_nD, optimizer.state[rows_nD]["momentum_buffer"], atol=2.0**-25, rtol=2.0**-23)


def test_chunks_of_fp32_are_views_and_a_pass_without_momentum_changes_nothing() -> None:
    """No copy of what is read in place; a chunk of a first pass cannot be updated."""
    store = fresh(unit_rows(10))
    chunks = [(chunk.at, chunk.rows_CD.data_ptr()) for chunk in store.read(4)]
    assert [at for at, _ in chunks] == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert [pointer for _, pointer in chunks] == [store.rows_nD[at].data_ptr() for at, _ in chunks]
    with pytest.raises(AssertionError):
        next(store.read(4)).update(torch.zeros(4, D), SGD(0.1, 0.9, 0.0, 0))
    assert list(fresh(unit_rows(0)).read(4, momentum=True)) == []


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("chunk_size", [1, 13, 50, 1000])
def test_rows_on_the_host_and_any_chunks_and_shards_give_the_same_bits(precision: tuple[torch.dtype, torch.dtype], chunk_size: int) -> None:
    """After four steps: the rounding's noise is that of the class, wherever it lies and with whichever others it is read."""
    rows_nD, gradient_SnD = unit_rows(101), gradients(101, 4)
    whole = train(fresh(rows_nD, precision), gradient_SnD, 32)
    host = train(fresh(rows_nD, precision, host=True), gradient_SnD, chunk_size)
    shards = [
        train(fresh(rows_nD[at], precision, at.start), [gradient_nD[at] for gradient_nD in gradient_SnD], chunk_size)
        for at in (slice(0, 40), slice(40, 41), slice(41, 101))
    ]
    for name in ("rows_nD", "momentum_nD"):
        expected = getattr(whole, name)
        assert torch.equal(getattr(host, name), expected)
        assert torch.equal(torch.cat([getattr(shard, name) for shard in shards]), expected)


def test_another_step_number_rounds_otherwise() -> None:
    """A run that repeated its noise would round alike in every step."""
    gradient_SnD = gradients(101, 2)
    rows = []
    for number in (3, 4):
        store = fresh(unit_rows(101), PRECISIONS[2])
        for chunk in store.read(50, momentum=True):
            chunk.update(gradient_SnD[0][chunk.at].clone(), SGD(0.1, 0.9, 0.0, number))
        rows.append(store.rows_nD)
    assert (rows[0] != rows[1]).float().mean() > 0.05


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_steps_too_small_for_16_bits_add_up_in_the_mean(precision: tuple[torch.dtype, torch.dtype]) -> None:
    """Steps of 1/50 of the distance between neighbours: rows follow fp32 in the mean; rounding to the nearest would never move."""
    start, spacing = 0.7, torch.finfo(precision[0]).eps / 2
    # The rate of steps with momentum 0.9 is ten times that of the gradient.
    gradient_nD = torch.full((4000, D), spacing / 50 / 10)
    rows_nD = torch.full((4000, D), start).to(precision[0]).float()
    store = train(fresh(rows_nD, precision), [gradient_nD] * 200, 4000, rate=1.0, decay=0.0)
    exact = train(fresh(rows_nD[:1]), [gradient_nD[:1]] * 200, 1, rate=1.0, decay=0.0)
    moved = (exact.rows_nD - rows_nD[:1]).double().mean().item()
    assert moved < -3 * spacing
    one_step = (rows_nD[0, 0] - spacing / 50).to(precision[0])
    assert one_step == rows_nD[0, 0]  # the nearest is where it was
    movement_nD = store.rows_nD.double() - rows_nD.double()
    error = movement_nD.std().item() / (4000 * D) ** 0.5
    assert abs(movement_nD.mean().item() - moved) < 5 * error
    assert error < abs(moved) / 100  # so that the bound says something
    momentum = exact.momentum_nD.double().mean().item()
    assert store.momentum_nD.double().mean().item() == pytest.approx(momentum, rel=1e-3)
