"""Triton kernels of the first pass, which neither reads nor writes the scores: they live in registers.

P as a suffix: padded. Samples are padded to whole tiles (their x is 0) and the embedding to a power of two (columns of 0), so that
no load inside a loop is masked. `EMULATED`: for Triton's interpreter, whose products of bf16 are wrong: operands are then fp32 that
hold rounded values, of which a product is the same.
"""

from __future__ import annotations

import triton
import triton.language as tl

EPS = tl.constexpr(1e-12)
"""Under the norms, as targets.py has it."""


@triton.jit
def as_operand(value, DTYPE: tl.constexpr, EMULATED: tl.constexpr):
    """fp32 `value` as the products take it, rounded to the nearest of DTYPE."""
    if not EMULATED:
        rounded = value.to(DTYPE)
    elif DTYPE == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    else:
        rounded = value.to(DTYPE).to(tl.float32)
    return rounded


@triton.jit
def unit_kernel(rows_CD, unit_CP, count, D, P: tl.constexpr, ROWS: tl.constexpr, DTYPE: tl.constexpr, EMULATED: tl.constexpr):
    """Rows divided by their norms, as operands; 0 beyond `count` rows and beyond D columns."""
    c = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, P)
    there = (c < count)[:, None] & (d < D)[None, :]
    row = tl.load(rows_CD + c[:, None] * D + d[None, :], there, 0.0).to(tl.float32)
    norm = tl.maximum(tl.sqrt(tl.sum(row * row, 1)), EPS)
    tl.store(unit_CP + c[:, None] * P + d[None, :], as_operand(row / norm[:, None], DTYPE, EMULATED))


@triton.jit(do_not_specialize=["first", "count", "num_blocks"])
def scan_kernel(
    x_BP,
    unit_CP,
    own_B,
    partition_SB,
    pull_SBP,
    highest_SB,
    maximum_GB,
    first,
    count,
    num_blocks,
    num_samples,
    scale,
    P: tl.constexpr,
    SAMPLES: tl.constexpr,
    CLASSES: tl.constexpr,
    SHIFT: tl.constexpr,
    MAXIMA: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """One tile of samples x one split of the chunk's blocks of classes: like attention with the rows as keys and as values.

    Without SHIFT: partition = sum_j e_j, pull = sum_j e_j w_j, e_j = exp2(scale s_j). With it, e_j is multiplied by
    2^(SHIFT - highest), highest = max_j scale s_j of the split. The own class takes no part. `maximum_GB`: the highest s of each block.
    """
    tile, split, num_splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    b = tile * SAMPLES + tl.arange(0, SAMPLES)
    d = tl.arange(0, P)
    x = tl.load(x_BP + b[:, None] * P + d[None, :])
    own = tl.load(own_B + b) - first
    partition = tl.zeros([SAMPLES], tl.float32)
    highest = tl.full([SAMPLES], -float("inf"), tl.float32)
    pull = tl.zeros([SAMPLES, P], tl.float32)
    per_split = tl.cdiv(num_blocks, num_splits)
    for block in range(split * per_split, tl.minimum((split + 1) * per_split, num_blocks)):
        c = block * CLASSES + tl.arange(0, CLASSES)
        w = tl.load(unit_CP + c[:, None] * P + d[None, :])
        score = tl.dot(x, tl.trans(w), input_precision=PRECISION)
        score = tl.where((c[None, :] == own[:, None]) | (c[None, :] >= count), -float("inf"), score)
        if MAXIMA or SHIFT > 0:
            maximum = tl.max(score, 1)
        if MAXIMA:
            tl.store(maximum_GB + block * num_samples + b, maximum)
        if SHIFT > 0:
            new = tl.maximum(highest, maximum * scale)
            finite = tl.where(new == -float("inf"), 0.0, new)  # -inf: nothing but the own class yet
            fewer = tl.exp2(highest - finite)
            exponential = tl.exp2(score * scale + (SHIFT - finite)[:, None])
            partition, pull, highest = partition * fewer, pull * fewer[:, None], new
        else:
            exponential = tl.exp2(score * scale)
        partition += tl.sum(exponential, 1)
        pull = tl.dot(as_operand(exponential, DTYPE, EMULATED), w, pull, input_precision=PRECISION)
    out = split * num_samples + b
    tl.store(partition_SB + out, partition)
    tl.store(pull_SBP + out.to(tl.int64)[:, None] * P + d[None, :], pull)
    if SHIFT > 0:
        tl.store(highest_SB + out, highest)


@triton.jit(do_not_specialize=["first", "count"])
def open_kernel(
    x_BP,
    unit_CP,
    own_B,
    offset_G,
    sample_T,
    score_TC,
    first,
    count,
    P: tl.constexpr,
    SAMPLES: tl.constexpr,
    CLASSES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Scores of one block of classes and the samples `sample_T[offset_G[g] : offset_G[g + 1]]`; -inf where there is no other class."""
    group = tl.program_id(0)
    start, stop = tl.load(offset_G + group), tl.load(offset_G + group + 1)
    c = group * CLASSES + tl.arange(0, CLASSES)
    d = tl.arange(0, P)
    if start < stop:
        w = tl.load(unit_CP + c[:, None] * P + d[None, :])
        for at in range(start, stop, SAMPLES):
            t = at + tl.arange(0, SAMPLES)
            b = tl.load(sample_T + t, t < stop, 0)
            x = tl.load(x_BP + b[:, None] * P + d[None, :])
            own = tl.load(own_B + b) - first
            score = tl.dot(x, tl.trans(w), input_precision=PRECISION)
            score = tl.where((c[None, :] == own[:, None]) | (c[None, :] >= count), -float("inf"), score)
            tl.store(score_TC + t.to(tl.int64)[:, None] * CLASSES + tl.arange(0, CLASSES)[None, :], score, (t < stop)[:, None])


@triton.jit(do_not_specialize=["num_pairs"])
def pair_kernel(rows_CD, x_BD, class_T, sample_T, score_T, num_pairs, D, P: tl.constexpr, PAIRS: tl.constexpr):
    """cos(row, x) of unit-norm x, taken in float64 as targets.pair_scores does; the same for a pair wherever it stands."""
    t = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    d = tl.arange(0, P)
    there = (t < num_pairs)[:, None] & (d < D)[None, :]
    c, b = tl.load(class_T + t, t < num_pairs, 0), tl.load(sample_T + t, t < num_pairs, 0)
    row = tl.load(rows_CD + c[:, None] * D + d[None, :], there, 0.0).to(tl.float32).to(tl.float64)
    x = tl.load(x_BD + b[:, None] * D + d[None, :], there, 0.0).to(tl.float64)
    norm = tl.sqrt(tl.sum(row * row, 1))
    norm = tl.where(norm < EPS, EPS, norm)
    tl.store(score_T + t, (tl.sum(row * x, 1) / norm).to(tl.float32), t < num_pairs)
