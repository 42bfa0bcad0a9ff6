"""The hardest classes against sorting all scores."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from trainer.classifier.topk import NONE, HardestClasses, key_classes, key_scores, make_keys, merge_keys, move_keys

SCALE = 1.4427 / 0.15
Shape = tuple[int, int]


def random_scores(shape: Shape, g: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=g) * 2 - 1


def few_values(shape: Shape, g: torch.Generator) -> Tensor:
    """Zeros of both signs among them."""
    return torch.randint(-2, 3, shape, generator=g) / 4 * (-1.0) ** torch.randint(2, shape, generator=g)


def duplicated_rows(shape: Shape, g: torch.Generator) -> Tensor:
    return random_scores(shape, g)[torch.randint(shape[0], (shape[0],), generator=g) // 7]


def near_ties(shape: Shape, g: torch.Generator) -> Tensor:
    return 0.5 + torch.randint(-3, 4, shape, generator=g) * 2.0**-24


def all_equal(shape: Shape, g: torch.Generator) -> Tensor:
    return torch.full(shape, -0.25)


def ascending(shape: Shape, g: torch.Generator) -> Tensor:
    return torch.linspace(-1, 1, shape[0])[:, None].expand(shape).contiguous()


KINDS = [random_scores, few_values, duplicated_rows, near_ties, all_equal, ascending]
SLACKS = {torch.float32: 1e-6, torch.bfloat16: 1.5 * 2.0**-7}


def by_sorting(score_NB: Tensor, own_B: Tensor, k: int) -> Tensor:
    """[B, k] classes of the highest scores in float64, the lower class first where they tie; -1 where there are fewer."""
    found_Bk = torch.full((len(own_B), k), -1)
    for sample, own in enumerate(own_B.tolist()):
        if own == -1:
            continue
        order_N = score_NB[:, sample].double().sort(descending=True, stable=True).indices
        order = order_N[order_N != own][:k]
        found_Bk[sample, : len(order)] = order
    return found_Bk


def by_offering(score_NB: Tensor, own_B: Tensor, k: int, chunk_size: int, dtype: torch.dtype, g: torch.Generator) -> Tensor:
    """Keys found from inexact scores of `dtype`, off by up to the slack, in chunks."""
    slack = SLACKS[dtype]
    noise_NB = (torch.rand(score_NB.shape, generator=g) * 2 - 1) * slack * (0.3 if dtype == torch.bfloat16 else 0.7)
    offered_NB = ((score_NB.double() + noise_NB) * SCALE).to(dtype)
    assert (offered_NB.double() / SCALE - score_NB).abs().max() <= slack
    hardest = HardestClasses(own_B, k, lambda class_T, sample_T: score_NB[class_T, sample_T], SCALE, slack)
    for first in range(0, len(score_NB), chunk_size):
        hardest.offer(offered_NB[first : first + chunk_size], first)
    return hardest.keys()


@settings(max_examples=250, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(KINDS),
    num_classes=st.integers(1, 400),
    k=st.integers(1, 60),
    near=st.booleans(),
    chunk_size=st.integers(1, 200),
    dtype=st.sampled_from(list(SLACKS)),
)
def test_the_hardest_classes_are_those_that_sorting_finds(
    seed: int, kind: Callable[[Shape, torch.Generator], Tensor], num_classes: int, k: int, near: bool, chunk_size: int, dtype: torch.dtype
) -> None:
    """In order, ties to the lower class, the own class never among them, nothing for padding, from scores that are off by the slack."""
    g = torch.Generator().manual_seed(seed)
    if near:  # K about N: some, none or all are missing
        k = max(1, num_classes - 2 + seed % 5)
    score_NB = kind((num_classes, 5), g)
    own_B = torch.randint(num_classes, (5,), generator=g)
    own_B[seed % 5] = -1  # padding
    own_B[(seed // 5) % 5] = -2  # the own class is elsewhere
    found_Bk = by_offering(score_NB, own_B, k, chunk_size, dtype, g)
    expected_Bk = by_sorting(score_NB, own_B, k)
    assert torch.equal(key_classes(found_Bk), expected_Bk)
    is_class_Bk = expected_Bk >= 0
    scores = score_NB.T.gather(1, expected_Bk.clamp_min(0))
    assert torch.equal(key_scores(found_Bk), torch.where(is_class_Bk, scores, -torch.inf))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(KINDS), num_shards=st.integers(1, 6), k=st.integers(1, 20))
def test_any_partition_of_the_classes_merges_to_the_same_keys(
    seed: int, kind: Callable[[Shape, torch.Generator], Tensor], num_shards: int, k: int
) -> None:
    """Shards of any sizes, empty ones too, merged in any order and in one or two stages."""
    g = torch.Generator().manual_seed(seed)
    score_NB = kind((120, 3), g)
    own_B = torch.randint(120, (3,), generator=g)
    whole_Bk = by_offering(score_NB, own_B, k, 64, torch.float32, g)
    cuts = [0, *torch.randint(121, (num_shards - 1,), generator=g).sort().values.tolist(), 120]
    parts = []
    for start, stop in itertools.pairwise(cuts):
        local_B = torch.where((own_B >= start) & (own_B < stop), own_B - start, -2)
        parts.append(move_keys(by_offering(score_NB[start:stop], local_B, k, 33, torch.float32, g), start) if stop > start else None)
    keys = [part if part is not None else torch.full((3, k), NONE) for part in parts]
    keys = [keys[i] for i in torch.randperm(len(keys), generator=g).tolist()]
    assert torch.equal(merge_keys(torch.cat(keys, 1), k), whole_Bk)
    half = len(keys) // 2
    halves = [merge_keys(torch.cat(part, 1), k) for part in (keys[:half], keys[half:]) if part]
    assert torch.equal(merge_keys(torch.cat(halves, 1), k), whole_Bk)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1.0, 1.0, width=32), st.integers(0, 2**32 - 1)), min_size=2, max_size=12, unique_by=lambda pair: pair[1])
)
def test_keys_are_ordered_by_score_and_then_by_the_lower_class(pairs: list[tuple[float, int]]) -> None:
    """Over all fp32 scores, denormal ones and both zeros too, and all class ids under 2^32; both are read back."""
    score_T, class_T = torch.tensor([score for score, _ in pairs]), torch.tensor([class_id for _, class_id in pairs])
    key_T = make_keys(score_T, class_T)
    assert (key_T != NONE).all()
    expected = sorted(pairs, key=lambda pair: (-pair[0], pair[1]))
    found_T = key_T.sort(descending=True).values
    assert key_classes(found_T).tolist() == [class_id for _, class_id in expected]
    assert key_scores(found_T).tolist() == [score for score, _ in expected]


def test_a_key_of_no_class_stays_so() -> None:
    """It is lower than any other, has class -1 and score -inf, and does not move with its shard."""
    key = torch.tensor([NONE])
    assert make_keys(torch.tensor([-torch.inf]), torch.tensor([2**32 - 1])).item() > NONE
    assert key_classes(key).item() == -1
    assert key_scores(key).item() == -torch.inf
    assert move_keys(key, 5).item() == NONE
    assert merge_keys(key[None], 3).tolist() == [[NONE] * 3]


@pytest.mark.parametrize("dtype", SLACKS)
def test_few_scores_are_looked_at_closely(dtype: torch.dtype) -> None:
    """Of 20,000 random classes, the exact score is asked for of a few times K, not of all: what makes the search cheap."""
    g = torch.Generator().manual_seed(0)
    score_NB = torch.randn(20_000, 4, generator=g).clamp_(-4, 4) / 4
    asked = 0

    def exact(class_T: Tensor, sample_T: Tensor) -> Tensor:
        nonlocal asked
        asked += len(class_T)
        return score_NB[class_T, sample_T]

    hardest = HardestClasses(torch.full((4,), -2), 10, exact, SCALE, SLACKS[dtype])
    for first in range(0, 20_000, 4096):
        hardest.offer((score_NB[first : first + 4096] * SCALE).to(dtype), first)
    assert torch.equal(key_classes(hardest.keys()), by_sorting(score_NB, torch.full((4,), -2), 10))
    assert asked < 4 * 10 * 20
