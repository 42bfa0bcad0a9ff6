"""Stochastic rounding: which numbers come out, their mean, and what the noise depends on."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from trainer.classifier.rounding import Noise, round_stochastically

HALVES = [torch.bfloat16, torch.float16]
EVERY_NOISE = torch.arange(2**16, dtype=torch.int32)


def all_numbers(dtype: torch.dtype) -> Tensor:
    """All finite numbers of 16 bits, ascending, in float64; 0 once."""
    values = torch.arange(2**16).to(torch.int16).view(dtype).double()
    return values[values.isfinite()].unique()


def neighbours(value: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The greatest number of `dtype` that is not above `value`, and the least that is not below; twice itself if it is one."""
    numbers = all_numbers(dtype)
    value = value.double()
    return numbers[torch.searchsorted(numbers, value, right=True) - 1], numbers[torch.searchsorted(numbers, value)]


def examples() -> Tensor:
    """Of each magnitude from 2^-30 on some, of both signs, representable ones among them; below 2^-14 fp16 is subnormal."""
    g = torch.Generator().manual_seed(0)
    value = torch.cat([(1 + torch.rand(40, generator=g)) * 2.0**exponent for exponent in range(-30, 4)])
    exact = torch.cat([value.half().float(), value.bfloat16().float(), torch.tensor([0.0, 2.0**-14, 2.0**-24, 1.0])])
    return torch.cat([value, exact, -value, -exact])


@pytest.mark.parametrize("dtype", HALVES)
def test_a_number_becomes_one_of_its_two_neighbours_and_a_representable_one_stays(dtype: torch.dtype) -> None:
    """For the least, the greatest and other noise."""
    value = examples()
    low, high = neighbours(value, dtype)
    g = torch.Generator().manual_seed(1)
    noises = [torch.full(value.shape, noise, dtype=torch.int32) for noise in (0, 1, 7, 8, 32768, 65528, 65534, 65535)]
    noises += [torch.randint(2**16, value.shape, generator=g, dtype=torch.int32) for _ in range(20)]
    for noise in noises:
        rounded = round_stochastically(value, dtype, noise)
        assert rounded.dtype == dtype
        assert ((rounded.double() == low) | (rounded.double() == high)).all()


@settings(max_examples=100, deadline=None)
@given(value=st.floats(-8.0, 8.0, width=32), dtype=st.sampled_from(HALVES))
def test_the_mean_over_all_noise_is_the_value(value: float, dtype: torch.dtype) -> None:
    """Up to what 16 bits of noise resolve, 2^-16 of the distance between the neighbours (13 bits are all that fp32 has below fp16's)."""
    if abs(value) < torch.finfo(torch.float32).tiny:
        value = 0.0  # fp32's subnormals are flushed or not as the processor is set
    rounded = round_stochastically(torch.full(EVERY_NOISE.shape, value), dtype, EVERY_NOISE).double()
    low, high = (number.item() for number in neighbours(torch.tensor([value]), dtype))
    assert {low, high} >= set(rounded.unique().tolist())
    assert abs(rounded.mean().item() - value) <= 2.0**-16 * (high - low)


def test_the_noise_of_an_element_depends_on_class_column_and_step_alone() -> None:
    """However the classes are cut into shards and chunks, each has the same noise; also beyond 2^31 classes."""
    for first in (0, 123_456, 2**31 - 50, 2**32 - 101):
        whole = [Noise(first, 9).of(torch.empty(101, 16), which) for which in (0, 1)]
        for size in (1, 7, 100):
            for at in range(0, 101, size):
                part_CD = torch.empty(min(size, 101 - at), 16)
                noise = Noise(first + at, 9)
                for which in (1, 0):
                    assert torch.equal(noise.of(part_CD, which), whole[which][at : at + size])


def noise_of(steps: range, first: int = 0, rows: int = 512, columns: int = 64) -> Tensor:
    """[steps, 2, rows, columns]: for rows and for momentum."""
    value_CD = torch.empty(rows, columns)
    return torch.stack([torch.stack([Noise(first, step).of(value_CD, which) for which in (0, 1)]) for step in steps])


@pytest.mark.parametrize("first", [0, 99_999_488])
def test_the_noise_is_uniform(first: int) -> None:
    """Its high and its low byte by chi-square with 255 degrees of freedom, within 5 standard deviations; over rows, columns and steps."""
    noise = noise_of(range(16), first)
    assert noise.min() >= 0
    assert noise.max() < 2**16
    for part in (noise[:, 0], noise[:, 1], noise[:, :, 0], noise[..., 0], noise[0]):
        for byte in (part >> 8, part & 0xFF):
            count = torch.bincount(byte.flatten(), minlength=256).double()
            expected = count.sum() / 256
            chi_square = ((count - expected) ** 2 / expected).sum().item()
            assert abs(chi_square - 255) < 5 * (2 * 255) ** 0.5


def test_the_noises_of_rows_columns_steps_and_momentum_are_not_correlated() -> None:
    """Neighbours in any of the four, and every bit with its like: within 5 standard deviations of chance."""
    noise = noise_of(range(16))
    pairs = {
        "steps": (noise[1:], noise[:-1]),
        "rows and momentum": (noise[:, 0], noise[:, 1]),
        "rows": (noise[..., 1:, :], noise[..., :-1, :]),
        "columns": (noise[..., 1:], noise[..., :-1]),
        "a row's columns and the next step's": (noise[1:, ..., 1:], noise[:-1, ..., :-1]),
    }
    for name, (a, b) in pairs.items():
        bound = 5 / a.numel() ** 0.5
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1].item()) < bound, name
        for bit in range(16):
            agree = ((a ^ b) >> bit & 1).double().mean().item()
            assert abs(2 * agree - 1) < bound, (name, bit)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_no_number_stays_none_and_infinity_stays_infinite(dtype: torch.dtype) -> None:
    """Also NaN with all its bits set, as GPUs have it, whatever the noise is: a broken row must not become one of zeros."""
    bits = torch.tensor([0x7FFF_FFFF, -1, 0x7FC0_0000, 0x7F80_0000, -0x80_0000], dtype=torch.int32)
    for noise in (0, 1, 0x8000, 0xFFFF):
        rounded = round_stochastically(bits.view(torch.float32), dtype, torch.full((5,), noise, dtype=torch.int32))
        assert rounded.isnan().tolist() == [True, True, True, False, False]
        assert rounded[3:].tolist() == [torch.inf, -torch.inf]
