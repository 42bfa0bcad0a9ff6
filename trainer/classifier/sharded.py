"""The classifier with its rows split over the ranks (the paper's hybrid parallelism): features travel, rows stay.

A step, on rank r of P, with b samples here and B in all:

    all-gather          x_hat; instance         B x D; B
    scan own rows       partition, pull, own K hardest
    all-reduce          partition               B
    all-to-all          keys of the K hardest to the samples' owners, who merge them        B x K
    all-gather          the least key among the K winners; each rank knows then which of its own are among them      B
    reduce-scatter      gradient of x_hat, target score     B x (D + 1)
                        (as all-to-all, summed in the order of the ranks)
    row update          after the encoder's step, chunk by chunk, in place

By class similarity an all-reduce of the hardest classes, B x K, is in the place of the keys. Nothing that travels grows with N. The
all-reduce and the all-to-all are under way together, beside the scores of the own classes. The rows are beside DeepSpeed's engine, not
in it: the engine would broadcast rank 0's shard over the others.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.classifier.backend import Backend, SecondPass, join_passes
from trainer.classifier.choose import choose_backend
from trainer.classifier.host_store import HostRowStore
from trainer.classifier.shard import (
    Shard,
    all_gather,
    all_reduce,
    reduce_scatter,
    start_all_gather,
    start_all_reduce,
    start_exchange,
    this_shard,
)
from trainer.classifier.store import SGD, RowStore
from trainer.classifier.targets import SoftTargets, TargetPairs, in_order_of_samples, pull_of, score_pairs
from trainer.classifier.topk import NONE, key_classes, key_scores, merge_keys


class ShardedClassifier:
    """`loss = classifier(x_bD, instance_b)`, then `loss.backward()`, then `classifier.step(learning_rate)`.

    `rows_nD` are this rank's rows, `momentum_nD` their momentum; `capacity` is the most samples that any rank passes in a call.
    `hardest_nK`, if set, holds the hardest classes of each own class (similarity.py); otherwise they are those with the highest
    score of each sample.

    Gradient accumulation: of several calls before a `step`, the step is that of the mean of their losses; exactly that of one call with
    all their samples where they have equally many. A loss that no step is to follow is forgotten by
    `skip_step`.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        targets: SoftTargets,
        *,
        capacity: int,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        device: torch.device | str = "cpu",
        rows_on: Literal["device", "host"] = "device",
        rows_dtype: torch.dtype = torch.float32,
        momentum_dtype: torch.dtype = torch.float32,
        backend: Backend | None = None,
    ) -> None:
        """`rows_on` host: rows and momentum stay in host memory and travel to `device` chunk by chunk. `backend`: in the place of the one
        that is chosen for fp32 on `device`."""
        self.shard: Shard = this_shard(num_classes)
        self.targets, self.capacity = targets, capacity
        self.momentum, self.weight_decay = momentum, weight_decay
        size, kept = (len(self.shard), embedding_size), "cpu" if rows_on == "host" else device
        rows_nD, momentum_nD = (torch.zeros(size, device=kept, dtype=dtype) for dtype in (rows_dtype, momentum_dtype))
        self.store = RowStore(self.shard.start, rows_nD, momentum_nD)
        if rows_on == "host":
            self.store = HostRowStore(self.shard.start, rows_nD, momentum_nD, torch.device(device))
        self.rows_nD, self.momentum_nD = self.store.rows_nD, self.store.momentum_nD
        samples = capacity * self.shard.world_size
        self.backend = backend or choose_backend(torch.device(device), "fp32", samples, embedding_size)
        self.hardest_nK: Tensor | None = None
        self._pending: list[SecondPass] = []

    def __call__(self, x_bD: Tensor, instance_b: Tensor) -> Tensor:
        """The loss of this rank's samples: its mean over ranks is the mean over all samples of the global batch, and so is
        that of the gradients, as DeepSpeed averages them. Ranks may pass different numbers of samples, also none."""
        if len(x_bD) > self.capacity:
            raise ValueError(f"{len(x_bD)} samples on rank {self.shard.rank}, the classifier was built for at most {self.capacity}")
        return _Loss.apply(F.normalize(x_bD.float(), dim=1), instance_b, self)

    @torch.no_grad()
    def loss_and_gradient(self, x_bD: Tensor, instance_b: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and gradient towards the normalised features; keeps what `step` needs for the rows."""
        P, b, shard, tau = self.shard.world_size, len(x_bD), self.shard, self.targets.temperature
        # Every rank sends the same number of samples; padding has instance -1 and counts nowhere.
        padding = self.capacity - b
        x = start_all_gather(F.pad(x_bD, (0, 0, 0, padding)), P)
        instance = start_all_gather(F.pad(instance_b, (0, padding), value=-1), P)
        x_BD, instance_B = x.wait(), instance.wait()
        valid_B = instance_B >= 0
        num_samples = valid_B.sum()

        by_score = self.hardest_nK is None
        found = self.backend.scan(self.store, x_BD, instance_B, self.targets.num_hardest if by_score else 0, tau)
        partition, keys = start_all_reduce(found.partition_B, P), start_exchange(found.key_BK, P)
        own = self._own_pairs(x_BD, instance_B)
        hardest = self._winners(found.key_BK, keys.wait()) if by_score else self._by_similarity(x_BD, instance_B)
        pairs = in_order_of_samples(own, hardest)
        target_BD = pull_of(self.rows_nD, pairs, len(x_BD))
        partition_B = partition.wait()
        gradient_BD = (found.pull_BD / partition_B[:, None].float() - target_BD) / tau
        score_B1 = (x_BD * target_BD).sum(1, keepdim=True)
        mine = reduce_scatter(torch.cat([gradient_BD, score_B1], 1), P)[:b]

        # The mean over all samples, times P: ranks' losses and gradients are averaged afterwards.
        scale = P / num_samples
        first = shard.rank * self.capacity
        log_partition_b = partition_B[first : first + b].log().float()
        loss = (log_partition_b - mine[:, -1] / tau).sum() * scale
        self._pending.append(SecondPass(x_BD, partition_B, valid_B / num_samples, pairs))
        return loss, mine[:, :-1] * scale

    def step(self, learning_rate: float, number: int = 0) -> None:
        """SGD with momentum and weight decay on this rank's rows (torch.optim.SGD's arithmetic), for the calls since the last
        step. `number`: of the step in the run, of which the noise of stochastic rounding is a function."""
        assert self._pending, "step() without a loss before it"
        sgd = SGD(learning_rate, self.momentum, self.weight_decay, number)
        with torch.no_grad():
            self.backend.update(self.store, join_passes(self._pending), self.targets.temperature, sgd)
        self._pending = []

    def skip_step(self) -> None:
        """Forget the calls since the last step, as the encoder's optimiser does after an fp16 overflow."""
        self._pending = []

    def write_rows(self, instance_b: Tensor, x_bD: Tensor) -> None:
        """Set the rows of the classes `instance_b` (distinct; -1 is none), given by any rank, at their owners. Every rank calls with the
        same b."""
        P, shard = self.shard.world_size, self.shard
        instance_B, x_BD = all_gather(instance_b, P), all_gather(x_bD.float(), P)
        own_B = (instance_B >= shard.start) & (instance_B < shard.stop)
        at_T = (instance_B[own_B] - shard.start).to(self.rows_nD.device)
        self.rows_nD[at_T] = x_BD[own_B].to(self.rows_nD)

    def _own_pairs(self, x_BD: Tensor, instance_B: Tensor) -> TargetPairs:
        """The samples whose own class is in this shard."""
        sample_T = ((instance_B >= self.shard.start) & (instance_B < self.shard.stop)).nonzero()[:, 0]
        class_T = instance_B[sample_T] - self.shard.start
        alpha = self.targets.smoothing if self.targets.num_hardest else 0.0
        weight_T = torch.full(class_T.shape, 1 - alpha, device=x_BD.device)
        return TargetPairs(sample_T, class_T, weight_T, score_pairs(self.rows_nD, x_BD, class_T, sample_T))

    def _winners(self, key_BK: Tensor, key_PbK: Tensor) -> TargetPairs:
        """Those of this shard's K hardest that are among the K hardest over all shards. `key_PbK`: all shards', of the own samples."""
        P, K = self.shard.world_size, self.targets.num_hardest
        if K and P > 1:
            merged_bK = merge_keys(key_PbK.view(P, self.capacity, K).transpose(0, 1).flatten(1), K)
            least_B1 = all_gather(merged_bK[:, -1].contiguous(), P)[:, None]
        else:
            least_B1 = key_BK.new_full((len(key_BK), 1), NONE)
        sample_T, place_T = ((key_BK >= least_B1) & (key_BK != NONE)).nonzero(as_tuple=True)
        key_T = key_BK[sample_T, place_T]
        weight_T = torch.full(key_T.shape, self.targets.smoothing / max(1, K), device=key_T.device)
        return TargetPairs(sample_T, key_classes(key_T) - self.shard.start, weight_T, key_scores(key_T))

    def _by_similarity(self, x_BD: Tensor, instance_B: Tensor) -> TargetPairs:
        """The hardest classes of each sample's own class, from the owners' tables, that lie in this shard."""
        assert self.hardest_nK is not None
        shard, K = self.shard, self.hardest_nK.shape[1]
        own_B = (instance_B >= shard.start) & (instance_B < shard.stop)
        hardest_BK = torch.zeros(len(instance_B), K, dtype=torch.int32, device=instance_B.device)
        hardest_BK[own_B] = self.hardest_nK[instance_B[own_B] - shard.start]
        hardest_BK = all_reduce(hardest_BK, shard.world_size)
        inside_BK = (hardest_BK >= shard.start) & (hardest_BK < shard.stop) & (instance_B >= 0)[:, None]
        sample_T, place_T = inside_BK.nonzero(as_tuple=True)
        class_T = hardest_BK[sample_T, place_T].long() - shard.start
        weight_T = torch.full(class_T.shape, self.targets.smoothing / K, device=class_T.device)
        return TargetPairs(sample_T, class_T, weight_T, score_pairs(self.rows_nD, x_BD, class_T, sample_T))


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
