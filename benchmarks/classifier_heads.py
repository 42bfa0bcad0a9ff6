"""The heads that the classifier's benchmark compares, by name: ours as training calls it, and the peers as well as they can be used.

ours-PRECISION[-smoothed|-rows]         our classifier with products in fp32, bf16 or fp16; -rows: bf16 rows and momentum as well
ours-chunked-PRECISION                  the same without Triton, what a V100 runs
dense[-bf16|-compiled]                  F.cross_entropy over all scores, torch.optim.SGD
dense-smoothed                          our oracle (trainer/classifier/oracle.py), written for reading
dense-smoothed-lean                     the same targets with no B x N tensor but the scores and their gradient
linear_cross_entropy[-auto]             F.linear_cross_entropy in four chunks of the batch; -auto: as its own rule has it
partial_fc-RATE[-bf16]                  PartialFC (An et al., CVPR 2022, arXiv 2203.15565) on one rank; a rate under 1 samples negatives
cut-cross-entropy                       Wijmans et al., ICLR 2025, without its filter of small gradients (`cce_exact`)
liger[-auto]                            liger-kernel's fused linear cross entropy in four chunks of the batch; -auto: its own rule
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks import classifier_peers as peers
from benchmarks.classifier_inputs import Problem
from benchmarks.classifier_peers import LossFunction, Unavailable
from service.sizing import GPU_SCORES
from trainer.classifier.build import DTYPES
from trainer.classifier.choose import choose_backend
from trainer.classifier.chunked import ChunkedBackend
from trainer.classifier.products import Fp32, HalfIn
from trainer.classifier.sharded import ShardedClassifier


class Head(Protocol):
    rows_ND: Tensor
    momentum_ND: Tensor
    backend: str

    def step(self, x_BD: Tensor, instance_B: Tensor) -> Tensor:
        """Forward, backward to x (a leaf) and the rows, update; the loss."""
        ...


def build(name: str, problem: Problem) -> Head:
    """Rows are yet to be filled. Raises `Unavailable`, or `ValueError` for a name that is none of the above."""
    first, *options = name.split("-")
    if first == "ours" and DTYPES.keys() & set(options) and set(options) <= {*DTYPES, "chunked", "smoothed", "rows"}:
        return Ours(problem, options)
    if first == "partial_fc" and options:
        return peers.PartialFC(problem, float(options[0]), in_bf16="bf16" in options)
    if name == "dense-smoothed":
        return peers.Smoothed(problem)
    losses: dict[str, Callable[[Problem], LossFunction]] = {
        "dense": lambda _: partial(peers.dense, problem),
        "dense-plain": lambda _: partial(peers.dense_plain, problem),
        "dense-bf16": lambda _: partial(peers.dense, problem, in_bf16=True),
        "dense-compiled": lambda _: torch.compile(lambda *tensors: peers.dense(problem, *tensors), dynamic=False),
        "dense-smoothed-lean": lambda _: partial(peers.dense_smoothed, problem),
        "linear_cross_entropy": peers.linear_cross_entropy,
        "linear_cross_entropy-auto": partial(peers.linear_cross_entropy, auto=True),
        "cut-cross-entropy": peers.cut_cross_entropy,
        "liger": peers.liger,
        "liger-auto": partial(peers.liger, auto=True),
    }
    if name not in losses:
        raise ValueError(f"no head {name!r}; there are ours-PRECISION, partial_fc-RATE, dense-smoothed, {', '.join(losses)}")
    return peers.ByAutograd(problem, losses[name](problem))


def rows_dtype(name: str, problem: Problem) -> str:
    """Precision of a head's rows and momentum."""
    if not name.startswith("ours"):
        return "fp32"
    return "bf16" if "rows" in name.split("-") else problem.rows


def needed_bytes(name: str, problem: Problem) -> int:
    """About what a head takes with its rows and momentum: a caution before memory is taken from others."""
    rows, scores = 4 * problem.classes * problem.embedding, 4 * problem.classes * problem.batch
    if name.startswith("ours"):
        return 2 * rows + (1 << 29)
    share = float(name.split("-")[1]) if name.startswith("partial_fc") else 1.0
    copies = {"dense-smoothed": 9.0, "linear_cross_entropy": 1.0, "linear_cross_entropy-auto": 0.1, "partial_fc": 1.5}
    return int(2 * rows + 3 * share * rows + copies.get(name, copies.get(name.split("-")[0], 3.5)) * share * scores)


class Ours:
    def __init__(self, problem: Problem, options: list[str]) -> None:
        self._learning_rate, self._number = problem.learning_rate, 0
        (precision,) = DTYPES.keys() & set(options)
        device = torch.device(problem.device)
        if "chunked" in options:
            products = Fp32() if precision == "fp32" else HalfIn(DTYPES[precision])
            backend: Any = ChunkedBackend(products, max(256, GPU_SCORES // problem.batch), problem.batch)
        else:
            backend = choose_backend(device, precision, problem.batch, problem.embedding)
        if precision not in backend.name:
            raise Unavailable(f"no {precision} products here, training would take {backend.name}")
        dtype = DTYPES[rows_dtype("-".join(["ours", *options]), problem)]
        self.classifier = ShardedClassifier(
            problem.classes,
            problem.embedding,
            problem.targets("smoothed" in options),
            capacity=problem.batch,
            momentum=problem.momentum,
            weight_decay=problem.weight_decay,
            device=device,
            rows_dtype=dtype,
            momentum_dtype=dtype,
            backend=backend,
        )
        self.rows_ND, self.momentum_ND, self.backend = self.classifier.rows_nD, self.classifier.momentum_nD, backend.name

    def step(self, x_BD: Tensor, instance_B: Tensor) -> Tensor:
        loss = self.classifier(x_BD, instance_B)
        loss.backward()
        self.classifier.step(self._learning_rate, self._number)
        self._number += 1
        return loss.detach()
