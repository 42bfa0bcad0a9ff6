"""The classifier as a parameter that DeepSpeed's ZeRO-3 partitions, and gathers whole on every rank in each step.

The measured alternative to sharded.py, behind the same call. It is a submodule of the engine's model; the engine averages
its gradient over the ranks and its optimiser updates it. Each rank scores its own samples against all N rows.
"""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
import torch.nn.functional as F
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn

from trainer.classifier.backend import Backend, SecondPass
from trainer.classifier.choose import choose_backend
from trainer.classifier.shard import all_gather, all_reduce, this_shard
from trainer.classifier.store import RowStore
from trainer.classifier.targets import SoftTargets, TargetPairs, pull_of, score_pairs
from trainer.classifier.topk import key_classes, key_scores
from trainer.partition import set_partition


class Zero3Classifier(nn.Module):
    """`loss = classifier(x_bD, instance_b)`, then the engine's backward and step. `rows_ND` is an fp32 parameter."""

    def __init__(
        self, num_classes: int, embedding_size: int, targets: SoftTargets, *, capacity: int = 256, backend: Backend | None = None
    ) -> None:
        """`capacity`: the most samples that a rank passes in a call; `backend`: in the place of the one chosen for fp32 on the CPU."""
        super().__init__()
        self.num_classes, self.targets = num_classes, targets
        self.backend = backend or choose_backend(torch.device("cpu"), "fp32", capacity, embedding_size)
        self.rows_ND = nn.Parameter(torch.zeros(num_classes, embedding_size))
        self.hardest_NK: Tensor | None = None

    def forward(self, x_bD: Tensor, instance_b: Tensor) -> Tensor:
        """As ShardedClassifier.__call__, ranks without samples included: the mean over ranks is the mean over the global batch."""
        world_size = this_shard(self.num_classes).world_size
        num_samples = all_reduce(torch.tensor(float(len(x_bD)), device=x_bD.device), world_size)
        hardest_bK = None if self.hardest_NK is None else self.hardest_NK[instance_b]
        x_bD = F.normalize(x_bD.float(), dim=1)
        return _Loss.apply(x_bD, self.rows_ND, instance_b, hardest_bK, self.targets, world_size / num_samples, self.backend)

    def step(self, learning_rate: float, number: int = 0) -> None:
        """Nothing: the engine's optimiser updates the rows."""

    def skip_step(self) -> None:
        """Nothing: the engine's optimiser skips the rows' update."""

    def write_rows(self, instance_b: Tensor, x_bD: Tensor) -> None:
        """Set the rows of the classes `instance_b`, given by any rank, on all ranks. Every rank calls with the same b, once
        the engine has the parameter."""
        world_size = this_shard(self.num_classes).world_size
        instance_B, x_BD = all_gather(instance_b, world_size), all_gather(x_bD.float(), world_size)
        rows_ND = safe_get_full_fp32_param(self.rows_ND)
        rows_ND[instance_B[instance_B >= 0]] = x_BD[instance_B >= 0]
        set_partition(self.rows_ND, rows_ND)
        # The forward pass reads another copy than the optimiser, which would put its own back in the first step.
        with torch.no_grad(), deepspeed.zero.GatheredParameters([self.rows_ND], modifier_rank=0):
            self.rows_ND.copy_(rows_ND)


class _Loss(torch.autograd.Function):
    """The chunked loss over all rows, and their dense gradient, which ZeRO-3 reduces and partitions."""

    @staticmethod
    def forward(
        ctx: Any,
        x_bD: Tensor,
        rows_ND: Tensor,
        instance_b: Tensor,
        hardest_bK: Tensor | None,
        targets: SoftTargets,
        scale: Tensor,
        backend: Backend,
    ) -> Tensor:
        tau, store = targets.temperature, RowStore(0, rows_ND.detach().float(), rows_ND.new_empty(0))
        found = backend.scan(store, x_bD, instance_b, targets.num_hardest if hardest_bK is None else 0, tau)
        pairs = _pairs(store.rows_nD, x_bD, instance_b, found.key_BK, hardest_bK, targets)
        target_bD = pull_of(store.rows_nD, pairs, len(x_bD))
        gradient_bD = (found.pull_BD / found.partition_B[:, None].float() - target_bD) / tau
        ctx.save_for_backward(x_bD, rows_ND, gradient_bD * scale)
        ctx.targets, ctx.backend, ctx.pairs, ctx.partition_b, ctx.scale = targets, backend, pairs, found.partition_B, scale
        return (found.partition_B.log().float() - (x_bD * target_bD).sum(1) / tau).sum() * scale

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        x_bD, rows_ND, gradient_bD = ctx.saved_tensors
        batch = SecondPass(x_bD, ctx.partition_b, (ctx.scale * grad_loss).float().expand(len(x_bD)), ctx.pairs)
        store = RowStore(0, rows_ND.detach().float(), rows_ND.new_empty(0))
        gradient_ND = torch.empty(rows_ND.shape, device=rows_ND.device)
        for chunk, gradient_CD in ctx.backend.row_gradients(store, batch, ctx.targets.temperature, update=False):
            gradient_ND[chunk.at] = gradient_CD
        return gradient_bD * grad_loss, gradient_ND.to(rows_ND.dtype), None, None, None, None, None


def _pairs(
    rows_ND: Tensor, x_bD: Tensor, instance_b: Tensor, key_bK: Tensor, hardest_bK: Tensor | None, targets: SoftTargets
) -> TargetPairs:
    """Each sample's own class and its hardest, all of them here."""
    K, b = targets.num_hardest, len(x_bD)
    classes_bK = key_classes(key_bK) if hardest_bK is None else hardest_bK.long()
    class_bT = torch.cat([instance_b[:, None], classes_bK], 1)
    sample_bT = torch.arange(b, device=x_bD.device)[:, None].expand_as(class_bT)
    weight_bT = torch.full(class_bT.shape, targets.smoothing / max(1, K), device=x_bD.device)
    weight_bT[:, 0] = 1 - (targets.smoothing if K else 0.0)
    if hardest_bK is None:
        own_b = score_pairs(rows_ND, x_bD, instance_b, sample_bT[:, 0])
        score_bT = torch.cat([own_b[:, None], key_scores(key_bK)], 1)
    else:
        score_bT = score_pairs(rows_ND, x_bD, class_bT.flatten(), sample_bT.flatten())
    is_class_T = (class_bT >= 0).flatten()
    return TargetPairs(*(part.flatten()[is_class_T] for part in (sample_bT, class_bT, weight_bT, score_bT)))
