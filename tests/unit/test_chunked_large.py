"""Indices beyond 2^31, where 32 bits would end. 10 GB of memory, so that it runs on demand only."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F

from tests.unit.test_chunked import second_pass
from trainer.classifier.build import random_rows
from trainer.classifier.chunked import ChunkedBackend
from trainer.classifier.products import Fp32
from trainer.classifier.store import SGD, RowStore
from trainer.classifier.topk import key_classes


@pytest.mark.skipif(not os.environ.get("MILLIONWAY_LARGE_TESTS"), reason="10 GB of memory: MILLIONWAY_LARGE_TESTS=1")
def test_classes_beyond_the_element_2_to_the_31_are_found_and_updated() -> None:
    """2.2e9 elements of bf16 rows, copies of one block but for some: hardest classes, partition and touched rows against float64."""
    block, copies, d, samples, k, tau = 65_536, 260, 128, 8, 4, 0.1
    g = torch.Generator().manual_seed(9)  # not the rows' stream
    some_CD = random_rows(0, block, d, seed=0).bfloat16()
    rows_nD = some_CD.repeat(copies, 1)
    x_BD = F.normalize(torch.randn(samples, d, generator=g), dim=1)
    own_B = len(rows_nD) - 1 - 5000 * torch.arange(samples)
    near_Bk = own_B[:, None] - 1 - torch.arange(k)  # each sample's hardest, the nearest first
    assert near_Bk.min() * d > 2**31
    for j in range(k):
        rows_nD[near_Bk[:, j]] = (x_BD * (1 - 0.2 * j) + 0.05 * torch.randn(samples, d, generator=g)).bfloat16()
    changed = torch.cat([own_B, near_Bk.flatten()])
    store = RowStore(0, rows_nD, torch.zeros(rows_nD.shape, dtype=torch.bfloat16))
    backend = ChunkedBackend(Fp32(), 4096, 128)
    scan = backend.scan(store, x_BD, own_B, k, tau)

    x64_BD, w_TD = x_BD.double(), F.normalize(rows_nD[changed].double(), dim=1)
    exp_CB = (F.normalize(some_CD.double(), dim=1) @ x64_BD.T / tau).exp()
    partition_B = exp_CB.sum(0) * copies - exp_CB[changed % block].sum(0) + (w_TD @ x64_BD.T / tau).exp().sum(0)
    torch.testing.assert_close(scan.partition_B, partition_B, rtol=1e-5, atol=0)
    score_TB = w_TD @ x64_BD.T
    near_score_Bk = score_TB[samples:].view(samples, k, samples).diagonal(dim1=0, dim2=2).T
    expected_Bk = near_Bk.gather(1, near_score_Bk.argsort(1, descending=True))
    assert torch.equal(key_classes(scan.key_BK), expected_Bk)

    before_TD = rows_nD[changed].double()
    backend.update(store, second_pass(store, x_BD, own_B, scan), tau, SGD(1.0, 0.9, 0.0, 1))
    error_TB = (score_TB / tau).exp() / partition_B
    error_TB[:samples] -= torch.eye(samples, dtype=torch.float64)
    gradient_TD = error_TB @ x64_BD / tau / samples
    gradient_TD -= (gradient_TD * w_TD).sum(1, keepdim=True) * w_TD
    gradient_TD /= before_TD.norm(dim=1, keepdim=True)
    for kept_nD, exact_TD in ((store.momentum_nD, gradient_TD), (store.rows_nD, before_TD - gradient_TD)):
        error_TD = (kept_nD[changed].double() - exact_TD).abs()
        assert (error_TD <= exact_TD.abs() * 2.0**-7 + 1e-6).all()  # to a neighbour in bf16
    assert (store.rows_nD[own_B].double() - before_TD[:samples]).abs().amax(1).min() > 1e-3
