"""The check that decides whether a fused backend is used: it lets right ones pass, and names what a wrong one gets wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from trainer.classifier.backend import Scan
from trainer.classifier.chunked import ChunkedBackend
from trainer.classifier.products import Fp32, HalfInEmulated
from trainer.classifier.store import SGD, Chunk, RowStore
from trainer.classifier.triton_check import disagreement

D, CPU = 32, torch.device("cpu")


class Wrong(ChunkedBackend):
    """Right but for what `spoil` does to the first pass, or `update` to the second."""

    def __init__(self, spoil: Callable[[Scan], object] = lambda found: None, keeps_noise: bool = True) -> None:
        super().__init__(Fp32(), 128, 64)
        self._spoil, self._keeps_noise = spoil, keeps_noise

    def scan(self, store: RowStore, x_BD: torch.Tensor, own_B: torch.Tensor, k: int, temperature: float) -> Scan:
        found = super().scan(store, x_BD, own_B, k, temperature)
        self._spoil(found)
        return found

    def update(self, store, batch, temperature, sgd) -> None:
        other_noise = SGD(sgd.learning_rate, sgd.momentum, sgd.weight_decay, sgd.step + 1)
        super().update(store, batch, temperature, sgd if self._keeps_noise else other_noise)


class Scaled(ChunkedBackend):
    """Its rows' gradient is too long by a twentieth of a percent."""

    def row_gradients(self, store, batch, temperature, *, update):
        chunk: Chunk
        for chunk, gradient_CD in super().row_gradients(store, batch, temperature, update=update):
            yield chunk, gradient_CD * 1.0005


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_backend_that_is_right_within_its_precision_passes(precision: str) -> None:
    """Other chunks, and products rounded to 16 bits, are no disagreement."""
    products = {"fp32": Fp32(), "bf16": HalfInEmulated(torch.bfloat16), "fp16": HalfInEmulated(torch.float16)}[precision]
    assert disagreement(ChunkedBackend(products, 128, 64), precision, D, CPU) is None


@pytest.mark.parametrize(
    ("backend", "names"),
    [
        (Wrong(lambda found: found.partition_B.mul_(1.0001)), "partition sum"),
        (Wrong(lambda found: found.pull_BD[3].fill_(torch.nan)), "the same twice"),
        (Wrong(lambda found: found.pull_BD[3].add_(0.1)), "pull"),
        (Wrong(lambda found: found.key_BK.copy_(found.key_BK.roll(1, 0))), "hardest scores"),
        (Scaled(Fp32(), 128, 64), "rows' gradient"),
        (Wrong(keeps_noise=False), "not rounded alike"),
    ],
)
def test_what_is_wrong_is_named(backend: ChunkedBackend, names: str) -> None:
    """Each of the compared tensors, one not a number, and another noise."""
    assert names in (disagreement(backend, "fp32", D, CPU) or "")
