"""Stochastic rounding to 16 bits: up with the probability that makes the expectation exact.

The noise is a function of the class, the column and the step alone: another number of ranks, another backend or a resumed run rounds
alike.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _mix(x: Tensor) -> Tensor:
    """32 bits well mixed (the finaliser of MurmurHash3), int32 in, int32 out; products wrap."""
    x = x ^ (x >> 16 & 0xFFFF)
    x = x * -2048144789  # 0x85ebca6b
    x ^= x >> 13 & 0x7_FFFF
    x *= -1028477387  # 0xc2b2ae35
    return x ^ (x >> 16 & 0xFFFF)


class Noise:
    """16 random bits for each element of the rows first .. of the classifier, and other 16 for each of their momentum."""

    def __init__(self, first: int, step: int) -> None:
        self.first, self.step = first, step
        self._bits: Tensor | None = None

    def of(self, value_CD: Tensor, which: int) -> Tensor:
        """[C, D] int32 in 0 .. 65535; `which`: 0 for rows, 1 for momentum."""
        if self._bits is None:
            C, D = value_CD.shape
            row_C = torch.arange(self.first, self.first + C, device=value_CD.device).to(torch.int32)
            row_C = _mix(_mix(row_C) + self.step % 2**31)
            column_D = _mix(torch.arange(1, D + 1, dtype=torch.int32, device=value_CD.device))
            self._bits = _mix(row_C[:, None] + column_D)
        return (self._bits >> (16 * which)) & 0xFFFF


def round_stochastically(value: Tensor, dtype: torch.dtype, noise: Tensor) -> Tensor:
    """`value` (fp32) in `dtype` (bf16 or fp16): one of its two neighbours. `noise`: 16 uniform bits for each element."""
    bits = value.contiguous().view(torch.int32)
    if dtype == torch.bfloat16:
        rounded = ((bits + noise) & -0x1_0000).view(torch.float32)
        return torch.where(value.isnan(), value, rounded).to(dtype)  # NaN's bits could carry into the sign
    assert dtype == torch.float16, dtype
    normal = ((bits + (noise >> 3)) & -0x2000).view(torch.float32)
    # Below 2^-14 the neighbours of fp16 are 2^-24 apart. The noise is added to the fraction alone: a sum with the whole would be rounded.
    scaled = value * 2.0**24
    whole = scaled.floor()
    small = (whole + (scaled.sub_(whole) + noise * 2.0**-16).floor_()) * 2.0**-24
    rounded = torch.where(value.abs() < 2.0**-14, small, normal)
    return torch.where(value.isnan(), value, rounded).to(dtype)
