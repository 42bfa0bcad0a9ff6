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

from trainer.classifier.loss import SoftTargets, row_gradients, scan, target_classes, target_pull
from trainer.classifier.shard import all_gather, all_reduce, this_shard
from trainer.partition import set_partition


class Zero3Classifier(nn.Module):
    """`loss = classifier(x_bD, instance_b)`, then the engine's backward and step. `rows_ND` is an fp32 parameter."""

    def __init__(self, num_classes: int, embedding_size: int, targets: SoftTargets, *, chunk_size: int = 8192) -> None:
        super().__init__()
        self.num_classes, self.targets, self.chunk_size = num_classes, targets, chunk_size
        self.rows_ND = nn.Parameter(torch.zeros(num_classes, embedding_size))
        self.hardest_NK: Tensor | None = None

    def forward(self, x_bD: Tensor, instance_b: Tensor) -> Tensor:
        """As ShardedClassifier.__call__: the mean over ranks is the mean over the global batch."""
        world_size = this_shard(self.num_classes).world_size
        num_samples = all_reduce(torch.tensor(float(len(x_bD)), device=x_bD.device), world_size)
        hardest_bK = None if self.hardest_NK is None else self.hardest_NK[instance_b]
        x_bD = F.normalize(x_bD.float(), dim=1)
        return _Loss.apply(x_bD, self.rows_ND, instance_b, hardest_bK, self.targets, world_size / num_samples, self.chunk_size)

    def step(self, learning_rate: float) -> None:
        """Nothing: the engine's optimiser updates the rows."""

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
        chunk_size: int,
    ) -> Tensor:
        rows = rows_ND.float()
        seen = targets if hardest_bK is None else SoftTargets(targets.temperature, 0.0, 0)
        found = scan(rows, 0, x_bD, instance_b, seen, chunk_size)
        hardest_bK = found.top_classes_BK if hardest_bK is None else hardest_bK
        class_bT, weight_bT = target_classes(instance_b, hardest_bK.to(instance_b.dtype), targets)
        target_bD = target_pull(rows, 0, class_bT, weight_bT)
        log_partition_b = found.partition_B.log().float() + 1 / targets.temperature
        gradient_bD = (found.pull_BD / found.partition_B[:, None].float() - target_bD) / targets.temperature
        ctx.save_for_backward(x_bD, rows_ND, gradient_bD * scale, found.partition_B, class_bT, weight_bT, scale)
        ctx.temperature, ctx.chunk_size = targets.temperature, chunk_size
        return (log_partition_b - (x_bD * target_bD).sum(1) / targets.temperature).sum() * scale

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        x_bD, rows_ND, gradient_bD, partition_b, class_bT, weight_bT, scale = ctx.saved_tensors
        gradient_ND = torch.empty(rows_ND.shape, device=rows_ND.device)
        scale_b = scale.expand(len(x_bD)) * grad_loss
        for chunk, gradient_CD in row_gradients(
            rows_ND.float(), 0, x_bD, partition_b, class_bT, weight_bT, scale_b, ctx.temperature, ctx.chunk_size
        ):
            gradient_ND[chunk] = gradient_CD
        return gradient_bD * grad_loss, gradient_ND.to(rows_ND.dtype), None, None, None, None, None
