"""Triton kernels of the second pass: a block of rows stays with its program, which gathers its gradient in registers and steps at once.

Suffixes and EMULATED as in triton_scan_kernels.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trainer.classifier.triton_scan_kernels import EPS, as_operand


@triton.jit
def _mix(x):
    """rounding._mix, on uint32."""
    x ^= x >> 16
    x *= 0x85EBCA6B
    x ^= x >> 13
    x *= 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def noise_bits(row_C, column_D, step):
    """rounding.Noise: 16 bits for each row's element and, above them, 16 for its momentum's. `row_C`: global class ids, int64."""
    row_C = _mix(_mix(row_C.to(tl.uint32)) + step.to(tl.uint32))
    return _mix(row_C[:, None] + _mix((column_D + 1).to(tl.uint32))[None, :])


@triton.jit
def round_stochastically(value, DTYPE: tl.constexpr, noise):
    """rounding.round_stochastically: fp32 `value` in DTYPE, one of its two neighbours; fp32 stays. `noise`: uint32 under 2^16."""
    bits = value.to(tl.uint32, bitcast=True)
    if DTYPE == tl.bfloat16:
        rounded = ((bits + noise) & 0xFFFF0000).to(tl.float32, bitcast=True)
        value = tl.where(value == value, rounded, value)  # NaN's bits could carry into the sign
    elif DTYPE == tl.float16:
        normal = ((bits + (noise >> 3)) & 0xFFFFE000).to(tl.float32, bitcast=True)
        # Below 2^-14 the neighbours of fp16 are 2^-24 apart.
        scaled = value * 16777216.0
        whole = tl.floor(scaled)
        small = (whole + tl.floor(scaled - whole + noise.to(tl.float32) * 0.0000152587890625)) * 5.9604644775390625e-08
        rounded = tl.where(tl.abs(value) < 6.103515625e-05, small, normal)
        value = tl.where(value == value, rounded, value)
    return value.to(DTYPE)


@triton.jit(do_not_specialize=["count", "first", "start", "num_tiles", "step"])
def rows_kernel(
    rows_CD,
    momentum_CD,
    gradient_CD,
    x_BP,
    x32_BP,
    shift_B,
    apart_B,
    gain_1,
    offset_G,
    class_T,
    sample_T,
    value_T,
    count,
    first,
    start,
    num_tiles,
    scale,
    learning_rate,
    momentum_factor,
    weight_decay,
    step,
    D,
    P: tl.constexpr,
    CLASSES: tl.constexpr,
    SAMPLES: tl.constexpr,
    PAIRS: tl.constexpr,
    UPDATE: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """The gradient of CLASSES rows, written to `gradient_CD` or, with UPDATE, applied to rows and momentum in place.

    The tensors [C, D] are the `count` rows from row `first` of the shard (a multiple of CLASSES), which begins at class `start`.
    gradient of w_hat_j = gain * (sum_b exp2(scale s_bj + shift_b) x_b, without the class `apart_B` of each sample,
    + the values of the pairs of j times their x_b).
    """
    block = tl.program_id(0)
    c = block * CLASSES + tl.arange(0, CLASSES)
    class_C = first + c
    d = tl.arange(0, P)
    there = (c < count)[:, None] & (d < D)[None, :]
    at = c.to(tl.int64)[:, None] * D + d[None, :]
    row = tl.load(rows_CD + at, there, 0.0).to(tl.float32)
    norm = tl.where(c < count, tl.maximum(tl.sqrt(tl.sum(row * row, 1)), EPS), 1.0)
    w = as_operand(row / norm[:, None], DTYPE, EMULATED)

    gradient = tl.zeros([CLASSES, P], tl.float32)
    for tile in range(num_tiles):
        b = tile * SAMPLES + tl.arange(0, SAMPLES)
        x = tl.load(x_BP + b[:, None] * P + d[None, :])
        shift, apart = tl.load(shift_B + b), tl.load(apart_B + b)
        score = tl.dot(w, tl.trans(x), input_precision=PRECISION)
        error = tl.exp2(score * scale + shift[None, :])
        error = tl.where(class_C[:, None] == apart[None, :], 0.0, error)
        gradient = tl.dot(as_operand(error, DTYPE, EMULATED), x, gradient, input_precision=PRECISION)

    group = first // CLASSES + block
    for t0 in tl.range(tl.load(offset_G + group), tl.load(offset_G + group + 1), PAIRS, num_stages=1):
        t = t0 + tl.arange(0, PAIRS)
        mine = t < tl.load(offset_G + group + 1)
        of_class, b = tl.load(class_T + t, mine, -1), tl.load(sample_T + t, mine, 0)
        value = tl.load(value_T + t, mine, 0.0)
        x32 = tl.load(x32_BP + b[:, None] * P + d[None, :])
        entry = tl.where(class_C[:, None] == of_class[None, :], value[None, :], 0.0)
        gradient = tl.dot(entry, x32, gradient, input_precision="ieee")

    # Through w_hat = w / |w|: only what is orthogonal to the row moves it. The row is read again, registers are short.
    row = tl.load(rows_CD + at, there, 0.0).to(tl.float32)
    w_hat = row / norm[:, None]
    gradient *= tl.load(gain_1)
    gradient = (gradient - tl.sum(gradient * w_hat, 1)[:, None] * w_hat) / norm[:, None]
    if UPDATE:
        momentum = tl.load(momentum_CD + at, there, 0.0).to(tl.float32)
        momentum = momentum_factor * momentum + gradient + weight_decay * row
        row -= learning_rate * momentum
        bits = noise_bits(start + class_C.to(tl.int64), d, step)
        tl.store(rows_CD + at, round_stochastically(row, rows_CD.dtype.element_ty, bits & 0xFFFF), there)
        tl.store(momentum_CD + at, round_stochastically(momentum, momentum_CD.dtype.element_ty, bits >> 16), there)
    else:
        tl.store(gradient_CD + at, gradient, there)
