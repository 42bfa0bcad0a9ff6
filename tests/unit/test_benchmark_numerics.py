"""The benchmark of the precisions on tiny features: what its variants and its table are."""

from __future__ import annotations

import pytest
import torch

from benchmarks.classifier_numerics import VARIANTS, build, plot, table, train
from benchmarks.numerics_features import Features

N, STEPS = 300, 4
TRAINED = [name for name, variant in VARIANTS.items() if variant.steps is None]


@pytest.fixture(scope="module")
def data() -> Features:
    g = torch.Generator().manual_seed(0)
    plain_NF = torch.randn(N, 24, generator=g)
    view_VNF = plain_NF + 0.3 * torch.randn(2, N, 24, generator=g)
    label_N = torch.arange(N) % 10
    return Features(view_VNF, plain_NF, plain_NF[:50], label_N, label_N[:50])


def test_each_variant_trains_as_it_says(data: Features) -> None:
    """Rows on the host give fp32's numbers to the bit, every other precision other ones that are close; another seed is another run."""
    runs = {name: train(VARIANTS[name], data, STEPS) for name in TRAINED}
    exact = runs["fp32"]
    assert (runs["rows on host"]["losses"], runs["rows on host"]["rows_sum"]) == (exact["losses"], exact["rows_sum"])
    for name in set(TRAINED) - {"fp32", "rows on host"}:
        assert runs[name]["rows_sum"] != exact["rows_sum"], name
        if not name.startswith("fp32"):
            assert runs[name]["losses"] == pytest.approx(exact["losses"], rel=1e-2), name
    lines = table(runs).splitlines()
    assert [line[:30].rstrip() for line in lines[1 : 1 + len(TRAINED)]] == TRAINED
    assert plot(runs).count("<polyline") == len(TRAINED)


def test_rounding_to_the_nearest_is_what_its_name_says() -> None:
    """A step far below the distance between neighbours leaves such rows where they are, and moves some of the stochastically rounded."""
    moved = {}
    for name in ("bf16 rows, nearest", "bf16 rows and momentum"):
        store = build(VARIANTS[name], N).store
        store.rows_nD.fill_(0.7)
        store.put(slice(0, N), store.rows_nD.float() - 1e-5, store.momentum_nD.float(), 1)
        moved[name] = (store.rows_nD != torch.tensor(0.7).bfloat16()).any().item()
    assert moved == {"bf16 rows, nearest": False, "bf16 rows and momentum": True}
