"""Matrix products of the classifier in the precisions that a device is good at.

A `Products` multiplies a chunk's unit rows with the features, and the exponentials of their scores with either. Scores come multiplied
by log2(e) / tau, for exp2: on a CPU it is three times as fast as exp, and on a GPU it is what exp is made of.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


class Fp32:
    """fp32 throughout."""

    name = "fp32"
    score_dtype = torch.float32
    is_rounded = False
    """Whether factors have fewer bits than fp32."""
    shift: float | None = None
    """None: exp(cos / tau) is taken as it is. Else exponentials are shifted, so that the greatest of each sample is 2^shift."""

    def slack(self, embedding_size: int) -> float:
        """How far a score (a cosine) can be from the exact one."""
        return (embedding_size + 8) * 2.0**-24

    def operand(self, value: Tensor) -> Tensor:
        """`value` (fp32) as the products take it."""
        return value

    def exponentials(self, exp_CB: Tensor) -> Tensor:
        """Exponentials (of score_dtype) as the products take them."""
        return exp_CB

    def mm(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        """a @ b, in `out`, of score_dtype."""
        return torch.mm(a, b, out=out)

    def add_mm(self, total: Tensor, a: Tensor, b: Tensor) -> None:
        """total + a @ b in place, fp32."""
        total.addmm_(a, b)

    def set_mm(self, total: Tensor, a: Tensor, b: Tensor) -> None:
        """a @ b in `total`, fp32."""
        torch.mm(a, b, out=total)

    @contextlib.contextmanager
    def kernels(self) -> Iterator[None]:
        """The library's settings while a pass runs."""
        yield


class OneDnnFp32(Fp32):
    """fp32 with oneDNN's kernels in the place of MKL's: about a tenth faster on the AMD processors that we measured (LOG.md).

    PyTorch takes them where it is told that bf16 inside fp32 products is allowed; on a processor without matrix units oneDNN makes no
    use of the permission. `is_exact` asks rather than assumes.
    """

    @contextlib.contextmanager
    def kernels(self) -> Iterator[None]:
        settings = torch.backends.mkldnn.matmul
        before = settings.fp32_precision
        settings.fp32_precision = "bf16"
        try:
            yield
        finally:
            settings.fp32_precision = before

    def is_exact(self, chunk_size: int, samples: int, embedding_size: int) -> bool:
        """Whether products of these shapes are as exact here as fp32's."""
        if not hasattr(torch.backends.mkldnn, "matmul"):
            return False
        generator = torch.Generator().manual_seed(0)
        w_CD, x_DB = (torch.rand(shape, generator=generator) for shape in ((chunk_size, embedding_size), (embedding_size, samples)))
        e_CB = torch.rand(chunk_size, samples, generator=generator)
        with self.kernels():
            pairs = [(w_CD, x_DB), (e_CB, x_DB.T), (e_CB.T, w_CD)]
            errors = [((a @ b).double() / (a.double() @ b.double()) - 1).abs().max().item() for a, b in pairs]
        return max(errors) < 1e-5


class CpuBf16(Fp32):
    """bf16 throughout, sums inside a product in fp32: what a CPU's bf16 products give."""

    name = "bf16"
    score_dtype = torch.bfloat16
    is_rounded = True

    def slack(self, embedding_size: int) -> float:
        return 1.5 * 2.0**-7 + super().slack(embedding_size)  # both factors and the result are rounded, each by 2^-8 of itself

    def operand(self, value: Tensor) -> Tensor:
        return value.bfloat16()

    def add_mm(self, total: Tensor, a: Tensor, b: Tensor) -> None:
        total.add_(a @ b)

    def set_mm(self, total: Tensor, a: Tensor, b: Tensor) -> None:
        total.copy_(a @ b)


class HalfIn(Fp32):
    """Factors in fp16 or bf16, results in fp32: tensor cores without Triton (on a V100, fp16).

    fp16 has no exponent to spare: exponentials are shifted so that the greatest is 2^15, the least that is not 0 then 2^-24.
    """

    is_rounded = True

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.name = {torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
        self.shift = 15.0 if dtype == torch.float16 else None

    def slack(self, embedding_size: int) -> float:
        return torch.finfo(self.dtype).eps + super().slack(embedding_size)

    def operand(self, value: Tensor) -> Tensor:
        return value.to(self.dtype)

    exponentials = operand

    def mm(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)

    def add_mm(self, total: Tensor, a: Tensor, b: Tensor) -> None:
        total.add_(torch.mm(a, b, out_dtype=torch.float32))

    def set_mm(self, total: Tensor, a: Tensor, b: Tensor) -> None:
        torch.mm(a, b, out_dtype=torch.float32, out=total)


class HalfInEmulated(HalfIn):
    """The numbers of HalfIn on a CPU, where a product of halves is exact in fp32. For tests and for studies of its rounding."""

    def operand(self, value: Tensor) -> Tensor:
        return value.to(self.dtype).float()

    exponentials = operand
    mm, add_mm, set_mm = Fp32.mm, Fp32.add_mm, Fp32.set_mm
