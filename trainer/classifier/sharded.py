"""The classifier with its rows split over the ranks (the paper's hybrid parallelism): features travel, rows stay.

A step, on rank r of P, with b samples here and B in all:

    all-gather          x_hat, instance         B x D
    scan own rows       partition, pull, top-K
    all-reduce          partition               B
    all-to-all          top-K candidates to the samples' owners, who merge them
    all-gather          the K winners           B x K
    reduce-scatter      gradient of x_hat, target score     B x (D + 1)
    row update          after the encoder's step, chunk by chunk, in place

Nothing that travels grows with N. The rows are beside DeepSpeed's engine, not in it: the engine would broadcast rank 0's
shard over the others.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.classifier.loss import SoftTargets, merge_top_k, row_gradients, scan, target_classes, target_pull
from trainer.classifier.shard import Shard, all_gather, all_reduce, exchange, reduce_scatter, this_shard


class ShardedClassifier:
    """`loss = classifier(x_bD, instance_b)`, then `loss.backward()`, then `classifier.step(learning_rate)`.

    `rows_nD` are this rank's rows (fp32), `momentum_nD` their momentum; `capacity` is the most samples that any rank passes
    in a step. `hardest_nK`, if set, holds the hardest classes of each own class (similarity.py); otherwise they are those
    with the highest score of each sample.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        targets: SoftTargets,
        *,
        capacity: int,
        chunk_size: int = 8192,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shard: Shard = this_shard(num_classes)
        self.targets, self.capacity, self.chunk_size = targets, capacity, chunk_size
        self.momentum, self.weight_decay = momentum, weight_decay
        self.rows_nD = torch.zeros(len(self.shard), embedding_size, device=device)
        self.momentum_nD = torch.zeros_like(self.rows_nD)
        self.hardest_nK: Tensor | None = None
        self._pending: dict[str, Tensor] | None = None

    def __call__(self, x_bD: Tensor, instance_b: Tensor) -> Tensor:
        """The loss of this rank's samples: its mean over ranks is the mean over all samples of the global batch, and so is
        that of the gradients, as DeepSpeed averages them. Ranks may pass different numbers of samples, also none."""
        if len(x_bD) > self.capacity:
            raise ValueError(f"{len(x_bD)} samples on rank {self.shard.rank}, the classifier was built for at most {self.capacity}")
        return _Loss.apply(F.normalize(x_bD.float(), dim=1), instance_b, self)

    @torch.no_grad()
    def loss_and_gradient(self, x_bD: Tensor, instance_b: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and gradient towards the normalised features; keeps what `step` needs for the rows."""
        P, b, shard = self.shard.world_size, len(x_bD), self.shard
        # Every rank sends the same number of samples; padding has instance -1 and counts nowhere.
        padding = self.capacity - b
        x_BD = all_gather(F.pad(x_bD, (0, 0, 0, padding)), P)
        instance_B = all_gather(F.pad(instance_b, (0, padding), value=-1), P)
        valid_B = instance_B >= 0
        num_samples = valid_B.sum()

        by_score = self.hardest_nK is None
        seen = self.targets if by_score else SoftTargets(self.targets.temperature, 0.0, 0)
        found = scan(self.rows_nD, shard.start, x_BD, instance_B, seen, self.chunk_size)
        partition_B = all_reduce(found.partition_B, P)
        hardest_BK = self._merge(found.top_values_BK, found.top_classes_BK) if by_score else self._look_up(instance_B)
        class_BT, weight_BT = target_classes(instance_B, hardest_BK, self.targets)

        target_BD = target_pull(self.rows_nD, shard.start, class_BT, weight_BT)
        gradient_BD = (found.pull_BD / partition_B[:, None].float() - target_BD) / self.targets.temperature
        score_B1 = (x_BD * target_BD).sum(1, keepdim=True)
        mine = reduce_scatter(torch.cat([gradient_BD, score_B1], 1), P)[:b]

        # The mean over all samples, times P: ranks' losses and gradients are averaged afterwards.
        scale = P / num_samples
        first = shard.rank * self.capacity
        log_partition_b = partition_B[first : first + b].log().float() + 1 / self.targets.temperature
        loss = (log_partition_b - mine[:, -1] / self.targets.temperature).sum() * scale
        self._pending = {
            "x_BD": x_BD,
            "partition_B": partition_B,
            "class_BT": class_BT,
            "weight_BT": weight_BT,
            "scale_B": valid_B / num_samples,
        }
        return loss, mine[:, :-1] * scale

    def step(self, learning_rate: float) -> None:
        """SGD with momentum and weight decay on this rank's rows (torch.optim.SGD's arithmetic), for the last call. Not
        calling it skips the update, as after an fp16 overflow."""
        assert self._pending is not None, "step() without a loss before it"
        pending, self._pending = self._pending, None
        with torch.no_grad():
            for chunk, gradient_CD in row_gradients(
                self.rows_nD,
                self.shard.start,
                **pending,
                temperature=self.targets.temperature,
                chunk_size=self.chunk_size,
            ):
                rows_CD, momentum_CD = self.rows_nD[chunk], self.momentum_nD[chunk]
                momentum_CD.mul_(self.momentum).add_(gradient_CD).add_(rows_CD, alpha=self.weight_decay)
                rows_CD.add_(momentum_CD, alpha=-learning_rate)

    def write_rows(self, instance_b: Tensor, x_bD: Tensor) -> None:
        """Set the rows of the classes `instance_b`, given by any rank, at their owners. Every rank calls with the same b."""
        P, shard = self.shard.world_size, self.shard
        instance_B, x_BD = all_gather(instance_b, P), all_gather(x_bD.float(), P)
        own_B = (instance_B >= shard.start) & (instance_B < shard.stop)
        self.rows_nD[instance_B[own_B] - shard.start] = x_BD[own_B]

    def _merge(self, value_BK: Tensor, class_BK: Tensor) -> Tensor:
        """The hardest classes over all shards, of all samples [B, K]. Each sample's owner merges its candidates."""
        P, K = self.shard.world_size, value_BK.shape[1]
        if P == 1 or K == 0:
            return class_BK
        value_PbK = exchange(value_BK, P).view(P, self.capacity, K)
        class_PbK = exchange(class_BK, P).view(P, self.capacity, K)
        # Candidates in rank order are in class order: of equal scores the lower rank's win.
        merged_bK = merge_top_k(value_PbK.transpose(0, 1).flatten(1), class_PbK.transpose(0, 1).flatten(1), K)[1]
        return all_gather(merged_bK, P)

    def _look_up(self, instance_B: Tensor) -> Tensor:
        """The hardest classes of each sample's own class, from the owners' tables [B, K]."""
        assert self.hardest_nK is not None
        own_B = (instance_B >= self.shard.start) & (instance_B < self.shard.stop)
        hardest_BK = instance_B.new_zeros(len(instance_B), self.hardest_nK.shape[1])
        hardest_BK[own_B] = self.hardest_nK[instance_B[own_B] - self.shard.start].to(hardest_BK.dtype)
        hardest_BK = all_reduce(hardest_BK, self.shard.world_size)
        return hardest_BK.masked_fill((instance_B < 0)[:, None], -1)


class _Loss(torch.autograd.Function):
    """Forward: the classifier's collectives, and the gradient at once (the scan yields both). Backward: no collective."""

    @staticmethod
    def forward(ctx: Any, x_bD: Tensor, instance_b: Tensor, classifier: ShardedClassifier) -> Tensor:
        loss, gradient_bD = classifier.loss_and_gradient(x_bD, instance_b)
        ctx.save_for_backward(gradient_bD)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        (gradient_bD,) = ctx.saved_tensors
        return gradient_bD * grad_loss, None, None
