"""The Triton backend on Triton's interpreter, and on a GPU where there is one, against the chunked backend and the dense oracle."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit import triton_job
from tests.unit.triton_job import CASES, PRECISIONS
from trainer.classifier.build import random_rows
from trainer.classifier.chunked import ChunkedBackend
from trainer.classifier.oracle import DenseClassifier
from trainer.classifier.products import Fp32

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed: it is for Linux on x86-64")

TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 1e-3}
"""Of a tensor, relative to its largest element. With bf16, a score's error of 2^-9 is an exponential's of 2 % at temperature 0.1."""


def run_job(where: str, directory: Path, timeout: float, **environment: str) -> dict[str, Any]:
    """Results of triton_job.py in a fresh process, whose kernels are not those of another test."""
    results = directory / "results"
    subprocess.run(
        [sys.executable, "-m", "tests.unit.triton_job", where, str(results)],
        env={**os.environ, "TRITON_CACHE_DIR": str(directory), "OMP_NUM_THREADS": "1", **environment},
        cwd=Path(__file__).parents[2],
        check=True,
        timeout=timeout,
    )
    return torch.load(results)


@pytest.fixture(
    scope="module",
    params=[
        "interpreter",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(
                    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="no GPU from sm_80 here"
                ),
            ],
        ),
    ],
)
def computed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the backend computed, on the interpreter or on the GPU."""
    environment = {"TRITON_INTERPRET": "1"} if request.param == "interpreter" else {}
    return run_job(request.param, tmp_path_factory.mktemp("triton"), 600, **environment)


@pytest.mark.parametrize("name", CASES)
def test_both_passes_are_those_of_the_chunked_backend(name: str, computed: dict[str, Any]) -> None:
    """Partition, pull, gradient and updated rows and momentum, for any sizes, storage and precision, within the products' rounding."""
    case = CASES[name]
    expected = triton_job.passes(ChunkedBackend(Fp32(), 50, 16), case, "cpu")
    for precision in PRECISIONS:
        found = computed[f"{precision}: {name}"]
        for what in ("partition", "pull", "gradient", "rows", "momentum"):
            kept_in = {"rows": case.rows_dtype, "momentum": case.momentum_dtype}.get(what, torch.float32)
            # Two fp32 numbers that differ little can be rounded to two neighbours.
            between = 0.0 if kept_in == torch.float32 else torch.finfo(kept_in).eps
            assert found[what].dtype == expected[what].dtype
            assert error(found[what], expected[what]) <= TOLERANCE[precision] + between, (precision, what)


@pytest.mark.parametrize("name", CASES)
def test_the_hardest_classes_are_the_same_keys_in_every_precision(name: str, computed: dict[str, Any]) -> None:
    """Products only select: scores and order are those of the exact scores, ties fall to the lower class."""
    expected = triton_job.passes(ChunkedBackend(Fp32(), 50, 16), CASES[name], "cpu")["keys"]
    for precision in PRECISIONS:
        assert torch.equal(computed[f"{precision}: {name}"]["keys"], expected), precision


def test_rows_in_16_bits_are_rounded_as_elsewhere(computed: dict[str, Any]) -> None:
    """With fp32 products, 99 of 100 updated elements of 16 bits are those of the chunked backend."""
    for name in ("bf16 rows", "fp16 rows and momentum", "rows on the host"):
        expected = triton_job.passes(ChunkedBackend(Fp32(), 50, 16), CASES[name], "cpu")["rows"]
        assert (computed[f"fp32: {name}"]["rows"] == expected).float().mean() > 0.99, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernels_round_bit_by_bit_as_the_host_does(dtype: torch.dtype, computed: dict[str, Any]) -> None:
    """Noise and rounding are those of rounding.py, beyond 2^31 classes and below fp16's normal numbers too."""
    for kernel_CD, host_CD in zip(computed[str(dtype)], triton_job.rounded_here(dtype), strict=True):
        assert torch.equal(kernel_CD, host_CD)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_with_the_kernels_is_that_of_the_dense_classifier(precision: str, computed: dict[str, Any]) -> None:
    """Three steps with hardest classes equal autograd through the dense scores under torch.optim.SGD."""
    found = computed[precision]
    oracle = DenseClassifier(random_rows(0, triton_job.CLASSES, triton_job.SIZE, seed=0), triton_job.TARGETS)
    optimizer = torch.optim.SGD(oracle.parameters(), lr=triton_job.RATE, momentum=triton_job.MOMENTUM, weight_decay=triton_job.DECAY)
    tolerance = 2 * TOLERANCE[precision]
    for step, (x_BD, instance_B) in enumerate(triton_job.batches()):
        x_BD.requires_grad_()
        loss = oracle(x_BD, instance_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert found["losses"][step] == pytest.approx(loss.item(), rel=tolerance)
        assert error(found["gradients"][step], x_BD.grad) <= tolerance
    assert error(found["rows"], oracle.rows_ND.detach()) <= tolerance
    assert error(found["momentum"], optimizer.state[oracle.rows_ND]["momentum_buffer"]) <= tolerance


def test_the_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    """For sm_80 and sm_90, with matrix instructions, in the shared memory that sm_86 has too (99 KB)."""
    for name, found in run_job("compile", tmp_path, 300).items():
        assert found["shared"] <= 99 * 1024, (name, found)
        assert (found["products"] > 0) == name.startswith(("scan", "open", "update", "gradient")), (name, found)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The greatest, relative to the greatest element."""
    assert found.shape == expected.shape
    if not expected.numel():
        return 0.0
    return ((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-30)).item()
