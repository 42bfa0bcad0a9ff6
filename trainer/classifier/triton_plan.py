"""What the Triton kernels are launched with: shapes of tiles, and operands of a precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton.language as tl
from torch import Tensor

from trainer.classifier.products import Fp32, HalfIn

SMALLEST, LARGEST = 16, 256
"""Embedding sizes: multiples of the smallest up to the largest."""
PRODUCTS = {"fp32": Fp32(), "bf16": HalfIn(torch.bfloat16), "fp16": HalfIn(torch.float16)}
TRITON_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclass(frozen=True)
class Config:
    """Samples and classes of a tile, warps of a program, stages of its pipeline."""

    samples: int
    classes: int
    warps: int
    stages: int


# Untuned, no card has measured them. As compiled for sm_80 and sm_90 the second pass spills up to 1 KB, nearly all outside its loop.
# By (operands in 16 bits?, embedding over 128?): first pass, second pass.
CONFIGS = {
    (True, False): (Config(128, 64, 8, 3), Config(64, 128, 8, 3)),
    (True, True): (Config(64, 64, 8, 2), Config(64, 64, 8, 2)),
    (False, False): (Config(64, 32, 8, 2), Config(32, 64, 8, 2)),
    (False, True): (Config(32, 32, 8, 2), Config(16, 32, 8, 2)),
}


class Operands:
    """Of both passes in a precision. `emulated`: for Triton's interpreter (triton_scan_kernels.py)."""

    def __init__(self, precision: str, emulated: bool) -> None:
        products = PRODUCTS[precision]
        self.slack, self.shift = products.slack, products.shift or 0.0
        self.rounded_to = products.dtype if isinstance(products, HalfIn) else torch.float32
        self.dtype = torch.float32 if emulated else self.rounded_to
        self.rounding = {"DTYPE": TRITON_TYPES[self.rounded_to], "EMULATED": emulated}
        self.products = {**self.rounding, "PRECISION": "ieee"}  # of products of fp32, not of the others

    def configs(self, embedding_size: int) -> tuple[Config, Config]:
        """Of the first and of the second pass."""
        assert is_supported(embedding_size), embedding_size
        return CONFIGS[self.rounded_to != torch.float32, embedding_size > 128]

    def of(self, value_BD: Tensor) -> Tensor:
        """fp32 values as the products take them."""
        return value_BD.to(self.rounded_to).to(self.dtype)


def is_supported(embedding_size: int) -> bool:
    return SMALLEST <= embedding_size <= LARGEST and embedding_size % SMALLEST == 0


def padded(value_BD: Tensor, samples: int) -> Tensor:
    """[B, D] with zeros: whole tiles of samples, and columns to a power of two, as the kernels want them."""
    B, D = value_BD.shape
    return F.pad(value_BD, (0, (1 << (D - 1).bit_length()) - D, 0, -B % samples))


def num_processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
