"""Whether the Triton kernels, as compiled here for this card, give the right numbers: asked once, before a run relies on them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.classifier.backend import Backend, SecondPass
from trainer.classifier.chunked import ChunkedBackend
from trainer.classifier.products import Fp32
from trainer.classifier.store import SGD, RowStore
from trainer.classifier.targets import TargetPairs, in_order_of_samples, score_pairs
from trainer.classifier.topk import key_classes, key_scores

CLASSES, SAMPLES, HARDEST, TEMPERATURE, SMOOTHING, FIRST = 1000, 200, 10, 0.1, 0.2, 5000
TOLERANCE = {"fp32": 2e-5, "bf16": 5e-3, "fp16": 1e-3}
"""Of a tensor, relative to its largest element; several times what Triton's interpreter gives."""


def disagreement(backend: Backend, precision: str, embedding_size: int, device: torch.device) -> str | None:
    """What `backend` computes otherwise than the chunked one in fp32, on a small random problem; None where they agree."""
    reference = ChunkedBackend(Fp32(), CLASSES, SAMPLES)
    tolerance = TOLERANCE[precision]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        generator = torch.Generator().manual_seed(0)
        rows_nD, momentum_nD, x_BD = (
            torch.randn(size, embedding_size, generator=generator).to(device) for size in (CLASSES, CLASSES, SAMPLES)
        )
        own_B = torch.randint(CLASSES, (SAMPLES,), generator=generator).to(device) + FIRST
        x_BD = F.normalize(x_BD + rows_nD[own_B - FIRST], dim=1)
        x_BD[-3:], own_B[-3:] = 0.0, -1
        stores = [RowStore(FIRST, rows_nD.to(dtype, copy=True), (momentum_nD * 1e-3).to(dtype)) for _ in range(2)]
        mine, theirs = (each.scan(stores[1], x_BD, own_B, HARDEST, TEMPERATURE) for each in (backend, reference))
        again = backend.scan(stores[0], x_BD, own_B, HARDEST, TEMPERATURE)
        if not (torch.equal(mine.partition_B, again.partition_B) and torch.equal(mine.pull_BD, again.pull_BD)):
            return f"the first pass ({dtype} rows) is not the same twice"
        batch = SecondPass(x_BD, theirs.partition_B, (own_B >= 0).float() / SAMPLES, _pairs(stores[1].rows_nD, x_BD, own_B, theirs.key_BK))
        compared = [
            ("partition sum", mine.partition_B, theirs.partition_B, tolerance),
            ("pull", mine.pull_BD, theirs.pull_BD, tolerance),
            ("hardest scores", key_scores(mine.key_BK[:-3]), key_scores(theirs.key_BK[:-3]), 1e-6),
            ("rows' gradient", *(_gradient(each, stores[1], batch) for each in (backend, reference)), tolerance),
        ]
        for each, store in zip((backend, reference), stores, strict=True):
            each.update(store, batch, TEMPERATURE, SGD(0.5, 0.9, 1e-4, 3))
        # Of two neighbours in 16 bits the same is taken but where the fp32 numbers lie on two sides of the noise.
        between = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
        compared.append(("updated rows", stores[0].rows_nD, stores[1].rows_nD, tolerance + between))
        compared.append(("updated momentum", stores[0].momentum_nD, stores[1].momentum_nD, tolerance + between))
        for name, a, b, most in compared:
            error = ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()
            if not error <= most:  # also if it is no number
                return f"{name} ({dtype} rows): relative error {error:.2g}, at most {most:.2g} expected"
        if dtype != torch.float32 and not (stores[0].rows_nD == stores[1].rows_nD).float().mean().item() > 0.75:
            return f"rows in {dtype} are not rounded alike"
    return None


def _pairs(rows_nD: Tensor, x_BD: Tensor, own_B: Tensor, key_BK: Tensor) -> TargetPairs:
    sample_T = (own_B >= 0).nonzero()[:, 0]
    class_T = own_B[sample_T] - FIRST
    weight_T = torch.full(class_T.shape, 1 - SMOOTHING, device=x_BD.device)
    own = TargetPairs(sample_T, class_T, weight_T, score_pairs(rows_nD, x_BD, class_T, sample_T))
    key_T = key_BK[sample_T].flatten()
    weight_T = torch.full(key_T.shape, SMOOTHING / HARDEST, device=x_BD.device)
    return in_order_of_samples(
        own, TargetPairs(sample_T.repeat_interleave(HARDEST), key_classes(key_T) - FIRST, weight_T, key_scores(key_T))
    )


def _gradient(backend: Backend, store: RowStore, batch: SecondPass) -> Tensor:
    return torch.cat([gradient_CD.clone() for _, gradient_CD in backend.row_gradients(store, batch, TEMPERATURE, update=False)])
