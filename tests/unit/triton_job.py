"""What the Triton backend computes, in a process of its own: Triton reads TRITON_INTERPRET when it is imported.

python -m tests.unit.triton_job interpreter|cuda|compile RESULTS
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from trainer.classifier.backend import Backend, SecondPass
from trainer.classifier.build import random_rows
from trainer.classifier.chunked import ChunkedBackend
from trainer.classifier.host_store import HostRowStore
from trainer.classifier.products import Fp32
from trainer.classifier.rounding import Noise, round_stochastically
from trainer.classifier.sharded import ShardedClassifier
from trainer.classifier.store import SGD, RowStore
from trainer.classifier.targets import SoftTargets, TargetPairs, in_order_of_samples, score_pairs
from trainer.classifier.topk import NONE, key_classes, key_scores

PRECISIONS = ("fp32", "bf16", "fp16")
FIRST, SMOOTHING = 3_000_000_000, 0.2  # a shard's first class, beyond 2^31


@dataclass(frozen=True)
class Case:
    classes: int
    samples: int
    embedding: int
    hardest: int
    temperature: float = 0.1
    rows_dtype: torch.dtype = torch.float32
    momentum_dtype: torch.dtype = torch.float32
    on_host: bool = False
    copies: int = 1
    """Classes of one row each."""
    spread: float = 1.0
    """How far rows are from each other; under the products' rounding, only exact scores tell them apart."""


CASES = {
    "uneven": Case(333, 37, 48, 5),
    "unsmoothed": Case(70, 130, 16, 0),
    "low temperature, wide": Case(70, 20, 144, 3, temperature=0.03),
    "ties": Case(150, 9, 16, 7, copies=3),
    "nearer than 16 bits tell": Case(300, 9, 32, 3, spread=1e-3),
    "fewer classes than hardest": Case(3, 5, 16, 5),
    "no classes": Case(0, 4, 16, 2),
    "bf16 rows": Case(90, 20, 32, 4, rows_dtype=torch.bfloat16),
    "fp16 rows and momentum": Case(90, 20, 32, 4, rows_dtype=torch.float16, momentum_dtype=torch.float16),
    "rows on the host": Case(200, 20, 32, 4, rows_dtype=torch.bfloat16, momentum_dtype=torch.bfloat16, on_host=True),
}
CHUNK = 128
STEPS, RATE, MOMENTUM, DECAY = 3, 0.5, 0.9, 1e-2
CLASSES, BATCH, SIZE, TARGETS = 101, 24, 16, SoftTargets(0.15, SMOOTHING, 7)


def problem(case: Case, device: str) -> tuple[RowStore, torch.Tensor, torch.Tensor]:
    """Rows, features and own classes: some of other shards, one twice, one very near to its row; the last sample is padding."""
    generator = torch.Generator().manual_seed(0)
    different = -(-case.classes // case.copies)
    rows_nD = torch.randn(different, case.embedding, generator=generator)
    rows_nD = (rows_nD[:1] * (1 - case.spread) + rows_nD * case.spread).repeat(case.copies, 1)[: case.classes].to(case.rows_dtype)
    momentum_nD = (torch.randn(case.classes, case.embedding, generator=generator) * 1e-2).to(case.momentum_dtype)
    x_BD = F.normalize(torch.randn(case.samples, case.embedding, generator=generator), dim=1)
    own_B = torch.randint(max(1, case.classes), (case.samples,), generator=generator) + FIRST
    own_B[0], own_B[1], own_B[-2] = 7, FIRST + case.classes, own_B[-3]
    if case.classes:
        x_BD[2] = F.normalize(rows_nD[own_B[2] - FIRST].float() + 0.1 * x_BD[2], dim=0)
    x_BD[-1], own_B[-1] = 0.0, -1
    if case.on_host:
        return HostRowStore(FIRST, rows_nD, momentum_nD, torch.device(device)), x_BD.to(device), own_B.to(device)
    return RowStore(FIRST, rows_nD.to(device), momentum_nD.to(device)), x_BD.to(device), own_B.to(device)


def passes(backend: Backend, case: Case, device: str) -> dict[str, torch.Tensor]:
    """Both passes; what the second is made of is the chunked backend's in fp32."""
    store, x_BD, own_B = problem(case, device)
    found = backend.scan(store, x_BD, own_B, case.hardest, case.temperature)
    exact = ChunkedBackend(Fp32(), 50, 16).scan(store, x_BD, own_B, case.hardest, case.temperature)
    own_T = ((own_B >= FIRST) & (own_B < FIRST + case.classes)).nonzero()[:, 0]
    class_T = own_B[own_T] - FIRST
    own = TargetPairs(
        own_T, class_T, torch.full(class_T.shape, 1 - SMOOTHING, device=device), score_pairs(store.rows_nD, x_BD, class_T, own_T)
    )
    sample_T, place_T = (exact.key_BK != NONE).nonzero(as_tuple=True)
    key_T = exact.key_BK[sample_T, place_T]
    weight_T = torch.full(key_T.shape, SMOOTHING / max(1, case.hardest), device=device)
    pairs = in_order_of_samples(own, TargetPairs(sample_T, key_classes(key_T) - FIRST, weight_T, key_scores(key_T)))
    # Partition sums over all shards, of which the rest is no greater than this one's.
    batch = SecondPass(x_BD, exact.partition_B + case.samples, (own_B >= 0) / (case.samples - 1), pairs)
    gradients = [gradient_CD.clone() for _, gradient_CD in backend.row_gradients(store, batch, case.temperature, update=False)]
    backend.update(store, batch, case.temperature, SGD(RATE, MOMENTUM, DECAY, 7))
    gradient_nD = torch.cat([*gradients, x_BD.new_empty(0, case.embedding)])
    result = {"partition": found.partition_B, "pull": found.pull_BD, "keys": found.key_BK, "gradient": gradient_nD}
    return {name: value.cpu() for name, value in {**result, "rows": store.rows_nD, "momentum": store.momentum_nD}.items()}


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(BATCH, SIZE, generator=generator), torch.randint(CLASSES, (BATCH,), generator=generator)) for _ in range(STEPS)]


