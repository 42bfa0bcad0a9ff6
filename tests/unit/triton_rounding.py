"""A kernel that rounds, and does nothing else."""

from __future__ import annotations

import triton
import triton.language as tl

from trainer.classifier.triton_row_kernels import noise_bits, round_stochastically


@triton.jit
def rounding_kernel(value_CD, rows_CD, momentum_CD, first, step, C: tl.constexpr, COUNT: tl.constexpr, D: tl.constexpr):
    """C, D: powers of two; COUNT rows there are."""
    c, d = tl.arange(0, C), tl.arange(0, D)
    at, there = c[:, None] * D + d[None, :], (c < COUNT)[:, None]
    value = tl.load(value_CD + at, there, 0.0)
    bits = noise_bits(first + c.to(tl.int64), d, step)
    tl.store(rows_CD + at, round_stochastically(value, rows_CD.dtype.element_ty, bits & 0xFFFF), there)
    tl.store(momentum_CD + at, round_stochastically(value, momentum_CD.dtype.element_ty, bits >> 16), there)
