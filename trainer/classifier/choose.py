"""Which backend computes on which device, and why."""

from __future__ import annotations

import importlib.util
import logging
from typing import Literal

import torch

from service.sizing import CPU_CHUNK, CPU_TILE, gpu_chunk
from trainer.classifier.backend import Backend
from trainer.classifier.chunked import ChunkedBackend
from trainer.classifier.products import CpuBf16, Fp32, HalfIn, OneDnnFp32

Precision = Literal["fp32", "bf16", "fp16"]
log = logging.getLogger(__name__)


def choose_backend(device: torch.device, precision: Precision, samples: int, embedding_size: int, chunk_size: int | None = None) -> Backend:
    """For steps of at most `samples` samples. `chunk_size`: classes whose scores exist at a time; None leaves it to us. Logs the choice."""
    backend, reason = _choose(device, precision, samples, embedding_size, chunk_size)
    log.info("classifier: %s: %s", backend.name, reason)
    return backend


def _choose(device: torch.device, precision: Precision, samples: int, embedding_size: int, chunk_size: int | None) -> tuple[Backend, str]:
    if device.type == "cpu":
        products, reason = cpu_products(precision, embedding_size)
        return ChunkedBackend(products, chunk_size or CPU_CHUNK, CPU_TILE), reason
    fused, why = _triton(device, precision, embedding_size, chunk_size)
    if fused is not None:
        return fused, why
    products, reason = _eager_gpu_products(precision)
    reason = f"{reason} ({why})"
    size = chunk_size or gpu_chunk(samples, embedding_size)
    return ChunkedBackend(products, size, max(1, samples)), reason


def cpu_products(precision: Precision, embedding_size: int) -> tuple[Fp32, str]:
    if precision == "bf16" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return CpuBf16(), "this CPU multiplies bf16"
    why = {"fp32": "", "bf16": "this CPU has no bf16 products; ", "fp16": "fp16 products are slower than fp32's on a CPU; "}[precision]
    fast = OneDnnFp32()
    if fast.is_exact(CPU_CHUNK, CPU_TILE, embedding_size):
        return fast, f"{why}fp32 by oneDNN, found exact here"
    return Fp32(), f"{why}fp32"


def _triton(device: torch.device, precision: Precision, embedding_size: int, chunk_size: int | None) -> tuple[Backend | None, str]:
    """The fused kernels, if they can be had and were found right on this card; and why, or why not."""
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return None, f"no Triton: its products want sm_80, this is sm_{major}{minor}"
    if precision == "fp32":
        return None, "no Triton: it multiplies fp32 without tensor cores"
    if importlib.util.find_spec("triton") is None:
        return None, "no Triton: it is not installed"
    try:
        from trainer.classifier.triton_backend import TritonBackend
        from trainer.classifier.triton_check import disagreement
        from trainer.classifier.triton_plan import LARGEST, SMALLEST, is_supported

        if not is_supported(embedding_size):
            return None, f"no Triton: embedding size {embedding_size} is no multiple of {SMALLEST} up to {LARGEST}"
        backend = TritonBackend(precision, chunk_size)
        wrong = disagreement(backend, precision, embedding_size, device)
    except Exception as error:  # whatever a compiler raises: the run goes on without it
        return None, f"no Triton: {type(error).__name__}: {error}"
    if wrong:
        return None, f"no Triton: its kernels were wrong in the check: {wrong}"
    return backend, f"{torch.cuda.get_device_name(device)} (sm_{major}{minor}), kernels checked against the chunked backend"


def _eager_gpu_products(precision: Precision) -> tuple[Fp32, str]:
    capability = torch.cuda.get_device_capability()
    name = f"{torch.cuda.get_device_name()} (sm_{capability[0]}{capability[1]})"
    if precision == "fp32":
        return Fp32(), f"fp32 on {name}"
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return Fp32(), f"{name} has no bf16 products; fp32"
    try:
        one = torch.ones(16, 16, dtype=torch.float16, device="cuda")
        torch.mm(one, one.T, out_dtype=torch.float32, out=torch.empty(16, 16, device="cuda"))
    except (RuntimeError, TypeError):
        return Fp32(), f"PyTorch {torch.__version__} has no products of halves with fp32 results; fp32"
    return HalfIn({"bf16": torch.bfloat16, "fp16": torch.float16}[precision]), f"{precision} products with fp32 results on {name}"