def trained(backend: Backend, device: str) -> dict[str, Any]:
    """Losses, feature gradients and rows of the whole classifier on one rank."""
    classifier = ShardedClassifier(
        CLASSES, SIZE, TARGETS, capacity=BATCH + 3, momentum=MOMENTUM, weight_decay=DECAY, device=device, backend=backend
    )
    classifier.rows_nD.copy_(random_rows(0, CLASSES, SIZE, seed=0))
    losses, gradients = [], []
    for number, (x_BD, instance_B) in enumerate(batches()):
        x_BD = x_BD.to(device).requires_grad_()
        loss = classifier(x_BD, instance_B.to(device))
        loss.backward()
        classifier.step(RATE, number)
        losses.append(loss.item())
        gradients.append(x_BD.grad.cpu())
    return {"losses": losses, "gradients": gradients, "rows": classifier.rows_nD.cpu(), "momentum": classifier.momentum_nD.cpu()}


def values_to_round() -> torch.Tensor:
    """Of all magnitudes that fp16 has, also below its normal numbers, and zeros."""
    generator = torch.Generator().manual_seed(2)
    value_CD = torch.randn(40, 64, generator=generator) * 10.0 ** torch.randint(-9, 4, (40, 64), generator=generator)
    value_CD[0] = 0.0
    return value_CD


def rounded_here(dtype: torch.dtype) -> list[torch.Tensor]:
    """By rounding.py: as rows and as momentum."""
    value_CD = values_to_round()
    noise = Noise(FIRST, 2**31 + 5)
    return [round_stochastically(value_CD, dtype, noise.of(value_CD, which)) for which in (0, 1)]


def rounded_by_triton(dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    from tests.unit.triton_rounding import rounding_kernel

    value_CD = values_to_round().to(device)
    rows_CD, momentum_CD = (torch.empty(value_CD.shape, dtype=dtype, device=device) for _ in range(2))
    rounding_kernel[(1,)](value_CD, rows_CD, momentum_CD, FIRST, (2**31 + 5) % 2**31, C=64, COUNT=len(value_CD), D=value_CD.shape[1])
    return [rows_CD.cpu(), momentum_CD.cpu()]


def main() -> None:
    where, path = sys.argv[1:]
    if where == "compile":
        from tests.unit.triton_compile import compile_all

        torch.save(compile_all(), path)
        return
    from trainer.classifier.triton_backend import TritonBackend

    device, emulated = ("cpu", True) if where == "interpreter" else ("cuda", False)
    results: dict[str, Any] = {}
    for precision in PRECISIONS:
        for name, case in CASES.items():
            results[f"{precision}: {name}"] = passes(TritonBackend(precision, CHUNK, emulated=emulated), case, device)
        results[precision] = trained(TritonBackend(precision, CHUNK, emulated=emulated), device)
    for dtype in (torch.bfloat16, torch.float16):
        results[str(dtype)] = rounded_by_triton(dtype, device)
    torch.save(results, path)


if __name__ == "__main__":
    main()
